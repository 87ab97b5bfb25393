"""Networks that plain min-max int8 spoils, and that edgekit's defaults bring back."""

import itertools

import numpy as np
import onnx
import pytest

from edgekit.data import DataSet, Preprocess, Split
from edgekit.graph.normalise import normalise
from edgekit.graph.tools import tensor_specs
from edgekit.model import OnnxModel
from edgekit.quant.qdq import emit
from edgekit.stages.quantize import Quantize
from edgekit.testing import Lent

pytestmark = pytest.mark.slow

BINS, FRAMES = 128, 5


def run(path_or_proto, x):
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    content = path_or_proto.SerializeToString() if isinstance(path_or_proto, onnx.ModelProto) else str(path_or_proto)
    session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def exported(net, x, path):
    """The network as an ONNX file with a dynamic batch."""
    import torch

    torch.onnx.export(
        net.eval(), (torch.from_numpy(x[:2]),), str(path), dynamo=True, dynamic_shapes=({0: "batch"},),
        input_names=["x"], output_names=["y"], verbose=False,
    )  # fmt: skip
    return path


def peer(path, x, folder, per_channel):
    """What onnxruntime's own quantizer makes of it with its default calibrator, min-max."""
    from onnxruntime.quantization import CalibrationDataReader, quant_pre_process, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.batches = iter([{"x": x[i : i + 32]} for i in range(0, len(x), 32)])

        def get_next(self):
            return next(self.batches, None)

    ready, made = folder / "ready.onnx", folder / "int8.onnx"
    quant_pre_process(str(path), str(ready))
    quantize_static(str(ready), str(made), Reader(), per_channel=per_channel)
    return made


def quantized(path, x, folder, **settings):
    """The graph for ONNX Runtime after the stage, and its notes."""
    proto = normalise(onnx.load(path))
    inputs, outputs = tensor_specs(proto)
    model = OnnxModel(name="net", proto=proto, inputs=inputs, outputs=outputs)
    split = Split("calibration", x, None, tuple(map(str, range(len(x)))), Preprocess())
    done = Quantize(**settings).apply(model, Lent(folder, DataSet("synthetic", {"calibration": split}, task="none")))
    return emit(done.lowered("affine"), done.quant, "affine", "onnxruntime"), done.history[-1].notes


def spectra(rng, count, resonance=0.0, knocks=0.0):
    """Log-mel vectors in dB of a machine: harmonics over a tilted floor, five frames each, `[count, 640]`.

    An anomaly has a weak `resonance` (in dB) somewhere; a share of `knocks` has a bang near the microphone.
    """
    f = np.arange(BINS) / BINS
    speed, load = rng.uniform(0.12, 0.2, (count, 1)), rng.uniform(0, 1, (count, 1))
    level = -60 - 20 * f[None] + 8 * load * np.exp(-(((f - 0.2) / 0.15) ** 2))
    for harmonic in range(1, 5):
        level = level + (30 - 4 * harmonic + 6 * load) * np.exp(-(((f - speed * harmonic) / 0.05) ** 2))
    where, sign = rng.uniform(0.15, 0.9, (count, 1)), rng.choice([-1, 1], (count, 1))
    level = level + resonance * sign * np.exp(-(((f - where) / 0.05) ** 2))
    x = level[:, None, :] + rng.normal(0, 0.15, (count, FRAMES, BINS))
    hit = rng.random(count) < knocks
    x[hit] += rng.uniform(40, 80, (int(hit.sum()), 1, 1))
    return x.reshape(count, -1).astype(np.float32)


