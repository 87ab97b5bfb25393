"""Train the demo's model on all of Fashion-MNIST and write `weights.safetensors`.

    python train.py --data /usr/share/datasets/fashion-mnist --epochs 15

`--data` is a folder with the four gzip-compressed IDX files of Fashion-MNIST (Debian's package
`dataset-fashion-mnist` installs them there). The committed weights come from this script with its
defaults; a rerun gives the same accuracy to a few tenths of a point, not the same bytes.
"""

from __future__ import annotations

import argparse
import gzip
import time
from pathlib import Path

import numpy as np
import torch
from model import build
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

MEAN, STD = 0.2860, 0.3530  # of the training images, scaled to [0, 1]


def read_idx(path: Path) -> np.ndarray:
    """An unsigned-byte IDX file as an array of its own shape."""
    raw = gzip.decompress(path.read_bytes())
    shape = [int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(raw[3])]
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape)


def load(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    """Normalised images `[N, 1, 28, 28]` and labels `[N]` of `train` or `t10k`."""
    images = torch.from_numpy(read_idx(folder / f"{part}-images-idx3-ubyte.gz").copy())
    labels = torch.from_numpy(read_idx(folder / f"{part}-labels-idx1-ubyte.gz").astype(np.int64))
    return ((images.float() / 255 - MEAN) / STD).unsqueeze(1), labels


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror half of the images and shift each by up to two pixels."""
    count, background = len(images), -MEAN / STD
    mirrored = torch.rand(count, generator=generator) < 0.5
    images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
    padded = F.pad(images, (2, 2, 2, 2), value=background)
    top, left = torch.randint(0, 5, (2, count), generator=generator)
    rows = (top[:, None] + torch.arange(28))[:, None, :, None]
    columns = (left[:, None] + torch.arange(28))[:, None, None, :]
    return padded[torch.arange(count)[:, None, None, None], 0, rows, columns]


@torch.no_grad()
def accuracy(model: torch.nn.Module, images: Tensor, labels: Tensor) -> float:
    """Top-1 share in fp32, in evaluation mode."""
    model.eval()
    hits = sum(int((model(x).argmax(1) == y).sum()) for x, y in zip(images.split(500), labels.split(500), strict=True))
    return hits / len(labels)


def train(
    model: torch.nn.Module, images: Tensor, labels: Tensor, *, epochs: int, batch: int, rate: float, seed: int
) -> None:
    """SGD with Nesterov momentum on a one-cycle schedule, bfloat16 where the processor has it."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), rate, momentum=0.9, nesterov=True, weight_decay=5e-4)
    steps = len(images) // batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=epochs * steps, pct_start=0.2)
    for epoch in range(epochs):
        model.train()
        started, order = time.monotonic(), torch.randperm(len(images), generator=generator)
        for indices in order.split(batch)[:steps]:
            x = augment(images[indices], generator).to(memory_format=torch.channels_last)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                logits = model(x)
            loss = F.cross_entropy(logits.float(), labels[indices], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1}/{epochs}: loss {loss.item():.3f}, {time.monotonic() - started:.0f} s", flush=True)


def main() -> None:
    """Train, report the accuracy on the 10,000 test images, save the weights."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("weights.safetensors"))
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rate", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    model = build().to(memory_format=torch.channels_last)
    train(model, *load(args.data, "train"), epochs=args.epochs, batch=args.batch, rate=args.rate, seed=args.seed)
    print(f"test accuracy {accuracy(model, *load(args.data, 't10k')):.4f}")
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, args.out)


if __name__ == "__main__":
    main()
