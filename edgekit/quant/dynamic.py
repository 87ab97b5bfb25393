"""Dynamic int8: ranges of activations are found while the model runs, weights are static integers a channel."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from edgekit.quant.forms import Product, Writer


def dynamic(writer: Writer, product: Product) -> None:
    """DynamicQuantizeLinear and MatMulInteger, which ONNX Runtime fuses into DynamicQuantizeMatMul.

    Products that share an input share its quantization.
    """
    from onnx import TensorProto

    source, weight, output = product.input, product.weight, product.output
    integers, scale, zero = (f"{source}/dynamic{end}" for end in ("", "/scale", "/zero_point"))
    if not writer.has(integers):
        writer.mark(integers)
        writer.nodes.append(
            writer.made("DynamicQuantizeLinear", [source], [integers, scale, zero], f"{source}/dynamic_quantize")
        )
    if not writer.has(f"{weight}/quantized"):
        writer.add(f"{weight}/quantized", product.integers)
        writer.add(f"{weight}/scale", product.scales)
        writer.add(f"{weight}/zero_point", np.zeros((), np.int8))
    summed, steps = f"{output}/sum", f"{output}/scale"
    inputs = [integers, f"{weight}/quantized", zero, f"{weight}/zero_point"]
    writer.node("MatMulInteger", inputs, summed, f"{product.name}/integers")
    writer.node("Cast", [summed], f"{summed}/float", f"{product.name}/float", to=TensorProto.FLOAT)
    writer.node("Mul", [scale, f"{weight}/scale"], steps, f"{product.name}/scale")
    writer.product("Mul", [f"{summed}/float", steps], product)


def rounded(writer: Writer, product: Product, group: int | None) -> None:
    """What kernels that quantize each row of an activation give, computed in float: for judging, not for shipping.

    `group` values in a row share a symmetric grid (OpenVINO); None: a row has one with a zero point (LiteRT).
    """
    source = product.input
    result = f"{source}/rounded"
    if not writer.has(result):
        writer.mark(result)
        if group and len(product.values) % group == 0:
            _round_groups(writer, source, result, group)
        else:
            _round_rows(writer, source, result)
    weight = f"{product.weight}/rounded"
    if not writer.has(weight):
        writer.add(weight, product.integers.astype(np.float32) * product.scales)
    writer.product("MatMul", [result, weight], product)


def _round_groups(writer: Writer, source: str, result: str, group: int) -> None:
    name = f"{source}/groups"
    writer.node("Shape", [source], f"{name}/shape", f"{name}/shape")
    target = writer.constant("groups", np.array([-1, group], np.int64))
    writer.node("Reshape", [source, target], name, name)
    writer.node("Abs", [name], f"{name}/abs", f"{name}/abs")
    last, limit = writer.constant("last", np.array([-1], np.int64)), writer.constant("limit", np.array(127, np.float32))
    writer.node("ReduceMax", [f"{name}/abs", last], f"{name}/peak", f"{name}/peak", keepdims=1)
    least = writer.constant("least", np.array(1e-30, np.float32))
    writer.node("Max", [f"{name}/peak", least], f"{name}/high", f"{name}/high")
    writer.node("Div", [f"{name}/high", limit], f"{name}/scale", f"{name}/scale")
    writer.node("Div", [name, f"{name}/scale"], f"{name}/steps", f"{name}/steps")
    writer.node("Round", [f"{name}/steps"], f"{name}/whole", f"{name}/whole")
    writer.node("Mul", [f"{name}/whole", f"{name}/scale"], f"{name}/float", f"{name}/float")
    writer.node("Reshape", [f"{name}/float", f"{name}/shape"], result, f"{name}/back")


def _round_rows(writer: Writer, source: str, result: str) -> None:
    name = f"{source}/rows"
    last, zero = writer.constant("last", np.array([-1], np.int64)), writer.constant("zero", np.array(0, np.float32))
    steps, least = (
        writer.constant("steps", np.array(255, np.float32)),
        writer.constant("least", np.array(1e-30, np.float32)),
    )
    for end, reduce, widen in (("low", "ReduceMin", "Min"), ("high", "ReduceMax", "Max")):
        writer.node(reduce, [source, last], f"{name}/{end}", f"{name}/{end}", keepdims=1)
        writer.node(widen, [f"{name}/{end}", zero], f"{name}/{end}0", f"{name}/{end}0")
    writer.node("Sub", [f"{name}/high0", f"{name}/low0"], f"{name}/width", f"{name}/width")
    writer.node("Max", [f"{name}/width", least], f"{name}/wide", f"{name}/wide")
    writer.node("Div", [f"{name}/wide", steps], f"{name}/scale", f"{name}/scale")
    # The zero point is a whole number of steps, so values round as multiples of the scale.
    writer.node("Div", [source, f"{name}/scale"], f"{name}/steps", f"{name}/steps")
    writer.node("Round", [f"{name}/steps"], f"{name}/whole", f"{name}/whole")
    writer.node("Mul", [f"{name}/whole", f"{name}/scale"], result, f"{name}/back")
