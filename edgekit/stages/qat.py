"""`qat`: train the quantized network, rounding and all, until it does again what the untouched one did."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import Field

from edgekit.context import RunContext
from edgekit.errors import UsageError
from edgekit.extras import require
from edgekit.model import Model, OnnxModel, Step
from edgekit.quant.spec import Variant
from edgekit.stages._training import AnyRate, Trains, is_sparse, remarks

if TYPE_CHECKING:
    import torch
    from torch import nn

    from edgekit.quant.spec import QuantSpec
    from edgekit.target import Target
    from edgekit.train.samples import Samples
    from edgekit.train.settings import Settings
    from edgekit.train.student import Student
    from edgekit.train.training import Recovered


HELPED = 0.001
"""A score that rises by less than this (0.1 pp) counts as no help."""

FASTER = 25.0
"""Steps learn as a ratio of where they started, weights as they are: about a tenth in most layers."""


HIGHEST = 0.01
"""The highest learning rate that a range test tries with Adam."""


class Qat(Trains):
    """Quantization-aware training with learned steps (Esser et al. 2020, arXiv:1902.08153), the reference as teacher.

    What is trained is the torch view of the graph that is emitted, rounding where its QuantSpec has a grid. Weights,
    biases and steps come back by name; the float build stays the network that `quantize` got. Keeps the epoch with the
    lowest loss on a held-out part of the training split. Deterministic with the run's seed; goes on from its last
    checkpoint after a kill.
    """

    kind: ClassVar[str] = "qat"
    trains: ClassVar[bool] = False
    by_grid: ClassVar[bool] = True
    after: ClassVar[str] = "quantize"

    learning_rate: AnyRate = Field(default=2e-4, description="peak rate of Adam after a linear warm-up, or auto")
    grid: Variant = Field(default="affine", description="the variant of the grid to train in; targets name theirs")

    def apply(self, model: Model, ctx: RunContext) -> OnnxModel:
        """The same graph with a QuantSpec and corrections that were learned, or as it was where none is better.

        Raises:
            UsageError: the model is not quantized, has several inputs, or training diverges.
            BuildError: the torch view lacks an operator; it is named.
        """
        if not isinstance(model, OnnxModel) or self.after not in [step.name for step in model.history]:
            raise UsageError("'qat' trains a network that runs in 8 bits: put it after 'quantize' in the recipe.")
        if model.quant is None or not model.quant.nodes:
            said = "did not help: `quantize` left no operator in 8 bits, so there is nothing to train"
            return model.after(Step(self.kind, self.model_dump(mode="json"), 0.0, (said,)))
        if model.quant.precision != "int8":
            raise UsageError(
                f"'qat' trains int8, and the network is in {model.quant.precision}. "
                "Use `quantize: {precision: int8}`, or leave `qat` out."
            )
        require("torch", extra="torch", why="quantization-aware training")
        from edgekit.train.loop import recover
        from edgekit.train.samples import hold_out, single_input, training_split
        from edgekit.train.student import Student

        started = time.monotonic()
        single_input(model.inputs)
        train, held_out = hold_out(training_split(ctx.data), self.held_out, ctx.seed)
        student = Student(model.lowered(self.grid), emitted_for(model.quant, ctx.targets, self.grid), self.grid)
        _check_batch(model, student, held_out)
        other = self.teacher.network(model.inputs, ctx.base) if self.teacher else None
        pair = Pair.of(model, other, classes=train.labelled or ctx.data.task == "classification")
        settings = replace(self.settings(ctx.seed, pair), keep_zeros=is_sparse(model))
        result = recover(
            pair.student(student),
            pair.teacher,
            train,
            held_out,
            settings,
            folder=ctx.work,
            progress=ctx.progress,
            deadline=ctx.deadline,
            stage=self.kind,
            optimizer=_optimizer,
        )
        trained = _written(model, result) if result.best_epoch else model
        seen, worse = _elsewhere(model, trained, self.grid, pair, held_out, settings, ctx.targets)
        step = Step(
            name=self.kind,
            config=self.model_dump(mode="json"),
            seconds=time.monotonic() - started,
            notes=(*self.notes(result, settings, train), *seen),
            curve=result.curve,
            warnings=(*result.warnings, *worse),
        )
        return trained.after(step)

    def settings(self, seed: int, pair: Pair) -> Settings:
        """The settings with every default decided. Rounding is exact in 32 bits alone, so that is the arithmetic."""
        from edgekit.train.settings import Settings

        return Settings(
            **self.common(),
            label_smoothing=0.0,
            precision="fp32",
            seed=seed,
            objective="classes" if pair.classes else "outputs",
            highest_rate=HIGHEST,
        )

    def notes(self, result: Recovered, settings: Settings, train: Samples) -> tuple[str, ...]:
        """What happened, in plain lines."""
        from edgekit.train.objective import scored

        best = result.curve[result.best_epoch - 1] if result.best_epoch else None
        loss = best["held_out_loss"] if best else result.start[0]
        before = {settings.score: result.start[1]}
        lines = [
            f"held-out loss {result.start[0]:.4f} -> {loss:.4f}, {scored(settings, before)} -> "
            f"{scored(settings, best or before)} in the grid {self.grid}; "
            f"epoch {result.best_epoch} of {settings.epochs} on {len(train):,} samples"
        ]
        if settings.objective == "outputs":
            lines.append("learned from the teacher's outputs alone: they are no logits of classes")
        elif not train.labelled:
            lines.append("the data has no labels: learned from the teacher alone")
        if not result.best_epoch:
            lines.append("did not help: no epoch was better than the start, so everything stays as it was")
        elif self.grid != "affine" and best and best[settings.score] - result.start[1] < HELPED:
            # In the affine grid the whole test split says so.
            lines.append(f"did not help: held-out loss fell, and {scored(settings, before)} did not rise")
        return (*lines, *self.chosen(result), *remarks(result))


@dataclass(frozen=True)
class Pair:
    """The teacher, and how both networks are held against each other."""

    teacher: nn.Module
    classes: bool
    probabilities: bool

    @classmethod
    def of(cls, model: OnnxModel, other: nn.Module | None, *, classes: bool) -> Pair:
        """`classes` says whether the task has any; the network's outputs must fit too.

        An `other` teacher than the untouched network gives logits where the task has classes.
        """
        from edgekit.graph.torch_view import torch_view

        graphs = [model.proto.graph, model.reference.proto.graph]
        classes = classes and len(model.outputs) == 1 and len(model.outputs[0].shape) == 2
        classes = classes and model.outputs[0].shape[1] != 1
        ends = [[n.op_type for n in graph.node if graph.output[0].name in n.output] for graph in graphs]
        probabilities = classes and all(kinds == ["Softmax"] for kinds in ends)
        if other is not None:
            return cls(other, classes, classes and ends[0] == ["Softmax"])
        teacher = torch_view(model.reference.proto)
        return cls(_logits(teacher) if probabilities else teacher, classes, probabilities)

    def student(self, view: nn.Module) -> nn.Module:
        """The other network, so that it gives logits where the teacher does."""
        return _logits(view) if self.probabilities else view


def _check_batch(model: OnnxModel, student: Student, samples: Samples) -> None:
    """Training takes batches of its own: a graph that is fixed to another must work on them all the same."""
    import torch

    fixed = model.inputs[0].shape[0] if model.inputs[0].shape else 1
    if not isinstance(fixed, int):
        return
    count = min(fixed + 1, len(samples))
    try:
        with torch.no_grad():
            outputs = student(samples.batch(np.arange(count))[0])
        fits = all(len(y) == count for y in ((outputs,) if isinstance(outputs, torch.Tensor) else outputs))
    except (RuntimeError, ValueError, TypeError):
        fits = False
    if not fits:
        raise UsageError(
            f"The network's batch is fixed to {fixed}, and it does not run on another: 'qat' needs a free one. "
            "Export the model with a dynamic first axis."
        )


def _logits(view: nn.Module) -> nn.Module:
    """A network whose last operator is a softmax, before it."""
    from torch import nn

    from edgekit.train.fake import Logarithm

    return nn.Sequential(view, Logarithm())


def _student(module: nn.Module) -> Student:
    from edgekit.train.student import Student

    return next(part for part in module.modules() if isinstance(part, Student))


def _optimizer(module: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    """Adam (arXiv:1412.6980), for the layers of a folded graph have gradients of very unlike size.

    After each update the steps are brought back to where they may be.
    """
    import torch

    student = _student(module)
    groups = student.groups(settings.weight_decay, FASTER)
    optimizer = torch.optim.AdamW(groups, settings.learning_rate, betas=(0.9, 0.99))
    optimizer.register_step_post_hook(lambda *_: student.constrain())
    return optimizer


def _written(model: OnnxModel, result: Recovered) -> OnnxModel:
    """The model with what was learned. `proto` stays the float network; every variant of the grid gets the values."""
    from edgekit.train.student import corrections

    assert model.quant is not None
    student = _student(result.module)
    spec = student.learned(model.quant)
    learned = corrections(spec, student.values())
    before = model.corrections
    return replace(
        model, quant=spec, corrections={v: {**before.get(v, {}), **changed} for v, changed in learned.items()}
    )


def emitted_for(spec: QuantSpec, targets: Sequence[Target], grid: Variant) -> QuantSpec:
    """The QuantSpec with those operators float that are so in every backend that gets this grid."""
    backends = {name for target in targets for name, facts in target.backends.items() if facts.grid == grid}
    kept = [spec.keep_float.get(name, {}) for name in sorted(backends)]
    common = {node: why for node, why in kept[0].items() if all(node in other for other in kept)} if kept else {}
    return spec.model_copy(update={"keep_float": {**spec.keep_float, "*": {**spec.keep_float.get("*", {}), **common}}})


def _elsewhere(
    before: OnnxModel,
    after: OnnxModel,
    trained: Variant,
    pair: Pair,
    held_out: Samples,
    settings: Settings,
    targets: Sequence[Target],
) -> tuple[list[str], tuple[str, ...]]:
    """What training in one grid did to the others that the targets use; and warnings where that is no good."""
    from edgekit.train.loop import judged
    from edgekit.train.objective import scored
    from edgekit.train.student import Student

    grids = dict.fromkeys(facts.grid for target in targets for facts in target.backends.values())
    lines, worse = [], []
    for grid in grids if after is not before else ():
        if grid == trained:
            continue
        results = []
        for model in (before, after):
            assert model.quant is not None
            student = Student(model.lowered(grid), emitted_for(model.quant, targets, grid), grid)
            results.append(judged(pair.student(student), pair.teacher, held_out, settings))
        (was, first), (now, second) = results
        change = " -> ".join(scored(settings, {settings.score: score}) for score in (first, second))
        lines.append(f"in the grid {grid}, which was not trained in: {change}")
        if now > was:
            worse.append(f"qat: worse in the grid {grid} than before ({change}). Train in it with qat.grid: {grid}.")
    return lines, tuple(worse)
