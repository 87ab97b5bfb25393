from __future__ import annotations

import agent_bundles
import numpy as np
import onnx
import pytest
from graph_models import PADDLE, difference, make, paddle, paddle_input, types, weights
from onnx import helper

from edgekit.agent.infer import IN_FLOAT
from edgekit.errors import BuildError, UsageError
from edgekit.graph import execute
from edgekit.graph.cost import cost
from edgekit.graph.execute import run_onnx, run_torch
from edgekit.graph.fold import fold
from edgekit.graph.normalise import normalise
from edgekit.graph.opset import for_opset, ir_version_for
from edgekit.graph.tools import opset_of
from edgekit.quant.session import open_session

node = helper.make_node


def dense(first: int | str = "batch") -> tuple[onnx.ModelProto, np.ndarray]:
    w = weights(4, 3)
    return make([node("MatMul", ["x", "w"], ["y"], name="m")], {"x": [first, 4]}, {"y": [first, 3]}, {"w": w}), w


@pytest.fixture(params=["onnxruntime", "openvino"])
def runtime(request, monkeypatch):
    """Both runtimes that may be installed."""
    pytest.importorskip(request.param)
    if request.param == "openvino":
        monkeypatch.setattr(execute.importlib.util, "find_spec", lambda _: None)
    monkeypatch.setattr(execute, "_sessions", type(execute._sessions)())
    return request.param


@pytest.mark.parametrize("first", ["batch", 1, 2, 5])
@pytest.mark.parametrize("count", [1, 4, 7])
def test_all_samples_whatever_the_first_axis(runtime, first, count):
    model, w = dense(first)
    x = weights(count, 4)
    np.testing.assert_allclose(run_onnx(model, [x], batch=3)[0], x @ w, rtol=1e-5, atol=1e-6)


def test_float32_is_float32(runtime):
    model, _ = dense()
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weights(4, 3) + np.float32(1), "w"))
    x = weights(64, 4) + np.float32(100)
    exact = x.astype(np.float64) @ onnx.numpy_helper.to_array(model.graph.initializer[0]).astype(np.float64)
    assert np.abs(run_onnx(model, [x])[0] / exact - 1).max() < 1e-5  # bfloat16 would be off by 1e-3


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([], "takes 1 inputs"),
        ([np.zeros((2, 5), np.float32)], r"must be float32 \['batch', 4\], got float32 \[2, 5\]"),
        ([np.zeros((2, 4))], "got float64"),
        ([np.zeros((0, 4), np.float32)], "no samples"),
    ],
)
def test_unfit_inputs_are_refused(inputs, message):
    with pytest.raises(UsageError, match=message):
        run_onnx(dense()[0], inputs)


def test_sessions_are_kept_and_few():
    execute._sessions.clear()
    for seed in range(6):
        model, _ = dense()
        model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weights(4, 3, seed=seed), "w"))
        for _ in range(2):
            run_onnx(model, [weights(2, 4)])
    assert len(execute._sessions) == execute.KEPT_SESSIONS


def test_torch_runs_in_groups_and_keeps_its_mode():
    torch = pytest.importorskip("torch")
    module = torch.nn.Sequential(torch.nn.BatchNorm1d(4), torch.nn.Dropout(0.9)).train()
    x = weights(10, 4)
    got = run_torch(module, [x], batch=3)[0]
    np.testing.assert_allclose(got, x / np.sqrt(np.float32(1 + 1e-5)), rtol=1e-6)
    assert module.training


def test_cost_of_each_operator_by_formula():
    nodes = [
        node("Conv", ["x", "w"], ["a"], name="conv", strides=[2, 2], group=2),
        node("ConvTranspose", ["a", "t"], ["b"], name="up", strides=[2, 2]),
        node("GlobalAveragePool", ["b"], ["c"], name="pool"),
        node("Flatten", ["c"], ["d"], name="flat"),
        node("Gemm", ["d", "g", "h"], ["e"], name="gemm"),
        node("MatMul", ["e", "m"], ["y"], name="matmul"),
    ]
    constants = {
        "w": weights(6, 2, 3, 3),
        "t": weights(6, 5, 2, 2),
        "g": weights(5, 7),
        "h": weights(7),
        "m": weights(7, 2),
    }
    model = make(nodes, {"x": ["batch", 4, 9, 9]}, {"y": ["batch", 2]}, constants)
    result = cost(model)
    assert result.by_node == {
        "conv": 6 * 4 * 4 * 2 * 9, "up": 6 * 4 * 4 * 5 * 4, "gemm": 5 * 7, "matmul": 7 * 2
    }  # fmt: skip
    assert result.macs == sum(result.by_node.values())
    assert result.parameters == sum(value.size for value in constants.values())
    assert result.bytes == len(model.SerializeToString())


def test_cost_counts_named_axes():
    model, _ = dense()
    assert cost(model, {"batch": 5}).macs == 5 * cost(model).macs == 5 * 12


@pytest.mark.parametrize(("name", "macs"), [(PADDLE[0], 23_129_984), (PADDLE[1], 6_259_952)])
def test_folding_does_not_change_the_work(shared_data, name, macs):
    model = normalise(paddle(shared_data, name))
    assert cost(model).macs == cost(fold(model)).macs == macs


