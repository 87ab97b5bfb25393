"""Rounding with a learned step: forward as ONNX defines it, backward as the paper does."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from edgekit.train.fake import FakeQuantize, fake_quantize  # noqa: E402


def data(seed=0, shape=(6, 4, 5, 5)):
    rng = np.random.default_rng(seed)
    return torch.from_numpy((rng.standard_normal(shape) * 3).astype(np.float32))


@pytest.mark.parametrize(("zero", "low", "high"), [(0, 0, 255), (37, 0, 255), (0, -128, 127), (128, 0, 255)])
def test_it_rounds_as_onnx_does(zero, low, high):
    import onnx
    from onnx.reference import ReferenceEvaluator

    kind = "int8" if low < 0 else "uint8"
    model = onnx.parser.parse_model(
        f"""<ir_version: 9, opset_import: ["": 19]>
        net (float[N] x, float s, {kind} z) => (float[N] y)
        {{ q = QuantizeLinear(x, s, z)  y = DequantizeLinear(q, s, z) }}"""
    )
    step = np.float32(0.0173)
    ties = np.arange(-300, 300, 0.5, dtype=np.float32) * step  # every boundary between integers, and every integer
    x = np.concatenate([data().numpy().reshape(-1), ties])
    wanted = ReferenceEvaluator(model).run(None, {"x": x, "s": step, "z": np.array(zero, kind)})[0]
    seen = fake_quantize(torch.from_numpy(x), torch.tensor(step), low - zero, high - zero)
    np.testing.assert_array_equal(seen.numpy(), wanted)


def straight_through(x, step, low, high):
    """The same by torch's own gradients: only the rounding itself is passed over."""
    clamped = (x / step).clamp(low, high)
    return step * (clamped + (clamped.round() - clamped).detach())


@pytest.mark.parametrize("axis", [None, 1])
@pytest.mark.parametrize(("low", "high"), [(-40, 215), (-127, 127), (0, 255)])
def test_gradients_are_those_of_the_paper(axis, low, high):
    x, weights = data().double(), data(1).double()
    step = torch.full([4], 0.011, dtype=torch.float64) * torch.arange(1, 5) if axis else torch.tensor(0.02).double()
    shaped = step.reshape(1, 4, 1, 1) if axis else step
    found = []
    for function in (lambda v, s: fake_quantize(v, s, low, high, 0.25), lambda v, s: straight_through(v, s, low, high)):
        v, s = x.clone().requires_grad_(), shaped.clone().requires_grad_()
        (function(v, s) * weights).sum().backward()
        found.append((v.grad, s.grad))
    torch.testing.assert_close(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1] * 0.25)


def test_one_value_at_a_time():
    """Equation 3 of the paper: -Qn and Qp beyond the ends, round(v) - v between them."""
    for value, slope in ((-9.0, -4.0), (9.0, 7.0), (1.3, 1 - 1.3), (2.75, 3 - 2.75), (-2.1, -2 + 2.1)):
        x, step = torch.tensor([value * 0.5], requires_grad=True), torch.tensor(0.5, requires_grad=True)
        fake_quantize(x, step, -4, 7).sum().backward()
        assert step.grad.item() == pytest.approx(slope, abs=1e-6)
        assert x.grad.item() == (1.0 if -4 < value < 7 else 0.0)


def test_the_step_of_an_activation_counts_the_values_of_one_sample_and_that_of_a_weight_those_of_its_channel():
    x = data()
    growth = torch.nn.Parameter(torch.ones(()))
    FakeQuantize(torch.tensor(0.05), growth, (-128, 127))(x).sum().backward()
    alone = torch.tensor(0.05, requires_grad=True)
    fake_quantize(x, alone, -128, 127).sum().backward()
    # growth multiplies the step that it started from
    assert growth.grad.item() == pytest.approx(alone.grad.item() * 0.05 / math.sqrt(4 * 5 * 5 * 128), rel=1e-4)
    channels = torch.nn.Parameter(torch.ones(4))
    FakeQuantize(torch.full([4], 0.05), channels, (-127, 127), axis=1, weight=True)(x).sum().backward()
    alone = torch.full([1, 4, 1, 1], 0.05, requires_grad=True)
    fake_quantize(x, alone, -127, 127).sum().backward()
    torch.testing.assert_close(channels.grad, alone.grad.reshape(4) * 0.05 / math.sqrt(6 * 5 * 5 * 127))
