"""TensorRT: what the grid forbids, engines without a GPU, graphs for boards that build their own."""

import importlib
import os
import subprocess
import sys
from unittest import mock

import numpy as np
import onnx
import pytest
import wild
from onnx import TensorProto, helper, numpy_helper

from edgekit.backends import Job, tensorrt
from edgekit.backends._tensorrt_graph import check_symmetric, half, planned
from edgekit.backends.tensorrt import TensorRT, has_gpu, shapes
from edgekit.errors import BuildError
from edgekit.graph.execute import run_onnx
from edgekit.graph.fold import fold
from edgekit.quant.qdq import emit
from edgekit.testing import small_data, small_network, unsupported_network

IMAGES = np.random.default_rng(5).standard_normal((8, 3, 12, 12)).astype(np.float32)


def job(model, work, role="float", precision=None, compute="8.6", built_on="host", samples=(IMAGES,)):
    work.mkdir(parents=True, exist_ok=True)
    target = wild.target(compute=compute, grid="symmetric", built_on=built_on)
    precision = precision or ("int8" if role == "quantized" else "fp32")
    return Job(model, role, precision, target, target.backends["tensorrt"], work, samples)


@pytest.fixture(scope="module")
def int8(tmp_path_factory):
    return wild.quantize(small_network(), small_data(), tmp_path_factory.mktemp("quantize"))


@pytest.fixture
def rtx():
    return pytest.importorskip("tensorrt_rtx")


def qdq(zero=0, kind=np.int8, scales=1, bias="float", input_scales=1):
    """A quantized convolution, right by default."""
    tensors = {
        "s": np.full(input_scales, 0.1, np.float32) if input_scales > 1 else np.float32(0.1),
        "z": np.full(input_scales, zero, kind) if input_scales > 1 else np.asarray(zero, kind),
        "w": np.ones((4, 3, 1, 1), np.int8),
        "ws": np.full(scales, 0.1, np.float32) if scales > 1 else np.float32(0.1),
        "wz": np.zeros(scales, np.int8) if scales > 1 else np.int8(0),
        "b": np.zeros(4, np.float32),
        "bi": np.zeros(4, np.int32),
        "bs": np.full(4, 0.01, np.float32),
    }
    axis = {"axis": 1} if input_scales > 1 else {}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"], "q", **axis),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"], "dq", **axis),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], "weight_dq", axis=0),
        helper.make_node("Conv", ["xd", "wd", "b" if bias == "float" else "bd"], ["y"], "conv"),
    ]
    if bias == "int":
        nodes.insert(3, helper.make_node("DequantizeLinear", ["bi", "bs"], ["bd"], "bias_dq", axis=0))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 2, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4, 2, 2])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_a_legal_graph_passes():
    check_symmetric(qdq())
    check_symmetric(qdq(scales=4))


@pytest.mark.parametrize(
    ("graph", "fault", "nodes"),
    [
        (qdq(zero=3), "q: its zero point is 3, not 0; dq: its zero point is 3", {"q", "dq"}),
        (qdq(kind=np.uint8), "q: its integers are UINT8, not INT8", {"q", "dq"}),
        (qdq(input_scales=3), "q: it has 3 scales for an activation", {"q", "dq"}),
        (qdq(bias="int"), "conv: its bias is quantized by bias_dq", {"conv"}),
    ],
    ids=["zero point", "unsigned", "per channel", "bias"],
)
def test_illegal_graphs_are_refused_by_name(graph, fault, nodes):
    with pytest.raises(BuildError, match=fault) as caught:
        check_symmetric(graph)
    assert nodes <= set(caught.value.nodes)


def test_no_zero_point_means_unsigned():
    graph = qdq()
    graph.graph.node[0].input.pop()
    with pytest.raises(BuildError, match="q: it has no zero point, which means uint8"):
        check_symmetric(graph)


def test_a_computed_scale_is_refused():
    graph = qdq()
    graph.graph.node.insert(0, helper.make_node("Abs", ["s"], ["s2"], "abs"))
    graph.graph.node[1].input[1] = "s2"
    with pytest.raises(BuildError, match="q: its scale is computed while the model runs"):
        check_symmetric(graph)


def test_the_affine_graph_is_refused(int8):
    with pytest.raises(BuildError, match="UINT8"):
        check_symmetric(emit(int8.proto, int8.quant, "affine", "tensorrt"))


