"""Our four backends keep the contract that edgekit.testing ships."""

import pytest

from edgekit.backends.litert import LiteRT
from edgekit.backends.onnxruntime import OnnxRuntime
from edgekit.backends.openvino import OpenVino
from edgekit.backends.tensorrt import TensorRT
from edgekit.target import Gpu
from edgekit.testing import BackendContract, host


class TestOnnxRuntime(BackendContract):
    backend = OnnxRuntime()


class TestOpenVino(BackendContract):
    backend = OpenVino()


@pytest.mark.slow
class TestLiteRT(BackendContract):
    backend = LiteRT()


class TestTensorRT(BackendContract):
    """Engine bytes differ from build to build; the graph that they are built from does not."""

    backend = TensorRT()
    same_bytes = ("model.onnx",)

    def target(self):
        return host("tensorrt", grid="symmetric").model_copy(update={"gpu": Gpu(model="any Ampere", compute="8.6")})
