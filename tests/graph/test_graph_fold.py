from __future__ import annotations

import numpy as np
import onnx
import pytest
from graph_models import PADDLE, difference, make, paddle, paddle_input, types, weights
from onnx import helper

from edgekit.graph.execute import run_onnx
from edgekit.graph.fold import fold
from edgekit.graph.integers import for_integers
from edgekit.graph.normalise import normalise
from edgekit.graph.norms import norms_to_convolutions

node = helper.make_node


def check(model: onnx.ModelProto, expected: list[str], shape: tuple[int, ...]) -> onnx.ModelProto:
    """Folding gives exactly these operators and the same numbers, and folding twice nothing more."""
    before = model.SerializeToString()
    result = fold(model)
    assert model.SerializeToString() == before
    assert types(result) == expected
    assert fold(result) == result
    onnx.checker.check_model(result, full_check=True)
    x = weights(*shape, seed=7) * 3
    for ours, theirs in zip(run_onnx(result, [x]), run_onnx(model, [x]), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-5 * max(1.0, np.abs(theirs).max()))
    return result


def statistics(channels: int) -> dict[str, np.ndarray]:
    return {
        "scale": weights(channels, seed=1),
        "bias": weights(channels, seed=2),
        "mean": weights(channels, seed=3),
        "var": np.abs(weights(channels, seed=4)) + 0.1,
    }


NORM = node("BatchNormalization", ["a", "scale", "bias", "mean", "var"], ["y"])


@pytest.mark.parametrize("with_bias", [False, True])
def test_batch_norm_into_conv(with_bias):
    inputs = ["x", "w", "b"] if with_bias else ["x", "w"]
    nodes = [node("Conv", inputs, ["a"], pads=[1, 1, 1, 1], name="conv"), NORM]
    constants = {"w": weights(6, 4, 3, 3), **({"b": weights(6)} if with_bias else {}), **statistics(6)}
    result = check(make(nodes, {"x": ["n", 4, 5, 5]}, {"y": ["n", 6, 5, 5]}, constants), ["Conv"], (2, 4, 5, 5))
    assert result.graph.node[0].name == "conv"


def test_batch_norm_into_grouped_conv():
    nodes = [node("Conv", ["x", "w"], ["a"], group=4), NORM]
    constants = {"w": weights(8, 1, 3, 3), **statistics(8)}
    check(make(nodes, {"x": ["n", 4, 5, 5]}, {"y": None}, constants), ["Conv"], (2, 4, 5, 5))


