from __future__ import annotations

import numpy as np
import pytest

from edgekit.agent.preprocess import preprocess

RNG = np.random.default_rng(0)


def test_grey_images_get_a_channel_axis() -> None:
    raw = RNG.integers(0, 256, (5, 4, 6), dtype=np.uint8)
    made = preprocess(raw, (1 / 255,), (-0.5,), "NHW", "NCHW")
    assert made.dtype == np.float32 and made.shape == (5, 1, 4, 6) and made.flags.c_contiguous
    np.testing.assert_allclose(made[:, 0], raw / 255 - 0.5, atol=1e-6)


@pytest.mark.parametrize(("layout", "to"), [("NHWC", "NCHW"), ("NCHW", "NHWC"), ("NCHW", "NCHW"), ("NHWC", "")])
def test_channels_have_their_own_scale_wherever_their_axis_is(layout: str, to: str) -> None:
    images = RNG.integers(0, 256, (2, 3, 4, 5), dtype=np.uint8)  # N C H W
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    expected = (images / 255 - mean[:, None, None]) / std[:, None, None]
    raw = images if layout == "NCHW" else images.transpose(0, 2, 3, 1)
    made = preprocess(raw, 1 / 255 / std, -mean / std, layout, to)
    if (to or layout) == "NHWC":
        made = made.transpose(0, 3, 1, 2)
    np.testing.assert_allclose(made, expected, atol=1e-5)


def test_data_without_a_layout_keeps_its_shape() -> None:
    raw = RNG.normal(size=(3, 7))
    np.testing.assert_array_equal(preprocess(raw, (1.0,), (0.0,), "", ""), raw.astype(np.float32))


def test_one_channel_may_lose_its_axis() -> None:
    assert preprocess(np.zeros((2, 1, 4, 5)), (1.0,), (0.0,), "NCHW", "NHW").shape == (2, 4, 5)


@pytest.mark.parametrize(
    ("shape", "scale", "layout", "to", "message"),
    [
        ((2, 4, 4), (1.0,), "NHWC", "NCHW", "3 axes"),
        ((2, 4, 4, 3), (1.0, 1.0), "NHWC", "NCHW", "scale has 2 values, the samples have 3 channels"),
        ((2, 4, 4, 3), (1.0,), "NHWC", "NHW", "no channel axis"),
        ((2, 4, 4, 3), (1.0,), "NHWC", "NCL", "different axes"),
        ((2, 4), (1.0, 2.0), "", "", "need the layout"),
    ],
)
def test_what_does_not_fit_is_said(shape: tuple, scale: tuple, layout: str, to: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        preprocess(np.zeros(shape, np.uint8), scale, (0.0,), layout, to)
