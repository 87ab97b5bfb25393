import numpy as np
import pytest

from edgekit.errors import UsageError
from edgekit.robust.corruptions import CIFAR, FEATURES, IMAGENET, SIGNAL, Corruptor, form_of
from edgekit.robust.settings import OF

pytest.importorskip("PIL")

IDS = tuple(f"test/{i}" for i in range(12))


def pictures(shape=(12, 32, 32), seed=0):
    """Smooth grey gradients with a bright square, as bytes."""
    rng = np.random.default_rng(seed)
    grid = np.add.outer(np.arange(shape[1]), np.arange(shape[2])) * 2.0
    images = np.stack([np.clip(grid + rng.integers(0, 60), 0, 255) for _ in range(shape[0])])
    images[:, 8:16, 8:16] = 230
    return images.astype(np.uint8)


def corruptor(samples, layout="", **more):
    return Corruptor.of(samples, form_of(samples, layout), **more)


@pytest.mark.parametrize(
    ("shape", "dtype", "layout", "modality", "seen"),
    [
        ((5, 28, 28), np.uint8, "NHW", "image", "HW"),
        ((5, 28, 28), np.uint8, "", "image", "HW"),
        ((5, 3, 32, 32), np.float32, "", "image", "CHW"),
        ((5, 32, 32, 3), np.uint8, "NHWC", "image", "HWC"),
        ((5, 6, 128), np.float32, "", "signal", "CT"),
        ((5, 128, 6), np.float32, "", "signal", "TC"),
        ((5, 40), np.float32, "", "features", ""),
    ],
)
def test_samples_are_told_apart_by_layout_shape_and_type(shape, dtype, layout, modality, seen):
    form = form_of(np.zeros(shape, dtype), layout)
    assert (form.modality, form.layout) == (modality, seen)
    assert form.names == OF[modality]


def test_the_recipe_may_say_what_samples_are():
    assert form_of(np.zeros((5, 40), np.float32), modality="signal").layout == "T"
    with pytest.raises(UsageError, match="`modality: image` does not fit samples of shape"):
        form_of(np.zeros((5, 40), np.float32), modality="image")


@pytest.mark.parametrize("samples", [np.zeros((5, 4, 8, 8, 3), np.float32), np.zeros((5, 7), bool)])
def test_samples_that_are_nothing_known_are_refused(samples):
    with pytest.raises(UsageError, match="for images, signals and feature vectors"):
        form_of(samples)


@pytest.mark.parametrize("name", OF["image"])
def test_images_stay_bytes_and_stray_further_with_severity(name):
    images = pictures()
    found = [corruptor(images, "NHW").apply(images, IDS, name, level) for level in (1, 3, 5)]
    assert all(f.dtype == np.uint8 and f.shape == images.shape for f in found)
    errors = [float(np.mean((f.astype(float) - images) ** 2)) for f in found]
    assert errors[0] > 0 and errors == sorted(errors)


@pytest.mark.parametrize(("modality", "shape"), [("signal", (12, 3, 200)), ("features", (12, 30))])
def test_signals_and_features_stray_further_with_severity(modality, shape):
    samples = np.random.default_rng(0).normal(size=shape).astype(np.float32).cumsum(axis=-1)
    make = corruptor(samples)
    for name in OF[modality]:
        found = [make.apply(samples, IDS, name, level) for level in range(1, 6)]
        errors = [float(np.mean((f - samples) ** 2)) for f in found]
        assert all(f.dtype == np.float32 for f in found)
        assert errors[0] > 0 and errors == sorted(errors), name


def test_the_same_seed_and_sample_give_the_same_whatever_is_beside_it():
    images = pictures()
    whole = corruptor(images, "NHW").apply(images, IDS, "gaussian_noise", 3)
    part = corruptor(images, "NHW").apply(images[4:7], IDS[4:7], "gaussian_noise", 3)
    np.testing.assert_array_equal(part, whole[4:7])
    other = corruptor(images, "NHW", seed=1).apply(images, IDS, "gaussian_noise", 3)
    assert (other != whole).any()
    assert (whole[0].astype(int) - images[0] != whole[1].astype(int) - images[1]).any()


def test_layouts_of_the_same_picture_give_the_same_corruption():
    colour = np.stack([pictures(seed=s) for s in range(3)], axis=-1)
    for name in OF["image"]:
        last = corruptor(colour, "NHWC").apply(colour, IDS, name, 5)
        first = corruptor(colour.transpose(0, 3, 1, 2), "NCHW").apply(colour.transpose(0, 3, 1, 2), IDS, name, 5)
        np.testing.assert_array_equal(first.transpose(0, 2, 3, 1), last)


