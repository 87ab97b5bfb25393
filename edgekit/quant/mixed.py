"""Accuracy-aware mode: the smallest set of layers kept in float with which the quantized network meets its bound.

One cheap look decides whether anything is to be done. Where the bound is missed, each layer's error alone is scanned
and its cost in time measured; layers go to float by error removed for time and bytes spent until the bound is met, and
those that turn out to be needless go back. This is a greedy cover by ratio (Chvatal 1979), every step checked on the
network.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgekit.context import Progress, Silent
from edgekit.metrics import Difference, paired_accuracy, top_k
from edgekit.quant import timing
from edgekit.quant.histogram import snr_db
from edgekit.quant.observe import Batches
from edgekit.quant.plan import WEIGHTED
from edgekit.quant.qdq import emit
from edgekit.quant.sensitivity import Corrections, Layer, Scan, layers, scan
from edgekit.quant.session import open_session
from edgekit.quant.spec import QuantSpec, Variant
from edgekit.quant.timing import Cost

if TYPE_CHECKING:
    import onnx

Array = npt.NDArray[Any]
Timer = Callable[[QuantSpec, Sequence[Layer], Sequence[Array]], Mapping[str, Cost]]

GIVEN_BACK = 8
"""So many of the layers kept, the dearest first, are tried in integers again."""

DOUBT_DB = 5.0
"""Where labels show no loss, a few samples may be this much nearer to noise than unlabelled outputs may be."""

SPARE_DB = 1.0
"""Where layers are kept in float for a bound in dB, so much more is aimed at: other samples may show less. Where the
samples that judge have calibrated too, they flatter, and three times as much is."""

LEAST_COST = 0.01
"""Keeping a layer counts as at least this share of all layers' time: nothing is free."""


@dataclass(frozen=True)
class Samples:
    """Batches for the network's inputs and, for a classifier, the label of every sample in order."""

    batches: Batches
    labels: npt.NDArray[np.int64] | None = None


@dataclass(frozen=True)
class Bound:
    """What quantizing may cost: points of accuracy where there are labels, decibels where there are none."""

    max_drop: float
    min_snr: float
    spare_db: float = SPARE_DB

    def said(self, labelled: bool) -> str:
        """The half of it that counts."""
        return f"max_drop {100 * self.max_drop:.2f} pp" if labelled else f"min_snr {self.min_snr:.1f} dB"


@dataclass(frozen=True)
class Seen:
    """How far quantized outputs are from float ones: in dB and, with labels, accuracy lost with its interval."""

    snr_db: float
    drop: Difference | None
    samples: int

    def clearly_meets(self, bound: Bound) -> bool:
        """On a few samples: near enough in dB, and no loss of accuracy beyond the bound is shown."""
        if self.drop is None:
            return self.snr_db >= bound.min_snr
        return self.snr_db >= bound.min_snr - DOUBT_DB and self.drop.low <= bound.max_drop

    def meets(self, bound: Bound) -> bool:
        """On all samples that there are."""
        return self.snr_db >= bound.min_snr if self.drop is None else self.drop.value <= bound.max_drop

    def __str__(self) -> str:
        near = f"{self.snr_db:.1f} dB"
        if self.drop is None:
            return f"{near} on {self.samples} samples"
        lost, low, high = (100 * x for x in (self.drop.value, self.drop.low, self.drop.high))
        return f"{near} and {lost:.2f} pp [{low:.2f}, {high:.2f}] of accuracy lost on {self.samples} samples"


@dataclass(frozen=True)
class Row:
    """One layer in the table: `snr_db` with it alone in integers, `share` of the sum of all layers' error energy."""

    variant: Variant
    layer: str
    op: str
    snr_db: float
    share: float
    cost: float
    unit: str
    float_s: float | None
    int8_s: float | None
    kept: bool


