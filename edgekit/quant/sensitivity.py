"""How sensitive each layer is: the error at the outputs with that layer alone in integers, on a few samples.

The float graph is walked once. At every layer only what comes after it is compiled and run, from the float values that
reach it, with this one layer quantized by the emitter itself: about half the work of running the whole network once a
layer, and one small graph in memory at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgekit.context import Progress, Silent
from edgekit.quant.histogram import snr_db
from edgekit.quant.plan import ACTIVATIONS, PASS_THROUGH, WEIGHTED
from edgekit.quant.qdq import emit
from edgekit.quant.session import Session, open_session
from edgekit.quant.spec import QuantSpec, Variant
from edgekit.quant.view import GraphView, typed

if TYPE_CHECKING:
    import onnx

Array = npt.NDArray[Any]
Corrections = Mapping[str, npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Layer:
    """Operators that go into integers together, named after the first.

    One that computes, the clamp that its grid absorbs, and those right behind it that only move values.
    """

    name: str
    op: str
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class Scan:
    """Energies at the outputs over `samples` samples: of the float values, and of the error by layer name."""

    signal: float
    noise: Mapping[str, float]
    samples: int

    def snr_db(self, layer: str) -> float:
        """The signal-to-noise ratio of the outputs with this layer alone in integers, in dB."""
        return snr_db(self.signal, self.noise[layer])


def layers(proto: onnx.ModelProto, spec: QuantSpec, backend: str) -> tuple[Layer, ...]:
    """What `backend` runs in integers, layer by layer, in the graph's order."""
    view = GraphView(proto.graph)
    wanted = {name for name in spec.nodes if spec.is_float(name, backend) is None}
    head: dict[str, str] = {}
    members: dict[str, list[str]] = {}
    kinds: dict[str, str] = {}
    for node in view.nodes:
        if node.name not in wanted:
            continue
        producer = view.producer.get(node.input[0])
        absorbed = node.op_type in ACTIVATIONS and node.input[0] not in spec.tensors
        follows = producer is not None and producer.name in head and (absorbed or node.op_type in PASS_THROUGH)
        head[node.name] = head[producer.name] if follows and producer is not None else node.name
        members.setdefault(head[node.name], []).append(node.name)
        kinds.setdefault(head[node.name], node.op_type)
    return tuple(Layer(name, kinds[name], tuple(nodes)) for name, nodes in members.items())


def scan(
    proto: onnx.ModelProto,
    spec: QuantSpec,
    layers: Sequence[Layer],
    batches: Iterable[Sequence[Array]],
    *,
    variant: Variant,
    backend: str,
    runtime: str,
    corrections: Corrections | None = None,
    progress: Progress | None = None,
) -> Scan:
    """The error that each of `layers` alone makes, in the graph that `backend` gets, run here on `runtime`."""
    walk = _Walk(proto, variant, backend, runtime, corrections or {})
    exact = open_session(walk.proto, runtime=runtime)
    states, wanted, samples = [], [], 0
    for batch in batches:
        states.append(dict(zip(walk.view.inputs, batch, strict=True)))
        wanted.append(dict(zip(walk.view.outputs, exact(batch), strict=True)))
        samples += len(batch[0])
    signal = sum(_energy(value) for outputs in wanted for value in outputs.values())
    noise = {}
    starts = {layer.name: walk.start(layer) for layer in layers}
    with (progress or Silent()).task(f"sensitivity of {len(layers)} layers", len(layers)) as task:
        for layer in sorted(layers, key=lambda one: starts[one.name]):
            walk.advance(states, starts[layer.name])
            noise[layer.name] = walk.noise(states, wanted, layer, spec)
            task.advance(1, layer.name)
    return Scan(signal, noise, samples)


def _energy(values: Array) -> float:
    return float(np.square(values.astype(np.float64)).sum())


