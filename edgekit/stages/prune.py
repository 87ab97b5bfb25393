"""`prune`: remove whole channels until the network fits a budget."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from edgekit.context import RunContext, Task
from edgekit.errors import BuildError, UsageError
from edgekit.extras import require
from edgekit.model import Model, Step, TorchModel

if TYPE_CHECKING:
    from torch import Tensor, nn

    from edgekit.prune.cost import Cost
    from edgekit.prune.find import Found
    from edgekit.prune.plan import Plan
    from edgekit.train.samples import Samples

BATCH = 128
Importance = Literal["taylor", "fisher", "activation", "l1", "l2", "geometric_median", "bn_scale", "random"]
BUDGETS = ("macs", "parameters", "memory")


class Prune(BaseModel):
    """Remove whole channels until the network fits a budget: work, weights, or memory of activations.

    Groups of channels that must go together are found on the graph that `torch.export` sees, by following what every
    axis is made of (the idea of groups is that of Fang et al. 2023, arXiv:2301.12900), and proven on the model before
    it is cut: heads of attention, what a head holds, widths of MLPs, groups of grouped convolutions and the channels
    of residual streams are groups like any other. What cannot be followed stays whole, with the reason. Afterwards
    BatchNorm statistics are measured anew, or biases corrected where the model has no BatchNorm. Accuracy comes back in
    `distill`.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        json_schema_extra={"oneOf": [{"required": [name]} for name in BUDGETS]},
    )
    kind: ClassVar[str] = "prune"
    trains: ClassVar[bool] = True

    macs: float | None = Field(
        None,
        gt=0,
        le=1,
        description="share of the multiply-accumulates that remains, in (0, 1]",
        examples=["0.5 to keep half of the multiply-accumulates"],
    )
    parameters: float | None = Field(None, gt=0, le=1, description="share of the weights that remains, instead of macs")
    memory: float | None = Field(
        None, gt=0, le=1, description="share of the peak memory of activations that remains, instead of macs"
    )
    importance: Importance = Field(
        "taylor",
        description="how channels are ranked; taylor and fisher fall back to activation where there are no labels",
    )
    scope: Literal["global", "local"] = Field(
        "global", description="channels of all groups compete, or every group gives the same share"
    )
    iterations: int = Field(1, ge=1, le=100, description="in so many steps, ranking what is left anew each time")
    round_to: int = Field(8, ge=1, description="kept channels are a multiple of this: latency is a staircase")
    keep_at_least: float = Field(0.125, ge=0, le=1, description="share of its channels that every group keeps")
    samples: int = Field(1024, ge=1, description="training samples that rank channels and measure statistics")

    @model_validator(mode="after")
    def _one_budget(self) -> Prune:
        given = [name for name in BUDGETS if getattr(self, name) is not None]
        if len(given) != 1:
            seen = " and ".join(given) or "none"
            raise ValueError(f"prune needs one budget of {', '.join(BUDGETS)}, got {seen}. Use macs: 0.5 to keep half")
        return self

    @property
    def budget(self) -> tuple[str, float]:
        """Which of the budgets is given, and the share that remains."""
        return next((name, share) for name in BUDGETS if (share := getattr(self, name)) is not None)

    def apply(self, model: Model, ctx: RunContext) -> TorchModel:
        """A smaller copy of `model`.

        Raises:
            UsageError: the model is a graph already, or no channel of it can be removed.
        """
        if not isinstance(model, TorchModel):
            raise UsageError("'prune' cuts a trainable module: put it before 'quantize' in the recipe.")
        require("torch", extra="torch", why="pruning")
        return _Run(self, model, ctx).result()


