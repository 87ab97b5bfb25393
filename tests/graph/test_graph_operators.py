"""Every operator of the torch view against ONNX's own backend node tests."""

from __future__ import annotations

import functools
import re
import warnings

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch")

from edgekit.graph.normalise import normalise  # noqa: E402
from edgekit.graph.tools import set_initializer  # noqa: E402
from edgekit.graph.torch_ops import OPERATORS, STATIC  # noqa: E402
from edgekit.graph.torch_view import torch_view  # noqa: E402

EXCLUDED: dict[str, str] = {
    r"^test_(add|sub|div|max|min|mod|less|greater)(_equal)?_uint(16|32|64)$": "torch lacks these integers",
    r"^test_cast_.*(FLOAT8|FLOAT4|INT4|INT2)": "torch does not compute in these types",
    r"^test_cast_e8m0": "torch does not compute in this type",
    r"^test_batchnorm_.*_training_mode$": "training is torch's own: the view takes BatchNorm in inference form",
    r"^test_equal_string": "torch has no strings",
    r"^test_reduce_(max|min)_empty_set$": "torch refuses the extreme of nothing",
    r"^test_gru_": "torch's reset gate comes after the matrix product",
    r"^test_lstm_with_peepholes$": "torch's LSTM has none",
}
"""Cases that the view does not pass, by a pattern of their names, with the reason: each must still fail."""


@functools.cache
def cases() -> dict[str, object]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.loader import load_model_tests

        found = {case.name: case for case in load_model_tests(kind="node")}
    return {name: case for name, case in found.items() if _covered(case.model) and not name.endswith("_expanded")}


def _covered(model) -> bool:
    """One operator of the table on tensors; expanded functions test other operators again."""
    node = model.graph.node[0]
    tensors = all(value.type.HasField("tensor_type") for value in (*model.graph.input, *model.graph.output))
    return len(model.graph.node) == 1 and tensors and node.op_type in OPERATORS and not node.domain


def with_constants(
    model: onnx.ModelProto, arrays: list[np.ndarray], every: bool = False
) -> tuple[onnx.ModelProto, list[np.ndarray]]:
    """The case with its axes and pads (or, with `every`, all inputs but the first) as initializers, as models have."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    node = fixed.graph.node[0]
    static = STATIC.get(node.op_type, frozenset())
    constant = {name for i, name in enumerate(node.input) if name and (i in static or (every and i))}
    constant -= {node.input[0]} if node.input else set()
    rest = []
    for value, array in zip(list(fixed.graph.input), arrays, strict=True):
        if value.name in constant:
            set_initializer(fixed.graph, value.name, as_array(array))
            fixed.graph.input.remove(value)
        else:
            rest.append(array)
    return fixed, rest


def as_array(value) -> np.ndarray:
    """Cases of types that numpy lacks come as tensor protos."""
    return onnx.numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.array(value, copy=True)


def as_torch(array: np.ndarray) -> torch.Tensor:
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.astype(np.float32)).to(torch.bfloat16)
    return torch.from_numpy(array)


def as_numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().float().numpy() if tensor.dtype == torch.bfloat16 else tensor.detach().numpy()


def run_case(case, *, every: bool) -> None:
    for inputs, outputs in case.data_sets:
        model, rest = with_constants(case.model, list(inputs), every)
        view = torch_view(normalise(model))
        with torch.no_grad():
            result = view(*[as_torch(as_array(array)) for array in rest])
        results = result if isinstance(result, tuple | list) else (result,)
        for ours, expected in zip(results, map(as_array, outputs), strict=True):
            wanted = expected.astype(np.float32) if expected.dtype.name == "bfloat16" else expected
            actual = as_numpy(ours)
            assert actual.dtype == wanted.dtype
            assert actual.shape == wanted.shape
            np.testing.assert_allclose(actual, wanted, rtol=case.rtol, atol=max(case.atol, 1e-6))


def reason(name: str) -> str | None:
    return next((why for pattern, why in EXCLUDED.items() if re.search(pattern, name)), None)


@pytest.mark.parametrize("every", [False, True], ids=["inputs", "constants"])
@pytest.mark.parametrize("operator", sorted(OPERATORS))
def test_operator_matches_the_onnx_node_tests(operator, every):
    mine = [case for name, case in cases().items() if case.model.graph.node[0].op_type == operator and not reason(name)]
    assert mine or operator == "GRU", f"no node test of {operator}"
    for case in mine:
        try:
            run_case(case, every=every)
        except Exception as error:
            error.add_note(f"in {case.name}")
            raise


def test_exclusions_are_not_stale():
    excluded = {name: case for name, case in cases().items() if reason(name)}
    for pattern in EXCLUDED:
        assert any(re.search(pattern, name) for name in excluded), f"{pattern} matches no case"
    for name, case in excluded.items():
        with pytest.raises((Exception, AssertionError)):
            run_case(case, every=False)
            pytest.fail(f"{name} passes: take it off the list")


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_recurrent_operators_match_onnxruntime(kind, direction):
    onnxruntime = pytest.importorskip("onnxruntime")
    rng = np.random.default_rng(0)
    gates, both = {"LSTM": 4, "GRU": 3}[kind], 2 if direction == "bidirectional" else 1
    shapes = {"w": (both, gates * 5, 3), "r": (both, gates * 5, 5), "b": (both, 2 * gates * 5)}
    weights = [onnx.numpy_helper.from_array(rng.standard_normal(s).astype(np.float32), n) for n, s in shapes.items()]
    extra = {"linear_before_reset": 1} if kind == "GRU" else {}
    node = onnx.helper.make_node(
        kind, ["x", "w", "r", "b"], ["y", "h"], hidden_size=5, direction=direction, name="cells", **extra
    )
    values = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in {"x": (7, "batch", 3), "y": (7, both, "batch", 5), "h": (both, "batch", 5)}.items()
    ]
    graph = onnx.helper.make_graph([node], "recurrent", values[:1], values[1:], weights)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    x = rng.standard_normal((7, 2, 3)).astype(np.float32)
    with torch.no_grad():
        seen = torch_view(normalise(model))(torch.from_numpy(x))
    for ours, expected in zip(seen, session.run(None, {"x": x}), strict=True):
        np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-5, atol=1e-6)
