"""`sparsify`: make weights zero, where what the model is for is faster for it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from edgekit.context import RunContext
from edgekit.errors import UsageError
from edgekit.extras import require
from edgekit.model import Model, Step, TorchModel

if TYPE_CHECKING:
    from torch import Tensor, nn

    from edgekit.target import Target
    from edgekit.train.samples import Samples

BATCH = 64
FIRST_SPARSE = 8.0
"""The compute capability from which NVIDIA's tensor cores skip zeros."""


class Sparsify(BaseModel):
    """Sparse weights of the same shapes: 2:4 for TensorRT, or any share where a device is measured to be faster.

    Weights are ranked by size times the size of their inputs (Sun et al. 2023, arXiv:2306.11695), from samples
    without labels. Zeros stay zeros through `distill`, `quantize` and `qat`. Nothing is made sparse that is no faster.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        json_schema_extra={"oneOf": [{"required": ["pattern"]}, {"required": ["share"]}]},
    )
    kind: ClassVar[str] = "sparsify"
    trains: ClassVar[bool] = True
    not_before: ClassVar[tuple[str, ...]] = ("prune", "factorize")
    """What would undo it."""

    pattern: Literal["2:4"] | None = Field(
        None,
        description="two of every four input channels stay: for TensorRT on GPUs from compute capability 8.0",
    )
    share: float | None = Field(
        None, gt=0, lt=1, description="share of every output's weights that becomes zero, where a device is faster then"
    )
    ranking: Literal["wanda", "magnitude"] = Field(
        "wanda", description="by size of the weight times that of its input, or of the weight alone"
    )
    samples: int = Field(1024, ge=1, description="training samples that measure inputs and statistics")

    @model_validator(mode="after")
    def _one_of_two(self) -> Sparsify:
        if (self.pattern is None) == (self.share is None):
            seen = "none" if self.pattern is None else "both"
            raise ValueError(f"sparsify needs pattern or share, got {seen}. Use pattern: '2:4' for TensorRT")
        return self

    def apply(self, model: Model, ctx: RunContext) -> TorchModel:
        """A copy of `model` with zeros, or as it was where no target would be faster: the step says so.

        Raises:
            UsageError: the model is a graph already; no target has what it is for, or none can be measured; no layer
                can be made sparse.
        """
        if not isinstance(model, TorchModel):
            raise UsageError("'sparsify' changes a trainable module: put it before 'quantize' in the recipe.")
        require("torch", extra="torch", why="making weights sparse")
        return _Run(self, model, ctx).result()


class _Run:
    """One application: the settings, the model, and the samples drawn for it."""

    def __init__(self, stage: Sparsify, model: TorchModel, ctx: RunContext) -> None:
        from edgekit.train.samples import single_input, some, training_split

        if stage.pattern and not gaining(ctx.targets):
            named = ", ".join(target.name for target in ctx.targets) or "none"
            raise UsageError(
                "'sparsify' with pattern '2:4' is for TensorRT on a GPU of compute capability 8.0 or more, and no "
                f"target of the recipe has one (targets: {named}). Add one, such as rtx-ampere, or take the stage out."
            )
        single_input(model.inputs)
        self.stage, self.model, self.ctx = stage, model, ctx
        self.samples: Samples = some(training_split(ctx.data), stage.samples, ctx.seed)

    def result(self) -> TorchModel:
        from edgekit.prune.shapes import parameters

        started, model = time.monotonic(), self.model
        with self.ctx.progress.task("sparsify", total=3) as task:
            module, notes = self.sparse()
            task.advance(note="measuring statistics")
            notes.append(self.settled(module))
            made = replace(model, module=module)
            task.advance(note="measuring time")
            told, faster = self.timed(made) if self.stage.share else (self.unmeasured(), True)
            task.advance()
        warnings: tuple[str, ...] = ()
        if not faster:
            made, notes = model, []
            warnings = (f"sparsify left the weights as they were: no device is faster for zeros ({'; '.join(told)})",)
        step = Step(
            name=self.stage.kind,
            config=self.stage.model_dump(),
            seconds=time.monotonic() - started,
            notes=(*notes, *told),
            warnings=warnings,
            macs=model.history[-1].macs if model.history else None,
            parameters=parameters(made.module),
        )
        return made.after(step)

    def batches(self) -> Iterator[Tensor]:
        """All samples, as the model takes them."""
        import torch

        for inputs, _ in self.samples.batches(BATCH):
            yield inputs.to(getattr(torch, self.model.inputs[0].dtype))

    def sparse(self) -> tuple[nn.Module, list[str]]:
        """A copy with zeros, and lines about where.

        Raises:
            UsageError: no layer can be made sparse.
        """
        import torch

        from edgekit.graph.exporting import copied
        from edgekit.prune.factored import usable
        from edgekit.prune.sparse import GROUP, input_norms, scores, share_of_each, two_of_four

        stage, module = self.stage, copied(self.model.module)
        (layers, refused), zeros, total = usable(module), 0, 0
        norms = input_norms(module, self.batches())
        done = []
        for path, norm in norms.items():
            weight = layers[path].weight
            assert isinstance(weight, torch.nn.Parameter)
            if stage.pattern and weight.shape[1] % GROUP:
                refused[path] = f"{weight.shape[1]} input channels, no multiple of {GROUP}"
                continue
            rank = scores(weight, norm, stage.ranking)
            stay = two_of_four(rank) if stage.share is None else share_of_each(rank, stage.share)
            with torch.no_grad():
                weight.mul_(stay)
            done.append(path)
            zeros, total = zeros + int((~stay).sum()), total + weight.numel()
        reasons = _by_reason(refused)
        if not done:
            raise UsageError(
                f"No layer of the model can be made sparse: {'; '.join(reasons) or 'it has none that runs'}. "
                "Take 'sparsify' out of the recipe."
            )
        how = f"pattern {stage.pattern}" if stage.pattern else f"{stage.share:.0%} of every output's weights"
        return module, [f"{how}: {zeros:,} of {total:,} weights of {len(done)} layers are zero", *reasons]

    def settled(self, module: nn.Module) -> str:
        """Put statistics right in place, as after pruning; a line about how."""
        import torch

        from edgekit.graph.exporting import copied
        from edgekit.prune.correct import channel_moments, correct_biases, reestimate_batchnorm
        from edgekit.prune.shapes import has_batchnorm

        if has_batchnorm(module):
            reestimate_batchnorm(module, self.batches())
            return f"BatchNorm statistics measured anew on {len(self.samples)} samples"
        inputs = next(self.batches())
        dense = copied(self.model.module)
        with torch.no_grad():
            shifted = correct_biases(module, inputs, channel_moments(dense, inputs))
        return f"biases and scales of {shifted} layers corrected on {len(inputs)} samples (there is no BatchNorm)"

    def unmeasured(self) -> list[str]:
        """What is said of targets where the pattern is taken on trust, or gains nothing."""
        yes = gaining(self.ctx.targets)
        others = [target.name for target in self.ctx.targets if target not in yes]
        named = ", ".join(target.name for target in yes)
        lines = [f"TensorRT is told of sparse weights for {named}; it takes them where its own timing is better"]
        return lines + ([f"nothing is gained on {', '.join(others)}"] if others else [])

    def timed(self, made: TorchModel) -> tuple[list[str], bool]:
        """A line a backend with the ratio of both times, and whether any is faster with zeros.

        Raises:
            UsageError: none of the targets has a device here.
        """
        lines, faster = [], False
        for target in self.ctx.targets:
            for backend in target.backends:
                seen = self.held_against(made, target, backend)
                if seen is None:
                    continue
                better = seen["high"] < 1
                faster = faster or better
                lines.append(
                    f"{target.name}, {backend}, {seen['precision']}: {1e3 * seen['latency_s']:.3g} ms with zeros, "
                    f"{seen['ratio']:.3f} [{seen['low']:.3f}, {seen['high']:.3f}] of the time without"
                    f"{'' if better else ', not shown faster'}"
                )
        if not lines:
            raise UsageError(
                "'sparsify' with a share is done only where a device is measured to be faster, and no target of the "
                "recipe has one that can be timed. Add `device: local` to a target, or take the stage out."
            )
        return lines, faster

    def held_against(self, made: TorchModel, target: Target, backend: str) -> dict[str, Any] | None:
        """The paired ratio; None where the recipe does not build for the backend, or has no device to time it on."""
        try:
            seen = self.ctx.measure(made, target, backend=backend, against=self.model)
        except UsageError:
            return None
        return None if seen["latency_s"] is None else seen


def gaining(targets: tuple[Target, ...]) -> list[Target]:
    """Those with TensorRT on a GPU that skips zeros."""
    return [t for t in targets if "tensorrt" in t.backends and t.gpu and float(t.gpu.compute) >= FIRST_SPARSE]


def _by_reason(refused: Mapping[str, str]) -> list[str]:
    reasons: dict[str, list[str]] = {}
    for path, why in refused.items():
        reasons.setdefault(why, []).append(path)
    return [f"left dense: {', '.join(paths)} ({why})" for why, paths in reasons.items()]