class _Run:
    """One application: the settings, the model, and the samples drawn for it."""

    def __init__(self, stage: Prune, model: TorchModel, ctx: RunContext) -> None:
        from edgekit.train.samples import single_input, some, training_split

        single_input(model.inputs)
        self.stage, self.model, self.ctx = stage, model, ctx
        self.samples: Samples = some(training_split(ctx.data), stage.samples, ctx.seed)
        self.started = time.monotonic()
        self.total = 0
        """What the untouched network costs."""
        self.least: dict[str, int] = {}
        """How many channels every group keeps at least."""

    def result(self) -> TorchModel:
        from dataclasses import replace

        from edgekit.prune.cost import count_macs
        from edgekit.prune.shapes import parameters

        stage, dense = self.stage, self.model.module
        with self.ctx.progress.task("prune", total=4 * stage.iterations) as task:
            module, lines = dense, list[str]()
            for number in range(stage.iterations):
                share = stage.budget[1] ** ((number + 1) / stage.iterations)
                module, lines = self.once(module, share, task)
        probe = self.inputs(2)[:1]
        before, macs = count_macs(dense, (probe,)), count_macs(module, (probe,))
        sizes = (parameters(dense), parameters(module))
        notes = (
            f"{before / 1e6:.1f} M -> {macs / 1e6:.1f} M multiply-accumulates ({macs / before:.1%}), "
            f"{sizes[0]:,} -> {sizes[1]:,} parameters",
            *lines,
        )
        step = Step(
            name=stage.kind,
            config=stage.model_dump(),
            seconds=time.monotonic() - self.started,
            notes=notes,
            macs=macs,
            parameters=sizes[1],
        )
        return replace(self.model, module=module).after(step)

    def once(self, module: nn.Module, share: float, task: Task) -> tuple[nn.Module, list[str]]:
        """Cut down to `share` of what the untouched network costs; the smaller module, and lines about it."""
        from edgekit.graph.lifted import lift
        from edgekit.prune.cost import Macs, Memory, Parameters
        from edgekit.prune.find import find_groups
        from edgekit.prune.importance import LABELLED, score
        from edgekit.prune.plan import choose

        stage, probe = self.stage, (self.inputs(2),)
        found = find_groups(lift(module, probe), probe)
        kinds: dict[str, Callable[[Found], Cost]] = {"macs": Macs, "parameters": Parameters, "memory": Memory}
        cost = kinds[stage.budget[0]](found)
        self.total = self.total or cost.total
        for group in found.groups:
            self.least.setdefault(group.name, math.ceil(group.channels * stage.keep_at_least))
        task.advance(note="ranking channels")
        kind = "activation" if stage.importance in LABELLED and not self.samples.labelled else stage.importance
        scores = score(kind, found, self.batches(), self.ctx.seed)
        task.advance(note="choosing channels")
        plan = choose(
            found,
            scores,
            cost,
            int(self.total * share),
            round_to=stage.round_to,
            least=self.least,
            local=stage.scope == "local",
        )
        task.advance(note="measuring statistics")
        smaller, lines = self.cut(module, found, plan)
        task.advance()
        return smaller, [*self.remarks(kind, found, plan, cost), *lines]

    def inputs(self, count: int) -> Tensor:
        import numpy as np

        return self.cast(self.samples.batch(np.arange(min(count, len(self.samples))))[0])

    def cast(self, inputs: Tensor) -> Tensor:
        """As the model takes them: samples come as float32, token numbers are integers."""
        import torch

        return inputs.to(getattr(torch, self.model.inputs[0].dtype))

    def batches(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """All samples, as the model takes them."""
        for inputs, labels in self.samples.batches(BATCH):
            yield self.cast(inputs), labels

    def cut(self, dense: nn.Module, found: Found, plan: Plan) -> tuple[nn.Module, list[str]]:
        """The smaller module with its statistics put right, and lines about how.

        Raises:
            BuildError: it is not the masked original, which is a fault of edgekit.
        """
        from edgekit.prune.apply import difference, masked, removed
        from edgekit.prune.correct import channel_moments, correct_biases, reestimate_batchnorm
        from edgekit.prune.rebuild import as_source
        from edgekit.prune.shapes import has_batchnorm

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

    def remarks(self, kind: str, found: Found, plan: Plan, cost: Cost) -> list[str]:
        """Plain lines about what went otherwise than asked; that the outputs stay goes without saying."""
        from edgekit.prune.follow import OUTPUT

        lines = []
        if kind != self.stage.importance:
            lines.append(f"importance {kind!r} instead of {self.stage.importance!r}: the data has no labels")
        if not plan.reached:
            lines.append(
                f"asked for {self.stage.budget[1]:.0%} of the {cost.unit}, reached {plan.left / self.total:.1%}: "
                f"every group keeps at least {self.stage.keep_at_least:.1%} and a multiple of {self.stage.round_to}; "
                f"{_named(plan.binding)} can give no more"
            )
        elif self.stage.budget[0] == "memory":
            lines.append(
                f"{self.total / 1e3:,.0f} kB -> {plan.left / 1e3:,.0f} kB of activations at once, for a sample"
            )
        others: dict[str, list[str]] = {}
        for name, why in found.whole.items():
            if why != OUTPUT:
                others.setdefault(why, []).append(name)
        lines += [f"left whole: {', '.join(names)} ({why})" for why, names in others.items()]
        return lines


def _named(groups: tuple[str, ...]) -> str:
    """The first few of them."""
    return ", ".join(groups[:4]) + (f" and {len(groups) - 4} more" if len(groups) > 4 else "")


def _fitting(numbers: int) -> int:
    """How many samples of this size go through at once without much memory."""
    return int(min(256, max(16, 8_000_000 // max(numbers, 1))))
