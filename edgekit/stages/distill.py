"""`distill`: train the smaller network until it does again what the untouched one did."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from edgekit.context import RunContext
from edgekit.errors import UsageError
from edgekit.extras import require
from edgekit.model import Model, Step, TorchModel

if TYPE_CHECKING:
    from edgekit.train.loop import Recovered, Settings


class Distill(BaseModel):
    """Recovery training with the untouched model as teacher (Hinton et al. 2015, arXiv:1503.02531).

    Cross-entropy on the labels and a softened KL term on the teacher's logits; without labels the teacher alone.
    Keeps the epoch with the lowest loss on a held-out part of the training split. Deterministic with the run's seed;
    goes on from its last finished epoch after a kill.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    kind: ClassVar[str] = "distill"
    trains: ClassVar[bool] = True

    epochs: int = Field(2, ge=1, description="passes over the training split")
    temperature: float = Field(4.0, gt=0, description="softens both networks' logits")
    alpha: float = Field(0.9, ge=0, le=1, description="share of the teacher in the loss; the rest is cross-entropy")
    batch_size: int = Field(128, ge=1)
    learning_rate: float = Field(0.05, gt=0, description="peak rate of SGD after a linear warm-up; a cosine follows")
    weight_decay: float = Field(5e-4, ge=0)
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    augment: Literal["none", "shift", "flip_shift"] = Field(
        "shift", description="flip_shift also mirrors: right for photographs and clothes, wrong for digits and letters"
    )
    patience: int = Field(3, ge=1, description="epochs without a lower held-out loss before training stops")
    held_out: float = Field(0.1, gt=0, lt=1, description="share of the training split that judges the epochs")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="arithmetic of the forward pass; auto is bf16 where the processor has it"
    )

    def apply(self, model: Model, ctx: RunContext) -> TorchModel:
        """A trained copy of `model`, of the same shape.

        Raises:
            UsageError: the model is a graph already, is no classifier, or training diverges.
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
        settings = self.settings(ctx.seed)
        student, added = model.module, 0
        if not has_batchnorm(student):
            sample = some(train.split, 512, ctx.seed)
            student, added = with_batchnorm(student, (x for x, _ in sample.batches(64)))
        result = recover(
            student,
            torch_view(model.reference.proto),
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
            config={**self.model_dump(), "precision": settings.precision},
            seconds=time.monotonic() - started,
            notes=(*self.notes(result, settings, labelled=train.labelled, count=len(train)), *_about(added)),
            macs=model.history[-1].macs if model.history else None,
            parameters=parameters(module),
            curve=result.curve,
        )
        return replace(model, module=module).after(step)

    def settings(self, seed: int) -> Settings:
        """The settings with every default decided."""
        from edgekit.train.loop import Settings, native_bf16

        return Settings(
            epochs=self.epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            temperature=self.temperature,
            alpha=self.alpha,
            label_smoothing=self.label_smoothing,
            augment=self.augment,
            patience=self.patience,
            clip=5.0,
            precision=("bf16" if native_bf16() else "fp32") if self.precision == "auto" else self.precision,
            seed=seed,
        )

    def notes(self, result: Recovered, settings: Settings, *, labelled: bool, count: int) -> tuple[str, ...]:
        """What happened, in plain lines."""
        word = "accuracy" if labelled else "agreement with the teacher"
        best = result.curve[result.best_epoch - 1] if result.best_epoch else None
        after = (best["held_out_loss"], best["accuracy"]) if best else result.start
        lines = [
            f"held-out loss {result.start[0]:.3f} -> {after[0]:.3f}, {word} {result.start[1]:.2%} -> {after[1]:.2%}; "
            f"epoch {result.best_epoch} of {settings.epochs} on {count:,} samples, {settings.precision}"
        ]
        if not labelled:
            lines.append("the data has no labels: learned from the teacher alone, whose outputs count as class logits")
        if not result.best_epoch:
            lines.append("did not help: no epoch was better than the start, so the weights stay as they were")
        if result.resumed_at:
            lines.append(f"went on from epoch {result.resumed_at}")
        if result.stopped:
            lines.append(result.stopped)
        return tuple(lines)


def _about(added: int) -> tuple[str, ...]:
    """The line about BatchNorm that stood in for the folded one."""
    return (f"trained with a temporary BatchNorm after {added} convolutions, folded back afterwards",) if added else ()
