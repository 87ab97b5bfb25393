"""Other forms than static int8: which operators take part, which backend has them, and the graphs of each."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgekit.errors import BuildError, UsageError
from edgekit.quant import dynamic, weight_only
from edgekit.quant.spec import PerChannel, PerTensor, QuantSpec, Variant
from edgekit.quant.view import GraphView, attribute
from edgekit.quant.weights import channel_scales, quantize_weight, scale_array

if TYPE_CHECKING:
    import onnx

    from edgekit.quant.spec import Form

SMALLEST = 4096
"""A weight of fewer values stays float: reading it costs less than finding the range of what it multiplies."""

SMALLEST_TABLE = 1 << 16
"""An embedding of fewer values stays float."""

REFUSED: Mapping[tuple[str, str], str] = {
    ("onnxruntime", "fp16"): "ONNX Runtime's processor kernels compute in fp32 or int8; fp16 only makes them slower",
    (
        "litert",
        "fp16",
    ): "LiteRT's processor kernels unpack fp16 weights to fp32 at load: only the file would gain",
    ("litert", "int8_weights"): "LiteRT unpacks int8 weights to fp32 unless activations are int8 too: use int8_dynamic",
    ("tensorrt", "int8_dynamic"): "TensorRT has no ranges that are found while the model runs: use int8 or fp16",
    ("tensorrt", "int8_weights"): "TensorRT has no kernel for int8 weights with float activations: use int8 or fp16",
    ("tensorrt", "int4_weights"): "TensorRT's int4 weights were not proven on a GPU with this graph: use int8 or fp16",
}
"""Forms that a backend's runtime has no kernel for, or none that gains, with the reason."""

Numbers = npt.NDArray[Any]


def refuse(backend: str, form: str) -> None:
    """Stop a build whose runtime has no kernel for `form`.

    Raises:
        BuildError: it has none, with the reason.
    """
    reason = REFUSED.get((backend, form))
    if reason is not None:
        raise BuildError(f"{backend} gets no {form} build: {reason}.")


@dataclass(frozen=True)
class Product:
    """A matrix product with a constant weight.

    `values` are the weights `[inputs, outputs]`; `integers` the same in 8 bits; `scales` one a channel; `bias` the name
    of what a Gemm adds.
    """

    name: str
    input: str
    weight: str
    output: str
    values: Numbers
    integers: npt.NDArray[np.int8]
    scales: npt.NDArray[np.float32]
    bias: str | None = None


