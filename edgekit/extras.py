"""Optional packages: imported where they are used; a missing one says what to type."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType

from edgekit.errors import MissingDependencyError

DISTRIBUTION = "edgekit-toolchain"


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
        return importlib.import_module(package)
    except ImportError as error:
        root = package.partition(".")[0]
        absent = isinstance(error, ModuleNotFoundError) and error.name == root
        seen = "" if absent else f" (importing it failed: {error})"
        raise MissingDependencyError(
            f"{why} needs the package {root!r}{seen}. Install it: {pip_command(extra)}"
        ) from error


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """The message for a name that no table holds, with a guess where one is near.

    >>> unknown("backend", "tensort", ["onnxruntime", "tensorrt"])
    "Unknown backend 'tensort'. Did you mean 'tensorrt'? Available: onnxruntime, tensorrt."
    """
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1)
    guess = f" Did you mean {near[0]!r}?" if near else ""
    return f"Unknown {kind} {name!r}.{guess} Available: {', '.join(known)}."