def test_ir_versions_are_those_of_the_onnx_releases():
    assert {opset: ir_version_for(opset) for opset in (13, 17, 18, 19, 20, 21, 23)} == {
        13: 7, 17: 8, 18: 8, 19: 9, 20: 9, 21: 10, 23: 11
    }  # fmt: skip


@pytest.mark.parametrize("target", [17, 13])
@pytest.mark.parametrize("name", PADDLE)
def test_lowered_models_compute_the_same(shared_data, name, target):
    model = fold(paddle(shared_data, name))
    lowered = for_opset(model, target)
    assert opset_of(lowered) == target
    assert lowered.ir_version <= ir_version_for(target)
    x = paddle_input(name)
    assert difference(run_onnx(lowered, [x]), run_onnx(model, [x])) < 2e-6


def test_reductions_pads_splits_and_reshapes_are_lowered():
    nodes = [
        node("Pad", ["x", "pads"], ["p"]),
        node("ReduceMean", ["p", "axes"], ["a"], keepdims=0),
        node("Split", ["a"], ["b", "c"], axis=1, num_outputs=2),
        node("Add", ["b", "c"], ["d"]),
        node("HardSwish", ["d"], ["e"]),
        node("Reshape", ["e", "target"], ["y"], allowzero=0),
    ]
    constants = {"pads": np.array([0, 0, 1, 0, 0, 1]), "axes": np.array([2]), "target": np.array([-1, 1, 2])}
    model = normalise(make(nodes, {"x": ["n", 4, 5]}, {"y": None}, constants))
    x = weights(3, 4, 5)
    for target in (17, 13):
        np.testing.assert_allclose(run_onnx(for_opset(model, target), [x])[0], run_onnx(model, [x])[0], atol=1e-6)
    assert "HardSigmoid" in types(for_opset(model, 13))


def test_what_cannot_be_lowered_is_named():
    model = make([node("Gelu", ["x"], ["y"], name="smooth")], {"x": [3]}, {"y": [3]}, opset=20, ir_version=9)
    assert for_opset(model, 20) == model
    with pytest.raises(BuildError, match=r"smooth \(Gelu, since opset 20\) cannot be written in opset 18") as caught:
        for_opset(model, 18)
    assert caught.value.nodes == ("smooth",)


def test_newer_attributes_are_named():
    nodes = [node("AveragePool", ["x"], ["y"], name="pool", kernel_shape=[2, 2], dilations=[2, 2])]
    model = make(nodes, {"x": [1, 1, 6, 6]}, {"y": None}, opset=19, ir_version=9)
    with pytest.raises(BuildError, match=r"pool \(AveragePool, attribute 'dilations' since opset 19\)"):
        for_opset(model, 18)


def test_nothing_below_the_floor():
    with pytest.raises(BuildError, match="oldest that edgekit writes is 13"):
        for_opset(dense()[0], 12)


def test_the_runtime_sends_nothing(monkeypatch):
    runtime = pytest.importorskip("onnxruntime")
    called = []
    monkeypatch.setattr(runtime, "disable_telemetry_events", lambda: called.append(True))
    execute._sessions.clear()
    run_onnx(dense()[0], [weights(1, 4)])
    assert called


@pytest.fixture
def saturating(monkeypatch):
    monkeypatch.setattr(execute, "saturates_here", lambda: True)
    monkeypatch.setattr(execute, "_sessions", type(execute._sessions)())


def test_sums_of_8_bit_products_do_not_saturate(monkeypatch, saturating):
    """On x86 without VNNI kernels add them up in 16 bits."""
    runtime, settings = pytest.importorskip("onnxruntime"), []

    class Session(runtime.InferenceSession):
        def __init__(self, content, options, **more):
            name, _ = IN_FLOAT
            settings.append(options.get_session_config_entry(name))
            super().__init__(content, options, **more)

    monkeypatch.setattr(runtime, "InferenceSession", Session)
    (seen,) = run_onnx(agent_bundles.overflowing(), [agent_bundles.FULL])
    np.testing.assert_array_equal(seen, agent_bundles.SUMS)
    np.testing.assert_array_equal(open_session(agent_bundles.overflowing())([agent_bundles.FULL])[0], seen)
    assert settings == ["1", "1"]


@pytest.mark.parametrize(
    ("largest", "kind", "seen"), [(65, "MatMul", True), (64, "MatMul", False), (65, "Gather", False)]
)
def test_what_overflows_is_multiplied_and_has_more_than_7_bits(saturating, largest, kind, seen):
    net = agent_bundles.overflowing()
    (weight,) = [one for one in net.graph.initializer if one.name == "w"]
    weight.CopyFrom(onnx.numpy_helper.from_array(np.full((64, 8), -largest, np.int8), "w"))
    if kind == "Gather":
        (node,) = [one for one in net.graph.node if "w" in one.input]
        node.op_type, node.input[:] = "Gather", ["w", "rows"]
    assert execute.overflows(net) is seen
