"""Where models come from: `file.py:function` with weights, a `torch.export` archive, or an ONNX file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.errors import BuildError, UsageError
from edgekit.extras import require
from edgekit.model import Model, OnnxModel, TensorSpec, TorchModel
from edgekit.usercode import call_function

if TYPE_CHECKING:
    import onnx
    import torch
    from torch import nn

WHY = "reading a PyTorch model"
NESTED = ("state_dict", "model_state_dict", "model")
"""Keys under which training scripts commonly keep the state dict in a checkpoint."""


def load_model(
    source: str,
    *,
    weights: Path | None = None,
    inputs: Mapping[str, TensorSpec] | None = None,
    base: Path = Path(),
    name: str | None = None,
) -> Model:
    """The model that a recipe's `source` names; relative paths start at `base`.

    `model.py:build` gives a `TorchModel` (with `weights` loaded, if any) whose reference is exported from it as it
    came; `.pt2` and `.onnx` give an `OnnxModel`. `inputs` is required for Python sources, checked for the others.

    Raises:
        UsageError: the source, its weights or its inputs cannot be used as they are.
        MissingDependencyError: the extra `torch` or `onnx` is needed and absent.

    >>> image = TensorSpec("image", "float32", ("batch", 1, 28, 28))
    >>> model = load_model("examples/fashion_mnist/model.py:build", inputs={"image": image})
    >>> model.outputs[0].shape
    ('batch', 10)
    """
    suffix = Path(source).suffix.lower()
    path_text, colon, function = source.rpartition(":")
    if colon and path_text.lower().endswith(".py"):
        file = _existing(base / path_text, source)
        return _from_python(file, function, weights and base / weights, inputs, name or file.parent.resolve().name)
    if suffix not in (".onnx", ".pt2"):
        raise UsageError(
            f"model source {source!r}: expected 'file.py:function', a '.pt2' file or an '.onnx' file. "
            "A '.pt' or '.safetensors' file holds weights alone: name the function that builds the model as the "
            "source, and that file under 'weights'."
        )
    if weights is not None:
        raise UsageError(f"model source {source!r} holds its own weights: remove 'weights: {weights}'.")
    file = _existing(base / source, source)
    return (_from_onnx if suffix == ".onnx" else _from_pt2)(file, inputs, name or file.stem)


def _existing(path: Path, source: str) -> Path:
    if not path.is_file():
        raise UsageError(f"model source {source!r}: there is no file {path}.")
    return path


def _from_onnx(file: Path, inputs: Mapping[str, TensorSpec] | None, name: str) -> OnnxModel:
    require("onnx", extra="onnx", why="reading an ONNX model")
    from edgekit.graph.io import load_onnx

    return _graph(load_onnx(file), inputs, file, name)


def _graph(proto: onnx.ModelProto, declared: Mapping[str, TensorSpec] | None, file: Path, name: str) -> OnnxModel:
    from edgekit.graph.normalise import normalise
    from edgekit.graph.tools import tensor_specs

    proto = normalise(proto)
    inputs, outputs = tensor_specs(proto)
    model = OnnxModel(name=name, proto=proto, inputs=inputs, outputs=outputs)
    _check_inputs(model, declared, file)
    return model


def _check_inputs(model: OnnxModel, declared: Mapping[str, TensorSpec] | None, file: Path) -> None:
    """A recipe may repeat a graph's inputs; if it does, they must be the graph's own."""
    if not declared:
        return
    actual = {spec.name: spec for spec in model.inputs}
    if set(declared) != set(actual):
        raise UsageError(f"{file}: the recipe names the inputs {sorted(declared)}, the file has {sorted(actual)}.")
    for key, spec in declared.items():
        seen = actual[key]
        dims = zip(spec.shape, seen.shape, strict=False)
        fits = len(spec.shape) == len(seen.shape) and all(
            isinstance(b, str) or (isinstance(a, int) and a == b) for a, b in dims
        )
        if spec.dtype != seen.dtype or not fits:
            raise UsageError(
                f"{file}: input {key!r} is {seen.dtype}{list(seen.shape)}, the recipe says "
                f"{spec.dtype}{list(spec.shape)}. Correct it or leave 'inputs' out: it is read from the file."
            )


def _from_pt2(file: Path, inputs: Mapping[str, TensorSpec] | None, name: str) -> OnnxModel:
    require("torch", extra="torch", why="reading a torch.export archive")
    from edgekit.pt2 import load_program, program_to_onnx

    return _graph(program_to_onnx(load_program(file), inputs or {}, file), inputs, file, name)


def _from_python(
    file: Path, function: str, weights: Path | None, inputs: Mapping[str, TensorSpec] | None, name: str
) -> TorchModel:
    torch = require("torch", extra="torch", why=WHY)
    from edgekit.graph.crossing import export_module

    source = f"{file}:{function}"
    if not inputs:
        raise UsageError(f"model source '{source}': its inputs are unknown. Name them and their shapes under 'inputs'.")
    module = _build(file, function, torch)
    if weights is not None:
        load_weights(module, weights)
    module.eval()
    specs = tuple(inputs.values())
    _try_forward(module, specs, source, torch)
    try:
        reference = export_module(module, specs, name)
    except BuildError as error:  # of no backend: this model cannot be a source
        raise UsageError(f"model source '{source}': {error}") from error
    return TorchModel(name=name, module=module, inputs=specs, outputs=reference.outputs, reference=reference)


def _build(file: Path, function: str, torch: Any) -> nn.Module:
    module = call_function(file, function)
    if not isinstance(module, torch.nn.Module):
        raise UsageError(f"{file}:{function}() returned {type(module).__name__}: it must return a torch.nn.Module.")
    built: nn.Module = module
    return built


def _try_forward(module: nn.Module, inputs: tuple[TensorSpec, ...], source: str, torch: Any) -> None:
    """Run once on zeros, so that inputs that don't fit are said before anything long starts."""
    try:
        arrays = [torch.zeros(spec.sized(2), dtype=getattr(torch, spec.dtype)) for spec in inputs]
        with torch.no_grad():
            module(*arrays)
    except (Exception, SystemExit) as error:
        shapes = ", ".join(f"{spec.name} {spec.dtype}{list(spec.sized(2))}" for spec in inputs)
        first = str(error).strip().partition("\n")[0]
        raise UsageError(
            f"model source '{source}' fails on inputs of the recipe's shapes ({shapes}): "
            f"{type(error).__name__}: {first}. Correct 'inputs'."
        ) from error