def test_noise_has_the_deviation_of_the_table_and_small_images_the_small_table():
    flat = np.full((12, 32, 32), 127, np.uint8)
    for level in range(1, 6):
        noisy = corruptor(flat, "NHW").apply(flat, IDS, "gaussian_noise", level) / 255
        assert np.std(noisy) == pytest.approx(CIFAR["gaussian_noise"][level - 1], rel=0.05)
    large = np.full((12, 64, 80), 127, np.uint8)
    noisy = corruptor(large, "NHW").apply(large, IDS, "gaussian_noise", 1) / 255
    assert np.std(noisy) == pytest.approx(IMAGENET["gaussian_noise"][0], rel=0.05)


def test_brightness_raises_the_value_of_hsv():
    import colorsys

    colour = np.random.default_rng(3).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
    colour[0, 0, 0] = 0
    found = corruptor(colour, "NHWC").apply(colour, IDS, "brightness", 4)
    for old, new in zip(colour.reshape(-1, 3), found.reshape(-1, 3), strict=True):
        h, s, v = colorsys.rgb_to_hsv(*(old / 255))
        wanted = np.array(colorsys.hsv_to_rgb(h, s, min(1.0, v + 0.2))) * 255
        np.testing.assert_allclose(new, wanted, atol=0.51)


def test_contrast_keeps_the_mean_and_scales_the_rest():
    images = pictures()[:, ::2, ::2]
    found = corruptor(images, "NHW").apply(images, IDS, "contrast", 5).astype(float)
    np.testing.assert_allclose(found.mean(axis=(1, 2)), images.mean(axis=(1, 2)), atol=0.5)
    np.testing.assert_allclose(found.std(axis=(1, 2)), 0.15 * images.std(axis=(1, 2)), rtol=0.05)


def test_blur_is_near_the_gaussian_filter_of_scipy():
    ndimage = pytest.importorskip("scipy.ndimage")
    images = pictures((12, 96, 96))
    found = corruptor(images, "NHW").apply(images, IDS, "blur", 3)
    wanted = np.stack([ndimage.gaussian_filter(i.astype(float), 3, mode="nearest") for i in images])
    assert np.abs(found - wanted).mean() < 1.0


def test_jpeg_is_what_pillow_makes_of_it():
    import io

    from PIL import Image

    images = pictures()
    found = corruptor(images, "NHW").apply(images, IDS, "jpeg", 5)
    buffer = io.BytesIO()
    Image.fromarray(images[3]).save(buffer, "JPEG", quality=40)
    np.testing.assert_array_equal(found[3], np.asarray(Image.open(buffer)))


def test_float_images_keep_their_range_and_odd_channels_are_done_one_by_one():
    colour = np.random.default_rng(0).normal(size=(12, 5, 16, 16)).astype(np.float32)
    make = corruptor(colour, "NCHW")
    for name in OF["image"]:
        found = make.apply(colour, IDS, name, 5)
        assert found.dtype == np.float32 and found.shape == colour.shape
        assert found.min() >= colour.min() - 1e-5 and found.max() <= colour.max() + 1e-5


def test_signals_get_the_noise_gain_and_silence_of_the_tables():
    wave = np.sin(np.linspace(0, 200, 4000))[None, None].repeat(12, 0).astype(np.float32) + 2
    make = corruptor(wave)
    noisy = make.apply(wave, IDS, "noise", 3)
    ratio = 10 * np.log10((wave**2).sum() / ((noisy - wave) ** 2).sum())
    assert ratio == pytest.approx(SIGNAL["noise"][2], abs=0.1)
    np.testing.assert_allclose(make.apply(wave, IDS, "gain", 2), wave * np.float32(0.6), rtol=1e-6)
    assert (make.apply(wave, IDS, "dropout", 4) == 0).mean() == pytest.approx(0.2, abs=0.01)
    moved = make.apply(wave, IDS, "shift", 3)
    assert {int((m == 0).sum()) for m in moved} == {200}
    assert len({bool(m[0, 0] == 0) for m in moved}) == 2, "some go one way, some the other"


def test_missing_features_stand_at_their_mean():
    values = np.random.default_rng(0).normal(5, 2, (12, 400)).astype(np.float32)
    found = corruptor(values).apply(values, IDS, "missing", 5)
    changed = found != values
    assert changed.mean() == pytest.approx(FEATURES["missing"][4], abs=0.02)
    np.testing.assert_allclose(found[changed], np.broadcast_to(values.mean(axis=0), values.shape)[changed], rtol=1e-5)


def test_a_corruption_of_other_samples_is_refused():
    with pytest.raises(UsageError, match="'jpeg' is no corruption of feature vectors"):
        values = np.zeros((12, 4), np.float32)
        corruptor(values).apply(values, IDS, "jpeg", 1)
