"""Rewrites of a graph and its QuantSpec into forms that ONNX Runtime has 8-bit kernels for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekit.quant.active import active_nodes
from edgekit.quant.plan import ACTIVATIONS
from edgekit.quant.spec import Grid, QuantSpec, Range
from edgekit.quant.view import GraphView, attribute, clip_bounds, within

if TYPE_CHECKING:
    import onnx

BACKEND = "onnxruntime"

FEWEST_STEPS = 8
"""A grid is fitted to a number that must lie on it only if that number is so many steps: they grow by an eighth."""


def for_onnxruntime(proto: onnx.ModelProto, spec: QuantSpec) -> tuple[QuantSpec, frozenset[str]]:
    """Change `proto` into operators that ONNX Runtime fuses with their Q/DQ.

    Returns the spec that fits it, and the names of operators that work on the integers themselves: Pad and
    DepthToSpace, clamps that the grid of their output does not absorb, and those that are nothing but a clamp, or
    nothing at all, once their input's grid is chosen for them: HardSigmoid, addition and multiplication of a number.
    """
    work = _Rewriter(proto.graph, spec)
    direct = work.hard_swishes()
    direct |= work.hard_sigmoids(direct)
    direct |= work.shifts()
    direct |= work.clamps() | work.moves()
    done = spec.model_copy(update={"nodes": tuple(work.nodes), "tensors": work.tensors})
    return done, frozenset(direct)


def pad_before_pooling(proto: onnx.ModelProto, spec: QuantSpec, backend: str) -> QuantSpec:
    """Change `proto` so that no quantized AveragePool counts its own padding where the backend does that wrongly.

    On integers OpenVINO pads with 0 whatever the zero point is, and ONNX Runtime divides the windows that reach over
    the end (`ceil_mode`) by too much. A Pad of its own in front gives the same numbers. Returns the spec that fits.
    """
    nodes, tensors = dict.fromkeys(spec.nodes), dict(spec.tensors)
    for node in list(proto.graph.node):
        counts = node.op_type == "AveragePool" and attribute(node, "count_include_pad", 0)
        wrong = backend == "openvino" or (backend == "onnxruntime" and attribute(node, "ceil_mode", 0))
        if not counts or not wrong or node.name not in nodes or spec.is_float(node.name, backend):
            continue
        pads = list(attribute(node, "pads", []))
        if attribute(node, "auto_pad", b"NOTSET") != b"NOTSET":
            continue
        for name in ("count_include_pad", "pads"):
            for item in [item for item in node.attribute if item.name == name]:
                node.attribute.remove(item)
        if any(pads):
            padded = _pad(proto.graph, node, pads)
            nodes[padded.name] = None
            tensors[padded.output[0]] = tensors[padded.input[0]]
    return spec.model_copy(update={"nodes": tuple(nodes), "tensors": tensors})


def _pad(graph: onnx.GraphProto, node: onnx.NodeProto, pads: list[int]) -> onnx.NodeProto:
    """Put a Pad with zeros over the last axes in front of `node`."""
    import numpy as np
    import onnx

    name = f"{node.name}/pad"
    half = len(pads) // 2
    amounts = np.array([0, 0, *pads[:half], 0, 0, *pads[half:]], np.int64)
    graph.initializer.append(onnx.numpy_helper.from_array(amounts, f"{name}/amounts"))
    made = onnx.helper.make_node("Pad", [node.input[0], f"{name}/amounts"], [f"{name}/padded"], name=name)
    node.input[0] = made.output[0]
    index = next(i for i, one in enumerate(graph.node) if one.name == node.name)
    graph.node.insert(index, made)
    return made


class _Rewriter:
    """Changes one private copy of a graph; `nodes` and `tensors` are those of the new spec."""

    def __init__(self, graph: onnx.GraphProto, spec: QuantSpec) -> None:
        self.graph = graph
        self.spec = spec
        self.nodes = dict.fromkeys(spec.nodes)
        self.tensors = dict(spec.tensors)
        self.view = GraphView(graph)
        self.settled: set[str] = set()
        """Tensors whose grid fits that of another: no one may change it any more."""

    def replace(self, node: onnx.NodeProto, *others: onnx.NodeProto) -> None:
        index = next(i for i, one in enumerate(self.graph.node) if one.name == node.name)
        del self.graph.node[index]
        for other in reversed(others):
            self.graph.node.insert(index, other)
        self.view = GraphView(self.graph)

    def active(self, *kinds: str) -> list[onnx.NodeProto]:
        """Quantized operators of these kinds."""
        spec = self.spec.model_copy(update={"nodes": tuple(self.nodes)})
        running = active_nodes(self.view, spec, BACKEND)
        return [node for node in self.view.nodes if node.op_type in kinds and node.name in running]

    def hard_swishes(self) -> set[str]:
        """`x * HardSigmoid(x)`, written out, its HardSigmoid as a clamp where the grid of `x` allows that.

        Where 3 is a whole number of steps, HardSigmoid is the integers of `x` under other names, clamped at 1.
        Elsewhere it gets a copy of `x` in the grid that it wants. A LeakyRelu of slope one is that copy: ONNX Runtime
        requantizes by a table of 256 entries for it.
        """
        import onnx

        make = onnx.helper.make_node
        done: set[str] = set()
        for node in self.active("HardSwish"):
            source, result = node.input[0], node.output[0]
            copied, gate = f"{node.name}/copy", f"{node.name}/gate"
            fitted = self.fitted(source)
            of = source if fitted else copied
            parts = [
                make("HardSigmoid", [of], [gate], name=gate, alpha=1 / 6, beta=0.5),
                make("Mul", [source, gate], [result], name=node.name),
            ]
            if fitted is None:
                parts.insert(0, make("LeakyRelu", [source], [copied], name=copied, alpha=1.0))
                self.tensors[copied] = self.tensors[source]
                self.nodes[copied] = None
                self.tensors[gate] = Range(low=0, high=1, calibrator="fixed", fixed=True)
            else:
                self.tensors[source] = fitted
                self.settled.add(source)
                # The gate's integers are those of `x`: they end where `x` ends, at 1 or beyond.
                high = (fitted.high + 3) / 6
                self.tensors[gate] = Range(low=0, high=high, calibrator="fixed", fixed=True)
                done.add(gate)
            self.replace(node, *parts)
            self.nodes[gate] = None
        return done

    def fitted(self, source: str) -> Range | None:
        """The range of a HardSwish's input from -3 up, in steps of which 3 is a multiple; None if they get coarse."""
        if self.view.only_consumer(source) is None or not self.free(source):
            return None
        own = self.tensors[source]
        steps = int(3 * 255 / (max(own.high, 3.0) + 3) + 1e-6)
        if steps < FEWEST_STEPS:
            return None
        who = f"{own.calibrator}, fitted to HardSwish"
        return Range(low=-3.0, high=(255 - steps) * 3.0 / steps, calibrator=who)

    def shifts(self) -> set[str]:
        """Addition of a number, or multiplication by a positive one, gives the same integers under other names.

        An addition does where the number is a whole multiple of the step: the steps grow a little to make it so.
        """
        done: set[str] = set()
        for node in self.active("Add", "Mul"):
            constants = [name for name in node.input if self.view.is_constant(name)]
            source = next((name for name in node.input if name not in constants), "")
            if len(constants) != 1 or not source or not self.free(node.output[0]) or node.output[0] in self.settled:
                continue
            value = self.view.constant(constants[0])
            if value is None or value.size != 1 or value.ndim > 1:
                continue
            number = float(value.reshape(-1)[0])
            made = self.scaled(source, number) if node.op_type == "Mul" else self.shifted(source, number)
            if made is not None:
                self.tensors[source], self.tensors[node.output[0]] = made
                self.settled |= {source, node.output[0]}
                done.add(node.name)
        return done

    def scaled(self, source: str, factor: float) -> tuple[Range, Range] | None:
        """The grid of `source` as it is, and `factor` times it."""
        own, grid = self.tensors[source], self.grid(source)
        if factor <= 0:
            return None
        low, high = (factor * grid.scale * (q - grid.zero_point) for q in (0, 255))
        return own, Range(low=low, high=high, calibrator=own.calibrator)

    def shifted(self, source: str, number: float) -> tuple[Range, Range] | None:
        """Grids of `source` and of `source + number` with the same integers; None if the steps would get coarse."""
        if not self.free(source) or source in self.settled or not number:
            return None
        own = self.tensors[source]
        low, high = min(own.low, 0.0, -number), max(own.high, 0.0, -number)
        steps = int(abs(number) * 254 / (high - low))  # one of 255 is lost to rounding the zero point
        if steps < FEWEST_STEPS:
            return None
        step = abs(number) / steps
        zero = round(-low / step)
        moved = zero + (-steps if number > 0 else steps)
        if not 0 <= moved <= 255:
            return None
        return (
            Range(low=-zero * step, high=(255 - zero) * step, calibrator=f"{own.calibrator}, fitted to a shift"),
            Range(low=-moved * step, high=(255 - moved) * step, calibrator=own.calibrator),
        )

    def free(self, tensor: str) -> bool:
        """Whether the range of an activation concerns nobody but its readers."""
        tied = any(tensor in group for group in self.spec.ties)
        return tensor in self.tensors and tensor not in self.view.outputs and not tied

    def hard_sigmoids(self, known: set[str]) -> set[str]:
        """Give the input of a HardSigmoid the grid that makes it a matter of names.

        Let `q = 0` stand for `x = -beta / alpha` and 255 for `(1 - beta) / alpha`: both ends saturate where HardSigmoid
        does, and in between `alpha * x + beta` is `alpha * scale * q`, the same integers under another scale.
        """
        done: set[str] = set()
        for node in self.active("HardSigmoid"):
            if node.name in known:
                continue
            source, gate = node.input[0], node.output[0]
            alpha, beta = attribute(node, "alpha", 0.2), attribute(node, "beta", 0.5)
            alone = self.view.only_consumer(source) is not None and self.view.producer.get(source) is not None
            if alpha <= 0 or not 0 < beta < 1 or not alone or not self.free(source) or not self.free(gate):
                continue
            if source in self.settled:
                continue
            zero_point = int(beta * 255)
            step = beta / alpha / zero_point
            who = f"{self.tensors[source].calibrator}, fitted to HardSigmoid"
            self.tensors[source] = Range(low=-zero_point * step, high=(255 - zero_point) * step, calibrator=who)
            self.tensors[gate] = Range(low=0.0, high=255 * step * alpha, calibrator="fixed", fixed=True)
            self.settled |= {source, gate}
            done.add(node.name)
        return done

    def clamps(self) -> set[str]:
        """A Relu or Clip that its output's grid does not absorb clamps the integers of one grid for both sides."""
        done: set[str] = set()
        for node in self.active(*ACTIVATIONS):
            bounds = clip_bounds(node, self.view)
            source, result = node.input[0], node.output[0]
            if bounds is None:
                continue
            if source not in self.tensors:
                if within(self.grid(result), bounds):
                    continue
                self.tensors[source] = self.tensors[result]
                done.add(node.name)
                continue
            if self.grid(source) == self.grid(result):
                done.add(node.name)
                continue
            group = next((group for group in self.spec.ties if result in group), (result,))
            own, other = self.tensors[source], self.tensors[result]
            if min(own.low, 0.0) > other.low or max(own.high, 0.0) < other.high:
                continue
            self.tensors.update(dict.fromkeys((name for name in group if name in self.tensors), own))
            done.add(node.name)
        return done

    def grid(self, tensor: str) -> Grid:
        return self.spec.model_copy(update={"tensors": self.tensors}).grid(tensor, "affine")

    def moves(self) -> set[str]:
        """Operators that have 8-bit kernels which no fusion finds."""
        found = self.active("Pad", "DepthToSpace", "SpaceToDepth")
        return {n.name for n in found if self.grid(n.input[0]) == self.grid(n.output[0])}
