"""Every form through the stage and the backends: what is built, what is refused, and what a file holds."""

from dataclasses import replace

import numpy as np
import pytest
from onnx import numpy_helper
from quant_graphs import residual_net, snr
from test_quantize_stage import Context
from transformer_graph import LENGTH, WIDTH, tokens, transformer

from edgekit.agent.infer import make_runner
from edgekit.assess import outputs_of
from edgekit.backends import BACKENDS, Job
from edgekit.building import parts
from edgekit.data import DataSet, Preprocess, Split
from edgekit.errors import BuildError, UsageError
from edgekit.graph.normalise import normalise
from edgekit.graph.tools import tensor_specs
from edgekit.model import OnnxModel
from edgekit.quant import weight_only
from edgekit.registry import resolve
from edgekit.stages.quantize import Quantize
from edgekit.target import load_target

SAMPLES = tokens(16, seed=3)


def model(proto, name="tiny"):
    inputs, outputs = tensor_specs(proto)
    return OnnxModel(name=name, proto=proto, inputs=inputs, outputs=outputs)


def context(count=64):
    fed = tokens(count)
    ids = tuple(str(i) for i in range(count))
    split = Split("calibration", fed, None, ids, Preprocess())
    return Context(DataSet("tokens", {"calibration": split}, task="none"), targets=(load_target("x86-64"),))


def quantized(precision, loud=1.0, **settings):
    return Quantize(precision=precision, **settings).apply(model(transformer(loud=loud)), context())


def build(made, backend, work, target="x86-64", **facts):
    part = next(part for part in parts(made) if part.role == "quantized").on(backend)
    aimed = load_target(target)
    work.mkdir(parents=True, exist_ok=True)
    samples = tuple(SAMPLES[spec.name] for spec in made.inputs)
    job = Job(
        part.model, part.role, part.precision, aimed, aimed.backends[backend].model_copy(update=facts), work, samples
    )
    return part, resolve("backend", backend, BACKENDS, "edgekit.backends")().build(job)


def answers(built, made, backend, work):
    """Through the agent's runner, one sample at a time."""
    entries = [
        [{"name": spec.name, "dtype": spec.dtype, "shape": list(spec.shape)} for spec in ends]
        for ends in (made.inputs, made.outputs)
    ]
    manifest = {
        "backend": backend, "entry": built.entry, "runner": dict(built.runner),
        "inputs": entries[0], "outputs": entries[1],
    }  # fmt: skip
    runner = make_runner(work, manifest, 1, 1)
    feed = [SAMPLES[spec.name] for spec in made.inputs]
    return np.concatenate([runner.infer([x[i : i + 1] for x in feed])[0] for i in range(len(feed[0]))])


@pytest.fixture(scope="module")
def exact():
    net = model(transformer())
    return outputs_of(net, [SAMPLES[spec.name] for spec in net.inputs])[0]


@pytest.mark.parametrize(
    ("backend", "precision", "least"),
    [
        ("onnxruntime", "int8_dynamic", 28),
        ("onnxruntime", "int8_weights", 32),
        ("onnxruntime", "int4_weights", 14),
        ("openvino", "int8_dynamic", 30),
        ("openvino", "int8_weights", 32),
        ("openvino", "int4_weights", 14),
        ("openvino", "fp16", 50),
    ],
)
def test_built_files_answer_like_float(tmp_path, exact, backend, precision, least, request):
    if (backend, precision) == ("onnxruntime", "int8_dynamic"):
        request.getfixturevalue("exact_sums")
    made = quantized(precision)
    part, built = build(made, backend, tmp_path)
    assert part.precision == precision
    assert snr(exact, answers(built, made, backend, tmp_path)) > least
    whole = sum(path.stat().st_size for path in built.files.values())
    share = {"fp16": 0.6, "int8_dynamic": 0.45, "int8_weights": 0.45, "int4_weights": 0.4}[precision]
    assert whole < share * made.proto.ByteSize()
    assert (built.placement.int8_nodes >= 5) == (precision != "fp16")


def test_openvino_is_told_how_to_treat_activations(tmp_path):
    for precision, groups in (("int8_dynamic", "32"), ("int4_weights", "32"), ("int8_weights", "0"), ("fp16", None)):
        _, built = build(quantized(precision), "openvino", tmp_path / precision)
        assert built.runner["hints"].get("DYNAMIC_QUANTIZATION_GROUP_SIZE") == groups


@pytest.mark.parametrize(
    ("backend", "precision"),
    [("onnxruntime", "fp16"), ("litert", "fp16"), ("litert", "int8_weights"), ("tensorrt", "int8_dynamic"),
     ("tensorrt", "int4_weights")],
)  # fmt: skip
def test_what_has_no_kernel_is_refused_with_the_reason(tmp_path, backend, precision):
    with pytest.raises(BuildError, match=f"^{backend} gets no {precision} build: .{{20,}}"):
        build(quantized(precision), backend, tmp_path, "rtx-ampere" if backend == "tensorrt" else "x86-64")


