"""The calibration and evaluation images. Usage: images.py OUT [SAMPLE.npz].

SAMPLE holds JPEGs of 256 x 256 (`jpeg` bytes, `offset`). 256 of a fixed permutation calibrate and the others judge;
1,024 are the same 256 by crops and flips. Without a sample the images are noise, and nothing can be judged by them.
"""

import io
import sys
from pathlib import Path

import numpy as np

CALIBRATION, NOISE = 256, 264
SIDE, MARGIN = 256, 32
COPIES = (((16, 16), 1), ((16, 16), -1), ((0, 0), 1), ((32, 32), -1))
"""Corner of the crop and direction of the rows, for each fourth of the 1,024."""


def _pictures(sample: str) -> np.ndarray:
    from PIL import Image

    with np.load(sample, allow_pickle=False) as file:
        blob, offset = file["jpeg"].tobytes(), file["offset"]
    order = np.random.default_rng(0).permutation(len(offset) - 1)
    opened = (Image.open(io.BytesIO(blob[offset[i] : offset[i + 1]])).convert("RGB") for i in order)
    return np.stack([np.asarray(image.crop((0, 0, SIDE, SIDE))) for image in opened])  # some are smaller: black there


def _cropped(pictures: np.ndarray, corner: tuple[int, int], step: int) -> np.ndarray:
    (top, left), size = corner, pictures.shape[1] - MARGIN
    return np.ascontiguousarray(pictures[:, top : top + size, left : left + size][:, :, ::step])


def main(out: str, sample: str = "") -> None:
    """Write `<count>/calibration.npz` with a small `test.npz` beside it, and `judge.npz` where there is a sample."""
    noise = np.random.default_rng(0).integers(0, 256, (NOISE, SIDE, SIDE, 3), np.uint8)
    pictures = _pictures(sample) if sample else noise
    calibration, others = pictures[:CALIBRATION], _cropped(pictures[CALIBRATION:], *COPIES[0])
    many = np.concatenate([_cropped(calibration, *copy) for copy in COPIES])
    for count in (64, 256, 1024):
        folder = Path(out) / str(count)
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(folder / "calibration.npz", x=many[:count])
        np.savez(folder / "test.npz", x=others[:8])
    if sample:
        np.savez(Path(out) / "judge.npz", x=others)
    (Path(out) / "done").write_text(sample, encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
