"""One streaming pass over the calibration samples: everything that calibrators and corrections need to know.

Extremes of all tensors are exact and reduced inside the runtime. Histograms, means and second moments come from a
strided sample of positions, of the same size for every calibration set: memory is flat, and one pass serves all.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgekit.context import Progress, Silent
from edgekit.errors import UsageError
from edgekit.quant.channels import Channels
from edgekit.quant.histogram import Histogram
from edgekit.quant.layers import Layer
from edgekit.quant.moments import EACH, Crop, Moments, crop, single_threaded
from edgekit.quant.saturated import one_sample, saturated
from edgekit.quant.session import stream
from edgekit.quant.view import GraphView, clip_bounds, typed

if TYPE_CHECKING:
    import onnx

Array = npt.NDArray[Any]
Batches = Callable[[], Iterable[Sequence[Array]]]
"""Makes a fresh stream of batches: one array for each input of the graph."""

COUNTED = 2**17
"""So many values of a tensor at most go into its histogram, over the whole calibration set."""

ENOUGH = 128
"""So many samples tell means and mean squares well enough."""

WORTH_IT = 64
"""With so many samples or more it pays to ask beforehand which clipped tensors reach their bound."""

FAR = 2**31 - 1

_SAFE = frozenset(
    {
    "Add", "AveragePool", "BatchNormalization", "Clip", "Concat", "Conv", "ConvTranspose", "Flatten", "Gather",
    "Gemm", "GlobalAveragePool", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "MatMul", "MaxPool",
    "Mul", "Pad", "ReduceMean", "Relu", "Reshape", "Resize", "Sigmoid", "Slice", "Softmax", "Split", "Squeeze",
    "Sub", "Tanh", "Transpose", "Unsqueeze", "Where",
    }
)  # fmt: skip
"""Operators that make NaN only out of NaN or infinity."""


@dataclass(frozen=True)
class Observed:
    """What one pass found.

    `histograms` with exact extremes for each tensor; of what weighted operators read, by tensor, `channels` (each
    channel's exact extremes and its mean square) and `means`; `moments` of their inputs, by node, block after block
    (see `edgekit.quant.moments`).
    """

    histograms: Mapping[str, Histogram]
    channels: Mapping[str, Channels] = field(default_factory=dict)
    means: Mapping[str, Array] = field(default_factory=dict)
    moments: Mapping[str, list[npt.NDArray[np.float32]]] = field(default_factory=dict)
    samples: int = 0


def observe(
    proto: onnx.ModelProto,
    names: Sequence[str],
    batches: Batches,
    layers: Sequence[Layer] = (),
    *,
    total: int | None = None,
    progress: Progress | None = None,
) -> Observed:
    """Run every batch once: histograms of `names`, means and moments for `layers`. `total` is the number of samples.

    Raises:
        UsageError: there are no batches, or a tensor holds NaN or infinity.
    """
    view = GraphView(typed(proto).graph)
    first = next(iter(batches()), None)
    if first is None:
        raise UsageError("Calibration got no samples. Give it some, a few hundred that look like real input.")
    expected = max(total or len(first[0]), 1)
    share = COUNTED / expected
    each = EACH * max(1, round(ENOUGH / expected))  # few samples have to tell more each
    full = saturated(proto, view, one_sample(proto, view, first)) if expected >= WORTH_IT else {}
    probes = _Probes(proto, view, names, layers, [array.shape for array in first], each, full)
    samples = 0
    counts: deque[int] = deque()
    # The runtime has a thread a core already, which linear algebra with threads of its own would get in the way of.
    with single_threaded(), (progress or Silent()).task("calibrating", total) as task:
        for _, values in stream(probes.proto, _filled(_checked(batches(), view), first, counts)):
            count = counts.popleft()
            probes.take(values, count, int(share * count) + 1)
            samples += count
            task.advance(count)
    return probes.result(samples)


def _filled(
    batches: Iterable[Sequence[Array]], first: Sequence[Array], counts: deque[int]
) -> Iterator[Sequence[Array]]:
    """Batches of the first one's shape: a smaller one repeats its samples, and `counts` says how many are its own."""
    for batch in batches:
        counts.append(len(batch[0]) if batch[0].ndim else 1)
        pairs = zip(batch, first, strict=True)
        yield [np.resize(a, b.shape) if a.ndim and len(a) < len(b) else a for a, b in pairs]


def _checked(batches: Iterable[Sequence[Array]], view: GraphView) -> Iterator[Sequence[Array]]:
    for batch in batches:
        for name, array in zip(view.inputs, batch, strict=True):
            if array.dtype.kind == "f":
                refuse(name, not np.isfinite(array).all())
        yield batch


def refuse(name: str, bad: bool) -> None:
    """Stop where a tensor is not finite."""
    if bad:
        raise UsageError(
            f"Calibration met NaN or infinity in tensor {name!r}. Check the calibration samples, their preprocessing, "
            "and the model's weights."
        )


@dataclass
class _Sums:
    """Sums over samples for each channel of a tensor, which lie on `axis` (1, or -1 behind tokens).

    Where `top` is given no channel is looked at for its largest value: that is it.
    """

    axis: int
    top: float | None = None
    count: int = 0
    total: Any = 0.0
    square: Any = 0.0
    low: Any = np.inf
    high: Any = -np.inf

    def add(self, values: Array, low: Array | None, high: Array | None, samples: int) -> None:
        """Take a sample of positions, and extremes that were reduced over all of them."""
        if values.ndim < 2 or (high is not None and high.ndim < 2):  # its shape is not known
            return
        self.high = self.top if high is None else np.maximum(self.high, self._flat(high).max(axis=(0, 2)))
        self.low = np.minimum(self.low, 0.0 if low is None else self._flat(low).min(axis=(0, 2)))
        if self.count >= ENOUGH:
            return
        flat = self._flat(values)
        share = samples / flat.shape[0] / flat.shape[2]
        self.total = self.total + flat.sum(axis=(0, 2)).astype(np.float64) * share
        self.square = self.square + np.einsum("nci,nci->c", flat, flat).astype(np.float64) * share
        self.count += samples

    def _flat(self, values: Array) -> Array:
        """As `[N, channels, positions]`."""
        if self.axis == -1:
            return values.reshape(1, -1, values.shape[-1]).transpose(0, 2, 1)
        return values.reshape(*values.shape[:2], -1)

    def channels(self) -> Channels:
        """The extremes and the mean square of each channel."""
        square = np.atleast_1d(self.square / self.count)
        low, high = (np.broadcast_to(end, square.shape).astype(np.float64) for end in (self.low, self.high))
        return Channels(low, high, square)


class _Probes:
    """The graph with outputs that tell about its tensors, and how to read them.

    Extremes are reduced over the axes behind the second alone and finished on the host: that is what runtimes do
    fast in their own layouts. What a Relu or Clip makes is bounded below by zero, and its minimum is not asked for.
    """

    def __init__(
        self,
        proto: onnx.ModelProto,
        view: GraphView,
        names: Sequence[str],
        layers: Sequence[Layer],
        inputs: Sequence[tuple[int, ...]],
        each: int = EACH,
        full: Mapping[str, float] | None = None,
    ) -> None:
        self.each, self.full = each, full or {}
        self.proto = _copy(proto)
        self.graph = self.proto.graph
        del self.graph.output[:]
        self.view = view
        self.outputs: dict[str, int] = {}
        self.constants: set[str] = set()
        self.shapes = _shapes(proto, view, inputs)
        _fix(self.graph, view, inputs)
        self.channels = {layer.source: -1 if layer.node.op_type in ("Gemm", "MatMul") else 1 for layer in layers}
        self.histograms = {name: Histogram() for name in names}
        self.totals = {name: _Sums(axis, self.full.get(name)) for name, axis in self.channels.items()}
        self.readers: dict[str, list[Moments]] = {}
        for layer in layers:
            if layer.node.op_type != "ConvTranspose":
                self.readers.setdefault(layer.source, []).append(Moments(layer))
        self.crops = {name: self._crop(name, found) for name, found in self.readers.items()}
        self.low: dict[str, int] = {}
        self.high: dict[str, int] = {}
        self.strided: dict[str, int] = {}
        self.pieces: dict[str, int] = {}
        self.sums: dict[str, int] = {}
        self._ask(dict.fromkeys((*names, *self.channels)), frozenset(_doubtful(view)))

    def _ask(self, seen: Mapping[str, None], doubtful: Container[str]) -> None:
        """Add the outputs, tensor after tensor as the graph makes them.

        Runtimes go through a graph from output to output: asked for in another order, every tensor would stay in
        memory until the end of the graph, and the whole pass would be a fifth slower.
        """
        made = (name for node in self.view.nodes for name in node.output)
        for name in dict.fromkeys((*self.view.inputs, *made, *seen)):
            if name in seen:
                if not self._bounded(name):
                    self.low[name] = self.reduced(name, "ReduceMin")
                if name not in self.full:
                    self.high[name] = self.reduced(name, "ReduceMax")
                self.strided[name] = self.positions(name)
            if name in self.readers:
                self.pieces[name] = self._piece(name, self.crops[name])
            if name in doubtful:
                self.sums[name] = self.reduced(name, "ReduceSum")

    def _bounded(self, name: str) -> bool:
        producer = self.view.producer.get(name)
        if producer is None or producer.op_type not in ("Relu", "Clip"):
            return False
        bounds = clip_bounds(producer, self.view)
        return bounds is not None and bounds[0] == 0.0

    def _output(self, op: str, inputs: Sequence[str], name: str, **attributes: Any) -> int:
        """The position of a new output, or that of the one that is there under this name."""
        import onnx

        if name not in self.outputs:
            self.graph.node.append(onnx.helper.make_node(op, list(inputs), [name], name=name, **attributes))
            self.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
            self.outputs[name] = len(self.outputs)
        return self.outputs[name]

    def _constant(self, values: Sequence[int]) -> str:
        import onnx

        name = f"edgekit/{'_'.join(map(str, values))}"
        if name not in self.constants:
            self.constants.add(name)
            self.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(values, np.int64), name))
        return name

    def reduced(self, name: str, op: str) -> int:
        """A tensor reduced over all axes but samples and channels; a small one is read as it is."""
        shape = self.shapes.get(name)
        if shape is None:
            return self._output(op, [name], f"{name}/edgekit/{op}", keepdims=0)
        if len(shape) < 3:
            return self._whole(name)
        tokens = self.channels.get(name) == -1
        axes = self._constant(range(1, len(shape) - 1) if tokens else range(2, len(shape)))
        return self._output(op, [name, axes], f"{name}/edgekit/{op}", keepdims=1)

    def _whole(self, name: str) -> int:
        return self._output("Identity", [name], f"{name}/edgekit/whole")

    def positions(self, name: str) -> int:
        """Some positions, or tokens, of every channel."""
        shape = self.shapes.get(name)
        if shape is None or len(shape) < 3:
            return self._whole(name)
        axes = [1] if len(shape) == 3 and self.channels.get(name) == -1 else list(range(2, len(shape)))
        side = max(1, round(self.each ** (1 / len(axes))))
        steps = [-(-shape[axis] // side) for axis in axes]
        return self._slice(name, axes, [step // 2 for step in steps], [FAR] * len(axes), steps)

    def _slice(
        self, name: str, axes: Sequence[int], starts: Sequence[int], ends: Sequence[int], steps: Sequence[int]
    ) -> int:
        output = f"{name}/edgekit/slice_{'_'.join(map(str, (*axes, *starts, *ends, *steps)))}"
        return self._output("Slice", [name, *map(self._constant, (starts, ends, axes, steps))], output)

    def _crop(self, name: str, readers: Sequence[Moments]) -> Crop:
        shape = self.shapes.get(name)
        return crop(shape[2:], [reader.layer for reader in readers], self.each) if shape else ()

    def _piece(self, name: str, found: Crop) -> int:
        """What the moments of a tensor's readers are made of; the whole tensor where there is nothing to leave out."""
        if not found:
            return self.positions(name) if self.channels[name] == -1 else self._whole(name)
        starts, ends, steps = zip(*found, strict=True)
        return self._slice(name, range(2, 2 + len(found)), starts, ends, steps)

    def take(self, values: Sequence[Array], samples: int, counted: int) -> None:
        """Add one batch's outputs; about `counted` values of each tensor go into its histogram."""
        for name, histogram in self.histograms.items():
            high = float(values[self.high[name]].max(initial=-np.inf)) if name in self.high else self.full[name]
            low = float(values[self.low[name]].min(initial=np.inf)) if name in self.low else 0.0
            if low > high:  # a tensor without values leaves what the reduction began with
                continue
            refuse(name, not (np.isfinite(low) and np.isfinite(high)))
            flat = values[self.strided[name]].reshape(-1)
            part = flat[:: stride_for(flat.size, counted)]
            histogram.add(part, low, high, part.size / max(math.prod(self.shapes.get(name, flat.shape)), 1))
        for name, place in self.sums.items():
            refuse(name, not bool(np.isfinite(values[place]).all()))
        for name, sums in self.totals.items():
            least, most = (values[ends[name]] if name in ends else None for ends in (self.low, self.high))
            sums.add(values[self.strided[name]], least, most, samples)
        for name, readers in self.readers.items():
            for reader in readers:
                reader.add(values[self.pieces[name]], self.each * samples, padded=not self.crops[name])

    def result(self, samples: int) -> Observed:
        """What all batches together tell."""
        known = {name: sums for name, sums in self.totals.items() if sums.count}
        means = {name: sums.total / sums.count for name, sums in known.items()}
        channels = {name: sums.channels() for name, sums in known.items()}
        moments = {reader.layer.node.name: reader.result() for found in self.readers.values() for reader in found}
        return Observed(self.histograms, channels, means, moments, samples)


def _copy(proto: onnx.ModelProto) -> onnx.ModelProto:
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    return copy


def _shapes(proto: onnx.ModelProto, view: GraphView, inputs: Sequence[tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """The shapes of all tensors whose shapes follow from those of the first batch."""
    import onnx

    from edgekit.graph.large import without_weights

    fixed = without_weights(proto)
    _fix(fixed.graph, view, inputs)
    for value in fixed.graph.output:
        value.type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(fixed, data_prop=True).graph
    found: dict[str, tuple[int, ...]] = {}
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        kind = value.type.tensor_type
        if kind.HasField("shape") and all(dim.dim_value > 0 for dim in kind.shape.dim):
            found[value.name] = tuple(dim.dim_value for dim in kind.shape.dim)
    return found


def _doubtful(view: GraphView) -> list[str]:
    """Tensors whose sum is checked: minimum and maximum skip NaN in both runtimes."""
    made = [name for node in view.nodes if node.op_type not in _SAFE for name in node.output if view.is_float(name)]
    return list(dict.fromkeys([*made, *(name for name in view.outputs if view.is_float(name))]))


def stride_for(count: int, wanted: int) -> int:
    """A prime stride of at least `count / wanted` that does not divide `count`: it walks over all channels alike."""
    step = max(1, count // max(wanted, 1))
    while step > 1 and (count % step == 0 or any(step % d == 0 for d in range(2, int(step**0.5) + 1))):
        step += 1
    return step


def _fix(graph: onnx.GraphProto, view: GraphView, inputs: Sequence[tuple[int, ...]]) -> None:
    """Change `graph`: its inputs have these shapes; runtimes then plan memory once, and need half as much."""
    given = {value.name: value for value in graph.input}
    for name, shape in zip(view.inputs, inputs, strict=True):
        kind = given[name].type.tensor_type
        kind.ClearField("shape")
        kind.shape.SetInParent()
        for extent in shape:
            kind.shape.dim.add().dim_value = extent
    del graph.value_info[:]