@pytest.mark.parametrize("groups", [1, 2])
def test_batch_norm_into_transposed_conv(groups):
    nodes = [node("ConvTranspose", ["x", "w", "b"], ["a"], strides=[2, 2], group=groups), NORM]
    constants = {"w": weights(4, 6 // groups, 2, 2), "b": weights(6), **statistics(6)}
    check(make(nodes, {"x": ["n", 4, 5, 5]}, {"y": None}, constants), ["ConvTranspose"], (2, 4, 5, 5))


@pytest.mark.parametrize("turned", [0, 1])
def test_batch_norm_into_gemm(turned):
    nodes = [node("Gemm", ["x", "w", "b"], ["a"], transB=turned), NORM]
    constants = {"w": weights(*((6, 4) if turned else (4, 6))), "b": weights(6), **statistics(6)}
    check(make(nodes, {"x": ["n", 4]}, {"y": None}, constants), ["Gemm"], (5, 4))


def test_batch_norm_stays_where_the_conv_is_read_twice_or_is_an_output():
    twice = [node("Conv", ["x", "w"], ["a"]), node("BatchNormalization", [*NORM.input], ["z"])]
    constants = {"w": weights(4, 4, 1, 1), **statistics(4)}
    both = [*twice, node("Add", ["z", "a"], ["y"])]
    expected = ["Conv", "BatchNormalization", "Add"]
    check(make(both, {"x": ["n", 4, 3, 3]}, {"y": None}, constants), expected, (2, 4, 3, 3))
    check(make(twice, {"x": ["n", 4, 3, 3]}, {"a": None, "z": None}, constants), expected[:2], (2, 4, 3, 3))


def test_a_shared_weight_is_not_changed_for_its_other_reader():
    nodes = [node("Conv", ["x", "w"], ["a"]), NORM, node("Conv", ["x", "w"], ["z"])]
    constants = {"w": weights(4, 4, 1, 1), **statistics(4)}
    check(make(nodes, {"x": ["n", 4, 3, 3]}, {"y": None, "z": None}, constants), ["Conv", "Conv"], (2, 4, 3, 3))


@pytest.mark.parametrize("shape", [(), (1,), (6, 1, 1), (1, 6, 1, 1)])
def test_scales_and_shifts_into_conv(shape):
    nodes = [
        node("Conv", ["x", "w"], ["a"]),
        node("Mul", ["a", "m"], ["b"]),
        node("Add", ["p", "b"], ["c"]),
        node("Div", ["c", "m"], ["d"]),
        node("Sub", ["d", "p"], ["y"]),
    ]
    constants = {"w": weights(6, 4, 1, 1), "m": np.abs(weights(*shape)) + 0.5, "p": weights(*shape, seed=5)}
    check(make(nodes, {"x": ["n", 4, 3, 3]}, {"y": None}, constants), ["Conv"], (2, 4, 3, 3))


def test_constants_that_are_not_per_channel_stay():
    for shape in [(3,), (3, 3), (1, 6, 3, 3)]:
        nodes = [node("Conv", ["x", "w"], ["a"]), node("Add", ["a", "p"], ["y"])]
        constants = {"w": weights(6, 4, 1, 1), "p": weights(*shape)}
        check(make(nodes, {"x": ["n", 4, 3, 3]}, {"y": None}, constants), ["Conv", "Add"], (2, 4, 3, 3))


def test_a_constant_divided_by_the_conv_stays():
    nodes = [node("Conv", ["x", "w"], ["a"]), node("Sub", ["p", "a"], ["y"])]
    constants = {"w": weights(6, 4, 1, 1), "p": weights(1)}
    check(make(nodes, {"x": ["n", 4, 3, 3]}, {"y": None}, constants), ["Conv", "Sub"], (2, 4, 3, 3))


def test_zero_padding_into_conv():
    nodes = [node("Pad", ["x", "pads"], ["a"]), node("Conv", ["a", "w"], ["y"], pads=[1, 0, 0, 0], strides=[2, 2])]
    constants = {"pads": np.array([0, 0, 0, 1, 0, 0, 1, 2]), "w": weights(6, 4, 3, 3)}
    result = check(make(nodes, {"x": ["n", 4, 8, 8]}, {"y": None}, constants), ["Conv"], (2, 4, 8, 8))
    pads = next(a for a in result.graph.node[0].attribute if a.name == "pads")
    assert list(pads.ints) == [1, 1, 1, 2]


@pytest.mark.parametrize(
    ("pads", "value", "mode"),
    [([0, 0, 1, 1, 0, 0, 1, 1], 1.0, "constant"), ([0, 1, 0, 0, 0, 1, 0, 0], 0.0, "constant"),
     ([0, 0, 1, 1, 0, 0, 1, 1], 0.0, "reflect")],
)  # fmt: skip
def test_other_padding_stays(pads, value, mode):
    nodes = [node("Pad", ["x", "pads", "v"], ["a"], mode=mode), node("Conv", ["a", "w"], ["y"])]
    channels = 4 + pads[1] + pads[5]
    constants = {"pads": np.array(pads), "v": np.float32(value), "w": weights(6, channels, 3, 3)}
    check(make(nodes, {"x": ["n", 4, 8, 8]}, {"y": None}, constants), ["Pad", "Conv"], (2, 4, 8, 8))


CLIP = [node("Add", ["x", "three"], ["a"]), node("Clip", ["a", "zero", "six"], ["b"])]
NUMBERS = {"three": np.float32(3), "zero": np.float32(0), "six": np.float32(6), "sixth": np.float32(1 / 6)}


@pytest.mark.parametrize(
    ("tail", "expected"),
    [
        ([node("Div", ["b", "six"], ["y"])], "HardSigmoid"),
        ([node("Mul", ["b", "sixth"], ["y"])], "HardSigmoid"),
        ([node("Div", ["b", "six"], ["c"]), node("Mul", ["x", "c"], ["y"])], "HardSwish"),
        ([node("Mul", ["x", "b"], ["c"]), node("Div", ["c", "six"], ["y"])], "HardSwish"),
        ([node("Mul", ["b", "x"], ["c"]), node("Mul", ["c", "sixth"], ["y"])], "HardSwish"),
        ([node("Div", ["x", "six"], ["c"]), node("Mul", ["c", "b"], ["y"])], "HardSwish"),
    ],
)
def test_hard_activations_are_recognised(tail, expected):
    check(make([*CLIP, *tail], {"x": ["n", 4, 3, 3]}, {"y": None}, NUMBERS), [expected], (2, 4, 3, 3))


def test_hard_sigmoid_of_another_slope_stays_apart():
    nodes = [node("HardSigmoid", ["x"], ["a"], alpha=0.2), node("Mul", ["x", "a"], ["y"])]
    check(make(nodes, {"x": ["n", 4]}, {"y": None}), ["HardSigmoid", "Mul"], (3, 4))


def test_other_numbers_are_not_taken_for_hard_activations():
    numbers = {**NUMBERS, "three": np.float32(2.5)}
    nodes = [*CLIP, node("Div", ["b", "six"], ["y"])]
    check(make(nodes, {"x": ["n", 4]}, {"y": None}, numbers), ["Add", "Clip", "Div"], (3, 4))


def test_clip_stays():
    constants = {"zero": np.float32(0), "six": np.float32(6)}
    check(make([node("Clip", ["x", "zero", "six"], ["y"])], {"x": ["n", 4]}, {"y": None}, constants), ["Clip"], (3, 4))


@pytest.mark.parametrize(
    ("axes", "keep", "expected"),
    [
        ([2, 3], 1, ["GlobalAveragePool"]),
        ([-1, -2], 1, ["GlobalAveragePool"]),
        ([2, 3], 0, ["GlobalAveragePool", "Flatten"]),
        ([2], 1, ["ReduceMean"]),
        ([1, 2, 3], 1, ["ReduceMean"]),
    ],
)
def test_global_means(axes, keep, expected):
    model = make(
        [node("ReduceMean", ["x", "axes"], ["y"], keepdims=keep)], {"x": ["n", 4, 3, 5]}, {"y": None},
        {"axes": np.array(axes)},
    )  # fmt: skip
    check(model, expected, (2, 4, 3, 5))


def test_matmul_and_add_become_gemm():
    nodes = [node("MatMul", ["x", "w"], ["a"]), node("Add", ["a", "b"], ["y"])]
    constants = {"w": weights(4, 6), "b": weights(6)}
    check(make(nodes, {"x": ["n", 4]}, {"y": None}, constants), ["Gemm"], (3, 4))
    check(make(nodes, {"x": ["n", 5, 4]}, {"y": None}, constants), ["MatMul", "Add"], (3, 5, 4))


@pytest.mark.parametrize("name", PADDLE)
def test_files_in_the_wild(shared_data, name):
    model = normalise(paddle(shared_data, name))
    result = fold(model)
    assert "BatchNormalization" not in types(result)
    assert types(result).count("HardSwish") in (18, 24)
    assert [o.name for o in result.graph.output] == [o.name for o in model.graph.output]
    x = paddle_input(name)
    assert difference(run_onnx(result, [x]), run_onnx(model, [x])) < 2e-6


@pytest.mark.parametrize("extents", [(7,), (5, 6), (3, 4, 5)])
def test_batch_norm_that_no_weight_takes_up_is_a_depthwise_convolution(extents):
    nodes = [node("Relu", ["x"], ["a"]), NORM]
    model = fold(make(nodes, {"x": ["n", 6, *extents]}, {"y": None}, statistics(6)))
    result = norms_to_convolutions(model)
    onnx.checker.check_model(result, full_check=True)
    assert types(result) == ["Relu", "Conv"]
    x = weights(2, 6, *extents, seed=7) * 3
    assert difference(run_onnx(result, [x]), run_onnx(model, [x])) < 1e-6
    assert types(model) == ["Relu", "BatchNormalization"]


def test_batch_norm_over_features_stays():
    model = fold(make([node("Relu", ["x"], ["a"]), NORM], {"x": ["n", 6]}, {"y": ["n", 6]}, statistics(6)))
    assert norms_to_convolutions(model) is model


@pytest.mark.parametrize("pads", [0, 1])
def test_factors_and_constants_in_front_of_weights(pads):
    """`hardswish(x) * s + c` as learnable affine blocks write it; what is padded needs the constant where it is."""
    nodes = [
        node("HardSwish", ["x"], ["h"]),
        node("Mul", ["s", "h"], ["m"]),
        node("Add", ["m", "c"], ["a"]),
        node("Conv", ["a", "w", "b"], ["y"], pads=[pads] * 4, name="conv"),
        node("Conv", ["a", "v"], ["z"], pads=[pads] * 4, group=2),
    ]
    constants = {"s": np.float32([-0.4]), "c": np.float32([0.7]), "w": weights(6, 4, 3, 3), "b": weights(6)}
    constants["v"] = weights(4, 2, 3, 3, seed=3)
    kept = ["HardSwish", "Add"] if pads else ["HardSwish"]
    check(make(nodes, {"x": ["n", 4, 5, 5]}, {"y": None, "z": None}, constants), [*kept, "Conv", "Conv"], (2, 4, 5, 5))


@pytest.mark.parametrize("shape", [(1, 4, 1, 1), (4, 1, 1)])
def test_constants_per_channel_in_front_of_weights(shape):
    constants = {"s": weights(*shape), "c": weights(*shape, seed=2), "w": weights(6, 2, 1, 1)}
    conv = node("Conv", ["a", "w"], ["y"], group=2)
    add = [node("Relu", ["x"], ["h"]), node("Sub", ["h", "c"], ["a"]), conv]
    check(make(add, {"x": ["n", 4, 3, 3]}, {"y": None}, constants), ["Relu", "Conv"], (2, 4, 3, 3))
    scale = [node("Relu", ["x"], ["h"]), node("Mul", ["h", "s"], ["a"]), conv]
    check(make(scale, {"x": ["n", 4, 3, 3]}, {"y": None}, constants), ["Relu", "Mul", "Conv"], (2, 4, 3, 3))


@pytest.mark.parametrize("turned", [0, 1])
def test_factors_and_constants_in_front_of_gemm(turned):
    nodes = [node("Relu", ["x"], ["h"]), node("Div", ["h", "s"], ["m"]), node("Add", ["c", "m"], ["a"])]
    nodes.append(node("Gemm", ["a", "w", "b"], ["y"], transB=turned))
    constants = {"s": np.float32(3), "c": weights(4), "w": weights(*((6, 4) if turned else (4, 6))), "b": weights(6)}
    check(make(nodes, {"x": ["n", 4]}, {"y": None}, constants), ["Relu", "Gemm"], (5, 4))


def test_factors_stay_where_something_else_reads_them():
    nodes = [
        node("Relu", ["x"], ["h"]),
        node("Mul", ["h", "s"], ["m"]),
        node("Conv", ["m", "w"], ["c"]),
        node("Add", ["c", "m"], ["y"]),
    ]
    constants = {"s": np.float32(3), "w": weights(4, 4, 1, 1)}
    check(make(nodes, {"x": ["n", 4, 3, 3]}, {"y": None}, constants), ["Relu", "Mul", "Conv", "Add"], (2, 4, 3, 3))


def test_a_gate_beside_its_input():
    nodes = [
        node("Relu", ["x"], ["h"]),
        node("GlobalAveragePool", ["h"], ["p"]),
        node("Conv", ["p", "w"], ["q"]),
        node("HardSigmoid", ["q"], ["g"]),
        node("Mul", ["h", "g"], ["m"]),
        node("Add", ["h", "m"], ["y"]),
    ]
    model = make(nodes, {"x": ["n", 4, 3, 3]}, {"y": None}, {"w": weights(4, 4, 1, 1)})
    result = check(model, ["Relu", "GlobalAveragePool", "Conv", "HardSigmoid", "Add", "Mul"], (2, 4, 3, 3))
    assert result.graph.node[4].input[0] == "g"


@pytest.mark.parametrize("tail", [[], ["Relu"], ["Sigmoid"]])
@pytest.mark.parametrize("size", [2, 3])
def test_a_transposed_convolution_without_overlap_is_a_convolution(size, tail):
    nodes = [node("ConvTranspose", ["x", "w", "b"], ["a"], strides=[size, size], kernel_shape=[size, size])]
    nodes += [node(kind, ["a"], ["y"]) for kind in tail] or [node("Add", ["a", "a"], ["y"])]
    model = make(nodes, {"x": ["n", 5, 3, 4]}, {"y": None}, {"w": weights(5, 6, size, size), "b": weights(6)})
    result = for_integers(model)
    onnx.checker.check_model(result, full_check=True)
    assert types(result) == ["Conv", *tail, "DepthToSpace", *([] if tail else ["Add"])]
    x = weights(2, 5, 3, 4, seed=7)
    assert difference(run_onnx(result, [x]), run_onnx(model, [x])) < 1e-6
    assert types(model)[0] == "ConvTranspose"


@pytest.mark.parametrize(
    "given", [{"kernel_shape": [3, 3]}, {"pads": [1, 1, 0, 0]}, {"group": 2}, {"output_padding": [1, 1]}]
)
def test_other_transposed_convolutions_stay(given):
    size = given.get("kernel_shape", [2, 2])
    shape = (4, 6 // given.get("group", 1), *size)
    nodes = [node("ConvTranspose", ["x", "w"], ["y"], **{"strides": [2, 2], "kernel_shape": size, **given})]
    model = make(nodes, {"x": ["n", 4, 3, 3]}, {"y": None}, {"w": weights(*shape)})
    assert for_integers(model) is model
