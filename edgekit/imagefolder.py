"""A folder of images by class: `<class>/*.png`, or `<split>/<class>/*.png`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from edgekit.datasplits import Raw
from edgekit.errors import UsageError
from edgekit.extras import require

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm")
SPLITS = ("train", "calibration", "calib", "test", "eval", "val", "valid", "validation", "dev")


def read_images(
    folder: Path, *, size: Sequence[int] | None = None, channels: int | None = None
) -> tuple[dict[str, Raw], tuple[str, ...], str]:
    """Every split of `folder` as uint8 samples, the class names in sorted order, and the layout.

    Without `channels`, images are grey ("NHW") if all of them are, else RGB ("NHWC"). Without `size`, all must have
    the same.

    Raises:
        UsageError: no images, classes that differ between splits, a damaged image, or different sizes.
        MissingDependencyError: Pillow is not installed.
    """
    require("PIL.Image", extra="images", why="reading images")
    parts = {d.name: d for d in sorted(folder.iterdir()) if d.is_dir() and d.name.lower() in SPLITS} or {"all": folder}
    files = {name: _by_class(part) for name, part in parts.items()}
    classes = sorted({label for by_class in files.values() for label in by_class})
    if not classes:
        raise UsageError(
            f"{folder} holds no card.yaml, no .npz and no images by class ({'/'.join(SUFFIXES)}): nothing to read."
        )
    grey = channels == 1 or (
        channels is None and all(_is_grey(p) for paths in files.values() for ps in paths.values() for p in ps)
    )
    splits: dict[str, Raw] = {}
    for name, by_class in files.items():
        paths = [(path, classes.index(label)) for label, ps in by_class.items() for path in ps]
        if not paths:
            raise UsageError(f"{parts[name]} holds no images.")
        arrays = [_load(path, "L" if grey else "RGB", size) for path, _ in paths]
        _check_sizes(arrays, [path for path, _ in paths])
        ids = tuple(path.relative_to(folder).as_posix() for path, _ in paths)
        splits[name] = Raw(np.stack(arrays), np.array([label for _, label in paths], np.int64), ids)
    return splits, tuple(classes), "NHW" if grey else "NHWC"


def _by_class(folder: Path) -> dict[str, list[Path]]:
    found = {
        part.name: sorted(p for p in part.rglob("*") if p.suffix.lower() in SUFFIXES)
        for part in sorted(folder.iterdir())
        if part.is_dir()
    }
    return {label: paths for label, paths in found.items() if paths}


def _open(path: Path) -> Image:
    from PIL import Image, UnidentifiedImageError

    try:
        return Image.open(path)
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise UsageError(f"{path} is not a readable image: {error}") from None


def _is_grey(path: Path) -> bool:
    with _open(path) as image:
        return image.mode in {"L", "1"}


def _load(path: Path, mode: str, size: Sequence[int] | None) -> npt.NDArray[np.uint8]:
    from PIL import Image

    with _open(path) as image:
        try:
            pixels = image.convert(mode)
        except OSError as error:
            raise UsageError(f"{path} is not a readable image: {error}") from None
    if size is not None:
        pixels = pixels.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return np.asarray(pixels, np.uint8)


def _check_sizes(arrays: Sequence[npt.NDArray[np.uint8]], paths: Sequence[Path]) -> None:
    for array, path in zip(arrays, paths, strict=True):
        if array.shape != arrays[0].shape:
            raise UsageError(
                f"{path} is {array.shape[0]} x {array.shape[1]}, {paths[0]} is {arrays[0].shape[0]} x "
                f"{arrays[0].shape[1]}: give one size for all in the recipe, `data: {{images: {{size: [H, W]}}}}`."
            )
