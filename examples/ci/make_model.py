"""Make `model.onnx` and `data.npz` of this example: a small network on Fashion-MNIST at 14 x 14.

`python make_model.py` in a checkout of edgekit, with the extra `torch`. Both files are kept in git as they are.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn
from torch.nn import functional as F

HERE = Path(__file__).resolve().parent
BUNDLED = HERE.parent.parent / "calibration_data" / "fashion_mnist"


def pooled(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Images `[N, 14, 14]` of whole numbers from 0 to 255, and labels `[N]`."""
    with np.load(BUNDLED / f"{name}.npz") as file:
        images, labels = file["x"], file["y"]
    halves = images.reshape(len(images), 14, 2, 14, 2).mean((2, 4))
    return np.round(halves).astype(np.uint8), labels


def network() -> nn.Module:
    """About 17,000 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(32, 32, 3, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(512, 10),
    )  # fmt: skip


def main() -> None:
    """Train for a minute, export, and keep the samples that calibrate and score."""
    torch.manual_seed(0)
    (images, labels), (test_images, test_labels) = pooled("train"), pooled("test")
    x, y = torch.from_numpy(images / np.float32(255))[:, None], torch.from_numpy(labels.astype(np.int64))
    model = network()
    epochs, size = 12, 64
    adam = torch.optim.AdamW(model.parameters(), weight_decay=1e-2)
    steps = epochs * -(-len(x) // size)
    rate = torch.optim.lr_scheduler.OneCycleLR(adam, 3e-3, total_steps=steps)
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(size):
            adam.zero_grad()
            F.cross_entropy(model(x[batch]), y[batch]).backward()
            adam.step()
            rate.step()
    example = torch.zeros(1, 1, 14, 14)
    batch = torch.export.Dim("batch")
    program = torch.onnx.export(
        model.eval(), (example,), input_names=["image"], output_names=["logits"], dynamo=True,
        dynamic_shapes=({0: batch},), opset_version=18,
    )  # fmt: skip
    proto = program.model_proto
    graph = proto.graph
    for part in (proto, graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        part.ClearField("metadata_props")  # the exporter writes stack traces, with the paths of this machine
    onnx.save(proto, HERE / "model.onnx")
    np.savez_compressed(
        HERE / "data.npz", calibration_x=images[:512], calibration_y=labels[:512],
        test_x=test_images[:2000], test_y=test_labels[:2000],
    )  # fmt: skip


if __name__ == "__main__":
    main()
