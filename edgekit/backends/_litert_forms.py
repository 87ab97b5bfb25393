"""From a float .tflite to one whose dense layers have integer weights, and whose embeddings are stored in 8 bits.

FULLY_CONNECTED with float activations and integer weights is a kernel of its own ("hybrid"): it quantizes each row of
the activations while it runs. The scales of 4-bit weights are a float16 tensor, one a block.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgekit.backends import _litert_flatbuffer as fb
from edgekit.backends._litert_quantize import parameters
from edgekit.quant.forms import Product, products
from edgekit.quant.weight_only import BLOCK, pack, quantize_blocks
from edgekit.quant.weights import channel_scales, quantize_weight, scale_array

if TYPE_CHECKING:
    import onnx

    from edgekit.quant.spec import PerChannel, QuantSpec, Variant

Array = npt.NDArray[Any]
_VERSIONS = {"int8_dynamic": 9, "int4_weights": 13}
"""The first version of FULLY_CONNECTED that has the kernel: weights by channel, and by block."""

_LOOKUPS = ("GATHER", "GATHER_ND")


def put_weights(
    content: bytes,
    proto: onnx.ModelProto,
    spec: QuantSpec,
    variant: Variant,
    matches: Mapping[int, Sequence[str]],
) -> tuple[bytes, dict[str, str], list[str]]:
    """The file with integer weights in the form that `spec` has for LiteRT; reasons for floats; notes.

    `matches` are the ONNX tensors that those of the file are, by index.
    """
    model = fb.read(content)
    done = _Writer(model, spec, proto, variant, matches)
    done.run()
    left = [name for name in done.products if name not in done.used]
    reasons = dict.fromkeys(left, "LiteRT's converter computes it otherwise")
    notes = []
    if done.own:
        notes.append(
            f"the converter folded scales of layers before them into {done.own} weights: their integers come from these"
        )
    return fb.write(model), reasons, notes


class _Writer:
    """Changes one model in place."""

    def __init__(
        self,
        model: Any,
        spec: QuantSpec,
        proto: onnx.ModelProto,
        variant: Variant,
        matches: Mapping[int, Sequence[str]],
    ) -> None:
        self.model, self.form, self.variant, self.matches = model, spec.form("litert"), variant, matches
        (self.graph,) = model.subgraphs
        self.makers = {name: node for node in proto.graph.node for name in node.output if name}
        self.products = {product.name: product for product in products(proto, spec, variant, "litert")}
        self.by_value = {_key(product.values.T): product for product in self.products.values()}
        self.tables = {_key(value): (value, scales) for value, scales in _tables(proto, spec)}
        self.used: set[str] = set()
        self.own = 0
        self.changed: set[int] = set()
        self.operators: list[Any] = []

    def run(self) -> None:
        for operator in list(self.graph.operators):
            name = fb.operator_name(self.model, operator)
            if name in _LOOKUPS and self.look_up(operator):
                continue
            if name == "FULLY_CONNECTED":
                self.dense(operator)
            self.operators.append(operator)
        self.graph.operators = self.operators

    def dense(self, operator: Any) -> None:
        """Integer weights for one dense layer, if the spec has them."""
        index = fb.indices(operator.inputs)[1]
        tensor = self.graph.tensors[index]
        if index in self.changed:
            self.raise_version(operator)
            return
        value = fb.constant(self.model, tensor) if fb.type_name(tensor) == "FLOAT32" else None
        if value is None:
            return
        product = self.by_value.get(_key(value)) or self.computed(fb.indices(operator.outputs)[0])
        if product is None or product.values.T.shape != value.shape:
            return
        self.used |= {p.name for p in self.products.values() if p.weight == product.weight}
        self.own += not np.array_equal(product.values.T, value)
        if self.form == "int4_weights":
            self.by_block(tensor, value)
        else:
            self.by_channel(tensor, value, product)
        self.changed.add(index)
        self.raise_version(operator)

    def computed(self, index: int) -> Product | None:
        """The product of the ONNX graph that a tensor is the result of: behind its bias, and a Reshape."""
        for name in self.matches.get(index, ()):
            for _ in range(4):
                node = self.makers.get(name)
                if node is None or node.name in self.products:
                    return None if node is None else self.products[node.name]
                made = [i for i in node.input if i in self.makers]
                if node.op_type not in ("Add", "Reshape", "Relu", "Gelu") or not made:
                    break
                name = made[0]
        return None

    def by_channel(self, tensor: Any, value: Array, product: Product) -> None:
        if not np.array_equal(product.values.T, value):
            scales = channel_scales(value, 0)
            integers, steps = quantize_weight(value, scales, self.variant), scale_array(scales, self.variant)
        else:
            integers, steps = np.ascontiguousarray(product.integers.T), product.scales
        tensor.type = fb.schema().TensorType.INT8
        tensor.buffer = fb.add_constant(self.model, integers)
        tensor.quantization = parameters(steps, np.zeros(len(steps), np.int64), 0)

    def by_block(self, tensor: Any, value: Array) -> None:
        schema = fb.schema()
        integers, scales = quantize_blocks(value.T)
        tensor.type = schema.TensorType.INT4
        tensor.buffer = fb.add_constant(self.model, pack(np.ascontiguousarray(integers.T)))
        steps = schema.TensorT()
        steps.name = f"{fb.tensor_name(tensor)}_scales".encode()
        steps.type, steps.shape = schema.TensorType.FLOAT16, list(scales.T.shape)
        steps.buffer = fb.add_constant(self.model, np.ascontiguousarray(scales.T).astype(np.float16))
        self.graph.tensors.append(steps)
        details = schema.BlockwiseQuantizationT()
        details.scales, details.zeroPoints, details.blockSize = len(self.graph.tensors) - 1, -1, BLOCK
        tensor.quantization = schema.QuantizationParametersT()
        tensor.quantization.detailsType = schema.QuantizationDetails.BlockwiseQuantization
        tensor.quantization.details = details

    def raise_version(self, operator: Any) -> None:
        """Options of newer versions must not be lost."""
        version = max(_VERSIONS[self.form], self.model.operatorCodes[operator.opcodeIndex].version)
        operator.opcodeIndex = fb.operator_code(self.model, "FULLY_CONNECTED", version)

    def look_up(self, operator: Any) -> bool:
        """Look up 8-bit rows and their scales, and multiply: as in the ONNX graphs. False for another table."""
        index = fb.indices(operator.inputs)[0]
        value = fb.constant(self.model, self.graph.tensors[index])
        known = None if value is None or value.ndim != 2 else self.tables.get(_key(value))
        if known is None:
            return False
        table, scales = known
        steps = np.asarray(scales.scales, np.float32).reshape(-1, 1)
        rows = self.constant(index, quantize_weight(table, scales, "affine"), "INT8")
        column = self.constant(index, steps, "FLOAT32", "_scales")
        output = fb.indices(operator.outputs)[0]
        found, scale = self.like(output, "INT8", "_rows"), self.like(output, "FLOAT32", "_scale")
        self.graph.tensors[scale].shape = [*fb.shape(self.graph.tensors[output])[:-1], 1]
        whole = self.like(output, "FLOAT32", "_whole")
        other = copy.copy(operator)
        rest = fb.indices(operator.inputs)[1:]
        operator.inputs, operator.outputs = [rows, *rest], [found]
        other.inputs, other.outputs = [column, *rest], [scale]
        self.operators += [operator, other]
        self.add("CAST", [found], [whole])
        self.add("MUL", [whole, scale], [output])
        return True

    def constant(self, index: int, value: Array, kind: str, end: str = "") -> int:
        new = self.like(index, kind, end)
        self.graph.tensors[new].shape = list(value.shape)
        self.graph.tensors[new].buffer = fb.add_constant(self.model, value)
        return new

    def like(self, index: int, kind: str, end: str) -> int:
        """A new tensor of the shape of another."""
        tensor = copy.copy(self.graph.tensors[index])
        tensor.name = f"{fb.tensor_name(tensor)}{end}".encode()
        tensor.type, tensor.buffer = getattr(fb.schema().TensorType, kind), 0
        tensor.quantization = None
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def add(self, name: str, inputs: list[int], outputs: list[int]) -> None:
        schema = fb.schema()
        operator = schema.OperatorT()
        operator.opcodeIndex = fb.operator_code(self.model, name, 1)
        operator.inputs, operator.outputs = inputs, outputs
        if name == "MUL":
            operator.builtinOptionsType = schema.BuiltinOptions.MulOptions
            operator.builtinOptions = schema.MulOptionsT()
        self.operators.append(operator)


def _key(value: Array) -> bytes:
    return repr(value.shape).encode() + np.ascontiguousarray(value, np.float32).tobytes()


def _tables(proto: onnx.ModelProto, spec: QuantSpec) -> list[tuple[Array, PerChannel]]:
    from edgekit.graph.tools import initializers

    values = initializers(proto.graph)
    return [(values[name], scales) for name, scales in spec.tables.items() if name in values]