def test_tensorrt_takes_the_fp16_graph(tmp_path):
    pytest.importorskip("tensorrt_rtx")
    made = quantized("fp16")
    _, built = build(made, "tensorrt", tmp_path, "rtx-ampere", built_on="device")
    assert any("parses the graph" in note for note in built.notes)
    assert built.files["model.onnx"].stat().st_size < 0.6 * made.proto.ByteSize()


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "least", "kind"), [("int8_dynamic", 28, "INT8"), ("int4_weights", 14, "INT4")])
def test_litert_runs_hybrid_kernels_on_the_same_integers(tmp_path, exact, precision, least, kind):
    pytest.importorskip("litert_torch")
    from edgekit.backends import _litert_flatbuffer as fb

    made = quantized(precision)
    _, built = build(made, "litert", tmp_path)
    file = fb.read(built.files[built.entry].read_bytes())
    (graph,) = file.subgraphs
    weights = [
        graph.tensors[operator.inputs[1]]
        for operator in graph.operators
        if fb.operator_name(file, operator) == "FULLY_CONNECTED"
    ]
    assert sorted(fb.type_name(tensor) for tensor in weights) == ["FLOAT32", *[kind] * 5]  # one computes attention
    assert built.placement.int8_nodes == 6  # the lookup of 8-bit rows too
    assert built.runner["runtimes"] == ["ai-edge-litert"]
    assert "FULLY_CONNECTED" in built.runner["refused"]["tflite-runtime"]
    assert any(note.startswith("tflite-runtime 2.14") for note in built.notes)
    assert snr(exact, answers(built, made, "litert", tmp_path)) > least
    constants = {item.name: numpy_helper.to_array(item) for item in made.proto.graph.initializer}
    integers, _ = weight_only.quantize_blocks(constants["out.weight"])
    held = [bytes(data) for data in (file.buffers[tensor.buffer].data for tensor in weights) if data is not None]
    if kind == "INT4":
        assert weight_only.pack(np.ascontiguousarray(integers.T)).tobytes() in held
    table = [tensor for tensor in graph.tensors if fb.shape(tensor) == constants["table"].shape]
    assert [fb.type_name(tensor) for tensor in table] == ["INT8"]
    with pytest.raises(BuildError, match=r"wrong numbers for 8-bit weights|version 13"):
        build(made, "litert", tmp_path / "old", runtimes=("tflite-runtime",))


def test_the_stage_picks_for_transformers_alone():
    made = quantized("int8", loud=60)
    assert made.quant.precision == "int8"
    assert set(made.quant.forms) == {"onnxruntime", "openvino", "litert"}
    assert made.quant.forms["openvino"] == "int8_dynamic"
    notes = made.history[-1].notes
    for backend, form in made.quant.forms.items():
        assert any(note.startswith(f"{backend} gets {form}, ") and "dB" in note for note in notes)
    assert next(part for part in parts(made) if part.role == "quantized").on("openvino").precision == "int8_dynamic"
    assert next(part for part in parts(made) if part.role == "quantized").on("tensorrt").precision == "int8"
    net = model(normalise(residual_net()))
    images = np.random.default_rng(0).standard_normal((32, 3, 12, 12)).astype(np.float32)
    data = DataSet(
        "noise", {"calibration": Split("calibration", images, None, tuple("x" * 32), Preprocess())}, task="none"
    )
    assert Quantize().apply(net, Context(data, targets=(load_target("x86-64"),))).quant.forms == {}


def test_no_calibration_is_asked_of_forms_without_ranges():
    empty = Context(DataSet("none", {}, task="none"))
    made = Quantize(precision="int8_dynamic", keep_float=("projected",)).apply(model(transformer()), empty)
    assert made.quant.tensors == {}
    notes = made.history[-1].notes
    assert notes[0] == "4 operators and 1 embedding in int8_dynamic"
    assert "projected stays float: kept float by the recipe" in notes
    with pytest.raises(UsageError, match="keep_float: no operator matches"):
        Quantize(precision="int4_weights", keep_float=("nothing",)).apply(model(transformer()), empty)
    with pytest.raises(UsageError, match=r"1\.5 to 2\.2 times slower"):
        Quantize(precision="int8_dynamic").apply(model(normalise(residual_net())), empty)


def test_corrections_are_for_static_integers():
    made = quantized("int8_dynamic")
    name = next(iter(made.quant.weights))
    corrected = replace(made, corrections={"affine": {name: np.zeros((WIDTH, WIDTH), np.float32)}})
    values = {
        item.name: numpy_helper.to_array(item) for item in corrected.lowered("affine", "openvino").graph.initializer
    }
    assert values[name].any()
    static = replace(corrected, quant=made.quant.model_copy(update={"precision": "int8"}))
    values = {item.name: numpy_helper.to_array(item) for item in static.lowered("affine", "openvino").graph.initializer}
    assert not values[name].any()
    assert SAMPLES["ids"].shape[1] == LENGTH
