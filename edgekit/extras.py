"""Optional packages: imported where they are used; a missing one says what to type."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import ModuleType

from edgekit.errors import MissingDependencyError

DISTRIBUTION = "edgekit-toolchain"
REPORTERS = ("openvino_telemetry",)
"""Packages with which dependencies report usage, by default and unasked, on their own import."""


def pip_command(extra: str) -> str:
    """The exact line that installs an extra.

    >>> pip_command("openvino")
    "pip install 'edgekit-toolchain[openvino]'"
    """
    return f"pip install '{DISTRIBUTION}[{extra}]'"


def require(package: str, *, extra: str, why: str) -> ModuleType:
    """Import `package`, or raise with the pip command for `extra`. `why` reads like "compiling for OpenVINO".

    Raises:
        MissingDependencyError: the package, or one that it needs, is not installed.
    """
    try:
        with _unreported():
            return importlib.import_module(package)
    except ImportError as error:
        root = package.partition(".")[0]
        absent = isinstance(error, ModuleNotFoundError) and error.name == root
        seen = "" if absent else f" (importing it failed: {error})"
        raise MissingDependencyError(
            f"{why} needs the package {root!r}{seen}. Install it: {pip_command(extra)}"
        ) from error


@contextmanager
def _unreported() -> Iterator[None]:
    """Packages imported inside find no reporter and take their own stub; nothing of the user's home is touched."""
    hidden = [name for name in REPORTERS if name not in sys.modules]
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        for name in hidden:
            sys.modules.pop(name, None)


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """The message for a name that no table holds, with a guess where one is near.

    >>> unknown("backend", "tensort", ["onnxruntime", "tensorrt"])
    "Unknown backend 'tensort'. Did you mean 'tensorrt'? Available: onnxruntime, tensorrt."
    """
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1)
    guess = f" Did you mean {near[0]!r}?" if near else ""
    return f"Unknown {kind} {name!r}.{guess} Available: {', '.join(known)}."
