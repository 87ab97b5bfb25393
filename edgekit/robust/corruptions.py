"""Common corruptions of stored samples at five fixed severities, the same for the same seed and sample.

Images: the tables of ImageNet-C, and below 64 pixels those of CIFAR-10-C (Hendrycks and Dietterich 2019,
arXiv:1903.12261, as in the code that made them). Blur is Pillow's Gaussian one, brightness raises the value channel
of HSV, contrast draws a picture towards its mean. Signals and features have no such standard: their tables are
edgekit's own.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.errors import UsageError
from edgekit.extras import require
from edgekit.robust.settings import OF, Modality

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
Table = tuple[float, float, float, float, float]

SMALL = 64
"""Images with a side below this many pixels get the table of CIFAR-10-C."""

IMAGENET: Mapping[str, Table] = {
    "gaussian_noise": (0.08, 0.12, 0.18, 0.26, 0.38),
    "blur": (1, 2, 3, 4, 6),
    "brightness": (0.1, 0.2, 0.3, 0.4, 0.5),
    "contrast": (0.4, 0.3, 0.2, 0.1, 0.05),
    "jpeg": (25, 18, 15, 10, 7),
}
CIFAR: Mapping[str, Table] = {
    "gaussian_noise": (0.04, 0.06, 0.08, 0.09, 0.10),
    "blur": (0.4, 0.6, 0.7, 0.8, 1),
    "brightness": (0.05, 0.1, 0.15, 0.2, 0.3),
    "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),
    "jpeg": (80, 65, 58, 50, 40),
}
"""Deviation and shift as shares of the range, blur in pixels, contrast as the share that is left, JPEG quality."""
SIGNAL: Mapping[str, Table] = {
    "noise": (30, 20, 15, 10, 5),
    "gain": (0.8, 0.6, 0.4, 0.25, 0.1),
    "dropout": (0.02, 0.05, 0.1, 0.2, 0.3),
    "shift": (0.01, 0.02, 0.05, 0.1, 0.2),
}
"""Signal-to-noise ratio in dB, factor, share of moments that are zero, share of the length moved."""
FEATURES: Mapping[str, Table] = {"noise": (0.1, 0.2, 0.3, 0.5, 0.8), "missing": (0.02, 0.05, 0.1, 0.2, 0.3)}
"""Deviations of the feature, share of features that stand at their mean."""


@dataclass(frozen=True)
class Form:
    """What the samples are: `layout` as "HW", "HWC" or "CHW" of one image, "CT", "TC" or "T" of one signal, or ""."""

    modality: Modality
    layout: str

    @property
    def names(self) -> tuple[str, ...]:
        """The corruptions that there are for it."""
        return OF[self.modality]


def form_of(samples: Array, layout: str = "", modality: str = "auto") -> Form:
    """What stored samples `[N, ...]` are, by the layout that `preprocess` names, else by their shape and type.

    Without a layout `[N, H, W]` of bytes and four axes with 1 or 3 channels are images, three axes signals (the longer
    axis is time), two axes feature vectors.

    Raises:
        UsageError: they are none of these, or not what `modality` says.
    """
    shape = samples.shape[1:]
    found = _seen(samples, layout.removeprefix("N"))
    if samples.dtype.kind not in "uif" or found is None:
        raise UsageError(
            f"Corruptions are for images, signals and feature vectors; these samples are {samples.dtype} "
            f"{list(shape)}. Give `preprocess: {{layout: ...}}` where they are images, or leave `corruptions` empty."
        )
    if modality in ("auto", found.modality):
        return found
    if modality == "signal" and len(shape) in (1, 2):
        return Form("signal", "T" if len(shape) == 1 else "CT" if shape[0] <= shape[1] else "TC")
    if modality == "features" and len(shape) == 1:
        return Form("features", "")
    if modality == "image" and len(shape) == 2:
        return Form("image", "HW")
    raise UsageError(f"`modality: {modality}` does not fit samples of shape {list(shape)}. Leave it out.")


def _seen(samples: Array, layout: str) -> Form | None:
    shape = samples.shape[1:]
    if layout and len(layout) == len(shape):
        return Form("image", layout)
    if len(shape) == 1:
        return Form("features", "")
    if len(shape) == 2:
        if samples.dtype == np.uint8:
            return Form("image", "HW")
        return Form("signal", "CT" if shape[0] <= shape[1] else "TC")
    if len(shape) == 3 and (shape[0] in (1, 3) or shape[2] in (1, 3)):
        return Form("image", "CHW" if shape[0] in (1, 3) else "HWC")
    return None


@dataclass(frozen=True)
class Corruptor:
    """Corrupts samples of one data set: `low` and `high` bound its values, `mean` and `deviation` are of a feature."""

    form: Form
    low: float
    high: float
    mean: Array
    deviation: Array
    seed: int = 0

    @classmethod
    def of(cls, samples: Array, form: Form, seed: int = 0) -> Corruptor:
        """From the samples that will be corrupted; bytes have the range 0 to 255."""
        if samples.dtype == np.uint8:
            low, high = 0.0, 255.0
        else:
            low, high = float(samples.min()), float(samples.max())
        axis = 0 if form.modality == "features" else None
        wide = samples.astype(np.float64) if axis == 0 else np.zeros(1)
        return cls(form, low, high, wide.mean(axis=0), wide.std(axis=0), seed)

    def apply(self, samples: Array, ids: Sequence[str], name: str, severity: int) -> Array:
        """Samples `[N, ...]` with these `ids`, corrupted, in their own type and shape.

        Raises:
            UsageError: there is no such corruption for this kind of sample.
            MissingDependencyError: blur and JPEG need Pillow.
        """
        if name not in self.form.names:
            raise UsageError(
                f"{name!r} is no corruption of {_PLURAL[self.form.modality]}. There are: {', '.join(self.form.names)}."
            )
        change = {"image": self._image, "signal": self._signal, "features": self._features}[self.form.modality]
        found = np.empty_like(samples)
        for row, (sample, key) in enumerate(zip(samples, ids, strict=True)):
            found[row] = self._stored(change(sample, name, severity - 1, _generator(self.seed, name, key)), found.dtype)
        return found

    def _stored(self, values: Floats, dtype: np.dtype[Any]) -> Array:
        if dtype.kind == "f":
            return values.astype(dtype)
        bounds = np.iinfo(dtype)
        return np.clip(np.rint(values), bounds.min, bounds.max).astype(dtype)

    def _image(self, sample: Array, name: str, level: int, rng: np.random.Generator) -> Floats:
        """Through `[H, W, C]` in 0..1 and back."""
        layout = self.form.layout
        span = self.high - self.low or 1.0
        axes = [layout.index(axis) for axis in "HWC" if axis in layout]
        image = np.clip((sample.astype(np.float64) - self.low) / span, 0, 1).transpose(axes)
        image = image if "C" in layout else image[..., None]
        table = CIFAR if min(image.shape[:2]) < SMALL else IMAGENET
        changed = np.clip(_IMAGE[name](image, table[name][level], rng), 0, 1)
        changed = changed if "C" in layout else changed[..., 0]
        return np.asarray(changed.transpose(np.argsort(axes)) * span + self.low)

    def _signal(self, sample: Array, name: str, level: int, rng: np.random.Generator) -> Floats:
        """Through `[C, T]` and back."""
        layout, wave = self.form.layout, sample.astype(np.float64)
        wave = wave[None] if layout == "T" else wave.T if layout == "TC" else wave
        changed = _SIGNAL[name](wave, SIGNAL[name][level], rng)
        return np.asarray(changed[0] if layout == "T" else changed.T if layout == "TC" else changed)

    def _features(self, sample: Array, name: str, level: int, rng: np.random.Generator) -> Floats:
        amount, values = FEATURES[name][level], sample.astype(np.float64)
        if name == "missing":
            return np.where(rng.random(values.shape) < amount, self.mean, values)
        return np.asarray(values + rng.normal(size=values.shape) * self.deviation * amount)


_PLURAL: Mapping[Modality, str] = {"image": "images", "signal": "signals", "features": "feature vectors"}


def _generator(seed: int, name: str, key: str) -> np.random.Generator:
    """One a sample: it does not depend on which others are looked at, and a severity scales what the mildest has."""
    digest = hashlib.blake2b(f"{seed} {name} {key}".encode(errors="backslashreplace"), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "big"))


def _noise(image: Floats, amount: float, rng: np.random.Generator) -> Floats:
    return np.asarray(image + rng.normal(size=image.shape, scale=amount))


def _brightness(image: Floats, amount: float, _: np.random.Generator) -> Floats:
    """The value of HSV is the largest channel: raising it alone scales all of them; black becomes grey."""
    if image.shape[2] != 3:
        return np.asarray(image + amount)
    value = image.max(axis=2, keepdims=True)
    raised = np.clip(value + amount, 0, 1)
    return np.asarray(np.where(value > 0, image * (raised / np.where(value > 0, value, 1)), raised))


def _contrast(image: Floats, amount: float, _: np.random.Generator) -> Floats:
    means = image.mean(axis=(0, 1), keepdims=True)
    return np.asarray((image - means) * amount + means)


def _pillow(image: Floats, change: Callable[[Any, Any], Any]) -> Floats:
    """Through an 8-bit picture, grey or RGB; other numbers of channels go one by one."""
    pil = require("PIL.Image", extra="images", why="blur and JPEG of images")
    if image.shape[2] not in (1, 3):
        return np.concatenate([_pillow(image[..., c : c + 1], change) for c in range(image.shape[2])], axis=2)
    bytes_ = np.rint(image * 255).astype(np.uint8)
    changed = np.asarray(change(pil, pil.fromarray(bytes_ if image.shape[2] == 3 else bytes_[..., 0])), np.float64)
    return changed.reshape(image.shape) / 255


def _blur(image: Floats, amount: float, _: np.random.Generator) -> Floats:
    filters = require("PIL.ImageFilter", extra="images", why="blur of images")
    return _pillow(image, lambda _pil, picture: picture.filter(filters.GaussianBlur(amount)))


def _jpeg(image: Floats, amount: float, _: np.random.Generator) -> Floats:
    def change(pil: Any, picture: Any) -> Any:
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=int(amount))
        return pil.open(buffer)

    return _pillow(image, change)


def _white(wave: Floats, decibels: float, rng: np.random.Generator) -> Floats:
    power = float(np.mean(wave**2)) / 10 ** (decibels / 10)
    return wave + rng.normal(size=wave.shape, scale=power**0.5)


def _dropout(wave: Floats, share: float, rng: np.random.Generator) -> Floats:
    """Moments that are lost are lost in all channels."""
    return np.where(rng.random(wave.shape[1]) < share, 0.0, wave)


def _shift(wave: Floats, share: float, rng: np.random.Generator) -> Floats:
    """Earlier or later, with silence where there was nothing."""
    steps = max(1, round(share * wave.shape[1]))
    moved = np.zeros_like(wave)
    if rng.random() < 0.5:
        moved[:, steps:] = wave[:, :-steps]
    else:
        moved[:, :-steps] = wave[:, steps:]
    return moved


_Change = Callable[[Floats, float, np.random.Generator], Floats]
_IMAGE: Mapping[str, _Change] = {
    "gaussian_noise": _noise, "blur": _blur, "brightness": _brightness, "contrast": _contrast, "jpeg": _jpeg,
}  # fmt: skip
_SIGNAL: Mapping[str, _Change] = {
    "noise": _white, "gain": lambda wave, factor, _: wave * factor, "dropout": _dropout, "shift": _shift,
}  # fmt: skip
