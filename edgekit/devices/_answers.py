"""What a board answers, before anything of it is used: the board may be broken, or hostile.

Raises of all functions: DeviceError, naming the board, where an answer is not one that edgekit's agent gives.
"""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgekit.bundle import Bundle
from edgekit.errors import DeviceError

LARGEST_OUTPUTS = 1 << 30
"""Bytes, where the manifest leaves the size of the outputs open."""


def nonsense(name: str) -> DeviceError:
    """The error for a result that cannot be."""
    return DeviceError(f"{name}: the board's result is not one of edgekit's agent. Nothing of it was used.")


def last_line(name: str, text: str) -> dict[str, Any]:
    """The JSON object on the last line of what the agent printed."""
    lines = text.splitlines()
    try:
        found = json.loads(lines[-1]) if lines else None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise nonsense(name)
    return found


def latencies(name: str, values: Any) -> tuple[float, ...]:
    """Latencies in seconds, as far as they can be."""
    if not isinstance(values, list) or not values:
        raise nonsense(name)
    if any(type(v) not in (int, float) or not math.isfinite(v) or not 0 < v < 1e5 for v in values):
        raise nonsense(name)
    return tuple(map(float, values))


def turns(name: str, rounds: Any, count: int) -> list[dict[str, Any]]:
    """`count` rounds, each of turns of four blocks of latencies."""
    if not isinstance(rounds, list) or len(rounds) != count:
        raise nonsense(name)
    for told in rounds:
        taken = told.get("samples_s") if isinstance(told, dict) else None
        if not isinstance(taken, list) or not taken:
            raise nonsense(name)
        for turn in taken:
            if not isinstance(turn, list) or len(turn) != 4:
                raise nonsense(name)
            for block in turn:
                latencies(name, block)
    return rounds


def check_outputs(name: str, path: Path, bundle: Bundle) -> None:
    """An archive that is none, or would grow when it is read, is removed."""
    wanted = sorted(f"{entry.name}.npy" for entry in bundle.manifest.outputs)
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):  # the last: zipfile's, of odd archives
        members = []
    if sorted(m.filename for m in members) != wanted or any(m.compress_size != m.file_size for m in members):
        path.unlink(missing_ok=True)
        raise nonsense(name)


def most_bytes(bundle: Bundle, info: Mapping[str, Any]) -> int:
    """Bytes that the outputs can have, by the manifest; with some to spare for the archive around them."""
    import numpy as np

    count, total = info.get("samples"), 0
    for entry in bundle.manifest.outputs:
        inner = entry.shape[1:]
        if not isinstance(count, int) or count < 0 or not all(isinstance(n, int) for n in inner):
            return LARGEST_OUTPUTS
        total += count * math.prod(int(n) for n in inner) * np.dtype(entry.dtype).itemsize + 4096
    return total + (1 << 16)