def test_emitted_graph_keeps_the_grid_and_the_signal(int8):
    graph = emit(int8.proto, int8.quant, "symmetric", "tensorrt")
    check_symmetric(graph)
    types = {n.op_type: n for n in graph.graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= set(types)
    expected = run_onnx(int8.reference.proto, [IMAGES])[0].astype(np.float64)
    noise = run_onnx(graph, [IMAGES])[0] - expected
    assert 10 * np.log10((expected**2).sum() / (noise**2).sum()) > 15


def test_planned_placement(int8):
    graph = emit(int8.proto, int8.quant, "symmetric", "tensorrt")
    placement = planned(graph, int8.quant)
    assert not {"stem", "depthwise", "pointwise", "classifier"} & set(placement.reasons)
    kept = int8.quant.model_copy(update={"keep_float": {"tensorrt": {"pointwise": "asked"}}})
    placement = planned(emit(int8.proto, kept, "symmetric", "tensorrt"), kept)
    assert placement.reasons["pointwise"] == "asked"


@pytest.mark.parametrize("role", ["reference", "float", "quantized"])
def test_boards_get_a_graph(tmp_path, int8, role):
    model = int8 if role == "quantized" else small_network()
    built = TensorRT().build(job(model, tmp_path, role, compute="8.7", built_on="device"))
    assert (built.status, built.entry, list(built.files)) == ("emitted", "model.onnx", ["model.onnx"])
    assert built.runner["shapes"] == {"image": [[1, 3, 12, 12], [1, 3, 12, 12], [8, 3, 12, 12]]}
    onnx.checker.check_model(onnx.load(built.files["model.onnx"]), full_check=True)
    assert any("the board builds its engine" in note for note in built.notes)


@pytest.mark.parametrize(("role", "precision"), [("float", "fp32"), ("float", "fp16"), ("quantized", "int8")])
def test_engines_are_built_without_a_gpu(tmp_path, int8, rtx, capfd, role, precision):
    model = int8 if role == "quantized" else small_network()
    built = TensorRT().build(job(model, tmp_path, role, precision))
    assert (built.status, built.entry) == ("built", "model.engine")
    assert sorted(built.files) == ["model.engine", "model.onnx"]
    assert built.files["model.engine"].stat().st_size > 10_000
    assert built.versions == {built.runner["package"]: rtx.__version__, "compute_capability": "8.6"}
    assert built.runner["tf32"] is False
    assert capfd.readouterr() == ("", "")


def test_half_precision_is_in_the_graph(tmp_path):
    graph = half(fold(small_network().proto))
    assert {t.data_type for t in graph.graph.initializer if t.data_type != TensorProto.INT64} == {TensorProto.FLOAT16}
    onnx.checker.check_model(graph, full_check=True)
    np.testing.assert_allclose(run_onnx(graph, [IMAGES])[0], run_onnx(small_network().proto, [IMAGES])[0], atol=1e-2)


def test_a_gpu_that_cannot_be_built_for(tmp_path, rtx):
    with pytest.raises(BuildError, match=r"cannot build for SM87 ahead of time; it can for .*SM86"):
        TensorRT().build(job(small_network(), tmp_path, compute="8.7"))


@pytest.mark.parametrize("built_on", ["host", "device"])
def test_all_unsupported_operators_are_named(tmp_path, rtx, built_on):
    model = unsupported_network("odd_one")
    model.proto.graph.node[-1].output[0] = "k"
    node = helper.make_node("Wibble", ["k"], ["logits"], "odd_two", domain="test.edgekit")
    model.proto.graph.node.append(node)
    with pytest.raises(BuildError, match=r"odd_one \(Frobnicate.*odd_two \(Wibble") as caught:
        TensorRT().build(job(model, tmp_path, built_on=built_on))
    assert caught.value.nodes == ("odd_one", "odd_two")
    assert not list(tmp_path.iterdir())


def test_shapes_of_a_fixed_batch_and_of_dynamic_images(tmp_path):
    model, _ = wild.small_shapes((2, 3, 8, 8))
    assert shapes(job(model, tmp_path, samples=())) == {"image": [[2, 3, 8, 8]] * 3}
    model, _ = wild.small_shapes(("n", 3, "h", "w"))
    seen = shapes(job(model, tmp_path, samples=(IMAGES,)))
    assert seen == {"image": [[1, 3, 12, 12], [1, 3, 12, 12], [8, 3, 12, 12]]}
    with pytest.raises(BuildError, match="needs the extent of axis 'h' of input 'image'"):
        shapes(job(model, tmp_path, samples=()))


@pytest.fixture
def gpu_of(tmp_path, monkeypatch):
    """A machine with both packages' names, a GPU's device file, and an nvidia-smi that tells `compute`."""

    def make(compute, *packages):
        for package in packages:
            (tmp_path / "site" / package).mkdir(parents=True)
            (tmp_path / "site" / package / "__init__.py").write_text("")
        tool = tmp_path / "bin" / "nvidia-smi"
        tool.parent.mkdir()
        tool.write_text(f"#!/bin/sh\necho {compute}\n")
        tool.chmod(0o755)
        (tmp_path / "nvidia0").touch()
        monkeypatch.setattr(tensorrt, "GPU_DEVICES", (str(tmp_path / "nvidia0"),))
        monkeypatch.setenv("PATH", str(tool.parent), prepend=os.pathsep)
        monkeypatch.setattr(sys, "path", [str(tmp_path / "site"), *sys.path])
        importlib.invalidate_caches()
        for package in packages:
            monkeypatch.delitem(sys.modules, package, raising=False)

    yield make
    sys.modules.pop("tensorrt", None)


def test_the_package_follows_the_target(tmp_path, gpu_of, rtx):
    """The classic package only for a GPU that is here; which package it is shows before anything of it is used."""
    gpu_of("8.6", "tensorrt")
    assert tensorrt.local_compute() == "8.6"
    assert tensorrt.api(job(small_network(), tmp_path / "a", compute="8.6")).__name__ == "tensorrt"
    assert tensorrt.api(job(small_network(), tmp_path / "b", compute="8.9")).__name__ == "tensorrt_rtx"


def test_the_classic_package_alone_cannot_build_for_another_gpu(tmp_path, gpu_of, monkeypatch):
    gpu_of("8.6", "tensorrt")
    monkeypatch.setattr(tensorrt, "installed", lambda: ("tensorrt",))
    with pytest.raises(BuildError, match=r"none of compute capability 8.9 is; 'tensorrt_rtx' builds for test without"):
        tensorrt.api(job(small_network(), tmp_path / "b", compute="8.9"))


def test_availability_reads_metadata_alone():
    code = (
        "import sys; from edgekit.backends.tensorrt import TensorRT; seen = TensorRT().availability();"
        "print(seen.version, '|', [m for m in sys.modules if m.startswith('tensorrt')])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip().endswith("| []")
    seen = TensorRT().availability()
    assert seen.runs == (has_gpu() and seen.version is not None)
    assert seen.runs or "GPU" in seen.reason or "pip install" in seen.reason


@pytest.mark.slow
@pytest.mark.parametrize("network", [wild.demo, wild.resnet20, wild.efficientnet_lite0], ids=lambda n: n.__name__)
def test_engines_of_real_networks(tmp_path, rtx, network):
    """Both engines are built; the graph behind the int8 one, run by ONNX Runtime, agrees with fp32 on 95 %."""
    (model, data), quantized = network(), wild.quantized(network)
    test = data.splits["test"]
    for role, source in (("float", model), ("quantized", quantized)):
        built = TensorRT().build(job(source, tmp_path / role, role, samples=(test.inputs[:4],)))
        assert built.status == "built"
    assert built.placement.int8_nodes > 5 * built.placement.float_nodes
    images = test.inputs[:256]
    reference = run_onnx(model.proto, [images], batch=16)[0]
    seen = run_onnx(onnx.load(built.files["model.onnx"]), [images], batch=16)[0]
    assert (seen.argmax(1) == reference.argmax(1)).mean() >= 0.95


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "height", "width"), [("ch_ppocr_mobile_v2.0_cls_infer", 48, 192), ("ch_PP-OCRv4_det_infer", 96, 96)]
)
def test_paddle_files_go_through(tmp_path, rtx, name, height, width):
    model, data = wild.paddle(name, height, width)
    images = data.splits["test"].inputs
    quantized = wild.quantize(model, data, tmp_path)
    for role, network in (("float", model), ("quantized", quantized)):
        built = TensorRT().build(job(network, tmp_path / role, role, samples=(images[:2],)))
        assert built.status == "built"


