from dataclasses import replace

import numpy as np
import onnx
import pytest
from quant_graphs import Builder, residual_net, run, samples, snr, stream, values

from edgekit.graph.tools import tensor_specs, with_initializers
from edgekit.model import OnnxModel, Step
from edgekit.quant import bias, moments, rounding
from edgekit.quant.choose import choose
from edgekit.quant.correct import correct, thinned
from edgekit.quant.layers import layers, own_biases
from edgekit.quant.observe import observe
from edgekit.quant.plan import plan
from edgekit.quant.qdq import emit
from edgekit.quant.weights import dequantize_weight, quantize_weight

VARIANTS = ("affine", "symmetric", "reduced_range")


def quantized(net, x):
    return choose(net, plan(net), stream(x), "minmax").spec


def seen(net, x, size=16):
    """What the pass for ranges observes of every weighted operator."""
    chosen = layers(net, [node.name for node in net.graph.node])
    return observe(net, [], stream(x, size), chosen, total=len(x))


def inner(proto, names):
    """The graph with these tensors as its outputs."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    del copy.graph.output[:]
    copy.graph.output.extend(onnx.helper.make_tensor_value_info(name, 1, None) for name in names)
    return copy


def run_all(proto, x):
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})


@pytest.fixture(scope="module")
def net():
    return own_biases(residual_net())


@pytest.fixture(scope="module")
def spec(net):
    return quantized(net, samples())


CONVOLUTIONS = {
    "plain": {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]},
    "strided": {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [0, 1, 1, 0]},
    "dilated": {"kernel_shape": [3, 3], "dilations": [2, 2]},
    "grouped": {"kernel_shape": [3, 3], "group": 2, "pads": [1, 1, 1, 1]},
    "depthwise": {"kernel_shape": [3, 3], "group": 4},
    "same_upper": {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"},
    "same_lower": {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_LOWER"},
    "pointwise": {"kernel_shape": [1, 1], "strides": [2, 2]},
}


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_patches_times_matrix_is_the_convolution(kind):
    attributes = CONVOLUTIONS[kind]
    b = Builder(3)
    b.weight("w", 8, 4 // attributes.get("group", 1), *attributes["kernel_shape"])
    b.add("Conv", ["x", "w"], "y", **attributes)
    net = b.model({"x": ["batch", 4, 8, 8]}, {"y": ["batch", 8, "h", "w"]})
    x = samples(3, shape=(4, 8, 8))
    (layer,) = layers(net, ["y"])
    rows = moments.patches(layer, x, 10**6)
    product = np.einsum("gpk,gok->pgo", rows, layer.matrix(layer.value)).reshape(rows.shape[1], -1)
    wanted = run(net, x)
    np.testing.assert_allclose(product, wanted.transpose(0, 2, 3, 1).reshape(-1, 8), atol=1e-5)
    np.testing.assert_array_equal(layer.unmatrix(layer.matrix(layer.value)), layer.value)


@pytest.mark.parametrize("op", ["Gemm", "Gemm transposed", "MatMul"])
def test_patches_times_matrix_is_the_product(op):
    b = Builder(3)
    b.weight("w", *((6, 5) if op == "Gemm transposed" else (5, 6)))
    b.add(op.split()[0], ["x", "w"], "y", **({"transB": 1} if op == "Gemm transposed" else {}))
    shape = (3, 5) if op == "MatMul" else (5,)
    net = b.model({"x": ["batch", *shape]}, {"y": ["batch", *shape[:-1], 6]})
    x = samples(4, shape=shape)
    (layer,) = layers(net, ["y"])
    product = moments.patches(layer, x, 10**6)[0] @ layer.matrix(layer.value)[0].T
    np.testing.assert_allclose(product, run(net, x).reshape(-1, 6), atol=1e-5)
    np.testing.assert_array_equal(layer.unmatrix(layer.matrix(layer.value)), layer.value)


def test_a_transposed_convolution_answers_constant_images_as_foreseen():
    b = Builder(3)
    b.weight("w", 4, 3, 2, 2)
    b.add("ConvTranspose", ["x", "w"], "y", kernel_shape=[2, 2], strides=[1, 1], group=2)
    net = b.model({"x": ["batch", 4, 6, 6]}, {"y": ["batch", 6, 7, 7]})
    mean = np.array([0.5, -1.0, 2.0, 0.25])
    (layer,) = layers(net, ["y"])
    x = np.broadcast_to(mean.reshape(1, 4, 1, 1), (1, 4, 6, 6)).astype(np.float32)
    np.testing.assert_allclose(layer.response(layer.value, mean), run(net, x)[0, :, 3, 3], atol=1e-5)
    np.testing.assert_array_equal(layer.unmatrix(layer.matrix(layer.value)), layer.value)


def test_every_operator_gets_a_bias_of_its_own():
    b = Builder(2)
    b.weight("w", 4, 3, 1, 1)
    b.weight("bias", 4)
    for name in ("one", "two", "three"):
        b.add("Conv", ["x", "w", *(["bias"] if name != "three" else [])], name)
    net = b.model(
        {"x": ["batch", 3, 4, 4]}, {"one": ["batch", 4, 4, 4], "two": ["batch", 4, 4, 4], "three": ["batch", 4, 4, 4]}
    )
    made = own_biases(net)
    onnx.checker.check_model(made)
    assert len({node.input[2] for node in made.graph.node}) == 3
    x = samples(2, shape=(3, 4, 4))
    for a, c in zip(run_all(net, x), run_all(made, x), strict=True):
        np.testing.assert_array_equal(a, c)
    assert net.graph.node[2].input == ["x", "w"]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("groups", [1, 2])
def test_fast_correction_restores_the_mean_that_rounded_weights_shift(variant, groups):
    b = Builder(5)
    b.conv("x", "y", 8, 4, kernel=1, groups=groups)
    net = b.model({"x": ["batch", 4, 4, 4]}, {"y": ["batch", 8, 4, 4]})
    x = np.abs(samples(32, shape=(4, 4, 4))) + 1
    spec = quantized(net, x)
    (layer,) = layers(net, spec.nodes)
    means = seen(net, x).means
    np.testing.assert_allclose(means["x"], x.mean((0, 2, 3)), rtol=1e-5)
    corrected = bias.fast(net, spec, variant, means)
    scales = spec.weights[layer.weight]
    weight = dequantize_weight(quantize_weight(layer.value, scales, variant), scales, variant)
    wanted = run(net, x).mean((0, 2, 3))
    before = run(with_initializers(net, {layer.weight: weight}), x).mean((0, 2, 3))
    after = run(with_initializers(net, {layer.weight: weight, **corrected}), x).mean((0, 2, 3))
    assert np.abs(before - wanted).max() > 1e-3
    np.testing.assert_allclose(after, wanted, atol=1e-5)


@pytest.mark.parametrize("variant", ["affine", "reduced_range"])
def test_full_correction_gives_every_operator_the_mean_that_it_has_in_float(net, spec, variant):
    x = samples()
    names = [node.output[0] for node in net.graph.node if node.op_type in ("Conv", "Gemm")]
    wanted = [y.mean((0, *range(2, y.ndim))) for y in run_all(inner(net, names), x)]

    def means(model):
        made = emit(model, spec, variant, "openvino")
        outputs = {node.name: node.output[0] for node in made.graph.node}
        ours = [outputs[node.name] for node in net.graph.node if node.op_type in ("Conv", "Gemm")]
        return [y.mean((0, *range(2, y.ndim))) for y in run_all(inner(made, ours), x)]

    corrected = bias.full(net, spec, variant, (x,))
    before = max(np.abs(a - b).max() for a, b in zip(means(net), wanted, strict=True))
    after = [np.abs(a - b).max() for a, b in zip(means(with_initializers(net, corrected)), wanted, strict=True)]
    assert before > 1e-2
    assert max(after) < before / 20  # the runtimes round activations on a step's edge to different sides


@pytest.mark.parametrize("variant", VARIANTS)
def test_compensated_weights_lie_on_the_grid_and_err_less(net, spec, variant):
    x, fresh = samples(256), samples(64, seed=77)
    chosen = layers(net, spec.nodes)
    found = rounding.compensated(chosen, spec, variant, seen(net, x).moments)
    nearest = {
        layer.weight: dequantize_weight(
            quantize_weight(layer.value, spec.weights[layer.weight], variant), spec.weights[layer.weight], variant
        )
        for layer in chosen
    }
    assert len(found) > len(chosen) // 2
    for name, value in found.items():
        scales = spec.weights[name]
        again = dequantize_weight(quantize_weight(value, scales, variant), scales, variant)
        np.testing.assert_array_equal(again, value)
    float_outputs = run_all(inner(net, [layer.node.output[0] for layer in chosen]), fresh)

    def errors(weights):
        """Of every operator on its float input: other weights are exact."""
        result = []
        for layer, wanted in zip(chosen, float_outputs, strict=True):
            one = {layer.weight: weights.get(layer.weight, nearest[layer.weight])}
            seen = run_all(inner(with_initializers(net, one), [layer.node.output[0]]), fresh)[0]
            result.append(float(np.square(seen - wanted).mean()))
        return np.array(result)

    assert np.exp(np.log(errors(found) / errors(nearest)).mean()) < 0.8


def test_compensation_never_errs_more_than_nearest_on_its_moments(net, spec):
    x = samples(32)
    chosen = layers(net, spec.nodes)
    found = seen(net, x).moments
    weights = rounding.compensated(chosen, spec, "reduced_range", found)
    for layer in chosen:
        scales = spec.weights[layer.weight]
        nearest = dequantize_weight(quantize_weight(layer.value, scales, "reduced_range"), scales, "reduced_range")
        ours = weights.get(layer.weight, nearest)
        (moment,) = found[layer.node.name]
        errs = [rounding.output_error(layer.matrix(w - layer.value), moment) for w in (ours, nearest)]
        assert (errs[0] <= errs[1] * 1.0001 + 1e-12).all()


def test_wide_operators_are_compensated_block_by_block(monkeypatch):
    monkeypatch.setattr(moments, "WIDEST", 40)
    b = Builder(8)
    b.conv("x", "y", 8, 12)
    net = b.model({"x": ["batch", 12, 8, 8]}, {"y": ["batch", 8, 8, 8]})
    x = samples(64, shape=(12, 8, 8))
    x[:, 1::2] += x[:, ::2]
    spec = quantized(net, x)
    chosen = layers(net, spec.nodes)
    found = seen(net, x).moments
    assert [part.shape for part in found["y"]] == [(1, 36, 36)] * 3
    weights = rounding.compensated(chosen, spec, "affine", found)
    nearest = {"y.weight": dequantize_weight(
        quantize_weight(chosen[0].value, spec.weights["y.weight"], "affine"), spec.weights["y.weight"], "affine"
    )}  # fmt: skip
    wanted = run(net, x)
    assert snr(wanted, run(with_initializers(net, weights), x)) > snr(wanted, run(with_initializers(net, nearest), x))


def test_moments_of_dynamic_sizes_are_those_of_fixed_ones():
    b = Builder(8)
    b.conv("x", "a", 6, 3)
    b.conv("a", "y", 4, 6, kernel=1)
    fixed = b.model({"x": ["batch", 3, 64, 64]}, {"y": ["batch", 4, 64, 64]})
    free = b.model({"x": ["batch", 3, "h", "w"]}, {"y": ["batch", 4, "h", "w"]})
    x = samples(128, shape=(3, 64, 64))
    one, other = (seen(net, x).moments for net in (fixed, free))
    for name in one:
        np.testing.assert_allclose(one[name][0], other[name][0], rtol=1e-4, atol=1e-5)
    rows = moments.patches(layers(fixed, ["a"])[0], x, 10**6)[0]
    everywhere = rows.T @ rows / len(rows)
    np.testing.assert_allclose(np.diag(one["a"][0][0]), np.diag(everywhere), rtol=0.15)


@pytest.mark.parametrize("rounded", ["nearest", "compensated"])
def test_corrections_of_a_variant_are_the_same_bytes_in_every_backend(net, spec, rounded):
    x = samples()
    found = correct(net, spec, VARIANTS, stream(x), seen(net, x), rounding=rounded)
    assert set(found) == set(VARIANTS)
    assert found["affine"].keys() == found["symmetric"].keys()
    for variant, backends in (("affine", ("onnxruntime", "openvino")), ("symmetric", ("tensorrt", "onnxruntime"))):
        model = OnnxModel(name="n", proto=net, inputs=(), outputs=(), quant=spec, corrections=found)
        one, other = (values(emit(model.lowered(variant), spec, variant, backend)) for backend in backends)
        for name in spec.weights:
            assert one[f"{name}/quantized"].tobytes() == other[f"{name}/quantized"].tobytes()
            value = found[variant].get(name, values(net)[name])
            assert one[f"{name}/quantized"].tobytes() == quantize_weight(value, spec.weights[name], variant).tobytes()


def test_auto_compensates_and_gains_most_where_weights_have_seven_bits(net, spec):
    x, fresh = samples(256), samples(128, seed=5)
    found = correct(net, spec, ("affine", "reduced_range"), stream(x), seen(net, x))
    wanted = run(net, fresh)
    gains = []
    for variant, corrections in found.items():
        assert set(spec.weights) & set(corrections)
        plain = run(emit(net, spec, variant, "onnxruntime"), fresh, optimize=False)
        ours = run(emit(with_initializers(net, corrections), spec, variant, "onnxruntime"), fresh, optimize=False)
        gains.append(snr(wanted, ours) - snr(wanted, plain))
    assert 0 < gains[0] < gains[1]
    assert correct(net, spec, VARIANTS, stream(x), seen(net, x), bias="none", rounding="nearest") == {}


@pytest.mark.parametrize(("total", "size"), [(100, 16), (31, 16), (64, 7), (1, 1)])
def test_few_samples_are_spread_evenly(net, total, size):
    x = np.arange(total, dtype=np.float32).reshape(-1, 1)
    count, few = thinned(stream(x, size), total, net, wanted=10)
    seen = np.concatenate([batch[0][:, 0] for batch in few()])
    step = max(1, total // 10)
    np.testing.assert_array_equal(seen, x[::step, 0])
    assert len(seen) == count


def test_a_fixed_batch_is_thinned_by_whole_batches():
    b = Builder()
    b.conv("x", "y", 2, 3)
    net = b.model({"x": [4, 3, 8, 8]}, {"y": [4, 2, 8, 8]})
    x = np.arange(40, dtype=np.float32).reshape(-1, 1)
    count, few = thinned(stream(x, 4), 40, net, wanted=10)
    assert [batch[0][:, 0].tolist() for batch in few()] == [[0, 1, 2, 3], [16, 17, 18, 19], [32, 33, 34, 35]]
    assert count == 12


def test_corrections_survive_the_workspace(net, spec, tmp_path):
    from edgekit.workspace import load_stage, save_stage

    inputs, outputs = tensor_specs(net)
    before = OnnxModel(name="net", proto=net, inputs=inputs, outputs=outputs)
    found = correct(net, spec, VARIANTS, stream(samples()), seen(net, samples()))
    odd = {**found, "affine": {"names": np.float32([1, 2]), "a/b c": np.zeros((2, 0), np.float32), **found["affine"]}}
    step = Step(name="quantize", config={}, seconds=1.0)
    save_stage(tmp_path, "key", replace(before, quant=spec, corrections=odd).after(step))
    after = load_stage(tmp_path, "key", before)
    assert {variant: list(changed) for variant, changed in after.corrections.items()} == {
        variant: list(changed) for variant, changed in odd.items()
    }
    for variant, changed in odd.items():
        for name, value in changed.items():
            assert after.corrections[variant][name].dtype == np.float32
            np.testing.assert_array_equal(after.corrections[variant][name], value)
    (tmp_path / "model" / "corrections-affine.npz").write_bytes(b"damaged")
    assert load_stage(tmp_path, "key", before) is None
