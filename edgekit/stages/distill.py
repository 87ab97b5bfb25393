"""`distill`: train the smaller network until it does again what the untouched one did."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from edgekit.context import RunContext
from edgekit.errors import UsageError
from edgekit.extras import require
from edgekit.model import Model, Step, TorchModel
from edgekit.stages._training import Trains, is_sparse, remarks
from edgekit.tasks import WITHOUT_CLASSES
from edgekit.train.settings import AdversarialTraining

if TYPE_CHECKING:
    from edgekit.train.samples import Samples
    from edgekit.train.settings import Settings
    from edgekit.train.training import Recovered


class Distill(Trains):
    """Recovery training with the untouched model as teacher (Hinton et al. 2015, arXiv:1503.02531).

    Cross-entropy on the labels and a softened KL term on the teacher's logits; without labels the teacher alone.
    Keeps the epoch with the lowest loss on a held-out part of the training split. Deterministic with the run's seed;
    goes on from its last checkpoint after a kill.
    """

    kind: ClassVar[str] = "distill"
    trains: ClassVar[bool] = True

    weight_decay: float = Field(default=5e-4, ge=0)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        default="auto", description="arithmetic of the forward pass; auto is bf16 where the processor has it"
    )
    objective: Literal["classes", "outputs"] = Field(default="classes", description="what the network gives")
    adversarial: AdversarialTraining | None = Field(
        default=None, description="learn from samples changed against the network"
    )
    device: Literal["cpu", "cuda"] = Field(default="cpu", description="where to train")

    def apply(self, model: Model, ctx: RunContext) -> TorchModel:
        """A trained copy of `model`, of the same shape.

        Raises:
            UsageError: the model is a graph already, is no classifier, has a teacher that does not fit, or training
                keeps diverging.
        """
        if not isinstance(model, TorchModel):
            raise UsageError("'distill' trains a module: put it before 'quantize' in the recipe.")
        require("torch", extra="torch", why="recovery training")
        from edgekit.graph.torch_view import torch_view
        from edgekit.prune.shapes import has_batchnorm, parameters
        from edgekit.train.loop import recover
        from edgekit.train.normed import with_batchnorm, without_batchnorm
        from edgekit.train.samples import hold_out, single_input, some, training_split

        started = time.monotonic()
        single_input(model.inputs)
        train, held_out = hold_out(training_split(ctx.data), self.held_out, ctx.seed)
        teacher = self.teacher.network(model.inputs, ctx.base) if self.teacher else torch_view(model.reference.proto)
        student, added = model.module, 0
        if not has_batchnorm(student):
            sample = some(train.split, 512, ctx.seed)
            student, added = with_batchnorm(student, (x for x, _ in sample.batches(64)))
        settings = self.settings(ctx.seed)
        if ctx.data.task in WITHOUT_CLASSES:
            settings = replace(settings, objective="outputs")
        settings = replace(settings, keep_zeros=is_sparse(model))
        result = recover(
            student,
            teacher,
            train,
            held_out,
            settings,
            folder=ctx.work,
            progress=ctx.progress,
            deadline=ctx.deadline,
        )
        module = without_batchnorm(result.module) if added else result.module
        step = Step(
            name=self.kind,
            config={**self.model_dump(mode="json"), "precision": result.settings.precision},
            seconds=time.monotonic() - started,
            notes=(*self.notes(result, train), *_about(added)),
            macs=model.history[-1].macs if model.history else None,
            parameters=parameters(module),
            curve=result.curve,
            warnings=result.warnings,
        )
        return replace(model, module=module).after(step)

    def settings(self, seed: int) -> Settings:
        """The settings with every default decided."""
        from edgekit.train.loop import native_bf16
        from edgekit.train.settings import Settings

        return Settings(
            **self.common(),
            label_smoothing=self.label_smoothing,
            precision=("bf16" if native_bf16() else "fp32") if self.precision == "auto" else self.precision,
            seed=seed,
            objective=self.objective,
            adversarial=self.adversarial,
            device=self.device,
        )

    def notes(self, result: Recovered, train: Samples) -> tuple[str, ...]:
        """What happened, in plain lines."""
        settings, unlabelled = result.settings, train.unlabelled
        best = result.curve[result.best_epoch - 1] if result.best_epoch else None
        start, word = result.start, "agreement with the teacher" if unlabelled == len(train) else "accuracy"
        after = min(_ends(best, settings.score)) if best else start
        if settings.objective == "classes":
            scores = f"{word} {start[1]:.2%} -> {after[1]:.2%}"
        else:
            scores = f"{start[1]:.1f} dB -> {after[1]:.1f} dB from the teacher's outputs"
        lines = [
            f"held-out loss {start[0]:.3f} -> {after[0]:.3f}, {scores}; "
            f"epoch {result.best_epoch} of {settings.epochs} on {len(train):,} samples, {settings.precision}"
        ]
        if settings.objective == "outputs":
            lines.append("learned from the teacher's outputs alone, whatever they are")
        elif unlabelled == len(train):
            lines.append("the data has no labels: learned from the teacher alone, whose outputs count as class logits")
        elif unlabelled:
            lines.append(f"{unlabelled:,} of the samples have no label: these were learned from the teacher alone")
        if not result.best_epoch:
            lines.append("did not help: no epoch was better than the start, so the weights stay as they were")
        return (*lines, *self.chosen(result), *remarks(result))


def _ends(entry: Mapping[str, float], score: str) -> list[tuple[float, float]]:
    """Loss and score of an epoch, and those of the averaged weights where there are any."""
    prefixes = [prefix for prefix in ("", "ema_") if f"{prefix}held_out_loss" in entry]
    return [(entry[f"{prefix}held_out_loss"], entry[f"{prefix}{score}"]) for prefix in prefixes]


def _about(added: int) -> tuple[str, ...]:
    """The line about BatchNorm that stood in for the folded one."""
    return (f"trained with a temporary BatchNorm after {added} convolutions, folded back afterwards",) if added else ()
