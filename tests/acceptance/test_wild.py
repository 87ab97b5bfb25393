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

TEXT = '''
import numpy as np
from PIL import Image, ImageDraw, ImageFont

WORDS = (
    "the quick brown fox jumps over a lazy dog invoice total amount 2024 EUR 1,299.00 Main Street page No. 17 order "
    "customer name date signature figure results Wi-Fi password EXIT Platform 9 Zurich (a) & co. 50% tel. +49 30 12345"
).split()


def load():
    rng = np.random.default_rng(0)
    x = np.stack([{kind}(rng) for _ in range({count})])
    cut = {count} * 2 // 3
    return {{"calibration": (x[:cut], None), "test": (x[cut:], None)}}


def words(rng, count):
    return " ".join(rng.choice(WORDS) for _ in range(count))


def colours(rng):
    paper, ink = (tuple(map(int, rng.integers(low, high, 3))) for low, high in ((150, 256), (0, 110)))
    return (ink, paper) if rng.random() < 0.25 else (paper, ink)


def noisy(rng, image):
    pixels = np.asarray(image, np.float64)
    return np.clip(pixels + rng.normal(0, rng.uniform(0, 6), pixels.shape), 0, 255).astype(np.uint8)


def line(rng):
    """A line of text, upside down as often as not, on grey where it is short."""
    paper, ink = colours(rng)
    font = ImageFont.load_default(size=int(rng.integers(24, 40)))
    text = words(rng, int(rng.integers(1, 5)))
    left, top, right, bottom = font.getbbox(text)
    image = Image.new("RGB", (right - left + 12, bottom - top + 8), paper)
    ImageDraw.Draw(image).text((6 - left, 4 - top), text, ink, font=font)
    image = image.resize((min(192, max(16, round(image.width * 48 / image.height))), 48), Image.BILINEAR)
    whole = Image.new("RGB", (192, 48), (128, 128, 128))
    whole.paste(image.rotate(180) if rng.random() < 0.5 else image, (0, 0))
    return noisy(rng, whole)


def page(rng, size=256):
    """Lines of several sizes on a page that may lie askew."""
    paper, ink = colours(rng)
    image = Image.new("RGB", (size, size), paper)
    top = int(rng.integers(4, 30))
    while top < size - 16:
        height = int(rng.choice([10, 12, 14, 16, 20, 28, 40]))
        place = (int(rng.integers(4, size // 2)), top)
        font = ImageFont.load_default(size=height)
        ImageDraw.Draw(image).text(place, words(rng, int(rng.integers(1, 9))), ink, font=font)
        top += int(height * rng.uniform(1.2, 2.2))
    if rng.random() < 0.3:
        image = image.rotate(float(rng.uniform(-15, 15)), Image.BILINEAR, fillcolor=paper)
    return noisy(rng, image)
'''

PADDLE = """
version: 1
model: {{source: {source}}}
data:
  source: data.py:load
  task: none
  preprocess: {{scale: {scale}, offset: {offset}, layout: NHWC, to: NCHW}}
stages:
  - quantize: {{precision: int8}}
targets:
  - {{target: x86-64, backends: [onnxruntime, openvino, litert]}}
  - {{target: jetson-orin-nano, backends: [tensorrt]}}
"""

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def test_resnet20_loses_at_most_half_a_point_on_every_runtime(shared_data, tmp_path):
    import edgekit

    (tmp_path / "model.py").write_text(RESNET)
    (tmp_path / "data.py").write_text(CIFAR.format(shared=str(shared_data.resolve())))
    (tmp_path / "recipe.yaml").write_text(
        RECIPE.format(
            weights=(shared_data / "resnet20_cifar10.pt").resolve(),
            scale=[1 / 255 / s for s in STD],
            offset=[-m / s for m, s in zip(MEAN, STD, strict=True)],
        )
    )
    report = edgekit.run(tmp_path / "recipe.yaml", out=tmp_path / "out")
    assert report.source.metrics.accuracy.value == pytest.approx(0.9129, abs=2e-4)
    for backend in ("onnxruntime", "openvino", "litert"):
        reference, quantized = (report.result("x86-64", backend, role) for role in ("reference", "quantized"))
        assert reference.accuracy.value == pytest.approx(0.9129, abs=1e-3), backend
        assert reference.accuracy.value - quantized.accuracy.value <= 0.005, backend
        assert quantized.size_bytes < 0.36 * reference.size_bytes, backend


def run_paddle(shared_data, folder, file, kind, count, scale, offset):
    """The whole job on a file as it was found, by default settings; what must hold for any network holds."""
    import edgekit

    (folder / "data.py").write_text(TEXT.format(kind=kind, count=count))
    source = (shared_data / "onnx" / file).resolve()
    (folder / "recipe.yaml").write_text(PADDLE.format(source=source, scale=scale, offset=offset))
    report = edgekit.run(folder / "recipe.yaml", out=folder / "out")
    assert {r.backend for r in report.results} == {"onnxruntime", "openvino", "litert", "tensorrt"}
    for result in report.results:
        if result.status == "failed":
            assert "node" in result.reason or "'" in result.reason, result.reason
            continue
        assert result.status in ("built", "emitted"), result.key
        if result.status == "built" and result.role == "reference":
            assert result.snr_db > 60, result.key
    for backend in ("onnxruntime", "openvino", "litert"):
        shipped = report.shipped("x86-64", backend)
        assert shipped.role != "quantized" or shipped.snr_db >= 20, shipped.key
        assert shipped.ships_reason, shipped.key
    return report, source.stat().st_size


@pytest.mark.usefixtures("exact_sums")
def test_a_text_detector_as_found_is_small_and_near_in_int8(shared_data, tmp_path):
    """Learnable affine blocks, gates beside their input, transposed convolutions: 14 dB where each is quantized."""
    scale, offset = [1 / 255 / s for s in STD], [-m / s for m, s in zip(MEAN, STD, strict=True)]
    file = "ch_PP-OCRv4_det_infer.onnx"
    report, found = run_paddle(shared_data, tmp_path, file, "page", 48, scale, offset)
    for backend in ("onnxruntime", "openvino"):
        shipped = report.shipped("x86-64", backend)
        assert shipped.role == "quantized", shipped.ships_reason
        assert shipped.size_bytes <= 0.4 * found, backend
        assert shipped.int8_nodes > shipped.float_nodes, shipped.float_reasons


def test_a_text_direction_classifier_as_found_is_smaller_and_near_in_int8(shared_data, tmp_path):
    file = "ch_ppocr_mobile_v2.0_cls_infer.onnx"
    report, found = run_paddle(shared_data, tmp_path, file, "line", 96, [2 / 255], [-1.0])
    for backend in ("onnxruntime", "openvino"):
        quantized = report.result("x86-64", backend, "quantized")
        assert quantized.snr_db >= 20, backend
        assert quantized.size_bytes < 0.65 * found, backend
        assert quantized.int8_nodes > 2 * quantized.float_nodes, quantized.float_reasons
