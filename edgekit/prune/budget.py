"""What a network is pruned to: a share of what it costs, or an amount."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from edgekit.errors import UsageError
from edgekit.units import parse_duration, parse_percent, parse_size

NANO = 1e9
FEW = 100
"""An amount below that was meant as a share."""


def _number(text: str | float) -> float:
    """A plain number.

    Raises:
        UsageError: it is none.
    """
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"{text!r} is not a number. Write it like 2e7.") from None


UNITS: dict[str, tuple[Callable[[str | float], float], str]] = {
    "macs": (_number, "0.5 to keep half of the multiply-accumulates, or their number"),
    "parameters": (_number, "0.5 to keep half of the weights, or their number"),
    "bytes": (parse_size, "0.5 to keep half, or a size such as 500 kB"),
    "memory": (parse_size, "0.5 to keep half, or a size such as 200 kB"),
    "latency": (lambda text: parse_duration(text) * NANO, "0.7 for 30 % less time, or a time such as 5 ms"),
}
"""Budget -> how an amount is read (latency in nanoseconds), and examples."""


@dataclass(frozen=True)
class Budget:
    """`share` of the whole network's cost may remain, or `amount` (in the cost's own unit)."""

    kind: str
    share: float | None = None
    amount: float | None = None

    def of(self, total: float) -> float:
        """The share of `total` that may remain; 1 where the amount is no less than that."""
        if self.share is not None:
            return self.share
        assert self.amount is not None
        return min(1.0, self.amount / total)


def read_budget(kind: str, value: float | str) -> Budget:
    """A budget as written in a recipe: a number up to 1 or text in percent is a share, anything else an amount.

    Raises:
        ValueError: it is neither, or not above zero.

    >>> read_budget("latency", "5 ms")
    Budget(kind='latency', share=None, amount=5000000.0)
    >>> read_budget("macs", 0.5), read_budget("macs", 2e7), read_budget("bytes", "50%").share
    (Budget(kind='macs', share=0.5, amount=None), Budget(kind='macs', share=None, amount=20000000.0), 0.5)
    """
    read, example = UNITS[kind]
    try:
        if isinstance(value, str) and value.strip().endswith("%"):
            found = Budget(kind, share=parse_percent(value))
        elif isinstance(value, str):
            found = Budget(kind, amount=read(value))
        elif value <= 1:
            found = Budget(kind, share=float(value))
        else:
            if kind == "latency":
                raise UsageError(f"{value!r} has no unit.")
            found = Budget(kind, amount=read(value))
    except UsageError as error:
        raise ValueError(f"{error} Use {example}") from None
    given = found.share if found.share is not None else found.amount
    small = found.amount is not None and kind != "latency" and found.amount < FEW
    if given is None or given <= 0 or (found.share or 0) > 1 or small:
        raise ValueError(f"must be in (0, 1], or an amount, got {value!r}. Use {example}")
    return found
