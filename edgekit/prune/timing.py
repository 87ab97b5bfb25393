"""The budget `latency` of `prune`: which target, what it takes there, and a plan that is measured to fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from edgekit.context import RunContext
from edgekit.errors import UsageError
from edgekit.model import TorchModel
from edgekit.prune.apply import removed
from edgekit.prune.budget import NANO
from edgekit.prune.find import Found
from edgekit.prune.latency import Latency
from edgekit.prune.plan import Plan
from edgekit.prune.planned import Timed
from edgekit.prune.survey import NEAR, Share, Survey, most_networks, removal_of
from edgekit.target import Target

TRIES = 5
"""Plans that are measured at most."""


@dataclass
class _Seen:
    """A plan and how long its network took, as a share of the whole one's time."""

    plan: Plan
    cost: Latency
    ratio: float
    low: float
    high: float


class Timing:
    """The target, the time of the whole network there, and the table of costs; measured once."""

    def __init__(
        self,
        model: TorchModel,
        ctx: RunContext,
        found: Found,
        least: Mapping[str, int],
        *,
        target: str | None,
        backend: str | None,
        round_to: int | None,
    ) -> None:
        """Measure. `found` are the groups of the untouched network; the last three are the stage's settings.

        Raises:
            UsageError: the recipe has no such target, or it has no device.
        """
        self.ctx, self.model = ctx, replace(model, module=found.view)
        self.backend = backend or ""
        self.target, first = timed_target("prune", target, self.backend, self.model, ctx)
        self.seconds, self.precision = float(first["latency_s"]), str(first["precision"])
        self.total = self.seconds * NANO
        with ctx.progress.task("measure costs", total=most_networks(round_to)) as task:
            seen = Survey(f"{first['where']}, {self.precision}").conduct(
                found,
                least,
                self.seconds,
                lambda kept: self._share(found, removal_of(found.groups, kept)),
                round_to=round_to,
                done=task.advance,
            )
        self.table, self.step, self.dear = seen.table, seen.step, seen.dear

    def settle(
        self, found: Found, target: int, plan_for: Callable[[Latency, int, int], Plan]
    ) -> tuple[Plan, Latency, Timed]:
        """A plan whose network takes no more than `target` nanoseconds by measurement, and little less.

        The table says what to remove; what it says is scaled by what the network before was seen to take. `plan_for`
        makes a plan by a cost, a target and a step.
        """
        scale, tried = 1.0, list[_Seen]()
        wanted = target / self.total
        for _ in range(TRIES):
            cost = Latency(found, self.table, scale)
            plan = plan_for(cost, target, self.step)
            if any(plan.removal == before.plan.removal for before in tried):
                break
            tried.append(_Seen(plan, cost, *self._share(found, plan.removal)))
            if NEAR * wanted <= tried[-1].ratio <= wanted or not plan.removal:
                break
            if tried[-1].ratio > wanted and not plan.reached:
                break
            scale *= tried[-1].ratio * self.total / plan.left
        fitting = [one for one in tried if one.ratio <= wanted]
        best = max(fitting, key=lambda one: one.ratio) if fitting else min(tried, key=lambda one: one.ratio)
        plan = replace(best.plan, left=round(best.ratio * self.total), reached=bool(fitting))
        timed = Timed(
            target=self.target.name,
            backend=self.backend or next(iter(self.target.backends)),
            precision=self.precision,
            seconds=self.seconds,
            ratio=best.ratio,
            low=best.low,
            high=best.high,
            networks=self.table.networks,
            error=self.table.error,
            dear=self.dear,
        )
        return plan, best.cost, timed

    def _share(self, found: Found, removal: Mapping[str, list[int]]) -> Share:
        """The time without these channels as a share of the whole network's, with its interval."""
        if not removal:
            return 1.0, 1.0, 1.0
        smaller = replace(self.model, module=removed(found, removal).view)
        seen = self.ctx.measure(smaller, self.target, backend=self.backend, against=self.model)
        return float(seen["ratio"]), float(seen["low"]), float(seen["high"])


def timed_target(
    stage: str, name: str | None, backend: str, model: TorchModel, ctx: RunContext
) -> tuple[Target, dict[str, Any]]:
    """The target whose time `stage` is asked for, and what the whole network takes there: see `RunContext.measure`.

    Raises:
        UsageError: the recipe has no target `name`, or (None: none of all) it has no device.
    """
    named = [one for one in ctx.targets if name in (None, one.name)]
    if not named:
        names = ", ".join(one.name for one in ctx.targets) or "none"
        raise UsageError(f"{stage}: the recipe has no target {name!r}. It has: {names}.")
    for target in named:
        with ctx.progress.task(f"time the whole network on {target.name}"):
            seen = ctx.measure(model, target, backend=backend)
        if seen["latency_s"] is not None:
            return target, seen
    who = f"{name} has no device" if name else "no target of the recipe has a device"
    raise UsageError(
        f"{stage}: a budget in latency is measured, and {who}. Name one (`device: local`, or a registered board), or "
        "use macs."
    )