@pytest.fixture(autouse=True)
def one_thread():
    """Training gives the same weights on every machine with one."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def autoencoder(x):
    """MLPerf Tiny's: 640-128-128-128-128-8-128-128-128-128-640, with BatchNorm, trained for some seconds."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    sizes = [640, 128, 128, 128, 128, 8, 128, 128, 128, 128]
    parts = [p for a, b in itertools.pairwise(sizes) for p in (nn.Linear(a, b), nn.BatchNorm1d(b), nn.ReLU())]
    net, samples = nn.Sequential(*parts, nn.Linear(128, 640)), torch.from_numpy(x)
    net[-1].bias.data = samples.mean(0)
    epochs, order = 25, torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(net.parameters(), 2e-3, weight_decay=0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        for index in torch.randperm(len(samples), generator=order).split(256):
            loss = (net(samples[index]) - samples[index]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
    return net


def area(scores, anomalous):
    """Under the ROC curve, in points."""
    ranks = np.empty(len(scores))
    ranks[np.argsort(scores, kind="stable")] = np.arange(1, len(scores) + 1)
    count = anomalous.sum()
    return 100 * (ranks[anomalous].sum() - count * (count + 1) / 2) / (count * (len(scores) - count))


def test_an_autoencoder_keeps_its_area_under_the_curve(tmp_path):
    """A knock in one of 50 calibration vectors stretches hidden ranges; channels differ in how much."""
    rng = np.random.default_rng(1)
    path = exported(autoencoder(spectra(rng, 8000)), spectra(rng, 2), tmp_path / "net.onnx")
    field = spectra(np.random.default_rng(5), 512, knocks=0.02)
    test, anomalous = (
        np.concatenate([spectra(rng, 1000), spectra(rng, 1000, resonance=1.5)]),
        np.repeat([0, 1], 1000) > 0,
    )

    def points(graph):
        return area(np.square(run(graph, test) - test).mean(1), anomalous)

    exact = points(path)
    plain = [points(peer(path, field, tmp_path, per_channel)) for per_channel in (False, True)]
    graph, notes = quantized(path, field, tmp_path)
    ours = points(graph)
    print(f"fp32 {exact:.2f}, plain {plain}, edgekit {ours:.2f}", notes)
    assert exact > 95
    assert max(plain) <= exact - 3
    assert ours > exact - 1


def separable(images, labels):
    """Convolutions by channel and by position, ReLU between, trained for some seconds on Fashion-MNIST."""
    import torch
    from torch import nn

    torch.manual_seed(0)

    def block(a, b, stride):
        depthwise = nn.Conv2d(a, a, 3, stride, 1, groups=a, bias=False)
        return [depthwise, nn.BatchNorm2d(a), nn.ReLU(), nn.Conv2d(a, b, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU()]

    class Mean(nn.Module):
        def forward(self, x):
            return x.mean((2, 3))

    stem = [nn.Conv2d(1, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    net = nn.Sequential(
        *stem, *block(16, 32, 1), *block(32, 64, 2), *block(64, 64, 1),
        Mean(), nn.Linear(64, 10),
    )  # fmt: skip
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    epochs, order = 4, torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(net.parameters(), 5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        for index in torch.randperm(len(x), generator=order).split(128):
            loss = nn.functional.cross_entropy(net(x[index]), y[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
    return net


def scale_channels(net, rng):
    """Scale the channels between each pair of convolutions against each other: in float nothing changes."""
    import torch
    from torch import nn

    net.eval()
    layers = [layer for layer in net if isinstance(layer, nn.BatchNorm2d | nn.Conv2d | nn.Linear)]
    with torch.no_grad():
        for norm, reader in itertools.pairwise(layers):
            if not isinstance(norm, nn.BatchNorm2d):
                continue
            factor = torch.from_numpy(np.exp(rng.uniform(-3, 3, norm.num_features)).astype(np.float32))
            norm.weight *= factor
            norm.bias *= factor
            depthwise = isinstance(reader, nn.Conv2d) and reader.groups > 1
            reader.weight /= factor.reshape([-1, 1, 1, 1] if depthwise else [1, -1, *[1] * (reader.weight.ndim - 2)])
    return net


def test_a_depthwise_network_comes_back_by_equalization(tmp_path, fashion_mnist):
    train, test = fashion_mnist.split("train"), fashion_mnist.split("test")
    images, labels = train.preprocess.apply(train.inputs[:12000]), train.labels[:12000]
    net = scale_channels(separable(images, labels), np.random.default_rng(1))
    path = exported(net, images, tmp_path / "net.onnx")
    x, y = test.preprocess.apply(test.inputs[:4000]), test.labels[:4000]

    def accuracy(graph):
        return 100 * float((run(graph, x).argmax(1) == y).mean())

    exact = accuracy(path)
    plain = accuracy(peer(path, images[:512], tmp_path, per_channel=False))
    without, _ = quantized(path, images[:512], tmp_path, equalize=False, sensitivity="never")
    graph, notes = quantized(path, images[:512], tmp_path, sensitivity="never")
    ours, bare = accuracy(graph), accuracy(without)
    print(f"fp32 {exact:.2f}, plain {plain:.2f}, without equalization {bare:.2f}, edgekit {ours:.2f}", notes)
    assert exact > 80
    assert plain < exact - 20
    assert any("equalized" in note for note in notes)
    assert ours > exact - 0.5
    assert bare < exact - 20