class Writer:
    """Writes the nodes of a private copy of a graph anew, in order."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self.proto = proto
        self.nodes: list[onnx.NodeProto] = []
        self._known = {item.name for item in proto.graph.initializer}

    def has(self, name: str) -> bool:
        """Whether an initializer, or something marked, has that name."""
        return name in self._known

    def mark(self, name: str) -> None:
        """Let `has` know a name."""
        self._known.add(name)

    def add(self, name: str, value: Numbers) -> str:
        """A new initializer."""
        from onnx import numpy_helper

        return self.add_tensor(numpy_helper.from_array(np.ascontiguousarray(value).reshape(value.shape), name))

    def add_tensor(self, tensor: onnx.TensorProto) -> str:
        """A new initializer of a type that numpy lacks."""
        self.proto.graph.initializer.append(tensor)
        self.mark(tensor.name)
        return str(tensor.name)

    def constant(self, name: str, value: Numbers) -> str:
        """A number that many nodes share."""
        full = f"edgekit/{name}"
        return full if self.has(full) else self.add(full, np.asarray(value))

    def made(self, kind: str, inputs: list[str], outputs: list[str], name: str, **more: Any) -> onnx.NodeProto:
        """A node that is not in the graph yet."""
        import onnx

        return onnx.helper.make_node(kind, inputs, outputs, name=name, **more)

    def node(self, kind: str, inputs: list[str], output: str, name: str, **more: Any) -> None:
        """The next node."""
        self.nodes.append(self.made(kind, inputs, [output], name, **more))

    def product(self, kind: str, inputs: list[str], product: Product, **more: Any) -> None:
        """The node that makes the result of `product`, and the Add of its bias."""
        if product.bias is None:
            self.node(kind, inputs, product.output, product.name, **more)
            return
        self.node(kind, inputs, f"{product.output}/product", f"{product.name}/product", **more)
        self.node("Add", [f"{product.output}/product", product.bias], product.output, product.name)

    def domain(self, domain: str, version: int) -> None:
        """Use operators of `domain`, at least of `version`."""
        import onnx

        for entry in self.proto.opset_import:
            if entry.domain == domain or {entry.domain, domain} == {"", "ai.onnx"}:
                if domain in ("", "ai.onnx") and entry.version < version:
                    _may_rise(self.proto)
                    self.proto.ir_version = max(self.proto.ir_version, 10)
                entry.version = max(entry.version, version)
                return
        self.proto.opset_import.append(onnx.helper.make_opsetid(domain, version))

    def finish(self) -> onnx.ModelProto:
        """The graph with the new nodes, without what nothing reads any more."""
        from edgekit.graph.tools import drop_unused, replace_nodes

        replace_nodes(self.proto.graph, self.nodes)
        del self.proto.graph.value_info[:]
        drop_unused(self.proto.graph)
        return self.proto


def _may_rise(proto: onnx.ModelProto) -> None:
    """Two operators mean something else from opset 20 and 21 on; all others of 18 and later stay what they are."""
    changed = [node for node in proto.graph.node if node.op_type in ("GridSample", "GroupNormalization")]
    if changed:
        raise BuildError(
            f"4-bit weights need opset {weight_only.INT4_OPSET}, where {changed[0].op_type} at {changed[0].name!r} "
            "means something else. Export the model in that opset.",
            [node.name for node in changed],
        )


def matrices(view: GraphView) -> Iterator[onnx.NodeProto]:
    """The products with a constant matrix that is large enough."""
    for node in view.nodes:
        if node.op_type not in ("MatMul", "Gemm") or not view.is_float(node.input[0]):
            continue
        weight = view.initializers.get(node.input[1])
        if weight is None or len(weight.dims) != 2 or np.prod(weight.dims) < SMALLEST:
            continue
        plain = attribute(node, "alpha", 1.0) == attribute(node, "beta", 1.0) == 1.0 and not attribute(
            node, "transA", 0
        )
        if plain:
            yield node


def embeddings(view: GraphView) -> dict[str, onnx.TensorProto]:
    """The tables that Gather alone looks rows up in."""
    found = {}
    for name, tensor in view.initializers.items():
        readers = view.consumers[name]
        rows = readers and all(
            n.op_type == "Gather" and n.input[0] == name and not attribute(n, "axis", 0) for n in readers
        )
        large = len(tensor.dims) == 2 and np.prod(tensor.dims) >= SMALLEST_TABLE
        if rows and large and view.is_float(name):
            found[name] = tensor
    return found


def table_scales(view: GraphView) -> dict[str, PerChannel]:
    """Scales of every embedding."""
    found = {}
    for name in embeddings(view):
        value = view.constant(name)
        assert value is not None
        _finite(name, value)
        found[name] = weight_only.table_scales(value)
    return found


def _finite(name: str, value: Numbers) -> None:
    if not np.isfinite(value).all():
        raise UsageError(f"The weight {name!r} holds NaN or infinity.")


def form_spec(proto: onnx.ModelProto, form: Form, unwanted: Collection[str]) -> QuantSpec:
    """The QuantSpec of a form that needs no calibration.

    Raises:
        UsageError: the network has no matrix products to speak of, or a weight holds NaN or infinity.
    """
    from edgekit.quant.view import typed

    view = GraphView(typed(proto).graph)
    reasons = dict.fromkeys(unwanted, "kept float by the recipe")
    if form == "fp16":
        return QuantSpec(precision=form, nodes=(), tensors={}, weights={})
    _refuse_convolutions(view, form)
    weights: dict[str, PerTensor | PerChannel] = {}
    nodes = []
    for node in matrices(view):
        value = view.constant(node.input[1])
        assert value is not None
        inputs = value.shape[_turned(node)]
        if node.name in reasons:
            continue
        if form == "int4_weights" and inputs % weight_only.BLOCK:
            reasons[node.name] = f"its {inputs} inputs are no multiple of a block of {weight_only.BLOCK}"
            continue
        _finite(node.input[1], value)
        nodes.append(node.name)
        weights[node.input[1]] = channel_scales(value, 0 if _turned(node) else 1)
    keep = {"*": reasons} if reasons else {}
    return QuantSpec(
        precision=form, nodes=tuple(nodes), tensors={}, weights=weights, tables=table_scales(view), keep_float=keep
    )


def multiplies(view: GraphView) -> bool:
    """Whether more weights are in matrix products than in convolutions."""
    sizes = {name: int(np.prod(tensor.dims)) for name, tensor in view.initializers.items()}
    convolved = sum(sizes.get(n.input[1], 0) for n in view.nodes if n.op_type in ("Conv", "ConvTranspose"))
    return sum(sizes[n.input[1]] for n in matrices(view)) > convolved


def _refuse_convolutions(view: GraphView, form: Form) -> None:
    if multiplies(view):
        return
    why = (
        "dynamic int8 makes convolutions 1.5 to 2.2 times slower"
        if form == "int8_dynamic"
        else "no runtime has kernels for convolutions with integer weights and float activations"
    )
    raise UsageError(
        f"precision {form} is for networks of matrix products, and this one has few or none: {why}. Use int8."
    )


def _turned(node: onnx.NodeProto) -> int:
    """1 where a Gemm holds its weight as `[outputs, inputs]`."""
    return int(node.op_type == "Gemm" and bool(attribute(node, "transB", 0)))


def products(proto: onnx.ModelProto, spec: QuantSpec, variant: Variant, backend: str) -> Iterator[Product]:
    """The products of `proto` that `spec` quantizes for `backend`."""
    from edgekit.quant.view import typed

    view = GraphView(typed(proto).graph)
    for node in matrices(view):
        scales = spec.weights.get(node.input[1])
        if node.name not in spec.nodes or spec.is_float(node.name, backend) or not isinstance(scales, PerChannel):
            continue
        value = view.constant(node.input[1])
        assert value is not None
        integers = quantize_weight(value, scales, variant)
        if _turned(node):
            value, integers = value.T, integers.T
        bias = node.input[2] if node.op_type == "Gemm" and len(node.input) > 2 and node.input[2] else None
        steps = scale_array(scales, variant)
        yield Product(
            node.name, node.input[0], node.input[1], node.output[0], value, np.ascontiguousarray(integers), steps, bias
        )


_WRITERS: Mapping[tuple[str, str], Callable[[Writer, Product], None]] = {
    ("onnxruntime", "int8_dynamic"): dynamic.dynamic,
    ("onnxruntime", "int8_weights"): partial(weight_only.nbits, bits=8),
    ("onnxruntime", "int4_weights"): partial(weight_only.nbits, bits=4),
    # OpenVINO quantizes the activations of such a product by itself.
    ("openvino", "int8_dynamic"): partial(weight_only.dequantized, bits=8),
}
_STANDARD: Mapping[str, Callable[[Writer, Product], None]] = {
    "int8_dynamic": dynamic.dynamic,
    "int8_weights": partial(weight_only.dequantized, bits=8),
    "int4_weights": partial(weight_only.dequantized, bits=4),
}


def emit_form(proto: onnx.ModelProto, spec: QuantSpec, variant: Variant, backend: str) -> onnx.ModelProto:
    """The graph that `backend` gets in its form of the model; `proto` is not changed.

    In fp16 weights are rounded to that type, and stay float32: backends store and compute as they can.
    """
    form = spec.form(backend)
    if form == "fp16":
        return _halved(proto)
    write = _WRITERS.get((backend, form)) or _STANDARD[form]
    return rewritten(proto, spec, variant, backend, write)


def _halved(proto: onnx.ModelProto) -> onnx.ModelProto:
    from edgekit.graph.tools import initializers, with_initializers

    floats = {name: value for name, value in initializers(proto.graph).items() if value.dtype == np.float32}
    limit = float(np.finfo(np.float16).max)
    rounded = {n: np.clip(v, -limit, limit).astype(np.float16).astype(np.float32) for n, v in floats.items()}
    return with_initializers(proto, rounded)


def rewritten(
    proto: onnx.ModelProto,
    spec: QuantSpec,
    variant: Variant,
    backend: str,
    write: Callable[[Writer, Product], None] | None,
) -> onnx.ModelProto:
    """A copy with every quantized product written by `write` (None: as it is), and 8-bit tables."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    writer = Writer(copy)
    view = GraphView(proto.graph)
    found = {} if write is None else {product.name: product for product in products(proto, spec, variant, backend)}
    for node in proto.graph.node:
        table = spec.tables.get(node.input[0]) if node.op_type == "Gather" else None
        value = view.constant(node.input[0]) if table is not None else None
        if table is not None and value is not None:
            weight_only.gather(writer, node, value, table)
        elif write is not None and node.name in found:
            write(writer, found[node.name])
        else:
            writer.nodes.append(node)
    return writer.finish()