def load_weights(module: nn.Module, file: Path) -> None:
    """Fill `module` from a `.safetensors` file or a weights-only `.pt`/`.pth` file, every name and shape checked.

    Raises:
        UsageError: no such file, a damaged one, one that holds pickled code, or weights of another model.
    """
    state = read_state(file)
    own = module.state_dict()
    missing = sorted(set(own) - set(state))
    unexpected = sorted(set(state) - set(own))
    other = [k for k in own if k in state and own[k].shape != state[k].shape]
    problems = [
        f"{len(names)} {word} ({_first(texts)})"
        for word, names, texts in (
            ("missing", missing, [f"{k} {list(own[k].shape)}" for k in missing]),
            ("unexpected", unexpected, [f"{k} {list(state[k].shape)}" for k in unexpected]),
            ("of another shape", other, [f"{k} {list(state[k].shape)} for {list(own[k].shape)}" for k in other]),
        )
        if names
    ]
    if problems:
        raise UsageError(f"weights {file} don't fit the model: {'; '.join(problems)}.")
    broken = sorted(k for k, v in state.items() if v.is_floating_point() and not bool(v.isfinite().all()))
    if broken:
        raise UsageError(f"weights {file} hold NaN or infinity in {_first(broken)}: this is not a trained model.")
    module.load_state_dict(state)


def _first(texts: list[str], count: int = 3) -> str:
    return ", ".join(texts[:count]) + (", ..." if len(texts) > count else "")


def read_state(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of a weights file by name. Nothing in the file is ever executed."""
    if not file.is_file():
        raise UsageError(f"there is no weights file {file}.")
    suffix = file.suffix.lower()
    if suffix == ".safetensors":
        safetensors = require("safetensors.torch", extra="torch", why="reading .safetensors weights")
        try:
            return dict(safetensors.load_file(str(file)))
        except Exception as error:
            raise UsageError(f"weights {file} are not a readable safetensors file: {error}.") from error
    if suffix not in (".pt", ".pth"):
        raise UsageError(f"weights {file}: expected a .safetensors, .pt or .pth file.")
    return _read_pickled(file)


def _read_pickled(file: Path) -> dict[str, torch.Tensor]:
    import pickle
    import warnings

    torch = require("torch", extra="torch", why=WHY)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))  # torch goes on with how to run the code
        found = f" ({named[1]})" if named else ""
        raise UsageError(
            f"weights {file} hold more than tensors{found}, which would run code when read, so they are refused. "
            "Save the weights alone: safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')."
        ) from error
    except Exception as error:
        first = str(error).strip().partition("\n")[0].partition(". In PyTorch 2.6")[0]
        seen = ": ".join([type(error).__name__, *([first] if first else [])])
        raise UsageError(
            f"weights {file} cannot be read ({seen}). Save them with torch.save(model.state_dict(), path)."
        ) from error
    for key in NESTED:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    tensors = isinstance(content, dict) and content and all(isinstance(v, torch.Tensor) for v in content.values())
    if not tensors:
        raise UsageError(f"weights {file} hold no state dict (names to tensors) but {type(content).__name__}.")
    return {str(name).removeprefix("module."): value for name, value in content.items()}
