"""The accuracy-aware part of `quantize`: which samples judge, which grids the targets want, and what is said of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from edgekit.model import OnnxModel, TensorSpec

if TYPE_CHECKING:
    import onnx

    from edgekit.context import RunContext
    from edgekit.data import Split
    from edgekit.quant.mixed import Samples, Settled
    from edgekit.quant.sensitivity import Corrections
    from edgekit.quant.spec import QuantSpec, Variant
    from edgekit.stages.quantize import Quantize
    from edgekit.target import Target

FEW, MANY, SCANNED = 8, 32, 8
"""Samples of the first and the second look and of the scan, where they are not too large and labels ask for no more."""

LABELLED = 512
"""So many labelled samples at most are looked at: a share needs more of them than an error energy."""

GLANCE, LOOK = 3e9, 2e11
"""With labels a look takes as many samples as so many multiply-accumulates allow, at least `FEW` or `MANY`."""

LEAST, USUAL = 4, 3 * 224 * 224
"""Of samples with more values than usual fewer are looked at, in proportion."""


def settle(
    stage: Quantize,
    proto: onnx.ModelProto,
    spec: QuantSpec,
    corrections: Mapping[Variant, Corrections],
    model: OnnxModel,
    split: Split,
    ctx: RunContext,
) -> Settled:
    """Hold the quantized network against the stage's bound and keep in float what it takes, for every grid."""
    from edgekit.quant.mixed import SPARE_DB, Bound, Network, Settled, settle

    if stage.sensitivity == "never" or not spec.nodes:
        return Settled(spec, corrections)
    labelled = split.labels is not None and ctx.data.task == "classification" and gives_classes(model.outputs)
    values = sum(math.prod(array.shape[1:]) for array in split.stored(model.inputs))
    few, many = looks(macs(proto), values, labelled=labelled)
    rows = judging(len(split), stage.samples, many)
    spare = SPARE_DB * (3 if (rows < stage.samples).any() else 1)
    wanted = grids(ctx.targets, spec)
    if not wanted:
        return Settled(spec, corrections)
    network = Network(proto, spec.model_copy(update={"forms": {}}), wanted, corrections)
    settled = settle(
        network,
        Bound(stage.max_drop, stage.min_snr, spare),
        _samples(split, spread(rows, few), model, labelled),
        _samples(split, rows, model, labelled),
        scanned=_samples(split, spread(rows, min(SCANNED, many)), model, False),
        always=stage.sensitivity == "always",
        progress=ctx.progress,
    )
    for note in settled.notes:
        ctx.progress.say(f"{stage.kind}: {note}")
    return replace(settled, spec=settled.spec.model_copy(update={"forms": spec.forms}))


def _samples(split: Split, rows: npt.NDArray[np.int64], model: OnnxModel, labelled: bool) -> Samples:
    from edgekit.quant.mixed import Samples
    from edgekit.stages.quantize import feed

    part = split.take(rows)
    return Samples(feed(part, range(len(part)), model.inputs), part.labels if labelled else None)


def looks(macs: int, values: int, *, labelled: bool) -> tuple[int, int]:
    """Samples of the first and of the second look, by the work and the input values of one sample.

    >>> looks(385_000_000, 3 * 224 * 224, labelled=False), looks(385_000_000, 3 * 224 * 224, labelled=True)
    ((8, 32), (8, 512))
    >>> looks(41_000_000, 3 * 32 * 32, labelled=True)
    (73, 512)
    """
    few, many = FEW, MANY
    if labelled:
        few, many = (int(np.clip(work / max(macs, 1), n, LABELLED)) for work, n in ((GLANCE, FEW), (LOOK, MANY)))
    share = min(1.0, USUAL / max(values, 1))
    return max(int(few * share), LEAST), max(int(many * share), LEAST)


def grids(targets: Sequence[Target], spec: QuantSpec | None = None) -> dict[Variant, tuple[str, ...]]:
    """The grids that the targets' backends take, each with those backends; all take the affine one without targets.

    Backends that `spec` gives another form than static int8 take none.
    """
    found: dict[Variant, dict[str, None]] = {}
    for target in targets:
        for name, facts in target.backends.items():
            if "int8" in facts.precisions and (spec is None or spec.form(name) == "int8"):
                found.setdefault(facts.grid, {})[name] = None
    everything: dict[Variant, tuple[str, ...]] = {} if targets else {"affine": ("*",)}
    return {variant: tuple(names) for variant, names in sorted(found.items())} or everything


def gives_classes(outputs: Sequence[TensorSpec]) -> bool:
    """Whether a network gives one score a class: `[N, classes]`, or with extents of 1 behind that."""
    shape = outputs[0].shape if len(outputs) == 1 else ()
    return len(shape) >= 2 and shape[1] != 1 and all(extent == 1 for extent in shape[2:])


def macs(proto: onnx.ModelProto) -> int:
    """Multiply-accumulates of one sample, by the shapes that the graph knows; dynamic extents count as 1."""
    from edgekit.errors import UsageError
    from edgekit.graph.cost import COUNTED
    from edgekit.graph.tools import shapes

    known = {name: tuple(d if isinstance(d, int) else 1 for d in shape) for name, shape in shapes(proto.graph).items()}
    total = 0
    for node in proto.graph.node:
        if node.op_type in COUNTED:
            try:
                total += COUNTED[node.op_type](node, known)
            except UsageError:
                continue
    return total


def judging(available: int, calibrating: int, wanted: int) -> npt.NDArray[np.int64]:
    """Rows that judge: those that no calibration saw, spread over what there is, and the last of the others."""
    seen = min(available, calibrating)
    fresh = np.arange(seen, available)
    if len(fresh) >= wanted:
        return spread(fresh, wanted)
    return np.concatenate([fresh, np.arange(seen)[::-1]])[:wanted]


def spread(rows: npt.NDArray[np.int64], wanted: int) -> npt.NDArray[np.int64]:
    """`wanted` of the rows, evenly spread; all of them where there are no more."""
    if len(rows) <= wanted:
        return rows
    chosen: npt.NDArray[np.int64] = rows[np.linspace(0, len(rows) - 1, wanted).astype(np.int64)]
    return chosen
