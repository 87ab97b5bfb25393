"""Networks that were not made for edgekit, quantized without training, from the recipe to the bundle."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.slow

RESNET = """
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.pad = stride, (outputs - inputs) // 2

    def forward(self, x):
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        if self.stride > 1:
            x = nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))
        return torch.relu(y + x)


class ResNet20(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        for i, (a, b, s) in enumerate([(16, 16, 1), (16, 32, 2), (32, 64, 2)], 1):
            blocks = [Block(a, b, s), Block(b, b, 1), Block(b, b, 1)]
            setattr(self, f"layer{i}", nn.Sequential(*blocks))
        self.linear = nn.Linear(64, 10)

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


def build():
    return ResNet20()
"""

CIFAR = """
import numpy as np

SHARED = {shared!r}


def load():
    train = np.load(SHARED + "/cifar10_train_25k.npz", allow_pickle=False)
    test = np.load(SHARED + "/cifar10_test_1228.npz", allow_pickle=False)
    return {{"calibration": (train["x"][:512], train["y"][:512]), "test": (test["x"], test["y"])}}
"""

RECIPE = """
version: 1
model:
  source: model.py:build
  weights: {weights}
  inputs: {{image: {{shape: [batch, 3, 32, 32], dtype: float32}}}}
data:
  source: data.py:load
  task: classification
  preprocess: {{scale: {scale}, offset: {offset}, layout: NHWC, to: NCHW}}
stages:
  - quantize: {{precision: int8, samples: 512, max_drop: 0.5pp}}
targets:
  - {{target: x86-64, backends: [onnxruntime, openvino, litert]}}
"""

LINES = '''
import numpy as np


def load():
    """Dark strokes on light lines: what the classifier is asked about is text."""
    rng = np.random.default_rng(0)
    x = np.full((96, {height}, 192, 3), 235, np.uint8)
    for image in x:
        for _ in range(60):
            top, left = rng.integers(8, 36), rng.integers(0, 180)
            height, width = rng.integers(2, 12), rng.integers(2, 8)
            image[top : top + height, left : left + width] = rng.integers(0, 90)
    return {{"calibration": (x[:64], None), "test": (x[64:], None)}}
'''

PADDLE = """
version: 1
model: {{source: {source}}}
data:
  source: data.py:load
  task: none
  preprocess: {{scale: [0.00784313725], offset: [-1.0], layout: NHWC, to: NCHW}}
stages:
  - quantize: {{precision: int8, samples: 64}}
targets:
  - {{target: x86-64, backends: [onnxruntime, openvino, litert]}}
  - {{target: jetson-orin-nano, backends: [tensorrt]}}
"""


def test_resnet20_loses_at_most_half_a_point_on_every_runtime(shared_data, tmp_path):
    import edgekit

    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    (tmp_path / "model.py").write_text(RESNET)
    (tmp_path / "data.py").write_text(CIFAR.format(shared=str(shared_data.resolve())))
    (tmp_path / "recipe.yaml").write_text(
        RECIPE.format(
            weights=(shared_data / "resnet20_cifar10.pt").resolve(),
            scale=[1 / 255 / s for s in std],
            offset=[-m / s for m, s in zip(mean, std, strict=True)],
        )
    )
    report = edgekit.run(tmp_path / "recipe.yaml", out=tmp_path / "out")
    assert report.source.metrics.accuracy.value == pytest.approx(0.9129, abs=2e-4)
    for backend in ("onnxruntime", "openvino", "litert"):
        reference, quantized = (report.result("x86-64", backend, role) for role in ("reference", "quantized"))
        assert reference.accuracy.value == pytest.approx(0.9129, abs=1e-3), backend
        assert reference.accuracy.value - quantized.accuracy.value <= 0.005, backend
        assert quantized.size_bytes < 0.36 * reference.size_bytes, backend


@pytest.mark.parametrize(
    ("file", "height"),
    [("ch_ppocr_mobile_v2.0_cls_infer.onnx", 48), ("ch_PP-OCRv4_det_infer.onnx", 96)],  # det: a multiple of 32
)
def test_paddleocr_goes_through_or_names_the_node(shared_data, tmp_path, file, height):
    import edgekit

    (tmp_path / "data.py").write_text(LINES.format(height=height))
    (tmp_path / "recipe.yaml").write_text(PADDLE.format(source=(shared_data / "onnx" / file).resolve()))
    report = edgekit.run(tmp_path / "recipe.yaml", out=tmp_path / "out")
    assert {r.backend for r in report.results} == {"onnxruntime", "openvino", "litert", "tensorrt"}
    for result in report.results:
        if result.status == "failed":
            assert "node" in result.reason or "'" in result.reason, result.reason
            continue
        assert result.status in ("built", "emitted"), result.key
        if result.status == "built" and result.role == "reference":
            assert result.snr_db > 60, result.key
    assert report.shipped("x86-64", "onnxruntime") is not None
