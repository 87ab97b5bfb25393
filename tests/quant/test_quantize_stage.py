from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from pydantic import ValidationError
from quant_graphs import Builder, residual_net, run, samples, snr

from edgekit.context import Silent
from edgekit.data import DataSet, Preprocess, Split
from edgekit.errors import UsageError
from edgekit.graph.normalise import normalise
from edgekit.graph.tools import tensor_specs
from edgekit.model import OnnxModel
from edgekit.quant.qdq import emit
from edgekit.quant.weights import dequantize_weight, quantize_weight
from edgekit.stages import Stage
from edgekit.stages.quantize import Quantize, feed, matching
from edgekit.target import load_target


def split(inputs, name="calibration", preprocess=None):
    ids = tuple(f"{i}" for i in range(len(inputs)))
    return Split(name, inputs, None, ids, preprocess or Preprocess())


@dataclass
class Context:
    data: DataSet
    targets: tuple = ()
    seed: int = 0
    work: Path = Path()
    deadline: float | None = None
    progress: Silent = field(default_factory=Silent)

    def measure(self, model, target):
        return {}


def context(inputs, **more):
    return Context(DataSet("noise", {"calibration": split(inputs, **more)}, sha256="abc"))


def model(proto=None):
    proto = normalise(proto or residual_net())
    inputs, outputs = tensor_specs(proto)
    return OnnxModel(name="net", proto=proto, inputs=inputs, outputs=outputs)


@pytest.fixture(scope="module")
def done():
    return Quantize().apply(model(), context(samples(128)))


def test_it_is_a_stage():
    stage = Quantize()
    assert isinstance(stage, Stage)
    assert (stage.kind, stage.trains) == ("quantize", False)


def test_settings_round_trip():
    stage = Quantize(max_drop="0.5pp", keep_float=["head*"])
    assert stage.max_drop == pytest.approx(0.005)
    assert Quantize.model_validate(stage.model_dump(mode="json")) == stage
    assert Quantize(min_snr="25 dB").min_snr == 25.0
    with pytest.raises(ValidationError, match="min_snr"):
        Quantize(min_snr="25 V")
    with pytest.raises(ValidationError, match="max_drop"):
        Quantize(max_drop="half a point")
    with pytest.raises(ValidationError, match="calibration"):
        Quantize(calibration="kl")
    with pytest.raises(ValidationError, match="sample"):
        Quantize(sample=3)


def test_result(done):
    assert done.quant is not None
    assert done.quant.source["sha256"] == "abc"
    assert done.quant.source["samples"] == "128"
    step = done.history[-1]
    assert step.name == "quantize"
    assert step.config["calibration"] == "auto"
    assert step.seconds > 0
    assert "ranges by" in step.notes[0]
    x = samples(64, seed=5)
    assert snr(run(model().proto, x), run(emit(done.proto, done.quant, "affine", "onnxruntime"), x)) > 25


def test_biases_are_corrected_for_every_grid_that_a_target_uses(done):
    assert set(done.corrections) == {"affine"}
    target = load_target("x86-64-no-vnni")
    stage = Quantize(calibration="minmax")
    ours = stage.apply(model(), replace(context(samples(128)), targets=(target, load_target("rtx-ampere"))))
    assert set(ours.corrections) == {"affine", "reduced_range", "symmetric"}
    biases = {node.input[2] for node in ours.proto.graph.node if node.op_type in ("Conv", "Gemm")}
    assert all(biases <= set(changed) for changed in ours.corrections.values())
    scales = ours.quant.weights["fc.weight"]
    weight = ours.corrections["reduced_range"]["fc.weight"]
    again = dequantize_weight(quantize_weight(weight, scales, "reduced_range"), scales, "reduced_range")
    np.testing.assert_array_equal(again, weight)
    off = Quantize(calibration="minmax", bias_correction="none", rounding="nearest")
    assert off.apply(model(), context(samples(128))).corrections == {}


def test_the_model_is_not_changed():
    source = model()
    before = source.proto.SerializeToString()
    Quantize(calibration="minmax").apply(source, context(samples(32)))
    assert source.proto.SerializeToString() == before
    assert source.history == ()
    assert source.quant is None


def test_it_repeats_exactly(done):
    again = Quantize().apply(model(), context(samples(128)))
    assert again.quant == done.quant
    assert again.proto == done.proto


def test_auto_leaves_outliers_out_where_they_spoil_minmax():
    x = samples(256)
    x[3, 0, 0, 0], x[17, 1, 5, 5] = 400.0, -300.0
    done = Quantize(sensitivity="never").apply(model(), context(x))
    assert done.quant is not None
    assert done.quant.tensors["x"].high < 100
    y = samples(64, seed=3)
    wanted = run(model().proto, y)
    plain = Quantize(calibration="minmax", sensitivity="never").apply(model(), context(x))
    seen = [snr(wanted, run(emit(m.lowered("affine"), m.quant, "affine", "onnxruntime"), y)) for m in (done, plain)]
    assert seen[0] > seen[1] + 3


