"""Reading and writing .tflite files, quantizing one by hand, and what tflite-runtime must not be given."""

import numpy as np
import pytest
import wild

from edgekit.backends import _litert_flatbuffer as fb
from edgekit.backends import _litert_run as run
from edgekit.backends import _tflite_check as tflite_check
from edgekit.backends._litert_finish import finite, output_steps, placement
from edgekit.backends._litert_match import fingerprint
from edgekit.backends._litert_quantize import KERNELS, Decision, S8Grid, data_inputs, grid_of, rewrite
from edgekit.backends.litert import LiteRT, tflite_runtime_refusal
from edgekit.errors import BuildError
from edgekit.quant.spec import QuantSpec, Range
from edgekit.quant.weights import channel_scales, quantize_weight, scale_array

pytest.importorskip("ai_edge_litert")


@pytest.fixture(scope="module")
def resnet8():
    return wild.shared("mlperf_tiny/pretrainedResnet.tflite").read_bytes()


@pytest.fixture(scope="module")
def images():
    with np.load(wild.shared("mlperf_tiny/mlperf_tiny_ic01.npz"), allow_pickle=False) as data:
        return data["x"][:32].astype(np.float32)


def all_int8(content, samples):
    """A decision from the ranges of every tensor on `samples`, with scales from the file's own weights."""
    model = fb.read(content)
    (graph,) = model.subgraphs
    values = run.every_tensor(content, samples)
    grids = {i: grid_of(min(v.min() for v in seen), max(v.max() for v in seen)) for i, seen in values.items()}
    weights, chosen = {}, set()
    for place, operator in enumerate(graph.operators):
        name = fb.operator_name(model, operator)
        kernel = KERNELS[name]
        chosen.add(place)
        if kernel.grids == "input":
            grids[int(operator.outputs[0])] = grids[data_inputs(name, operator)[0]]
        if kernel.fixed is not None:
            grids[int(operator.outputs[0])] = kernel.fixed
        if kernel.weight_axis is not None:
            index = int(operator.inputs[1])
            value = fb.constant(model, graph.tensors[index])
            scales = channel_scales(value, kernel.weight_axis)
            weights[index] = quantize_weight(value, scales, "affine"), scale_array(scales, "affine").reshape(-1)
    return Decision(grids, frozenset(chosen), weights)


def test_what_is_written_runs_as_what_was_read(resnet8, images):
    written = fb.write(fb.read(resnet8))
    samples = [[image[None]] for image in images[:4]]
    for before, after in zip(run.outputs(resnet8, samples), run.outputs(written, samples), strict=True):
        np.testing.assert_array_equal(before[0], after[0])
    assert fb.write(fb.read(written)) == written, "a second writing changes nothing"


def test_constants_are_aligned_and_shared(resnet8):
    written = fb.write(fb.read(resnet8))
    model = fb.read(written)
    large = [bytes(buffer.data) for buffer in model.buffers if buffer.data is not None and len(buffer.data) >= 256]
    assert large and all(written.find(data) % 16 == 0 for data in large)
    assert len(set(large)) == len(large)


@pytest.mark.parametrize("low, high", [(-1.5, 2.25), (0.0, 6.0), (-3.0, -1.0), (0.25, 0.5), (0.0, 0.0), (-1e-3, 4e5)])
def test_s8_grid_is_the_u8_grid_of_the_spec_shifted(low, high):
    spec = QuantSpec(nodes=(), tensors={"x": Range(low=low, high=high, calibrator="test")}, weights={})
    wanted, seen = spec.grid("x", "affine"), grid_of(low, high)
    assert (seen.scale, seen.zero_point) == (wanted.scale, wanted.zero_point - 128)
    values = np.linspace(min(low, 0), max(high, 0), 97, dtype=np.float32)
    u8 = np.clip(np.rint(values / np.float32(wanted.scale)) + wanted.zero_point, 0, 255)
    np.testing.assert_array_equal(seen.quantize(values).astype(int) + 128, u8)


def test_hand_made_int8_is_near_float(resnet8, images):
    samples = [[image[None]] for image in images]
    int8 = rewrite(resnet8, all_int8(resnet8, samples))
    floats = np.concatenate([out[0] for out in run.outputs(resnet8, samples)])
    integers = np.concatenate([out[0] for out in run.outputs(int8, samples)])
    assert (floats.argmax(1) == integers.argmax(1)).mean() >= 0.93
    assert np.abs(floats - integers).max() < 0.35
    assert len(int8) < 0.45 * len(resnet8)
    seen = placement(int8, {})
    assert seen.float_nodes == 0 and seen.int8_nodes == len(fb.read(resnet8).subgraphs[0].operators)
    assert output_steps(int8) == (1 / 256,)
    assert tflite_runtime_refusal(int8) is None
    finite(int8, samples[:2], "resnet8")


def test_a_float_operator_in_the_middle_gets_its_borders(resnet8, images):
    samples = [[image[None]] for image in images]
    decision = all_int8(resnet8, samples)
    model = fb.read(resnet8)
    names = [fb.operator_name(model, operator) for operator in model.subgraphs[0].operators]
    add = names.index("ADD")
    mixed = rewrite(resnet8, Decision(decision.grids, decision.operators - {add}, decision.weights))
    kinds = [fb.operator_name(fb.read(mixed), o) for o in fb.read(mixed).subgraphs[0].operators]
    at = kinds.index("ADD")
    assert kinds[at - 2 : at + 2] == ["DEQUANTIZE", "DEQUANTIZE", "ADD", "QUANTIZE"]
    assert placement(mixed, {}).float_nodes == 1
    floats = np.concatenate([out[0] for out in run.outputs(resnet8, samples)])
    integers = np.concatenate([out[0] for out in run.outputs(mixed, samples)])
    assert (floats.argmax(1) == integers.argmax(1)).mean() >= 0.93


