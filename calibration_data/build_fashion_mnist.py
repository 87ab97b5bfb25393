"""Build `fashion_mnist/` from the four files of Debian's package `dataset-fashion-mnist`.

    python calibration_data/build_fashion_mnist.py --data /usr/share/datasets/fashion-mnist

Takes 16,000 training images, 1,600 of each class in the order of the original file, classes in turn, and all 10,000
test images. The same input gives the same arrays; the sha256 of the files goes into `card.yaml`.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import zipfile
from pathlib import Path

import numpy as np

CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
PER_CLASS = 1600
CALIBRATION = 1024
MEAN, STD = 0.2860, 0.3530  # of the 60,000 training images, scaled to [0, 1]

CARD = """\
name: fashion_mnist
description: >-
  Grey 28 x 28 images of clothes in ten classes: {train} of the 60,000 training images and all 10,000 test images.
source: https://github.com/zalandoresearch/fashion-mnist (Xiao, Rasul and Vollgraf 2017, arXiv:1708.07747)
licence: MIT
task: classification
classes: [{classes}]
preprocess:  # (pixel / 255 - {mean}) / {std}
  scale: {scale!r}
  offset: {offset!r}
  layout: NHW
  to: NCHW
files:
  train.npz: "{train_sha}"
  test.npz: "{test_sha}"
splits:
  train: {{file: train.npz}}
  calibration: {{file: train.npz, rows: [0, {calibration}]}}  # training images only; recovery trains on them too
  test: {{file: test.npz}}
"""


def read_idx(path: Path) -> np.ndarray:
    """An unsigned-byte IDX file as an array of its own shape."""
    raw = gzip.decompress(path.read_bytes())
    shape = [int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(raw[3])]
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape)


def pick(labels: np.ndarray) -> np.ndarray:
    """Rows of the first `PER_CLASS` images of each class, classes in turn, so that every prefix is balanced."""
    rows = [np.flatnonzero(labels == label)[:PER_CLASS] for label in range(len(CLASSES))]
    return np.stack(rows, axis=1).ravel()


def write_npz(path: Path, **arrays: np.ndarray) -> str:
    """A compressed `.npz` without dates or platform marks; returns its sha256."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
            info = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, member.getvalue(), compresslevel=9)
    path.write_bytes(buffer.getvalue())
    return hashlib.sha256(buffer.getvalue()).hexdigest()


def main() -> None:
    """Write `train.npz`, `test.npz` and `card.yaml`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("fashion_mnist"))
    args = parser.parse_args()
    args.out.mkdir(exist_ok=True)
    labels = read_idx(args.data / "train-labels-idx1-ubyte.gz")
    rows = pick(labels)
    train_sha = write_npz(
        args.out / "train.npz", x=read_idx(args.data / "train-images-idx3-ubyte.gz")[rows], y=labels[rows]
    )
    test_sha = write_npz(
        args.out / "test.npz",
        x=read_idx(args.data / "t10k-images-idx3-ubyte.gz"),
        y=read_idx(args.data / "t10k-labels-idx1-ubyte.gz"),
    )
    card = CARD.format(
        train=f"{len(rows):,}",
        classes=", ".join(CLASSES),
        mean=MEAN,
        std=STD,
        scale=1 / 255 / STD,
        offset=-MEAN / STD,
        train_sha=train_sha,
        test_sha=test_sha,
        calibration=CALIBRATION,
    )
    (args.out / "card.yaml").write_text(card, encoding="utf-8")


if __name__ == "__main__":
    main()
