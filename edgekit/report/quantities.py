"""Numbers as people read them. Units: "share", "points", "s", "J", "bytes", "ratio", "nats", "dB"."""

from __future__ import annotations

from edgekit.report.values import Bounds

NOTHING = "-"


def show(value: float | None, unit: str) -> str:
    """A number with its unit, at a sensible precision.

    >>> show(0.9312, "share"), show(0.00481, "s"), show(2_000_000, "bytes"), show(0.0042, "points"), show(0.0031, "J")
    ('93.12 %', '4.81 ms', '2.00 MB', '0.42 pp', '3.10 mJ')
    """
    if value is None:
        return NOTHING
    number, suffix = _scaled(value, unit)
    return f"{number}{suffix}"


def show_interval(seen: Bounds, unit: str) -> str:
    """A value with its interval and, where it has one, its count.

    >>> show_interval(Bounds(value=0.62, low=0.6, high=0.65), "ratio")
    '0.620x [0.600, 0.650]'
    """
    if seen.low == seen.high == seen.value:
        return show(seen.value, unit)
    scale, digits, suffix = _scale(seen.value, unit)
    n = getattr(seen, "n", None)
    count = "" if not n else f", {n:,} rounds" if unit == "ratio" else f", n = {n:,}"
    low, high = (f"{end * scale:.{digits}f}" for end in (seen.low, seen.high))
    return f"{seen.value * scale:.{digits}f}{suffix} [{low}, {high}]{count}"


def turned(seen: Bounds) -> Bounds:
    """The same with the other sign: a loss as a gain."""
    return seen.model_copy(update={"value": -seen.value, "low": -seen.high, "high": -seen.low})


def show_worse(seen: Bounds, unit: str) -> str:
    """By how much something got worse, or better where that is negative.

    >>> show_worse(Bounds(value=-0.0003, low=-0.0011, high=0.0005), "points")
    'better by 0.03 pp [-0.05, 0.11]'
    """
    if seen.value < 0:
        return f"better by {show_interval(turned(seen), unit)}"
    return f"worse by {show_interval(seen, unit)}"


def show_count(value: float | None) -> str:
    """A large count, such as 31.2 M.

    >>> show_count(31_200_000), show_count(950)
    ('31.2 M', '950')
    """
    if value is None:
        return NOTHING
    for limit, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g} {suffix}"
    return f"{value:g}"


def show_seconds(value: float | None) -> str:
    """A length of time for people: 850 ms, 12.3 s, 2 min 05 s."""
    if value is None:
        return NOTHING
    if value < 60:
        return show(value, "s")
    return f"{int(value) // 60} min {int(value) % 60:02d} s"


def _scaled(value: float, unit: str) -> tuple[str, str]:
    scale, digits, suffix = _scale(value, unit)
    return f"{value * scale:.{digits}f}", suffix


def _scale(value: float, unit: str) -> tuple[float, int, str]:
    """Factor, decimals and suffix that suit a value."""
    if unit in ("s", "J"):
        factor, prefix = (
            (1.0, "") if abs(value) >= 1 or value == 0 else (1e3, "m") if abs(value) >= 1e-3 else (1e6, "µ")
        )
        return factor, _digits(abs(value) * factor), f" {prefix}{unit}"
    if unit == "bytes":
        factor, suffix = (1e-6, " MB") if abs(value) >= 1e6 else (1e-3, " kB")
        return factor, _digits(abs(value) * factor), suffix
    fixed = {
        "share": (100.0, 2, " %"),
        "points": (100.0, 2, " pp"),
        "ratio": (1.0, 3, "x"),
        "nats": (1.0, 4, ""),
        "dB": (1.0, 1, " dB"),
    }
    return fixed.get(unit, (1.0, 4, f" {unit}" if unit else ""))


def _digits(scaled: float) -> int:
    return 2 if scaled < 10 else 1 if scaled < 100 else 0
