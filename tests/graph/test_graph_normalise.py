from __future__ import annotations

import numpy as np
import onnx
import pytest
from graph_models import PADDLE, difference, make, paddle, paddle_input, types, weights
from onnx import TensorProto, helper, numpy_helper

from edgekit.errors import UsageError
from edgekit.graph.execute import run_onnx
from edgekit.graph.normalise import MIN_OPSET, normalise
from edgekit.graph.tools import initializers, opset_of, tensor_specs

node = helper.make_node
constant = numpy_helper.from_array


@pytest.mark.parametrize("name", PADDLE)
def test_files_in_the_wild(shared_data, name):
    original = paddle(shared_data, name)
    before = original.SerializeToString()
    result = normalise(original)
    assert original.SerializeToString() == before
    assert normalise(result) == result
    onnx.checker.check_model(result, full_check=True)
    assert opset_of(result) == MIN_OPSET
    assert "Constant" not in types(result)
    assert "Identity" not in types(result)
    assert "Shape" not in types(result)
    assert types(result).count("BatchNormalization") == types(original).count("BatchNormalization")
    names = [node.name for node in result.graph.node]
    assert len(set(names)) == len(names)
    assert all(names)
    x = paddle_input(name)
    assert difference(run_onnx(result, [x]), run_onnx(original, [x])) == 0.0


def test_constants_become_initializers_and_identities_go():
    nodes = [
        node("Constant", [], ["c"], value=constant(weights(3))),
        node("Identity", ["c"], ["d"]),
        node("Identity", ["x"], ["x1"]),
        node("Add", ["x1", "d"], ["s"]),
        node("Constant", [], ["two"], value_float=2.0),
        node("Mul", ["s", "two"], ["p"]),
        node("Identity", ["p"], ["y"]),
        node("Relu", ["x"], ["dead"]),
    ]
    model = make(nodes, {"x": ["n", 3]}, {"y": ["n", 3]})
    result = normalise(model)
    assert types(result) == ["Add", "Mul"]
    assert result.graph.node[-1].output[0] == "y"
    x = weights(5, 3, seed=1)
    np.testing.assert_array_equal(run_onnx(result, [x])[0], run_onnx(model, [x])[0])


def test_an_identity_from_input_to_output_stays():
    model = make([node("Identity", ["x"], ["y"])], {"x": ["n"]}, {"y": ["n"]})
    assert types(normalise(model)) == ["Identity"]


def test_names_are_kept_once_and_made_from_outputs():
    nodes = [
        node("Relu", ["x"], ["a"], name="same"),
        node("Abs", ["a"], ["b"], name="same"),
        node("Neg", ["b"], ["y"]),
    ]
    result = normalise(make(nodes, {"x": [1]}, {"y": [1]}))
    assert [n.name for n in result.graph.node] == ["same", "b", "y"]


def test_initializers_are_not_inputs():
    model = make([node("Add", ["x", "w"], ["y"])], {"x": [3], "w": [3]}, {"y": [3]}, {"w": weights(3)})
    result = normalise(model)
    assert [value.name for value in result.graph.input] == ["x"]


def test_old_reductions_are_raised_and_computed_alike():
    model = make([node("ReduceMean", ["x"], ["y"], axes=[2, 3])], {"x": ["n", 2, 4, 4]}, {"y": None}, opset=11)
    result = normalise(model)
    assert opset_of(result) == MIN_OPSET
    x = weights(2, 2, 4, 4)
    np.testing.assert_array_equal(run_onnx(result, [x])[0], run_onnx(model, [x])[0])


def test_newer_opsets_stay():
    assert (
        opset_of(normalise(make([node("Relu", ["x"], ["y"])], {"x": [1]}, {"y": [1]}, opset=21, ir_version=10))) == 21
    )


def test_shape_arithmetic_on_a_dynamic_batch_becomes_flatten():
    nodes = [
        node("Shape", ["x"], ["shape"]),
        node("Gather", ["shape", "zero"], ["n"], axis=0),
        node("Unsqueeze", ["n", "axes"], ["n1"]),
        node("Concat", ["n1", "rest"], ["target"], axis=0),
        node("Reshape", ["x", "target"], ["y"]),
    ]
    constants = {"zero": np.array(0), "axes": np.array([0]), "rest": np.array([12])}
    model = make(nodes, {"x": ["batch", 3, 2, 2]}, {"y": ["batch", 12]}, constants)
    result = normalise(model)
    assert types(result) == ["Flatten"]
    x = weights(3, 3, 2, 2)
    np.testing.assert_array_equal(run_onnx(result, [x])[0], x.reshape(3, 12))