@dataclass
class _Walk:
    """A position in the float graph: everything before it is computed, and only what is needed later is kept."""

    source: onnx.ModelProto
    variant: Variant
    backend: str
    runtime: str
    corrections: Corrections
    position: int = 0
    proto: onnx.ModelProto = field(init=False)
    view: GraphView = field(init=False)
    needed: list[tuple[str, ...]] = field(init=False)
    """What the operators from each position on, and the graph's outputs, take from before it."""

    def __post_init__(self) -> None:
        from edgekit.graph.tools import reads

        self.proto = typed(self.source)
        self.view = GraphView(self.proto.graph)
        self.types = {v.name: v for v in (*self.proto.graph.value_info, *self.proto.graph.input)}
        open_names = dict.fromkeys(self.view.outputs)
        self.needed = [tuple(open_names)]
        for node in reversed(self.view.nodes):
            for name in node.output:
                open_names.pop(name, None)
            open_names |= dict.fromkeys(name for name in reads(node) if self._is_computed(name))
            self.needed.append(tuple(open_names))
        self.needed.reverse()

    def _is_computed(self, name: str) -> bool:
        return name in self.view.producer or name in self.view.inputs

    def start(self, layer: Layer) -> int:
        """Where the part of the graph that shows this layer's error must begin.

        What an emitter makes of an Add depends on whether a convolution in front belongs to it alone.
        """
        at = {node.name: i for i, node in enumerate(self.view.nodes)}
        first = at[layer.name]
        own = [name for name in self.view.nodes[first].input if self.view.only_consumer(name) is not None]
        makers = [self.view.producer[name] for name in own if name in self.view.producer]
        return min([first, *(at[node.name] for node in makers if node.op_type in WEIGHTED)])

    def advance(self, states: list[dict[str, Array]], position: int) -> None:
        """Compute what lies between here and `position` in float; forget what nobody needs any more."""
        wanted = [name for name in self.needed[position] if name not in states[0]]
        if wanted:
            part = self.part(self.position, position, states[0], wanted)
            inputs = [item.name for item in part.graph.input]
            session = open_session(part, runtime=self.runtime)
            for state in states:
                state.update(zip(wanted, session([state[name] for name in inputs]), strict=True))
        for state in states:
            for name in [name for name in state if name not in self.needed[position]]:
                del state[name]
        self.position = position

    def noise(
        self,
        states: Sequence[Mapping[str, Array]],
        wanted: Sequence[Mapping[str, Array]],
        layer: Layer,
        spec: QuantSpec,
    ) -> float:
        """The energy of the outputs' error over all samples with `layer` alone in integers."""
        made = {name for node in self.view.nodes[self.position :] for name in node.output}
        outputs = [name for name in self.view.outputs if name in made]
        part = self.part(self.position, len(self.view.nodes), states[0], outputs, layer.nodes)
        alone = spec.model_copy(update={"nodes": layer.nodes, "tables": {}})
        inputs = [item.name for item in part.graph.input]
        session: Session = open_session(emit(part, alone, self.variant, self.backend), runtime=self.runtime)
        noise = 0.0
        for state, exact in zip(states, wanted, strict=True):
            for name, seen in zip(outputs, session([state[name] for name in inputs]), strict=True):
                noise += _energy(seen.astype(np.float64) - exact[name].astype(np.float64))
        return noise

    def part(
        self, start: int, stop: int, state: Mapping[str, Array], outputs: Sequence[str], corrected: Sequence[str] = ()
    ) -> onnx.ModelProto:
        """The operators from `start` to `stop` as a model; the weights of those in `corrected` are the corrected."""
        import onnx

        from edgekit.graph.tools import reads

        nodes = self.view.nodes[start:stop]
        read = dict.fromkeys(name for node in nodes for name in reads(node))
        changed = {name for node in nodes if node.name in corrected for name in node.input if name in self.corrections}
        part = onnx.ModelProto(ir_version=self.proto.ir_version, opset_import=self.proto.opset_import)
        part.functions.extend(self.proto.functions)
        part.graph.name = "part"
        part.graph.node.extend(nodes)
        part.graph.initializer.extend(
            onnx.numpy_helper.from_array(self.corrections[name], name)
            if name in changed
            else self.view.initializers[name]
            for name in read
            if name in self.view.initializers
        )
        for name, value in ((name, value) for name, value in state.items() if name in read):
            known = self.types.get(name)
            kind = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
            part.graph.input.append(known or onnx.helper.make_tensor_value_info(name, kind, None))
        made = {name for node in nodes for name in node.output if name}
        part.graph.value_info.extend(self.types[name] for name in made if name in self.types and name not in outputs)
        ends = {value.name: value for value in (*self.proto.graph.output, *self.proto.graph.value_info)}
        part.graph.output.extend(ends[name] for name in outputs)
        return part
