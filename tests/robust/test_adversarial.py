import sys

import numpy as np
import pytest

from edgekit.data import Preprocess
from edgekit.errors import MissingDependencyError, UsageError
from edgekit.robust.adversarial import Attack
from edgekit.robust.settings import AdversarialSettings, RobustnessSettings, read_epsilon

onnx = pytest.importorskip("onnx")
pytest.importorskip("torch")
pytest.importorskip("art", reason="the extra `robustness`")

from edgekit.graph.execute import run_onnx  # noqa: E402
from edgekit.graph.tools import tensor_specs  # noqa: E402
from edgekit.model import OnnxModel  # noqa: E402

HOW = Preprocess((1 / 255 / 0.25, 1 / 255 / 0.5, 1 / 255), (-2.0, -1.0, 0.0), "NHWC", "NCHW")


def network(batch="batch", last=None, pixels="FLOAT"):
    """Pictures `[batch, 3, 8, 8]` to three logits, by a dense layer of fixed random weights; `last` ends it."""
    from onnx import TensorProto, helper, numpy_helper

    weights = np.random.default_rng(0).normal(size=(192, 3)).astype(np.float32) * 0.05
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"], name="flatten"),
        helper.make_node("MatMul", ["flat", "w"], ["scores" if last else "logits"], name="dense"),
    ]
    nodes += [helper.make_node(last, ["scores"], ["logits"], name="last")] if last else []
    graph = helper.make_graph(
        nodes,
        "dense",
        [helper.make_tensor_value_info("image", getattr(TensorProto, pixels), [batch, 3, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, 3])],
        [numpy_helper.from_array(weights, "w")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    inputs, outputs = tensor_specs(proto)
    return OnnxModel(name="dense", proto=proto, inputs=inputs, outputs=outputs)


def attacked(model, settings, n=50, **more):
    """Prepared pictures, their labels (what the network says), and their adversarial forms."""
    raw = np.random.default_rng(1).integers(0, 256, (n, 8, 8, 3), dtype=np.uint8)
    raw[0] = 0
    ready = HOW.apply(raw)
    labels = run_onnx(model.proto, [ready])[0].argmax(axis=1)
    attack = Attack(model, settings, HOW, 0, 255, **more)
    attack.check()
    make = attack.maker(ready.shape[1:], 3)
    parts = [make(ready[i : i + attack.batch], labels[i : i + attack.batch]) for i in range(0, n, attack.batch)]
    return ready, labels, np.concatenate(parts)


def accuracy(model, x, labels):
    return float((run_onnx(model.proto, [x])[0].argmax(axis=1) == labels).mean())


@pytest.mark.parametrize("attack", ["fgsm", "pgd"])
def test_inputs_stay_within_epsilon_and_the_range_of_each_channel_and_fool_the_network(attack):
    model = network()
    ready, labels, found = attacked(model, AdversarialSettings(attack=attack, epsilon="8/255"))
    assert found.shape == ready.shape and found.dtype == np.float32
    assert accuracy(model, ready, labels) == 1.0 and accuracy(model, found, labels) < 0.7
    scale, offset = (np.array(v, np.float32).reshape(3, 1, 1) for v in (HOW.scale, HOW.offset))
    pixels, was = (found - offset) / scale, (ready - offset) / scale
    assert np.abs(pixels - was).max() == pytest.approx(8, abs=1e-3)
    assert pixels.min() > -1e-3 and pixels.max() < 255 + 1e-3
    moved = np.abs(pixels - was).max(axis=(0, 2, 3))
    np.testing.assert_allclose(moved, 8, atol=1e-3, err_msg="each channel by as many grey levels")


def test_fgsm_of_a_linear_network_is_the_sign_of_its_gradient():
    model = network()
    ready, labels, found = attacked(model, AdversarialSettings(attack="fgsm", epsilon="1/255"))
    weights = onnx.numpy_helper.to_array(model.proto.graph.initializer[0]).astype(np.float64)
    logits = ready.reshape(len(ready), -1) @ weights
    shares = np.exp(logits - logits.max(1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    gradient = ((shares - np.eye(3)[labels]) @ weights.T).reshape(ready.shape)
    scale, offset = (np.array(v).reshape(3, 1, 1) for v in (HOW.scale, HOW.offset))
    wanted = np.clip(ready + np.sign(gradient) * scale, offset, 255 * scale + offset)
    assert np.isclose(found, wanted, atol=1e-4).mean() > 0.999


def test_they_are_the_same_every_time_and_for_every_size_of_batch():
    settings = AdversarialSettings()
    _, _, first = attacked(network(), settings)
    np.testing.assert_array_equal(first, attacked(network(), settings)[2])
    fixed = attacked(network(batch=16), settings)[2]
    np.testing.assert_allclose(fixed, first, atol=1e-5)


def test_probabilities_are_attacked_like_logits():
    settings = AdversarialSettings(attack="pgd", epsilon="4/255")
    _, _, logits = attacked(network(), settings)
    _, _, shares = attacked(network(last="Softmax"), settings, probabilities=True)
    assert np.isclose(shares, logits, atol=1e-4).mean() > 0.99


def test_networks_that_cannot_be_attacked_are_refused():
    settings = AdversarialSettings()
    model = network()
    spec = model.inputs[0]
    for inputs in ((spec, spec), (type(spec)("image", "int64", spec.shape),)):
        two = OnnxModel(name="two", proto=model.proto, inputs=inputs, outputs=model.outputs)
        with pytest.raises(UsageError, match="needs a network with one input of float32"):
            Attack(two, settings, HOW, 0, 255).check()
    with pytest.raises(UsageError, match=r"cannot be differentiated: .*Det"):
        broken = network(last="Det")
        Attack(broken, settings, HOW, 0, 255).check()
    with pytest.raises(UsageError, match="all samples are 3 throughout"):
        Attack(model, settings, HOW, 3, 3).check()


def test_a_missing_toolbox_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "art", None)
    with pytest.raises(MissingDependencyError, match=r"needs the package 'art'.*edgekit-toolchain\[robustness\]"):
        Attack(network(), AdversarialSettings(), HOW, 0, 255).check()


@pytest.mark.parametrize(("written", "share"), [("2/255", 2 / 255), ("1%", 0.01), (0.03, 0.03), (" 0.5 / 100 ", 0.005)])
def test_epsilon_is_a_share_in_any_form(written, share):
    assert read_epsilon(written) == pytest.approx(share)


@pytest.mark.parametrize("written", [0, "0/255", "1/0", 2, "200/255", "two", "-1%", "nan", "1/2/3", "9" * 400])
def test_epsilon_beyond_reason_is_refused(written):
    with pytest.raises(ValueError, match="epsilon"):
        RobustnessSettings.model_validate({"adversarial": {"epsilon": written}})
