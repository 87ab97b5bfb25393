from __future__ import annotations

import copy

import numpy as np
import onnx
import pytest
from graph_models import PADDLE, difference, make, paddle, paddle_input, weights
from onnx import helper

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from edgekit.errors import BuildError, ExitCode  # noqa: E402
from edgekit.graph.execute import run_onnx, run_torch  # noqa: E402
from edgekit.graph.fold import fold  # noqa: E402
from edgekit.graph.normalise import normalise  # noqa: E402
from edgekit.graph.tools import initializers  # noqa: E402
from edgekit.graph.torch_view import names_of, parameters_by_initializer, torch_view, write_back  # noqa: E402

node = helper.make_node


def network() -> onnx.ModelProto:
    """Every kind of weight: Conv with an uneven pad, BatchNorm, a scale used directly, MatMul, Gemm."""
    nodes = [
        node("Conv", ["x", "stem.weight", "stem.bias"], ["a"], name="stem/conv", pads=[0, 1, 1, 1]),
        node("BatchNormalization", ["a", "bn.scale", "bn.bias", "bn.mean", "bn.var"], ["b"], name="stem/bn"),
        node("Mul", ["b", "gain"], ["c"], name="7"),
        node("GlobalAveragePool", ["c"], ["d"], name="forward"),
        node("Flatten", ["d"], ["e"], name="and"),
        node("MatMul", ["e", "hidden"], ["f"], name="hidden"),
        node("Gemm", ["f", "out.w", "out.b"], ["y"], name="out", transB=1),
    ]
    constants = {
        "stem.weight": weights(6, 3, 3, 3),
        "stem.bias": weights(6),
        "bn.scale": weights(6, seed=1),
        "bn.bias": weights(6, seed=2),
        "bn.mean": weights(6, seed=3),
        "bn.var": np.abs(weights(6, seed=4)) + 0.1,
        "gain": weights(1, 6, 1, 1),
        "hidden": weights(6, 5),
        "out.w": weights(4, 5),
        "out.b": weights(4),
    }
    return normalise(make(nodes, {"x": ["batch", 3, 8, 8]}, {"y": ["batch", 4]}, constants))


def test_real_modules_named_after_their_nodes():
    view = torch_view(network())
    modules = names_of(view).modules
    assert set(modules) == {"stem/conv", "stem/bn", "7", "forward", "and", "hidden", "out"}
    kinds = [type(view.get_submodule(modules[name])) for name in ("stem/conv", "stem/bn", "hidden", "out")]
    assert kinds == [nn.Conv2d, nn.BatchNorm2d, nn.Linear, nn.Linear]
    assert modules["stem/conv"] == "stem_conv"
    assert not view.training


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_any_batch(batch):
    model = network()
    x = weights(batch, 3, 8, 8)
    np.testing.assert_allclose(run_torch(torch_view(model), [x])[0], run_onnx(model, [x])[0], atol=2e-6)


def test_parameters_go_by_initializer():
    view = torch_view(network())
    values = parameters_by_initializer(view)
    assert set(values) == set(initializers(network().graph))
    for name, array in initializers(network().graph).items():
        ours = values[name].detach().numpy()
        turned = names_of(view).initializers[name].transposed
        np.testing.assert_array_equal(ours.T if turned else ours, array)
    trained = {name for name, value in values.items() if isinstance(value, nn.Parameter)}
    assert trained == set(values) - {"bn.mean", "bn.var"}
    own = {id(p) for p in view.parameters()}
    assert {id(values[name]) for name in trained} == own


def test_training_changes_the_graph_through_write_back():
    model = network()
    view = torch_view(model)
    assert write_back(model, view) == model
    view.train()
    optimizer = torch.optim.SGD(view.parameters(), lr=0.05)
    for _ in range(3):
        loss = view(torch.from_numpy(weights(8, 3, 8, 8))).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    view.eval()
    trained = write_back(model, view)
    before, after = initializers(model.graph), initializers(trained.graph)
    # BatchNorm takes the mean away, so the bias in front of it has no gradient.
    assert all(np.any(before[name] != after[name]) for name in set(before) - {"stem.bias"})
    x = weights(4, 3, 8, 8, seed=9)
    np.testing.assert_allclose(run_onnx(trained, [x])[0], run_torch(view, [x])[0], atol=2e-6)


def test_write_back_refuses_cut_channels():
    model = network()
    view = torch_view(model)
    view.hidden.weight = nn.Parameter(torch.zeros(3, 6))
    with pytest.raises(BuildError, match=r"'hidden' has shape \[.*Export the trained module"):
        write_back(model, view)


def test_a_copy_is_independent_and_keeps_its_names():
    view = torch_view(network())
    other = copy.deepcopy(view)
    with torch.no_grad():
        other.get_parameter("stem_conv.weight").zero_()
    assert names_of(other) == names_of(view)
    assert parameters_by_initializer(other)["stem.weight"].abs().sum() == 0
    assert parameters_by_initializer(view)["stem.weight"].abs().sum() > 0


