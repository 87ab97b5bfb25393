"""One application of `prune`: the settings, the model, and the samples drawn for it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from edgekit.context import RunContext, Task
from edgekit.errors import BuildError
from edgekit.graph.lifted import lift
from edgekit.model import Step, TorchModel
from edgekit.prune.apply import difference, masked, removed
from edgekit.prune.budget import Budget
from edgekit.prune.correct import channel_moments, correct_biases, reestimate_batchnorm
from edgekit.prune.cost import Bytes, Cost, Macs, Memory, Parameters, count_macs
from edgekit.prune.find import Found, find_groups
from edgekit.prune.follow import OUTPUT
from edgekit.prune.importance import LABELLED, Importance, Scores, evenly, score
from edgekit.prune.plan import Plan, choose
from edgekit.prune.planned import Planned, PlannedGroup, Timed
from edgekit.prune.rebuild import as_source
from edgekit.prune.shapes import has_batchnorm, parameters
from edgekit.prune.timing import Timing
from edgekit.train.samples import Samples, single_input, some, training_split

BATCH, VALUES, ROUND_TO = 128, 4_000_000, 8
"""Samples at once, and input values: the gradients of everything that channels reach are held for them."""


@dataclass(frozen=True)
class Settings:
    """Those of `edgekit.stages.prune.Prune`, which tells what each means; `written` are they as in the recipe."""

    budget: Budget
    importance: Importance
    scope: Literal["global", "local"]
    iterations: int
    round_to: int | None
    keep_at_least: float
    samples: int
    target: str | None
    backend: str | None
    written: Mapping[str, Any]


COSTS: dict[str, Callable[[Found], Cost]] = {
    "macs": Macs, "parameters": Parameters, "bytes": Bytes, "memory": Memory,
}  # fmt: skip


@dataclass(frozen=True)
class Chosen:
    """Which channels go, of which groups, by what; `timed` where that was measured."""

    found: Found
    plan: Plan
    cost: Cost
    importance: str
    round_to: int
    timed: Timed | None = None


class Pruning:
    """Plans, cuts, and puts right what a cut disturbs."""

    def __init__(self, stage: Settings, model: TorchModel, ctx: RunContext) -> None:
        single_input(model.inputs)
        self.stage, self.model, self.ctx = stage, model, ctx
        self.samples: Samples = some(training_split(ctx.data), stage.samples, ctx.seed)
        self.started = time.monotonic()
        self.total: float = 0
        """What the untouched network costs."""
        self.least: dict[str, int] = {}
        """How many channels every group keeps at least."""
        self.timing: Timing | None = None

    def planned(self) -> Planned:
        """The plan of a single step to the budget; nothing is cut."""
        with self.ctx.progress.task("plan", total=2) as task:
            chosen = self.choose(self.model.module, 1, task)
        return self.told(chosen)

    def result(self) -> TorchModel:
        """The smaller model."""
        stage, dense = self.stage, self.model.module
        with self.ctx.progress.task("prune", total=4 * stage.iterations) as task:
            module, lines = dense, list[str]()
            for number in range(stage.iterations):
                chosen = self.choose(module, (number + 1) / stage.iterations, task)
                task.advance(note="measuring statistics")
                module, cut = self.cut(module, chosen.found, chosen.plan)
                task.advance()
                lines = [*self.remarks(chosen), *cut]
        probe = self.inputs(2)[:1]
        before, macs = count_macs(dense, (probe,)), count_macs(module, (probe,))
        sizes = (parameters(dense), parameters(module))
        notes = (
            f"{before / 1e6:.1f} M -> {macs / 1e6:.1f} M multiply-accumulates ({macs / before:.1%}), "
            f"{sizes[0]:,} -> {sizes[1]:,} parameters",
            *lines,
        )
        step = Step(
            name="prune",
            config=stage.written,
            seconds=time.monotonic() - self.started,
            notes=notes,
            macs=macs,
            parameters=sizes[1],
        )
        return replace(self.model, module=module).after(step)

    def choose(self, module: nn.Module, part: float, task: Task) -> Chosen:
        """What to remove so that `part` of the way to the budget is gone, the whole of it being 1."""
        stage, probe = self.stage, (self.inputs(2),)
        found = find_groups(lift(module, probe), probe)
        for group in found.groups:
            self.least.setdefault(group.name, math.ceil(group.channels * stage.keep_at_least))
        task.advance(note="ranking channels")
        kind = stage.importance
        if kind in LABELLED and not self.samples.labelled and not self.classes:
            kind = "outputs"
        batches = self.judged(found) if kind in LABELLED else self.batches()
        scores = evenly(kind, score(kind, found, batches, self.ctx.seed))
        task.advance(note="choosing channels")
        if stage.budget.kind != "latency":
            cost = COSTS[stage.budget.kind](found)
            self.total = self.total or cost.total
            round_to = stage.round_to or ROUND_TO
            plan = self.fitted(found, scores, cost, self.target(part), round_to)
            return Chosen(found, plan, cost, kind, round_to)
        if self.timing is None:
            self.timing = Timing(
                self.model, self.ctx, found, self.least,
                target=stage.target, backend=stage.backend, round_to=stage.round_to,
            )  # fmt: skip
            self.total = self.timing.total
        plan, cost, timed = self.timing.settle(
            found, self.target(part), lambda cost, target, step: self.fitted(found, scores, cost, target, step)
        )
        return Chosen(found, plan, cost, kind, self.timing.step, timed)

    def target(self, part: float) -> int:
        """What may remain after that part of the way."""
        return int(self.total * self.stage.budget.of(self.total) ** part)

    def fitted(self, found: Found, scores: Scores, cost: Cost, target: int, round_to: int) -> Plan:
        """The plan for a cost."""
        local = self.stage.scope == "local"
        return choose(found, scores, cost, target, round_to=round_to, least=self.least, local=local)

    def inputs(self, count: int) -> Tensor:
        """Samples as the model takes them."""
        return self.cast(self.samples.batch(np.arange(min(count, len(self.samples))))[0])

    def cast(self, inputs: Tensor) -> Tensor:
        """As the model takes them: samples come as float32, token numbers are integers."""
        return inputs.to(getattr(torch, self.model.inputs[0].dtype))

    def batches(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """All samples, as the model takes them."""
        size = min(BATCH, max(8, VALUES // max(1, self.inputs(1).numel())))
        for inputs, labels in self.samples.batches(size):
            yield self.cast(inputs), labels

    @property
    def classes(self) -> bool:
        """Whether the network gives class logits, so that its own choice can stand for a label that is missing."""
        shape = self.model.outputs[0].shape
        several = len(shape) == 2 and (not isinstance(shape[1], int) or shape[1] > 1)
        return self.ctx.data.task in ("classification", "none") and several

    def judged(self, found: Found) -> Iterator[tuple[Tensor, Tensor | None]]:
        """All samples with their labels, or where there is none with the network's own choice.

        Of a network that is right that is the label, and of one that is not what must be kept.
        """
        for inputs, labels in self.batches():
            if not self.classes or (labels is not None and bool((labels >= 0).all())):
                yield inputs, labels
                continue
            with torch.no_grad():
                outputs = found.view(inputs)
            chosen = (outputs if isinstance(outputs, Tensor) else outputs[0]).argmax(1)
            yield inputs, chosen if labels is None else torch.where(labels < 0, chosen, labels)

    def cut(self, dense: nn.Module, found: Found, plan: Plan) -> tuple[nn.Module, list[str]]:
        """The smaller module with its statistics put right, and lines about how.

        Raises:
            BuildError: it is not the masked original, which is a fault of edgekit.
        """
        probe = (self.inputs(2),)
        result = removed(found, plan.removal)
        off = difference(result.view, masked(found, plan.removal), probe)
        if off is None:
            raise BuildError("Pruning went wrong: the smaller network is not the masked original. Please report it.")
        module = as_source(dense, result, probe)
        if not plan.removal:
            return module.eval(), ["nothing was removed"]
        proof = f"equals the original with those channels masked: largest difference {off:.1e} of the largest output"
        if has_batchnorm(module):
            reestimate_batchnorm(module, (x for x, _ in self.batches()))
            return module, [proof, f"BatchNorm statistics measured anew on {len(self.samples)} samples"]
        inputs = self.inputs(_fitting(self.inputs(1).numel()))
        wanted = channel_moments(found.view, inputs)
        for name, (mean, deviation) in wanted.items():
            stay = result.kept.get((f"{name}.bias", 0), slice(None))
            wanted[name] = (mean[stay], deviation[stay])
        shifted = correct_biases(module, inputs, wanted)
        return module, [
            proof,
            f"biases and scales of {shifted} layers corrected on {len(inputs)} samples (there is no BatchNorm)",
        ]

    def told(self, chosen: Chosen) -> Planned:
        """The plan as values."""
        plan, total = chosen.plan, self.total
        return Planned(
            model=self.model.name,
            budget=self.stage.budget.kind,
            unit=chosen.cost.unit,
            asked=self.stage.budget.of(total),
            total=total,
            left=plan.left,
            reached=plan.reached,
            importance=chosen.importance,
            round_to=chosen.round_to,
            binding=plan.binding,
            groups=tuple(
                PlannedGroup(
                    group=one.group, channels=one.channels, kept=one.kept, lost=one.lost, freed=one.freed / total
                )
                for one in plan.lines
            ),
            whole={why: tuple(names) for why, names in _left_whole(chosen.found).items()},
            timed=chosen.timed,
            notes=tuple(self.remarks(chosen)),
        )

    def remarks(self, chosen: Chosen) -> list[str]:
        """Plain lines about what went otherwise than asked, and what was measured."""
        plan, stage, lines = chosen.plan, self.stage, list[str]()
        if chosen.importance != stage.importance:
            lines.append(f"importance {chosen.importance!r} instead of {stage.importance!r}: the data has no labels")
        elif chosen.importance in LABELLED and (missing := self.samples.unlabelled):
            lines.append(f"the network's own choices stand for the labels of {missing:,} samples that have none")
        lines += _about(chosen.timed, chosen.round_to) if chosen.timed else []
        if not plan.reached:
            lines.append(
                f"asked for {100 * stage.budget.of(self.total):.3g}% of the {chosen.cost.unit}, reached "
                f"{plan.left / self.total:.1%}: every group keeps at least {stage.keep_at_least:.1%} and a multiple of "
                f"{chosen.round_to}; {_named(plan.binding)} can give no more"
            )
        elif stage.budget.kind == "memory":
            lines.append(
                f"{self.total / 1e3:,.0f} kB -> {plan.left / 1e3:,.0f} kB of activations at once, for a sample"
            )
        elif stage.budget.kind == "bytes":
            lines.append(f"{self.total / 1e3:,.0f} kB -> {plan.left / 1e3:,.0f} kB of float32 weights")
        whole = _left_whole(chosen.found)
        return [*lines, *(f"left whole: {', '.join(names)} ({why})" for why, names in whole.items())]


def _about(timed: Timed, step: int) -> Iterator[str]:
    """What was measured, in lines."""
    where = f"{timed.target} ({timed.backend}, {timed.precision})"
    yield (
        f"{timed.ratio:.1%} [{timed.low:.1%}, {timed.high:.1%}] of the whole network's {timed.seconds * 1e3:.3f} ms on "
        f"{where}, measured"
    )
    yield (
        f"costs fitted to {timed.networks} measured networks, off by {timed.error:.1%} in the median for one that they "
        "were not fitted to"
    )
    if timed.dear is not None:
        yield (
            f"channels in multiples of {step}, which {timed.backend} works on at once: the same work in smaller parts "
            f"takes {timed.dear:.2f} times as long"
        )


def _left_whole(found: Found) -> dict[str, list[str]]:
    """Layers by the reason why they stay whole; that the outputs do goes without saying."""
    others: dict[str, list[str]] = {}
    for name, why in found.whole.items():
        if why != OUTPUT:
            others.setdefault(why, []).append(name)
    return others


def _named(groups: tuple[str, ...]) -> str:
    """The first few of them."""
    return ", ".join(groups[:4]) + (f" and {len(groups) - 4} more" if len(groups) > 4 else "")


def _fitting(numbers: int) -> int:
    """How many samples of this size go through at once without much memory."""
    return int(min(256, max(16, 8_000_000 // max(numbers, 1))))
