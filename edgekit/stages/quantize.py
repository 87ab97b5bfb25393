"""Static 8-bit quantization: ranges from calibration samples, scales from weights, one QuantSpec for all backends."""

from __future__ import annotations

import difflib
import fnmatch
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from edgekit.errors import UsageError
from edgekit.model import Model, OnnxModel, Step, TensorSpec, as_onnx
from edgekit.quant.spec import Form
from edgekit.units import parse_decibels, parse_points

if TYPE_CHECKING:
    import onnx

    from edgekit.context import Progress, RunContext
    from edgekit.data import DataSet, Split
    from edgekit.quant.observe import Batches, Observed
    from edgekit.quant.pick import Picked
    from edgekit.quant.plan import Plan
    from edgekit.quant.spec import QuantSpec, Variant
    from edgekit.target import Target

BATCH = 32
BATCH_VALUES = 4 * 3 * 224 * 224
"""A batch of samples is at most this large: then the activations of a large image stay in a processor's cache."""


FAST: dict[str, Any] = {
    "rounding": "nearest", "bias_correction": "none", "equalize": False, "smooth": False, "sensitivity": "never",
}  # fmt: skip
"""What `effort: fast` means where the recipe does not say otherwise."""

HELD_OUT = 128
"""So many samples at most compare the forms of a transformer."""


def _by(parse: Callable[[str | float], float]) -> BeforeValidator:
    """A pydantic field written as people write quantities."""

    def read(value: object) -> object:
        if not isinstance(value, str | int | float):
            return value
        try:
            return parse(value)
        except UsageError as error:
            raise ValueError(str(error)) from error

    return BeforeValidator(read)


