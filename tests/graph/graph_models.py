"""Networks for the graph tests: small ones made here, and real ones from the shared data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgekit.graph.io import load_onnx

PADDLE = ("ch_PP-OCRv4_det_infer.onnx", "ch_ppocr_mobile_v2.0_cls_infer.onnx")


def paddle_input(name: str) -> np.ndarray:
    shape = (2, 3, 48, 192) if "cls" in name else (1, 3, 64, 96)
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def paddle(folder: Path, name: str) -> onnx.ModelProto:
    """The file, with what goes into its last activation as a second output: a sigmoid near 0 would hide errors."""
    model = load_onnx(folder / "onnx" / name)
    last = next(n for n in reversed(model.graph.node) if n.op_type in ("Sigmoid", "Softmax"))
    shape = ["n", 1, "h", "w"] if last.op_type == "Sigmoid" else ["n", 2]
    model.graph.output.append(helper.make_tensor_value_info(last.input[0], TensorProto.FLOAT, shape))
    return model


def difference(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> float:
    """The largest difference of any output, relative to the largest value of that output where that is above 1."""
    pairs = zip(ours, theirs, strict=True)
    return max(float(np.abs(a - b).max() / max(1.0, np.abs(b).max())) for a, b in pairs)


def make(nodes, inputs, outputs, constants=None, opset=18, ir_version=8) -> onnx.ModelProto:
    """A checked model; shapes as lists, constants as arrays."""
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in outputs.items()],
        [numpy_helper.from_array(np.asarray(v), n) for n, v in (constants or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)
    model = onnx.shape_inference.infer_shapes(model, data_prop=True)  # outputs given as None get their shape
    onnx.checker.check_model(model, full_check=True)
    return model


def weights(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def types(proto: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in proto.graph.node]


def resnet20(folder: Path):
    """The classic CIFAR network with the shared weights (He et al. 2015; shortcut without weights)."""
    import torch
    import torch.nn.functional as F
    from torch import nn

    class Block(nn.Module):
        def __init__(self, inputs: int, outputs: int, stride: int) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(outputs)
            self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(outputs)
            self.added = (outputs - inputs) // 2

        def forward(self, x):
            y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
            if self.added:
                x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.added, self.added))
            return torch.relu(y + x)

    class ResNet20(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
            self.layer1 = nn.Sequential(Block(16, 16, 1), Block(16, 16, 1), Block(16, 16, 1))
            self.layer2 = nn.Sequential(Block(16, 32, 2), Block(32, 32, 1), Block(32, 32, 1))
            self.layer3 = nn.Sequential(Block(32, 64, 2), Block(64, 64, 1), Block(64, 64, 1))
            self.linear = nn.Linear(64, 10)

        def forward(self, x):
            x = torch.relu(self.bn1(self.conv1(x)))
            x = self.layer3(self.layer2(self.layer1(x)))
            return self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))

    module = ResNet20()
    module.load_state_dict(torch.load(folder / "resnet20_cifar10.pt", weights_only=True))
    return module.eval()
