"""Functions of the user's own, named `module.py:function` in a recipe: the one place that runs them in."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgekit.errors import UsageError


def is_function(source: str) -> bool:
    """Whether a source has the form `module.py:function`.

    >>> is_function("model.py:build"), is_function("model.onnx")
    (True, False)
    """
    file, _, function = source.rpartition(":")
    return file.endswith(".py") and function.isidentifier()


def load_function(source: str, base: Path = Path()) -> Callable[..., Any]:
    """Import `module.py` (relative to `base`) with its folder importable, and return `function` of it.

    Raises:
        UsageError: no such file or function, or the module fails to import.
    """
    file, _, name = source.rpartition(":")
    path = (base / file).resolve()
    if not path.is_file():
        raise UsageError(f"{source}: no such file: {path}. Give `module.py:function`, relative to the recipe's folder.")
    alias = f"_edgekit_user_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(alias, path)
    assert spec is not None and spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    sys.modules[alias] = module  # dataclasses and pickling look modules up by name
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        sys.modules.pop(alias, None)
        raise UsageError(f"{source}: importing {path} failed: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(str(path.parent))
    function = getattr(module, name, None)
    if not callable(function):
        offered = ", ".join(n for n, v in vars(module).items() if callable(v) and not n.startswith("_"))
        raise UsageError(f"{source}: {path} has no function {name!r}. It has: {offered or 'none'}.")
    return function  # type: ignore[no-any-return]
