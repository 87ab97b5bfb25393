"""What a result holds of robustness: accuracy on the same samples, changed in fixed ways."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from edgekit.report.values import Interval, ShareInterval, Value

Kind = Literal["corruption", "adversarial"]


class Condition(Value):
    """One changed form of the samples, the same for every bundle.

    `name` is `<corruption>.<severity>` or `adversarial.<attack>`. `accuracy` has Wilson's 95 % interval; `lost` is what
    the reference bundle of the same target and backend is better by on the same inputs, paired (None for itself).
    """

    name: str
    kind: Kind
    accuracy: ShareInterval
    lost: Interval | None = None
    predictions_file: str | None = None


class Robustness(Value):
    """How one bundle did on changed forms of `n` samples of the evaluation split.

    `clean` is its accuracy on the same samples unchanged; `mean` the average over all corruptions, adversarial inputs
    left out, with an interval that knows that the same samples stand in each; `lost` of it as in `Condition`.
    `settings` is what was asked for.
    """

    n: int
    clean: ShareInterval
    mean: ShareInterval | None = None
    lost: Interval | None = None
    conditions: tuple[Condition, ...] = ()
    settings: dict[str, object] = Field(default_factory=dict)

    def condition(self, name: str) -> Condition | None:
        """The condition of that name, if it was measured."""
        return next((c for c in self.conditions if c.name == name), None)

    @property
    def corruptions(self) -> tuple[Condition, ...]:
        """The conditions that `mean` is the average of."""
        return tuple(c for c in self.conditions if c.kind == "corruption")