def test_a_second_grid_is_reached_by_requantizing(resnet8, images):
    samples = [[image[None]] for image in images[:4]]
    decision = all_int8(resnet8, samples)
    model = fb.read(resnet8)
    softmax = model.subgraphs[0].operators[-1]
    grids = dict(decision.grids)
    grids[int(softmax.outputs[0])] = S8Grid(1 / 255, -128)
    out = fb.read(rewrite(resnet8, Decision(grids, decision.operators, decision.weights)))
    made = next(o for o in out.subgraphs[0].operators if fb.operator_name(out, o) == "SOFTMAX")
    quantization = out.subgraphs[0].tensors[int(made.outputs[0])].quantization
    assert (float(quantization.scale[0]), int(quantization.zeroPoint[0])) == (1 / 256, -128)


def test_bias_is_int32_at_the_product_of_scales(resnet8, images):
    samples = [[image[None]] for image in images[:4]]
    decision = all_int8(resnet8, samples)
    before, after = fb.read(resnet8), fb.read(rewrite(resnet8, decision))
    pairs = zip(
        [o for o in before.subgraphs[0].operators if fb.operator_name(before, o) == "CONV_2D"],
        [o for o in after.subgraphs[0].operators if fb.operator_name(after, o) == "CONV_2D"],
        strict=True,
    )
    for old, new in pairs:
        tensors = after.subgraphs[0].tensors
        scale = np.float32(tensors[int(new.inputs[0])].quantization.scale[0])
        weight, bias = (tensors[int(i)] for i in new.inputs[1:])
        np.testing.assert_array_equal(bias.quantization.scale, scale * weight.quantization.scale)
        real = fb.constant(before, before.subgraphs[0].tensors[int(old.inputs[2])])
        error = np.abs(fb.constant(after, bias) * bias.quantization.scale.astype(np.float64) - real)
        assert (error <= bias.quantization.scale * 0.5001).all()
        assert fb.constant(after, weight).min() >= -127 and not weight.quantization.zeroPoint.any()


def test_fingerprints_do_not_depend_on_the_layout():
    value = np.random.default_rng(0).standard_normal((1, 3, 5, 4)).astype(np.float32)
    np.testing.assert_allclose(fingerprint([value]), fingerprint([value.transpose(0, 2, 3, 1)]), rtol=1e-12)
    assert np.abs(fingerprint([value]) - fingerprint([np.maximum(value, 0)])).max() > 0.1


def test_a_file_that_litert_refuses_is_a_build_error(resnet8):
    with pytest.raises(BuildError, match="LiteRT refuses the file"):
        run.interpreter(resnet8[:64])


def test_available_here():
    seen = LiteRT().availability()
    assert seen.runs and seen.version and (seen.compiles or "pip install" in seen.reason)


# -- what tflite-runtime 2.14 must not run -------------------------------------------------------------------------


def test_static_int8_and_float_files_are_allowed(resnet8):
    for name in ("pretrainedResnet", "pretrainedResnet_quant", "kws_ref_model"):
        path = wild.shared(f"mlperf_tiny/{name}.tflite")
        assert tflite_check.refusal(path) is None
        assert tflite_check.refusal(path.read_bytes()) is None


def quantized_by_peer(content, recipe):
    """What ai-edge-quantizer makes of a file with one of its own recipes."""
    peer = pytest.importorskip("ai_edge_quantizer")
    quantizer = peer.Quantizer(bytearray(content), getattr(peer.recipe, recipe)())
    return bytes(quantizer.quantize().quantized_model)


@pytest.mark.parametrize(
    "recipe, said", [("dynamic_wi8_afp32", r"dynamic int8"), ("dynamic_wi4_afp32", "4-bit integers")]
)
def test_what_it_runs_wrongly_is_refused_by_name(resnet8, recipe, said):
    reason = tflite_check.refusal(quantized_by_peer(resnet8, recipe))
    assert reason is not None and said in reason
    assert "CONV_2D" in reason or "FULLY_CONNECTED" in reason


def test_newer_operators_are_refused_by_name(resnet8):
    model = fb.read(resnet8)
    model.operatorCodes[0].version = 99
    name = fb.operator_name(model, next(o for o in model.subgraphs[0].operators if o.opcodeIndex == 0))
    reason = tflite_check.refusal(fb.write(model))
    assert reason is not None and f"knows {name} up to version" in reason and "99" in reason
    model = fb.read(resnet8)
    model.operatorCodes[0].builtinCode = fb.schema().BuiltinOperator.STABLEHLO_ADD
    assert "has no operator" in (tflite_check.refusal(fb.write(model)) or "")


def test_damaged_and_foreign_files_are_refused(tmp_path, resnet8):
    assert tflite_check.refusal(b"PK\x03\x04 not a model") == "this is no .tflite file"
    assert "damaged" in (tflite_check.refusal(resnet8[:40]) or "")
    (tmp_path / "empty.tflite").write_bytes(b"")
    assert tflite_check.refusal(str(tmp_path / "empty.tflite")) == "this is no .tflite file"