def test_a_shared_weight_is_one_parameter():
    nodes = [node("Conv", ["x", "w"], ["a"]), node("Conv", ["a", "w"], ["b"]), node("Mul", ["w", "b"], ["y"])]
    model = normalise(make(nodes, {"x": ["n", 4, 1, 1]}, {"y": None}, {"w": weights(4, 4, 1, 1)}))
    view = torch_view(model)
    assert len(list(view.parameters())) == 1
    assert len(parameters_by_initializer(view)) == 1


def test_a_matrix_read_twice_stays_one_parameter():
    nodes = [node("MatMul", ["x", "w"], ["a"]), node("MatMul", ["a", "w"], ["y"])]
    model = normalise(make(nodes, {"x": ["n", 4]}, {"y": ["n", 4]}, {"w": weights(4, 4)}))
    view = torch_view(model)
    assert len(list(view.parameters())) == 1
    x = weights(3, 4)
    np.testing.assert_allclose(run_torch(view, [x])[0], run_onnx(model, [x])[0], atol=1e-5)


def test_batch_norm_has_torch_semantics_in_training():
    model = network()
    view = torch_view(model).train()
    norm = view.stem_bn
    mean = norm.running_mean.clone()
    view(torch.from_numpy(weights(8, 3, 8, 8)))
    assert not torch.equal(norm.running_mean, mean)
    assert norm.momentum == pytest.approx(0.1)


def test_an_unknown_operator_is_named():
    model = make([node("Det", ["x"], ["y"], name="volume")], {"x": ["n", 3, 3]}, {"y": ["n"]})
    with pytest.raises(BuildError, match=r"Node 'volume': the torch view has no operator 'Det'") as caught:
        torch_view(model)
    assert caught.value.nodes == ("volume",)
    assert caught.value.exit_code == ExitCode.BUILD_FAILED


def test_an_operator_of_another_domain_is_named():
    graph = helper.make_graph(
        [node("Relu", ["x"], ["y"], name="odd", domain="com.example")],
        "g",
        [helper.make_tensor_value_info("x", 1, [1])],
        [helper.make_tensor_value_info("y", 1, [1])],
    )
    with pytest.raises(BuildError, match=r"'odd'.*'Relu' of domain 'com.example'"):
        torch_view(helper.make_model(graph))


def shape_arithmetic() -> onnx.ModelProto:
    """Extents of a dynamic batch, height and width through every operator that exporters use for them."""
    nodes = [
        node("Shape", ["x"], ["s"]),
        node("Gather", ["s", "i0"], ["n"], axis=0),
        node("Gather", ["s", "i2"], ["h"], axis=0),
        node("Slice", ["s", "three", "four"], ["w1"]),
        node("Unsqueeze", ["n", "zero"], ["n1"]),
        node("Unsqueeze", ["h", "zero"], ["h1"]),
        node("Concat", ["n1", "ch", "h1", "w1"], ["same"], axis=0),
        node("Mul", ["h1", "w1"], ["area"]),
        node("Concat", ["n1", "ch", "area"], ["flat"], axis=0),
        node("Reshape", ["x", "flat"], ["rows"]),
        node("Reshape", ["rows", "same"], ["back"]),
        node("Mul", ["h1", "two"], ["h2"]),
        node("Cast", ["w1"], ["wf"], to=1),
        node("Mul", ["wf", "twof"], ["wf2"]),
        node("Floor", ["wf2"], ["unused"]),
        node("Cast", ["wf2"], ["w2"], to=7),
        node("Concat", ["n1", "ch", "h2", "w2"], ["size"], axis=0),
        node("Resize", ["back", "", "", "size"], ["y"], mode="linear", coordinate_transformation_mode="half_pixel"),
    ]
    constants = {
        "i0": np.array(0), "i2": np.array(2), "three": np.array([3]), "four": np.array([4]), "zero": np.array([0]),
        "ch": np.array([3]), "two": np.array([2]), "twof": np.array([2.0], np.float32),
    }  # fmt: skip
    return make(nodes, {"x": ["batch", 3, "height", "width"]}, {"y": ["batch", 3, "h2", "w2"]}, constants)


def test_shape_arithmetic_follows_every_axis():
    model = normalise(shape_arithmetic())
    view = torch_view(model)
    for shape in [(1, 3, 4, 6), (2, 3, 8, 6), (5, 3, 3, 3)]:
        x = weights(*shape)
        np.testing.assert_allclose(run_torch(view, [x])[0], run_onnx(model, [x])[0], atol=1e-5)


def test_shape_arithmetic_stays_dynamic_in_an_export():
    view = torch_view(normalise(shape_arithmetic()))
    dynamic = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    program = torch.export.export(view, (torch.randn(2, 3, 8, 6),), dynamic_shapes=(dynamic,))
    x = torch.randn(5, 3, 4, 10)
    torch.testing.assert_close(program.module()(x), view(x))


@pytest.mark.parametrize("name", PADDLE)
def test_files_in_the_wild(shared_data, name):
    model = normalise(paddle(shared_data, name))
    x = paddle_input(name)
    for graph in (model, fold(model)):
        view = torch_view(graph)
        assert difference(run_torch(view, [x]), run_onnx(graph, [x])) < 2e-6
        assert write_back(graph, view) == graph
        sum(value.sum() for value in view.train()(torch.from_numpy(x))).backward()
        assert all(p.grad is not None for p in view.parameters())