class Quantize(BaseModel):
    """Run the network in 8-bit integers: symmetric weights per channel, asymmetric activations per tensor.

    Transformers get the 8-bit form that is best on each backend, static or dynamic; other precisions by name.

    Ranges come from one pass over the samples; `auto` chooses, tensor by tensor, whichever calibrator's range has the
    least expected squared error (Nagel et al. 2021, arXiv:2106.08295, section 3).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    kind: ClassVar[str] = "quantize"
    trains: ClassVar[bool] = False
    by_grid: ClassVar[bool] = True

    precision: Form = "int8"
    """`int8` is static, and for transformers whichever 8-bit form is best on each backend."""
    effort: Literal["accurate", "fast"] = "accurate"
    """`fast` leaves every correction and every look at single layers out, unless the recipe asks for it by name."""
    calibration: Literal["auto", "minmax", "percentile", "entropy", "mse"] = "auto"
    samples: int = Field(default=512, ge=1)
    """Calibration samples."""
    cache: bool = True
    """Keep what calibration observes, by content, and don't run the same network on the same samples again."""
    max_drop: Annotated[float, _by(parse_points), Field(ge=0, lt=1)] = 0.005
    """Largest loss of the task's metric against float, as a fraction of one ("0.5pp"); decides what ships."""
    min_snr: Annotated[float, _by(parse_decibels), Field(ge=0, le=200)] = 20.0
    """Least signal-to-noise ratio of the outputs against float, in dB: the bound of networks without a task metric."""
    sensitivity: Literal["auto", "always", "never"] = "auto"
    """When layers are looked at one by one, and the most sensitive of them kept float until the bound is met."""
    keep_float: tuple[str, ...] = ()
    """Names of operators of the folded graph that stay float; `*`, `?` and `[...]` as in file names."""
    equalize: bool | Literal["auto"] = "auto"
    """Scale channels against each other where the network stays the same in float; `auto`: where it gains 4 dB."""
    smooth: bool | Literal["auto"] = "auto"
    """The same for transformers, through normalisations into the matrix products behind them."""
    bias_correction: Literal["none", "fast", "full"] = "fast"
    """Biases that make up for rounding: from the means of inputs, or measured on the quantized graph."""
    rounding: Literal["auto", "nearest", "compensated", "learned"] = "auto"
    """How weights are rounded: each to its nearest step, or so that errors cancel at the output, which `auto` does."""

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, settings: Any) -> Any:
        fast = isinstance(settings, dict) and settings.get("effort") == "fast"
        return {**FAST, **settings} if fast else settings

    def apply(self, model: Model, ctx: RunContext) -> Model:
        """The folded graph with its QuantSpec.

        Raises:
            UsageError: unusable calibration samples, an unknown node in `keep_float`, or a model that is quantized.
        """
        from edgekit.graph.fold import fold
        from edgekit.graph.integers import for_integers
        from edgekit.quant.choose import from_observed
        from edgekit.quant.correct import correct
        from edgekit.quant.layers import own_biases
        from edgekit.stages._accuracy import settle
        from edgekit.stages._told import already, doubts, notes

        start = time.monotonic()
        source = as_onnx(model)
        if source.quant is not None:
            raise UsageError("The model is quantized already. Put `quantize` into the recipe once.")
        if said := already(source):
            return source.after(Step(self.kind, self.model_dump(mode="json"), 0.0, (said,), (said,)))
        proto = for_integers(fold(source.proto))
        if self.bias_correction != "none":
            proto = own_biases(proto)
        if self.precision != "int8":
            return self._uncalibrated(proto, source, start)
        samples = self._samples(source, ctx)
        batches, total = samples.batches, samples.total
        planned = self._plan(proto)
        observed = self._observe(proto, planned, samples, ctx.progress)
        better, equalized = self._equalized(proto, observed, batches, total, ctx.progress)
        if better is not proto:
            proto, planned = better, self._plan(better)
            observed = self._observe(proto, planned, samples, ctx.progress)
        choice = from_observed(proto, planned, observed, self.calibration, source=samples.facts)
        picked = self._pick(proto, choice.spec, source, ctx)
        corrections = correct(
            proto,
            picked.spec,
            variants(ctx.targets, picked.spec),
            batches,
            choice.observed,
            bias=self.bias_correction,
            rounding=self.rounding,
            progress=ctx.progress,
        )
        settled = settle(self, proto, picked.spec, corrections, source, calibration_split(ctx.data), ctx)
        step = Step(
            name=self.kind,
            config=self.model_dump(mode="json"),
            seconds=time.monotonic() - start,
            notes=(*notes(planned, choice), *equalized, *picked.notes, *settled.notes),
            sensitivity=tuple(vars(row) for row in settled.rows),
            warnings=doubts(choice, total),
            refused=settled.refused,
        )
        return replace(
            source, proto=proto, quant=settled.spec, corrections=settled.corrections, original=source.reference
        ).after(step)

    def _uncalibrated(self, proto: onnx.ModelProto, source: OnnxModel, start: float) -> OnnxModel:
        """The form that the recipe names, which needs no ranges of activations."""
        from edgekit.quant.forms import form_spec

        unwanted = matching(self.keep_float, [node.name for node in proto.graph.node])
        spec = form_spec(proto, self.precision, unwanted)
        counts = [(len(spec.nodes), "operator"), (len(spec.tables), "embedding")]
        said = " and ".join(f"{count} {what}{'s' if count != 1 else ''}" for count, what in counts if count)
        notes = [f"{said} in {self.precision}" if said else f"all weights in {self.precision}"]
        notes += [f"{name} stays float: {why}" for name, why in list(spec.keep_float.get("*", {}).items())[:10]]
        config = self.model_dump(mode="json")
        step = Step(name=self.kind, config=config, seconds=time.monotonic() - start, notes=tuple(notes))
        return replace(source, proto=proto, quant=spec, original=source.reference, corrections={}).after(step)

    def _pick(self, proto: onnx.ModelProto, spec: QuantSpec, model: OnnxModel, ctx: RunContext) -> Picked:
        """The best 8-bit form for each backend, where there is a choice: static is it but for transformers."""
        from edgekit.quant.pick import FAST, Picked, attends, pick

        if not spec.nodes or not attends(proto):
            return Picked(spec)
        split = calibration_split(ctx.data)
        total = min(len(split), self.samples)
        held = range(total - min(HELD_OUT, -(-total // 4)), total)
        backends = [name for target in ctx.targets for name in target.backends] or list(FAST)
        return pick(proto, spec, feed(split, held, model.inputs), backends, self.min_snr, progress=ctx.progress)

    def _plan(self, proto: onnx.ModelProto) -> Plan:
        from edgekit.quant.plan import plan

        return plan(proto, matching(self.keep_float, [node.name for node in proto.graph.node]))

    def _observe(self, proto: onnx.ModelProto, planned: Plan, samples: Calibrating, progress: Progress) -> Observed:
        """One pass: what ranges need, and for every weighted operator what equalization and corrections do."""
        from edgekit.quant.cache import kept, key_of
        from edgekit.quant.calibrate import calibrated
        from edgekit.quant.layers import layers
        from edgekit.quant.observe import Observed, observe

        if not planned.nodes:
            return Observed({})
        corrected = self.bias_correction != "none" or self.rounding != "nearest" or self.equalize or self.smooth
        chosen = layers(proto, planned.nodes) if corrected else []
        names = calibrated(planned)

        def look() -> Observed:
            return observe(proto, names, samples.batches, chosen, total=samples.total, progress=progress)

        if not self.cache:
            return look()
        asked = (*names, "layers:", *(layer.node.name for layer in chosen))
        return kept(key_of(proto, asked, samples.raw(), samples.about), look)[0]

    def _equalized(
        self, proto: onnx.ModelProto, observed: Observed, batches: Batches, total: int, progress: Progress
    ) -> tuple[onnx.ModelProto, tuple[str, ...]]:
        """The graph with like ranges in the channels of its activations where that helps, and a note on it."""
        from edgekit.quant.equalize import equalize, places
        from edgekit.quant.smooth import norm_places

        notes = []
        for how, find, what in ((self.equalize, places, "equalized"), (self.smooth, norm_places, "smoothed")):
            where = find(proto) if how else []
            done = equalize(
                proto, batches, total, always=how is True, seen=observed.channels, progress=progress, where=where
            )
            proto = done.proto
            if count := len(done.gains_db):
                gain = sum(done.gains_db.values()) / count
                notes.append(f"channels of {count} activations {what}, {gain:.1f} dB each expected")
        return proto, tuple(notes)

    def _samples(self, model: OnnxModel, ctx: RunContext) -> Calibrating:
        """The calibration samples, and where they come from."""
        split = calibration_split(ctx.data)
        facts = {"data": ctx.data.name, "split": split.name, "sha256": ctx.data.sha256}
        return Calibrating(split, min(len(split), self.samples), model.inputs, {k: v for k, v in facts.items() if v})


@dataclass(frozen=True)
class Calibrating:
    """The first `total` samples of a split, as the network takes them."""

    split: Split
    total: int
    inputs: tuple[TensorSpec, ...]
    facts: dict[str, str]

    @cached_property
    def batches(self) -> Batches:
        """A stream of checked batches."""
        return feed(self.split, range(self.total), self.inputs)

    def raw(self) -> list[npt.NDArray[Any]]:
        """The samples as stored."""
        return [array[: self.total] for array in self.split.stored(self.inputs)]

    @property
    def about(self) -> tuple[str, ...]:
        """How the stored samples become inputs."""
        return repr(self.split.preprocess), repr(self.inputs), str(BATCH_VALUES)


def variants(targets: Sequence[Target], spec: QuantSpec | None = None) -> tuple[Variant, ...]:
    """The grid variants that `targets` use, and the affine one, in which the stage's result is checked on the host.

    Those of backends that `spec` gives another form than static int8 are left out.
    """
    pairs = [(name, facts.grid) for target in targets for name, facts in target.backends.items()]
    static = [grid for name, grid in (("onnxruntime", "affine"), *pairs) if spec is None or spec.form(name) == "int8"]
    return tuple(dict.fromkeys(static))


def calibration_split(data: DataSet) -> Split:
    """The samples that the stage may use.

    Raises:
        UsageError: there are none.
    """
    split = data.split("calibration" if "calibration" in data.splits else "train")
    if not len(split):
        raise UsageError(f"The split {split.name!r} of data {data.name!r} is empty: nothing to calibrate on.")
    return split


def matching(patterns: Sequence[str], names: Sequence[str]) -> frozenset[str]:
    """The node names that the patterns mean.

    Raises:
        UsageError: a pattern matches none.
    """
    found: set[str] = set()
    for pattern in patterns:
        matched = {name for name in names if name == pattern} or set(fnmatch.filter(names, pattern))
        if not matched:
            near = difflib.get_close_matches(pattern, names, n=1)
            guess = f" Did you mean {near[0]!r}?" if near else ""
            some = ", ".join(names[:5])
            raise UsageError(
                f"keep_float: no operator matches {pattern!r}.{guess} The folded graph has {len(names)}: {some}, ..."
            )
        found |= matched
    return frozenset(found)


def feed(split: Split, rows: range, specs: Sequence[TensorSpec]) -> Batches:
    """A stream of checked batches, one array an input of the network.

    A batch that the network fixes is filled up by repeating samples where there are not enough for one; what is left
    over after whole batches is left out.
    """
    fixed = _fixed_batch(specs)
    size = fixed or _batch_size(specs, split)

    def stream() -> Iterator[list[npt.NDArray[Any]]]:
        for start in range(rows.start, rows.stop, size):
            stop = min(start + size, rows.stop)
            if fixed and stop - start < size and start > rows.start:
                return
            batch = split.ready(specs, slice(start, stop))
            ready = [_checked(array, split, spec) for array, spec in zip(batch, specs, strict=True)]
            yield [np.resize(array, (size, *array.shape[1:])) if fixed else array for array in ready]

    return stream


def _fixed_batch(specs: Sequence[TensorSpec]) -> int:
    """The batch that the network's inputs are fixed to, 0 where it is free."""
    fixed = {spec.shape[0] for spec in specs if spec.shape and isinstance(spec.shape[0], int)}
    if len(fixed) > 1 or not all(spec.shape for spec in specs):
        seen = ", ".join(f"{spec.name!r} {list(spec.shape)}" for spec in specs)
        raise UsageError(f"The network's inputs cannot be cut into samples along one first axis: {seen}.")
    return next(iter(fixed), 0)


def _batch_size(specs: Sequence[TensorSpec], split: Split) -> int:
    values = sum(int(np.prod(array.shape[1:], dtype=np.int64)) for array in split.stored(specs))
    return int(np.clip(BATCH_VALUES // max(values, 1), 1, BATCH))


def _checked(batch: npt.NDArray[Any], split: Split, spec: TensorSpec) -> npt.NDArray[Any]:
    fits = batch.ndim == len(spec.shape) and all(
        isinstance(want, str) or want == got for want, got in zip(spec.shape[1:], batch.shape[1:], strict=True)
    )
    if not fits:
        raise UsageError(
            f"Calibration samples of split {split.name!r} are {list(batch.shape[1:])} after preprocessing; the input "
            f"{spec.name!r} takes {list(spec.shape[1:])}. Check the data's preprocessing and layout."
        )
    if batch.dtype != np.dtype(spec.dtype):
        raise UsageError(
            f"Calibration samples of split {split.name!r} are {batch.dtype} after preprocessing; the input "
            f"{spec.name!r} takes {spec.dtype}."
        )
    if batch.dtype.kind == "f" and not np.isfinite(batch).all():
        raise UsageError(
            f"Calibration samples of split {split.name!r} hold NaN or infinity after preprocessing. Remove them."
        )
    return batch
