"""Weights alone in integers: 8 bits a channel or 4 bits a block, and the rows of embedding tables in 8 bits.

A block of 4-bit weights shares one scale, the float16 nearest to `max|w| / 7`: LiteRT stores it in that type, and so
every backend gets the same integers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgekit.quant.spec import PerChannel
from edgekit.quant.weights import channel_scales

if TYPE_CHECKING:
    import onnx

    from edgekit.quant.forms import Product, Writer

BLOCK = 32
"""Weights that share one scale in 4 bits, along the axis that a product sums over."""

INT4_OPSET = 21
"""The first opset with 4-bit integers and with scales by block."""

_SMALLEST = np.float32(np.finfo(np.float16).tiny)
Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.int8]


def quantize_blocks(weight: npt.NDArray[Any], size: int = BLOCK) -> tuple[Bytes, Floats]:
    """A weight `[inputs, outputs]` as integers in [-7, 7] and its scales `[inputs / size, outputs]`.

    Raises:
        ValueError: `size` does not divide the inputs.
    """
    inputs, outputs = weight.shape
    if inputs % size:
        raise ValueError(f"blocks of {size} do not divide {inputs} inputs")
    blocks = weight.astype(np.float32).reshape(inputs // size, size, outputs)
    scales = (np.abs(blocks).max(axis=1) / np.float32(7)).astype(np.float16).astype(np.float32)
    scales = np.maximum(scales, _SMALLEST)
    integers = np.clip(np.rint(blocks / scales[:, None]), -7, 7).astype(np.int8)
    return integers.reshape(inputs, outputs), scales


def dequantize_blocks(integers: Bytes, scales: Floats) -> Floats:
    """The float weights that integers by block stand for."""
    blocks = integers.astype(np.float32).reshape(len(scales), -1, integers.shape[1])
    whole: Floats = (blocks * scales[:, None]).reshape(integers.shape).astype(np.float32)
    return whole


def pack(integers: Bytes) -> npt.NDArray[np.uint8]:
    """Two 4-bit integers a byte, the first in the lower half."""
    flat = integers.reshape(-1).astype(np.uint8) & 15
    packed: npt.NDArray[np.uint8] = (flat[::2] | (flat[1::2] << 4)).astype(np.uint8)
    return packed


def table_scales(table: npt.NDArray[Any]) -> PerChannel:
    """One scale a row."""
    scales = channel_scales(table, 0)
    assert isinstance(scales, PerChannel)
    return scales


def nbits(writer: Writer, product: Product, bits: int) -> None:
    """ONNX Runtime's MatMulNBits: weights `[outputs, blocks, bytes]`, unsigned around the middle.

    8 bits have one scale a channel, repeated for its blocks, so that the bytes are those of static int8. Level 4 lets
    the kernel quantize activations by block.
    """
    inputs, outputs = product.values.shape
    blocks = -(-inputs // BLOCK)
    if bits == 8:
        whole = np.pad(product.integers.T.astype(np.int16), ((0, 0), (0, blocks * BLOCK - inputs)))
        values = (whole + 128).astype(np.uint8).reshape(outputs, blocks, BLOCK)
        scales = np.repeat(product.scales.reshape(-1, 1), blocks, axis=1)
    else:
        integers, by_block = quantize_blocks(product.values)
        values = pack(integers.T + 8).reshape(outputs, blocks, BLOCK // 2)
        scales = by_block.T
    name = product.weight
    given = [writer.add(f"{name}/quantized", values), writer.add(f"{name}/scale", scales.reshape(-1).copy())]
    settings = {"K": inputs, "N": outputs, "bits": bits, "block_size": BLOCK, "accuracy_level": 4}
    writer.domain("com.microsoft", 1)
    writer.product("MatMulNBits", [product.input, *given], product, domain="com.microsoft", **settings)


def dequantized(writer: Writer, product: Product, bits: int) -> None:
    """A plain MatMul behind DequantizeLinear on the constant weight, in standard operators."""
    from onnx import TensorProto, helper

    name = product.weight
    result = f"{name}/dequantized"
    if not writer.has(f"{name}/quantized"):
        if bits == 8:
            given = [writer.add(f"{name}/quantized", product.integers), writer.add(f"{name}/scale", product.scales)]
            more = {"axis": 1}
        else:
            integers, scales = quantize_blocks(product.values)
            tensor = helper.make_tensor(
                f"{name}/quantized", TensorProto.INT4, integers.shape, pack(integers).tobytes(), raw=True
            )
            given = [writer.add_tensor(tensor), writer.add(f"{name}/scale", scales)]
            more = {"axis": 0, "block_size": BLOCK}
            writer.domain("", INT4_OPSET)
        writer.node("DequantizeLinear", given, result, f"{name}/dequantize", **more)
    writer.product("MatMul", [product.input, result], product)


def gather(writer: Writer, node: onnx.NodeProto, table: npt.NDArray[Any], scales: PerChannel) -> None:
    """Look up 8-bit rows and their scales, and multiply what was found."""
    from onnx import TensorProto

    from edgekit.quant.weights import quantize_weight

    name, output = node.input[0], node.output[0]
    if not writer.has(f"{name}/quantized"):
        writer.add(f"{name}/quantized", quantize_weight(table, scales, "affine"))
        writer.add(f"{name}/scale", np.asarray(scales.scales, np.float32).reshape(-1, 1))
    rows, scale = f"{output}/rows", f"{output}/row_scale"
    writer.node("Gather", [f"{name}/quantized", node.input[1]], rows, f"{node.name}/rows")
    writer.node("Gather", [f"{name}/scale", node.input[1]], scale, f"{node.name}/row_scale")
    writer.node("Cast", [rows], f"{rows}_float", f"{node.name}/rows_float", to=TensorProto.FLOAT)
    writer.node("Mul", [f"{rows}_float", scale], output, node.name)
