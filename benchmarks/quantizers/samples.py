"""What the peers' scripts share: the calibration images, as their users would feed them."""

from collections.abc import Iterator

import numpy as np


def batches(path: str, size: int) -> Iterator[np.ndarray]:
    """Images of an `.npz` (`x`, uint8 `[n, H, W, 3]`) as float32 `[size, 3, H, W]`, (pixel - 127) / 128."""
    images = np.load(path)["x"]
    for start in range(0, len(images), size):
        part = images[start : start + size].transpose(0, 3, 1, 2)
        yield np.ascontiguousarray((part.astype(np.float32) - 127) / 128)


def count(path: str) -> int:
    """How many images there are."""
    return len(np.load(path)["x"])