@dataclass(frozen=True)
class Settled:
    """The spec with what is kept float, corrections without those of layers that are, the tables, and plain lines.

    `refused` says by backend why its 8-bit form is too far from float, whatever is kept.
    """

    spec: QuantSpec
    corrections: Mapping[Variant, Corrections]
    rows: tuple[Row, ...] = ()
    notes: tuple[str, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Network:
    """A float graph, how it is quantized, and which backends take which grid ("*" for all)."""

    proto: onnx.ModelProto
    spec: QuantSpec
    grids: Mapping[Variant, Sequence[str]]
    corrections: Mapping[Variant, Corrections] = field(default_factory=dict)


def settle(
    network: Network,
    bound: Bound,
    few: Samples,
    many: Samples,
    *,
    scanned: Samples,
    always: bool = False,
    timer: Timer | None = None,
    progress: Progress | None = None,
) -> Settled:
    """Hold every grid against the bound; where it is missed, keep the layers in float that cost least for it.

    `few` samples are looked at first, `many` where that leaves doubt; layers are scanned on `scanned`. With `always`
    they are scanned even where the bound is met.
    """
    if not network.spec.nodes:
        return Settled(network.spec, network.corrections)
    rows: list[Row] = []
    notes: list[str] = []
    kept: dict[Variant, dict[str, str]] = {}
    refused: dict[str, str] = {}
    exact: dict[str, list[list[Array]]] = {}
    for variant in network.grids:
        search = _Search(network, variant, bound, few, many, scanned, timer, progress or Silent(), exact)
        if search.is_near() and not always:
            continue
        found = search.run()
        kept[variant] = found.reasons
        rows += found.rows
        notes.append(found.note)
        refused |= dict.fromkeys(network.grids[variant], found.refused) if found.refused else {}
    spec = _with_floats(network, kept)
    return Settled(spec, _without(network, kept), tuple(rows), tuple(notes), refused)


def _with_floats(network: Network, kept: Mapping[Variant, Mapping[str, str]]) -> QuantSpec:
    floats = {backend: dict(reasons) for backend, reasons in network.spec.keep_float.items()}
    for variant, reasons in kept.items():
        for backend in network.grids[variant] if reasons else ():
            floats[backend] = {**reasons, **floats.get(backend, {})}
    return network.spec.model_copy(update={"keep_float": floats})


def _without(network: Network, kept: Mapping[Variant, Mapping[str, str]]) -> dict[Variant, Corrections]:
    """The corrections of layers that stay in integers."""
    return {
        variant: _corrections_beside(network.proto, changed, kept.get(variant, {}))
        for variant, changed in network.corrections.items()
    }


def _corrections_beside(
    proto: onnx.ModelProto, corrections: Corrections, floats: Mapping[str, str] | frozenset[str]
) -> Corrections:
    theirs = {name for node in proto.graph.node if node.name in floats for name in node.input}
    others = {name for node in proto.graph.node if node.name not in floats for name in node.input}
    return {name: value for name, value in corrections.items() if name not in theirs - others}


@dataclass(frozen=True)
class _Found:
    reasons: dict[str, str]
    rows: tuple[Row, ...]
    note: str
    refused: str


@dataclass
class _Search:
    """The search in one grid. `exact` keeps float outputs between grids."""

    network: Network
    variant: Variant
    bound: Bound
    few: Samples
    many: Samples
    scanned: Samples
    timer: Timer | None
    progress: Progress
    exact: dict[str, list[list[Array]]]
    checks: int = 0

    @property
    def backend(self) -> str:
        """Whose graph is looked at: the one that runs here, or TensorRT's for its own grid."""
        return "tensorrt" if self.variant == "symmetric" else self.runtime

    @cached_property
    def runtime(self) -> str:
        return "onnxruntime" if importlib.util.find_spec("onnxruntime") else "openvino"

    @property
    def corrections(self) -> Corrections:
        return self.network.corrections.get(self.variant, {})

    def is_near(self) -> bool:
        """Whether the network as it is meets the bound, looking at no more samples than that takes."""
        if self.seen((), self.few, "few").clearly_meets(self.bound):
            return True
        return self.seen((), self.many, "many").meets(self.bound)

    def seen(self, floats: Sequence[Layer], samples: Samples, name: str) -> Seen:
        """How near the outputs are with some layers in float."""
        self.checks += 1
        nodes = frozenset(node for layer in floats for node in layer.nodes)
        if name not in self.exact:
            plain = open_session(self.network.proto, runtime=self.runtime)
            self.exact[name] = [plain(batch) for batch in samples.batches()]
        session = open_session(self._emitted(nodes), runtime=self.runtime)
        signal = noise = 0.0
        plain_right: list[Array] = []
        right: list[Array] = []
        count = 0
        for batch, exact in zip(samples.batches(), self.exact[name], strict=True):
            outputs = session(batch)
            for wanted, got in zip(exact, outputs, strict=True):
                wide = wanted.astype(np.float64)
                signal += float(np.square(wide).sum())
                noise += float(np.square(got - wide).sum())
            if samples.labels is not None:
                labels = samples.labels[count : count + len(outputs[0])]
                for side, scores in zip((plain_right, right), (exact[0], outputs[0]), strict=True):
                    # A batch that was filled up has more rows than labels.
                    side.append(top_k(scores.reshape(len(scores), -1)[: len(labels)], 1)[:, 0] == labels)
            count += len(exact[0])
        drop = paired_accuracy(np.concatenate(plain_right), np.concatenate(right)) if right else None
        return Seen(snr_db(signal, noise), drop, count)

    def _emitted(self, floats: frozenset[str]) -> onnx.ModelProto:
        from edgekit.graph.tools import with_initializers

        keep = {**self.network.spec.keep_float}
        keep["*"] = {**keep.get("*", {}), **dict.fromkeys(floats, "tried in float")}
        spec = self.network.spec.model_copy(update={"keep_float": keep})
        changed = _corrections_beside(self.network.proto, self.corrections, floats)
        proto = with_initializers(self.network.proto, changed) if changed else self.network.proto
        return emit(proto, spec, self.variant, self.backend)

    def run(self) -> _Found:
        found = layers(self.network.proto, self.network.spec, self.backend)
        batches = list(self.scanned.batches())
        sensitivity = scan(
            self.network.proto,
            self.network.spec,
            found,
            batches,
            variant=self.variant,
            backend=self.backend,
            runtime=self.runtime,
            corrections=self.corrections,
            progress=self.progress,
        )
        measure = self.timer or (lambda spec, ones, batch: timing.costs(self.network.proto, spec, ones, batch))
        costs = measure(self.network.spec, found, batches[0])
        before = self.seen((), self.many, "many")
        kept: tuple[Layer, ...] | None = ()
        if not before.meets(self.bound):
            sizes = weight_sizes(self.network.proto, self.network.spec, found)
            order = in_order(found, sensitivity, costs, sizes)
            spare = replace(self.bound, min_snr=self.bound.min_snr + self.bound.spare_db)
            kept = self.smallest(order, costs, spare)
            if kept is None and before.drop is None:
                kept = self.smallest(order, costs, self.bound)
        return self._told(found, sensitivity, costs, before, kept)

    def smallest(self, order: Sequence[Layer], costs: Mapping[str, Cost], bound: Bound) -> tuple[Layer, ...] | None:
        """The first so many layers with which the bound is met, less those that it is met without; None: none do."""
        with self.progress.task("layers to keep in float") as task:

            def enough(ones: Sequence[Layer]) -> bool:
                met = self.seen(ones, self.many, "many").meets(bound)
                task.advance(1, f"{len(ones)} of {len(order)}")
                return met

            too_few, count, most = 0, 1, _short_of_all(order)
            while count <= most and not enough(order[:count]):
                too_few, count = count, min(2 * count, most) if count < most else most + 1
            if count > most:
                return None
            while count - too_few > 1:
                middle = (too_few + count) // 2
                too_few, count = (too_few, middle) if enough(order[:middle]) else (middle, count)
            kept = list(order[:count])
            for layer in sorted(kept[:-1], key=lambda one: -costs[one.name].kept)[:GIVEN_BACK]:
                fewer = [one for one in kept if one is not layer]
                if enough(fewer):
                    kept = fewer
            return tuple(kept)

    def _told(
        self,
        found: Sequence[Layer],
        sensitivity: Scan,
        costs: Mapping[str, Cost],
        before: Seen,
        kept: Sequence[Layer] | None,
    ) -> _Found:
        total = sum(sensitivity.noise.values()) or 1.0
        names = {layer.name for layer in kept or ()}
        rows = tuple(
            Row(
                variant=self.variant, layer=layer.name, op=layer.op, snr_db=sensitivity.snr_db(layer.name),
                share=sensitivity.noise[layer.name] / total, cost=costs[layer.name].kept, unit=costs[layer.name].unit,
                float_s=costs[layer.name].float_s, int8_s=costs[layer.name].int8_s, kept=layer.name in names,
            )
            for layer in found
        )  # fmt: skip
        reasons = {
            node: f"kept float for accuracy: {sensitivity.snr_db(layer.name):.1f} dB with {layer.name} alone in 8 bits"
            for layer in kept or ()
            for node in layer.nodes
        }
        refused = (
            f"gives only {before} of calibration, simulated on the host ({self._asked(before)})" if kept is None else ""
        )
        return _Found(reasons, rows, self._note(found, before, kept, costs), refused)

    def _asked(self, seen: Seen) -> str:
        return self.bound.said(seen.drop is not None)

    def _note(
        self, found: Sequence[Layer], before: Seen, kept: Sequence[Layer] | None, costs: Mapping[str, Cost]
    ) -> str:
        asked = self._asked(before)
        grid = f"{self.variant} grid: all {len(found)} layers in 8 bits give {before}"
        if kept is None:
            return f"{grid}; no set of layers in float short of all meets {asked}: better ship float"
        if not kept:
            return f"{grid}, which meets {asked}"
        after = self.seen(kept, self.many, "many")
        spent = sum(costs[layer.name].kept for layer in kept)
        cost = f"{1e6 * spent:.0f} us" if costs[kept[0].name].unit == "s" else f"{spent / 1e6:.1f} M MACs"
        named = ", ".join(layer.name for layer in kept[:5]) + (f" and {len(kept) - 5} more" if len(kept) > 5 else "")
        return f"{grid}; with {len(kept)} in float ({named}; about {cost} more a sample) {after}, for {asked}"


def _short_of_all(order: Sequence[Layer]) -> int:
    """How many of the first layers can be float with one left that has weights: the others follow their inputs."""
    return max((place for place, layer in enumerate(order) if layer.op in WEIGHTED), default=0)


def in_order(
    found: Sequence[Layer], sensitivity: Scan, costs: Mapping[str, Cost], sizes: Mapping[str, int] | None = None
) -> list[Layer]:
    """Layers by error removed for what float takes of all layers' time and (`sizes`) of all weights, bargains first."""
    sizes = sizes or {}
    seconds = sum(costs[layer.name].kept for layer in found) or 1.0
    elements = sum(sizes.values()) or 1

    def bargain(layer: Layer) -> float:
        share = costs[layer.name].kept / seconds + sizes.get(layer.name, 0) / elements
        return sensitivity.noise[layer.name] / max(share, LEAST_COST)

    return sorted(found, key=bargain, reverse=True)


def weight_sizes(proto: onnx.ModelProto, spec: QuantSpec, found: Sequence[Layer]) -> dict[str, int]:
    """How many 8-bit weights each layer has, by its name: in float they are four times as large."""
    elements = {
        tensor.name: math.prod(tensor.dims) for tensor in proto.graph.initializer if tensor.name in spec.weights
    }
    of_node = {node.name: sum(elements.get(name, 0) for name in set(node.input)) for node in proto.graph.node}
    return {layer.name: sum(of_node[name] for name in layer.nodes) for layer in found}
