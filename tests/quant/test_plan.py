import numpy as np
from quant_graphs import Builder, residual_net

from edgekit.quant.plan import plan


def test_every_operator_of_a_residual_net_runs_in_integers():
    net = residual_net()
    made = plan(net)
    assert set(made.nodes) == {node.name for node in net.graph.node}
    assert made.keep_float == {}
    assert made.weights["stem.weight"] == 0
    assert made.weights["fc.weight"] == 0


def test_activations_fold_into_their_producer():
    made = plan(residual_net())
    folded = {"stem": "stem_relu", "depthwise": "depthwise_clip", "sum": "sum_relu", "head": "head_relu"}
    assert made.folded == folded
    assert not set(folded) & set(made.ranges)
    assert set(folded.values()) <= set(made.ranges)


def test_a_shared_convolution_output_keeps_its_own_range():
    b = Builder()
    b.conv("x", "conv", 4, 3)
    b.add("Relu", ["conv"], "relu")
    b.add("Add", ["conv", "relu"], "y")
    made = plan(b.model({"x": ["n", 3, 8, 8]}, {"y": ["n", 4, 8, 8]}))
    assert made.folded == {}
    assert set(made.ranges) == {"x", "conv", "relu", "y"}


def test_ties_join_what_shares_a_grid():
    ties = [set(group) for group in plan(residual_net()).ties]
    assert {"sum_relu", "pool", "branch", "both", "padded"} in ties
    assert {"mean", "flat"} in ties


def test_fixed_ranges():
    assert plan(residual_net()).fixed == {"gate": (0.0, 255 / 256)}


def test_what_the_recipe_keeps_float():
    made = plan(residual_net(), {"head", "gate"})
    assert made.keep_float["*"]["head"] == "kept float by the recipe"
    assert made.keep_float["*"]["gate"] == "kept float by the recipe"
    assert made.keep_float["*"]["head_relu"] == "among float operators"
    assert "head.weight" not in made.weights
    assert {"head", "gate"}.isdisjoint(made.nodes)


def test_reasons_for_float():
    b = Builder()
    b.conv("x", "conv", 4, 3)
    b.add("Softmax", ["conv"], "soft", axis=1)
    b.add("Sqrt", ["soft"], "root")
    b.add("Pad", ["conv", b.constant("p", np.array([0, 0, 1, 1, 0, 0, 1, 1])), b.constant("v", np.float32(3))], "pad")
    b.add("ReduceSum", ["pad"], "total", keepdims=0)
    b.add("Add", ["root", "total"], "y")
    made = plan(b.model({"x": ["n", 3, 8, 8]}, {"y": ["n", 4, 8, 8]}))
    assert made.nodes == ("conv",)
    assert made.keep_float["*"] == {
        "soft": "its small probabilities need more than 8 bits",
        "root": "no 8-bit form of Sqrt",
        "pad": "pads with something else than zero",
        "total": "no 8-bit form of ReduceSum",
        "y": "among float operators",
    }


def test_shape_arithmetic_is_left_alone():
    b = Builder()
    b.conv("x", "conv", 4, 3)
    b.add("Shape", ["conv"], "shape", end=1)
    b.add("Concat", ["shape", b.constant("rest", np.array([-1]))], "target", axis=0)
    b.add("Reshape", ["conv", "target"], "y")
    made = plan(b.model({"x": ["n", 3, 8, 8]}, {"y": ["n", 256]}))
    assert made.nodes == ("conv", "y")
    assert made.ties == (("conv", "y"),)


def test_weights_of_matrix_products():
    b = Builder()
    b.add("MatMul", ["x", b.weight("w", 8, 6)], "product")
    b.add("Transpose", ["x"], "turned", perm=[1, 0])
    b.add("MatMul", ["turned", "product"], "y")
    made = plan(b.model({"x": ["n", 8]}, {"y": [8, 6]}))
    assert made.weights == {"w": 1}
    assert set(made.nodes) == {"product", "y"}
    assert set(made.ranges) == {"x", "turned", "product", "y"}


def test_scores_of_an_attention_stay_float():
    b = Builder()
    for name in ("query", "key", "value"):
        b.add("MatMul", ["x", b.weight(f"{name}.weight", 8, 8)], name)
    b.add("Transpose", ["key"], "turned", perm=[0, 2, 1])
    b.add("MatMul", ["query", "turned"], "products")
    b.add("Mul", ["products", b.constant("factor", np.float32(0.35))], "scaled")
    b.add("Add", ["scaled", "mask"], "scores")
    b.add("Softmax", ["scores"], "weights", axis=-1)
    b.add("MatMul", ["weights", "value"], "y")
    made = plan(b.model({"x": ["n", 4, 8], "mask": ["n", 4, 4]}, {"y": ["n", 4, 8]}))
    assert set(made.keep_float["*"]) == {"scaled", "scores", "weights"}
    assert "mask" not in made.ranges
