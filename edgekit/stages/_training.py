"""What the stages that train have in common: settings of a recipe, and what is said of a training afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from edgekit.errors import UsageError
from edgekit.train.settings import Matching, Regularizing
from edgekit.units import parse_duration

if TYPE_CHECKING:
    from torch import nn

    from edgekit.model import Model, TensorSpec
    from edgekit.train.training import Recovered

GAIN = 0.9
"""A training has converged where this share of what it gained was reached."""


def _duration(written: float | str) -> float | str:
    try:
        seconds = parse_duration(written)
    except UsageError as error:
        raise ValueError(str(error)) from None
    if seconds <= 0:
        raise ValueError(f"must be longer than nothing, got {written!r}.")
    return written


Duration = Annotated[float | str, AfterValidator(_duration)]


class Teacher(BaseModel):
    """Another network to learn from: a source as under `model`, whose inputs and classes are those of the model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str = Field(min_length=1, examples=["for example big.onnx, or teacher.py:build"])
    weights: str | None = None

    def network(self, inputs: tuple[TensorSpec, ...], base: Path) -> nn.Module:
        """It, ready to run; relative paths start at `base`.

        Raises:
            UsageError: it cannot be used as it is, or takes other inputs.
        """
        from edgekit.graph.normalise import normalise
        from edgekit.graph.torch_view import torch_view
        from edgekit.model import TorchModel
        from edgekit.sources import load_model

        weights, specs = Path(self.weights) if self.weights else None, {spec.name: spec for spec in inputs}
        python = self.source.rpartition(":")[0].endswith(".py")
        found = load_model(self.source, weights=weights, inputs=specs if python else None, base=base)
        seen = [(spec.dtype, spec.shape[1:]) for spec in found.inputs]
        if len(seen) != len(inputs) or any(
            dtype != spec.dtype or not _fits(shape, spec.shape[1:])
            for (dtype, shape), spec in zip(seen, inputs, strict=True)
        ):
            took, gets = (
                ", ".join(f"{s.name} {s.dtype}{list(s.shape)}" for s in specs_) for specs_ in (found.inputs, inputs)
            )
            raise UsageError(f"teacher {self.source!r} takes other inputs ({took}) than the model ({gets}).")
        return found.module if isinstance(found, TorchModel) else torch_view(normalise(found.proto))

    def files(self, base: Path) -> list[Path]:
        """What it is read from."""
        python = self.source.rpartition(":")[0]
        named = [python if python.endswith(".py") else self.source, *([self.weights] if self.weights else [])]
        return [path for path in (base / name for name in named) if path.is_file()]


def _fits(one: tuple[int | str, ...], other: tuple[int | str, ...]) -> bool:
    return len(one) == len(other) and all(
        isinstance(a, str) or isinstance(b, str) or a == b for a, b in zip(one, other, strict=True)
    )


def _named(value: object) -> object:
    return {"source": value} if isinstance(value, str) else value


AnyTeacher = Annotated[Teacher, BeforeValidator(_named)]


AnySize = Literal["auto"] | Annotated[int, Field(ge=1)]
AnyRate = Literal["auto"] | Annotated[float, Field(gt=0)]


class Trains(BaseModel):
    """The settings that every stage has which trains."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    joins: ClassVar[bool] = True
    """Whether all processes that `torchrun` started have a part in it."""

    epochs: int = Field(default=2, ge=1, description="passes over the training split")
    temperature: float = Field(default=4.0, gt=0, description="softens both networks' logits")
    alpha: float = Field(
        default=0.9, ge=0, le=1, description="share of the teacher in the loss; the rest is cross-entropy"
    )
    batch_size: AnySize = Field(default=128, description="samples a step; auto by memory and number of samples")
    learning_rate: AnyRate = Field(default=0.05, description="peak after a linear warm-up; auto by a range test")
    weight_decay: float = Field(default=0.0, ge=0)
    augment: Literal["none", "shift", "flip_shift"] = Field(
        default="shift",
        description="flip_shift also mirrors: right for photographs and clothes, wrong for digits and letters",
    )
    patience: int | None = Field(
        default=None,
        ge=1,
        description="epochs without a lower held-out loss before training stops; by default half of them, 3 at least",
    )
    held_out: float = Field(default=0.1, gt=0, lt=1, description="share of the training split that judges the epochs")
    teacher: AnyTeacher | None = Field(default=None, description="another network with the same classes to learn from")
    match: Matching = Field(default=Matching(), description="what is taken from the teacher")
    regularize: Regularizing = Field(default=Regularizing(), description="against learning the samples by heart")
    accumulate: int = Field(default=1, ge=1, description="every batch goes through in so many parts")
    save_every: Duration = Field(default="5min", description="time between two checkpoints at most")
    time_budget: Duration | None = Field(default=None, description="time for training, in the place of epochs")

    def common(self) -> dict[str, Any]:
        """What of these a training's `Settings` takes, under its names there."""
        same = ("epochs", "temperature", "alpha", "weight_decay", "augment", "match", "regularize")
        return {
            # A rate that falls to zero wins most at its end: held-out loss stands still for a while before that.
            "patience": max(3, -(-self.epochs // 2)) if self.patience is None else self.patience,
            **{name: getattr(self, name) for name in (*same, "accumulate")},
            "batch_size": 0 if self.batch_size == "auto" else self.batch_size,
            "learning_rate": 0.0 if self.learning_rate == "auto" else self.learning_rate,
            "save_every_s": parse_duration(self.save_every),
            "time_budget_s": None if self.time_budget is None else parse_duration(self.time_budget),
        }

    def files(self, base: Path) -> list[Path]:
        """What the result depends on beside model and data."""
        return self.teacher.files(base) if self.teacher else []

    def chosen(self, result: Recovered) -> list[str]:
        """Lines about settings that were left to be found."""
        size = result.settings.batch_size
        return [*([f"batches of {size} samples"] if self.batch_size == "auto" else []), *result.found]


def is_sparse(model: Model) -> bool:
    """Whether a stage before made weights zero, which then stay so."""
    return any(step.name == "sparsify" for step in model.history)


def convergence(result: Recovered) -> str | None:
    """When most of the gain in held-out loss was reached, as a line; None where there was none."""
    if not result.best_epoch:
        return None
    losses = [min(e["held_out_loss"], e.get("ema_held_out_loss", e["held_out_loss"])) for e in result.curve]
    wanted = result.start[0] - GAIN * (result.start[0] - min(losses))
    epoch = next(number for number, loss in enumerate(losses, 1) if loss <= wanted)
    seconds = sum(entry["seconds"] for entry in result.curve[:epoch])
    whole = sum(entry["seconds"] for entry in result.curve)
    pace = sum(entry["samples_per_second"] for entry in result.curve) / len(result.curve)
    return (
        f"{GAIN:.0%} of the gain in held-out loss after epoch {epoch} of {len(result.curve)} ({seconds:.3g} of "
        f"{whole:.3g} s), {pace:,.0f} samples a second"
    )


def remarks(result: Recovered) -> list[str]:
    """What else there is to say of a training: when it converged, what stayed frozen, how it went on and ended."""
    lines = [line for line in (convergence(result),) if line]
    if result.frozen:
        lines.append(f"{result.frozen:,} parameters are frozen in the model and stayed as they were")
    if result.resumed_at:
        lines.append(f"went on from {result.resumed_at}")
    if result.stopped:
        lines.append(result.stopped)
    return lines
