"""What pruning would take away, and what that gives and costs: a plan for people and for `--json`."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PlannedGroup(_Value):
    """One group of channels that go together.

    `lost` is the share of the group's own importance that goes; `freed` the share of the whole network's cost that it
    would cost more if this group alone had been left whole.
    """

    group: str
    channels: int
    kept: int
    lost: float
    freed: float


class Timed(_Value):
    """What the planned network was measured to take: `ratio` to the whole one's time with its 95 % interval.

    `seconds` is what the whole network takes; `error` how far the table of costs, fitted to `networks` measured
    networks, is off in the median from one that it has not seen. `dear` is what the same work takes at channels in
    multiples of half of `Planned.round_to`, None where that was not measured.
    """

    target: str
    backend: str
    precision: str
    seconds: float
    ratio: float
    low: float
    high: float
    networks: int
    error: float
    dear: float | None


class Planned(_Value):
    """A plan. `total` and `left` are in `unit`; `binding` names groups that can give no more where it isn't reached.

    `whole` are the layers that stay whole, by the reason why.
    """

    schema_version: int = 1
    model: str
    budget: str
    unit: str
    asked: float
    total: float
    left: float
    reached: bool
    importance: str
    round_to: int
    binding: tuple[str, ...] = ()
    groups: tuple[PlannedGroup, ...]
    whole: dict[str, tuple[str, ...]]
    timed: Timed | None = None
    notes: tuple[str, ...] = ()