def halved():
    """The small network with 2:4 weights in its pointwise convolution."""
    model = small_network()
    for tensor in model.proto.graph.initializer:
        if tensor.name == "pw.w":
            weight = numpy_helper.to_array(tensor).copy()
            weight[:, ::2] = 0
            tensor.CopyFrom(numpy_helper.from_array(weight, tensor.name))
    return model


@pytest.mark.parametrize("built_on", ["host", "device"])
def test_of_sparse_weights_tensorrt_is_told(tmp_path, rtx, built_on):
    built = TensorRT().build(job(halved(), tmp_path, built_on=built_on))
    assert built.runner["sparse"] is True
    assert "TensorRT is told of sparse weights: those of 1 operators are 2:4" in built.notes
    assert "sparse" not in TensorRT().build(job(small_network(), tmp_path, built_on=built_on)).runner


@pytest.mark.parametrize("sparse", [True, False])
def test_by_the_builder_flag_on_the_host_and_on_a_board(tmp_path, monkeypatch, sparse):
    from edgekit.agent.runners.tensorrt_build import engine

    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "model.onnx").write_bytes(b"graph")
    for compiled in (
        lambda trt: tensorrt.compile_engine(trt, halved().proto, job(halved(), tmp_path), {}, sparse=sparse),
        lambda trt: engine(trt, None, "gpu", tmp_path / "model.onnx", {"runner": {"shapes": {}, "sparse": sparse}}),
    ):
        trt = mock.MagicMock(__version__="1", ILogger=object)
        trt.ComputeCapability.__members__ = {"SM86": 1}
        builder = trt.Builder.return_value
        builder.create_network.return_value.num_inputs = 0
        builder.build_serialized_network.return_value = b"engine"
        assert compiled(trt) == b"engine"
        flags = [call.args[0] for call in builder.create_builder_config.return_value.set_flag.call_args_list]
        assert flags == [trt.BuilderFlag.SPARSE_WEIGHTS] * sparse