def test_train_split_serves_where_there_is_no_calibration_split():
    ctx = Context(DataSet("noise", {"train": split(samples(32), "train")}))
    done = Quantize(calibration="minmax", samples=16).apply(model(), ctx)
    assert done.quant is not None
    assert done.quant.source["split"] == "train"
    assert done.quant.source["samples"] == "16"


def test_keep_float_patterns():
    names = ["stem", "block.1/conv", "block.2/conv", "head"]
    assert matching(["block*", "head"], names) == {"block.1/conv", "block.2/conv", "head"}
    assert matching(["block.1/conv"], names) == {"block.1/conv"}
    with pytest.raises(UsageError, match=r"'haed'\. Did you mean 'head'\?"):
        matching(["haed"], names)


def test_a_network_that_normalises_before_it_convolves_runs_in_integers():
    """BatchNorm that no convolution in front takes up becomes one itself."""
    b = Builder(4)
    b.conv("x", "stem", 8, 3)
    b.add("MaxPool", ["stem"], "pool", kernel_shape=[2, 2], strides=[2, 2])
    for name, scale in (("gamma", 1.0), ("beta", 0.3), ("mean", 0.3)):
        b.weight(name, 8, scale=scale)
    b.constant("variance", np.linspace(0.2, 2, 8, dtype=np.float32))
    b.add("BatchNormalization", ["pool", "gamma", "beta", "mean", "variance"], "normed")
    b.add("Relu", ["normed"], "relu")
    b.conv("relu", "y", 4, 8)
    net = b.model({"x": ["batch", 3, 12, 12]}, {"y": ["batch", 4, 6, 6]})
    done = Quantize(calibration="minmax").apply(model(net), context(samples(64)))
    assert not done.quant.keep_float and len(done.quant.nodes) == len(done.proto.graph.node)
    x = samples(16, seed=9)
    assert snr(run(net, x), run(emit(done.proto, done.quant, "affine", "onnxruntime"), x)) > 25


def test_a_fixed_batch_is_kept():
    spec = model().inputs[0]
    fixed = type(spec)(spec.name, spec.dtype, (8, 3, 12, 12))
    assert [len(batch[0]) for batch in feed(split(samples(20)), range(20), [fixed])()] == [8, 8]
    ((few,),) = feed(split(samples(20)), range(5), [fixed])()
    np.testing.assert_array_equal(few, samples(20)[[0, 1, 2, 3, 4, 0, 1, 2]])


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (np.zeros((0, 3, 12, 12), np.float32), "is empty"),
        (np.zeros((8, 3, 10, 12), np.float32), r"are \[3, 10, 12\] after preprocessing; the input 'x' takes"),
        (np.zeros((8, 12), np.float32), r"are \[12\] after preprocessing"),
        (np.full((8, 3, 12, 12), np.nan, np.float32), "hold NaN or infinity"),
    ],
)
def test_bad_samples(inputs, message):
    with pytest.raises(UsageError, match=message):
        Quantize().apply(model(), context(inputs))


def test_quantizing_twice_is_refused(done):
    with pytest.raises(UsageError, match="quantized already"):
        Quantize().apply(done, context(samples(32)))


def test_wrong_dtype_and_many_inputs_are_refused():
    proto = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 18]>
        net (int64[n, 4] a, float[n, 4] b) => (float[n, 4] y) { c = Cast<to = 1>(a)  y = Add(c, b) }"""
    )
    with pytest.raises(UsageError, match="no samples for the input 'a', 'b' of the model; it has one array"):
        Quantize().apply(model(proto), context(np.zeros((8, 4), np.float32)))
    proto = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 18]>
        net (int64[n, 4] a) => (float[n, 4] y) { y = Cast<to = 1>(a) }"""
    )
    stage = Quantize(calibration="minmax")
    done = stage.apply(model(proto), context(np.zeros((8, 4), np.float32)))
    assert any("nothing to quantize" in note for note in done.history[-1].notes)
    proto = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 18]>
        net (int64[n, 4] a) => (float[n, 4] y)
        <float[4, 4] w = {1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4}> { c = Cast<to = 1>(a)  y = MatMul(c, w) }"""
    )
    with pytest.raises(UsageError, match="are float32; the input 'a' takes int64"):
        stage.apply(model(proto), context(np.zeros((8, 4), np.float32)))


def test_nothing_heavy_is_imported():
    import subprocess
    import sys

    code = (
        "import sys, edgekit.stages.quantize, edgekit.backends.onnxruntime, edgekit.quant.spec;"
        "print([m for m in ('torch', 'onnx', 'onnxruntime', 'openvino') if m in sys.modules])"
    )
    seen = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert seen.stdout.strip() == "[]"


def test_fast_effort_is_the_settings_that_it_stands_for():
    spelled = Quantize(
        rounding="nearest", bias_correction="none", equalize=False, smooth=False, sensitivity="never", effort="fast"
    )
    assert Quantize.model_validate({"effort": "fast"}) == spelled
    assert Quantize.model_validate({"effort": "fast", "rounding": "compensated"}).rounding == "compensated"
    assert Quantize().rounding == "auto"