def test_shape_arithmetic_on_static_shapes_is_computed():
    nodes = [
        node("Shape", ["x"], ["shape"]),
        node("Slice", ["shape", "two", "four"], ["hw"]),
        node("Mul", ["hw", "by"], ["twice"]),
        node("Concat", ["keep", "twice"], ["sizes"], axis=0),
        node("Resize", ["x", "", "", "sizes"], ["y"], mode="nearest", coordinate_transformation_mode="asymmetric",
             nearest_mode="floor"),
    ]  # fmt: skip
    constants = {"two": np.array([2]), "four": np.array([4]), "by": np.array([2]), "keep": np.array([1, 3])}
    model = make(nodes, {"x": [1, 3, 4, 5]}, {"y": None}, constants)
    result = normalise(model)
    assert types(result) == ["Resize"]
    assert initializers(result.graph)[result.graph.node[0].input[3]].tolist() == [1, 3, 8, 10]
    x = weights(1, 3, 4, 5)
    np.testing.assert_array_equal(run_onnx(result, [x])[0], run_onnx(model, [x])[0])


def test_quantized_weights_are_not_folded():
    nodes = [node("DequantizeLinear", ["q", "s", "z"], ["w"]), node("MatMul", ["x", "w"], ["y"])]
    constants = {"q": np.ones((3, 2), np.int8), "s": np.float32(0.5), "z": np.int8(0)}
    assert types(normalise(make(nodes, {"x": ["n", 3]}, {"y": ["n", 2]}, constants))) == ["DequantizeLinear", "MatMul"]


def test_functions_are_inlined():
    body = helper.make_function(
        "own", "Twice", ["a"], ["b"], [node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 18)]
    )
    graph = helper.make_graph(
        [node("Twice", ["x"], ["y"], domain="own")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
    result = normalise(helper.make_model(graph, functions=[body], opset_imports=opsets, ir_version=8))
    assert types(result) == ["Add"]
    assert not result.functions


def test_values_captured_by_a_subgraph_survive():
    def branch(op: str) -> onnx.GraphProto:
        return helper.make_graph(
            [node(op, ["inner", "c"], ["r"])], op, [], [helper.make_tensor_value_info("r", TensorProto.FLOAT, [2])]
        )

    nodes = [
        node("Constant", [], ["c"], value=constant(weights(2))),
        node("Identity", ["x"], ["inner"]),
        node("ReduceSum", ["x"], ["total"], keepdims=0),
        node("Greater", ["total", "zero"], ["flag"]),
        node("If", ["flag"], ["y"], then_branch=branch("Add"), else_branch=branch("Mul")),
    ]
    model = make(nodes, {"x": [2]}, {"y": [2]}, {"zero": np.float32(0)})
    result = normalise(model)
    assert types(result) == ["ReduceSum", "Greater", "If"]
    for sign in (1, -1):
        x = np.array([1, 2], np.float32) * sign
        np.testing.assert_array_equal(run_onnx(result, [x])[0], run_onnx(model, [x])[0])


def test_unknown_axes_get_names():
    model = make([node("Relu", ["x"], ["y"])], {"x": ["?", 3, "?", "?"]}, {"y": ["?", 3, "?", "?"]})
    inputs, outputs = tensor_specs(normalise(model))
    assert inputs[0].shape == ("batch", 3, "x_2", "x_3")
    assert outputs[0].shape == ("batch", 3, "x_2", "x_3")


def test_an_opset_that_cannot_be_raised_is_a_usage_error():
    model = make(
        [node("Upsample", ["x"], ["y"], scales=[1.0, 1.0, 2.0, 2.0])], {"x": [1, 1, 2, 2]}, {"y": None}, opset=7
    )
    try:
        result = normalise(model)
    except UsageError as error:
        assert "opset 7" in str(error)
    else:
        x = weights(1, 1, 2, 2)
        np.testing.assert_array_equal(run_onnx(result, [x])[0], x.repeat(2, 2).repeat(2, 3))
