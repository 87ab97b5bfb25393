"""Functions of the user's own, named `module.py:function` in a recipe: the one place that runs them."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgekit.errors import EdgekitError, UsageError


def is_function(source: str) -> bool:
    """Whether a source has the form `module.py:function`.

    >>> is_function("model.py:build"), is_function("model.onnx")
    (True, False)
    """
    file, _, function = source.rpartition(":")
    return file.endswith(".py") and function.isidentifier()


def call_function(file: Path, function: str) -> Any:
    """Import `file`, with its siblings importable, and return what its `function()` returns.

    Raises:
        UsageError: no such file or function, or one of them raises.
    """
    _check_file(file)
    with _importable(file.parent.resolve()):
        maker = _found(file, function)
        try:
            return maker()
        except EdgekitError:
            raise
        except (Exception, SystemExit) as error:
            raise UsageError(
                f"{file}:{function}() raised {type(error).__name__}: {error}. It must work without arguments."
            ) from error


def function_of(file: Path, function: str) -> Callable[..., Any]:
    """Import `file`, and return its `function` to be called with arguments, as often as needed.

    Raises:
        UsageError: no such file or function; and whatever the function raises is one, when it is called.
    """
    _check_file(file)
    with _importable(file.parent.resolve()):
        made = _found(file, function)

    def call(*given: Any) -> Any:
        with _importable(file.parent.resolve()):
            try:
                return made(*given)
            except EdgekitError:
                raise
            except (Exception, SystemExit) as error:
                raise UsageError(f"{file}:{function} raised {type(error).__name__}: {error}.") from error

    return call


def _check_file(file: Path) -> None:
    if not file.is_file():
        raise UsageError(f"{file}: no such file. Give `module.py:function`, relative to the recipe's folder.")


def _found(file: Path, function: str) -> Callable[..., Any]:
    python = _import_file(file)
    maker = getattr(python, function, None)
    if not callable(maker):
        known = sorted(n for n, v in vars(python).items() if callable(v) and not n.startswith("_"))
        seen = f"has no function {function!r}" if maker is None else f"has a {function!r} that is not a function"
        raise UsageError(f"{file} {seen}. It defines: {', '.join(known) or 'no function at all'}.")
    found: Callable[..., Any] = maker
    return found


def _import_file(file: Path) -> Any:
    # A private name, since dataclasses and torch look a class's module up in sys.modules while it is in use.
    private = f"_edgekit_source_{hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(private, file)
    if spec is None or spec.loader is None:
        raise UsageError(f"{file} cannot be imported as Python.")
    python = importlib.util.module_from_spec(spec)
    sys.modules[private] = python
    try:
        spec.loader.exec_module(python)
    except EdgekitError:
        raise
    except (Exception, SystemExit) as error:
        del sys.modules[private]
        raise UsageError(f"importing {file} raised {type(error).__name__}: {error}.") from error
    return python


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Let a model file import its siblings; afterwards sys.path and sys.modules are as they were.

    A sibling may bear the name of a module that is loaded already (`utils`, `model`): that one is set aside.
    """
    found = {p.stem for p in folder.glob("*.py")} | {p.parent.name for p in folder.glob("*/__init__.py")}
    siblings = {name for name in found if not _installed(name)}

    def take() -> dict[str, Any]:
        return {n: sys.modules.pop(n) for n in list(sys.modules) if n.partition(".")[0] in siblings}

    aside = take()
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        take()
        sys.modules.update(aside)


def _installed(name: str) -> bool:
    """Whether `name` is part of Python, of edgekit or of an installed package: those are never set aside."""
    if name in sys.stdlib_module_names or name == "edgekit":
        return True
    file = getattr(sys.modules.get(name), "__file__", None) or ""
    return "site-packages" in file or "dist-packages" in file
