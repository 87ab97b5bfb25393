"""Reading a `torch.export` archive without running anything that it holds.

`torch.export.load` unpickles some members, evaluates shape expressions and guards as Python, resolves operator
names below `torch.` and loads shared libraries of compiled models. So every member is checked first, and only what
passed is handed on, in an archive written anew (a second reader can't see members that the check didn't).
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import logging
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.errors import UsageError
from edgekit.extras import require
from edgekit.model import TensorSpec

if TYPE_CHECKING:
    import onnx
    from torch.export import ExportedProgram

_OPERATOR = re.compile(r"torch\.ops\.(aten|prims)\.[a-z_0-9]*[a-z0-9][a-z_0-9]*\.[A-Za-z_0-9]+")
_PYTHON_OPERATORS = re.compile(
    r"_operator\.(add|sub|mul|floordiv|truediv|mod|neg|pow|getitem|eq|ne|lt|le|gt|ge|and_|or_)|math\.(trunc|ceil|floor)"
)
_CALLABLE = re.compile(
    r"Symbol|Integer|Max|Min|Mod|PythonMod|FloorDiv|CeilDiv|CleanDiv|ModularIndexing|Eq|Ne|Lt|Le|Gt|Ge|size"
)
_ALLOWED_NODES = (
    ast.Expression, ast.Constant, ast.Name, ast.Load, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.Call,
    ast.keyword, ast.Subscript, ast.Attribute, ast.operator, ast.unaryop, ast.boolop, ast.cmpop,
)  # fmt: skip


def load_program(file: Path) -> ExportedProgram:
    """The program in a `.pt2` archive.

    Raises:
        UsageError: not an archive of `torch.export.save`, of another torch version, or one that holds code.
    """
    torch = require("torch", extra="torch", why="reading a torch.export archive")
    checked = io.BytesIO()
    try:
        with zipfile.ZipFile(file) as source, zipfile.ZipFile(checked, "w", zipfile.ZIP_STORED) as target:
            names = source.namelist()
            if len(names) != len(set(names)):
                raise UsageError(f"{file} holds two members of one name: refused.")
            if any(info.compress_type != zipfile.ZIP_STORED for info in source.infolist()):
                raise UsageError(f"{file} is compressed, which torch.export.save never does: refused.")
            for name in names:
                content = source.read(name)
                _check_member(file, name, content, torch)
                target.writestr(name, content)
    except (zipfile.BadZipFile, EOFError, OSError) as error:
        raise UsageError(f"{file} is not a torch.export archive, or is damaged: {error}.") from error
    checked.seek(0)
    try:
        return torch.export.load(checked)  # type: ignore[no-any-return]
    except Exception as error:
        first = str(error).strip().partition("\n")[0]
        raise UsageError(
            f"{file} cannot be read by torch {torch.__version__}: {type(error).__name__}: {first}. "
            "Save it again with torch.export.save of this version."
        ) from error


def program_to_onnx(program: ExportedProgram, declared: Mapping[str, TensorSpec], file: Path) -> onnx.ModelProto:
    """The program as an ONNX graph; inputs and dynamic axes bear the names in `declared`, where it has them.

    Raises:
        UsageError: the program takes another number of inputs, or cannot be exported.
    """
    torch = require("torch", extra="torch", why="reading a torch.export archive")
    require("onnx", extra="onnx", why="exporting a torch.export archive to ONNX")
    from edgekit.graph.normalise import MIN_OPSET

    names = list(program.graph_signature.user_inputs)
    if declared and len(declared) != len(names):
        raise UsageError(f"{file} takes {len(names)} inputs ({', '.join(map(str, names))}), not {len(declared)}.")
    count = len(program.graph_signature.user_outputs)
    try:
        with _quiet():
            exported = torch.onnx.export(
                program,
                input_names=list(declared) or names,
                output_names=["output"] if count == 1 else [f"output_{i}" for i in range(count)],
                opset_version=MIN_OPSET,
                dynamo=True,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        reason = " ".join(str(error.__cause__ or error).split())[:400]
        raise UsageError(f"{file} cannot be exported to ONNX: {reason}") from error
    proto: onnx.ModelProto = exported.model_proto
    _name_axes(proto, declared)
    return proto


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter prints its progress and warns of things that its user cannot change."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _name_axes(proto: onnx.ModelProto, declared: Mapping[str, TensorSpec]) -> None:
    """Give dynamic axes their declared names; a first axis without one is the batch."""
    names: dict[str, str] = {}
    for value in proto.graph.input:
        spec = declared.get(value.name)
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            wanted = spec.shape[axis] if spec is not None and axis < len(spec.shape) else None
            if dim.dim_param and (isinstance(wanted, str) or axis == 0):
                names.setdefault(dim.dim_param, wanted if isinstance(wanted, str) else "batch")
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in names:
                dim.dim_param = names[dim.dim_param]


def _check_member(file: Path, name: str, content: bytes, torch: Any) -> None:
    inner = name.partition("/")[2]
    if inner.startswith("models/") and inner.endswith(".json"):
        _check_graph(file, _json(file, name, content))
    elif inner.endswith("_config.json"):
        _check_payloads(file, _json(file, name, content))
    elif inner.startswith("data/sample_inputs/"):
        try:
            torch.load(io.BytesIO(content), weights_only=True)
        except Exception as error:
            raise _refused(file, f"sample inputs {name} are more than tensors") from error
    elif inner.startswith("data/aotinductor/") or inner.endswith((".so", ".pt", ".pkl")):
        raise _refused(file, f"member {name} would be run or unpickled")


def _refused(file: Path, what: str) -> UsageError:
    return UsageError(
        f"{file} holds code that would run when it is read ({what}), so it is refused. "
        "Export the model to ONNX, or name its Python source and weights instead."
    )


def _json(file: Path, name: str, content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError as error:
        raise UsageError(f"{file}: member {name} is not JSON: {error}.") from error


def _check_payloads(file: Path, config: Any) -> None:
    for key, entry in _dictionaries(config):
        path = str(entry.get("path_name", ""))
        if entry.get("use_pickle") or path.startswith(("custom_obj", "opaque_obj")):
            raise _refused(file, f"{key} is a pickled object")


def _check_graph(file: Path, graph: Any) -> None:
    for _, entry in _dictionaries(graph):
        target: Any = entry.get("target")
        is_node = "inputs" in entry and "outputs" in entry and isinstance(target, str)
        if is_node and not (_PYTHON_OPERATORS.fullmatch(target) or _OPERATOR.fullmatch(target)):
            raise _refused(file, f"operator {target!r}")
        for text in (entry.get("expr_str"), *_guards(entry)):
            if text is not None and not _harmless(text):
                raise _refused(file, f"expression {text!r}")


def _guards(entry: dict[str, Any]) -> list[Any]:
    guards = entry.get("guards_code") or []
    return guards if isinstance(guards, list) else [guards]


def _dictionaries(value: Any, key: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(value, dict):
        yield key, value
        for name, child in value.items():
            yield from _dictionaries(child, name)
    elif isinstance(value, list):
        for child in value:
            yield from _dictionaries(child, key)


def _harmless(text: Any) -> bool:
    """Whether an expression holds arithmetic and comparisons on symbols alone."""
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, TypeError, ValueError, RecursionError):
        return False
    for node in ast.walk(tree):
        if not isinstance(node, _ALLOWED_NODES):
            return False
        if isinstance(node, ast.Name) and "__" in node.id:
            return False
        if isinstance(node, ast.Attribute) and node.attr not in ("size", "shape", "ndim"):
            return False
        if isinstance(node, ast.Call):
            called = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            if not _CALLABLE.fullmatch(called):
                return False
            if called == "Symbol" and not all(isinstance(a, ast.Constant) for a in node.args):
                return False
    return True
