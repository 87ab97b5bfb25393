"""What a calibration pass observed, kept by content: the same network on the same samples is not run twice.

The key is a hash over the graph, what is asked of it, the samples' bytes and their preprocessing, and the runtime
with its version. Files lie in edgekit's cache folder (`EDGEKIT_CACHE`, by default `~/.cache/edgekit`).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgekit.agent.unpack import cache_folder
from edgekit.extras import DISTRIBUTION
from edgekit.graph.large import fingerprint
from edgekit.quant.channels import Channels
from edgekit.quant.histogram import Histogram
from edgekit.quant.observe import Observed
from edgekit.quant.session import streaming_runtime

if TYPE_CHECKING:
    import onnx

FORMAT = "2"
KEPT_BYTES = 2**30
"""The oldest files go when all together are larger."""


def key_of(
    proto: onnx.ModelProto, asked: Sequence[str], samples: Iterable[npt.NDArray[Any]], about: Sequence[str]
) -> str:
    """A hash over everything that an observation depends on. `about` says how samples become inputs."""
    total = hashlib.sha256()
    texts = (FORMAT, metadata.version(DISTRIBUTION), *streaming_runtime(), *asked, *about)
    for data in (fingerprint(proto), *(text.encode() for text in texts)):
        total.update(len(data).to_bytes(8, "big") + data)
    for array in samples:
        total.update(f"{array.dtype.str} {array.shape}".encode())
        total.update(np.ascontiguousarray(array).view(np.uint8).data if array.size else b"")
    return total.hexdigest()


def kept(key: str, make: Callable[[], Observed]) -> tuple[Observed, bool]:
    """What is kept under `key`, else what `make` observes, which is then kept; and whether it was there."""
    where = cache_folder() / "calibration"
    path = where / f"{key}.npz"
    found = _read(path)
    if found is not None:
        with contextlib.suppress(OSError):
            path.touch()
        return found, True
    observed = make()
    # A cache that cannot be written (a full disk, a read-only home) is none, and no reason to stop.
    with contextlib.suppress(OSError):
        _write(path, observed)
        _prune(where)
    return observed, False


def _write(path: Path, observed: Observed) -> None:
    arrays: dict[str, npt.NDArray[Any]] = {"samples": np.array(observed.samples)}
    histograms = list(observed.histograms.values())
    arrays["histograms/names"] = np.array(list(observed.histograms), dtype=np.str_)
    arrays["histograms/counts"] = np.array([h.counts for h in histograms])
    arrays["histograms/facts"] = np.array([(h.low, h.high, h.start, h.width, h.zeros) for h in histograms])
    for what, entries in (("channels", observed.channels), ("means", observed.means), ("moments", observed.moments)):
        arrays[f"{what}/names"] = np.array(list(entries), dtype=np.str_)
    for i, channels in enumerate(observed.channels.values()):
        arrays[f"channels/{i}"] = np.stack([channels.low, channels.high, channels.square])
    for i, mean in enumerate(observed.means.values()):
        arrays[f"means/{i}"] = mean
    for i, blocks in enumerate(observed.moments.values()):
        arrays[f"moments/{i}"] = np.array(len(blocks))
        arrays |= {f"moments/{i}/{j}": block for j, block in enumerate(blocks)}
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".part-")
    try:
        with os.fdopen(handle, "wb") as stream:
            np.savez(stream, allow_pickle=False, **arrays)
        Path(name).replace(path)
    finally:
        Path(name).unlink(missing_ok=True)


def _read(path: Path) -> Observed | None:
    """None where there is no such file, or a damaged one."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            names = {what: arrays[f"{what}/names"].tolist() for what in ("histograms", "channels", "means", "moments")}
            facts, counts = arrays["histograms/facts"], arrays["histograms/counts"]
            histograms = {}
            for name, (low, high, start, width, zeros), count in zip(names["histograms"], facts, counts, strict=True):
                ends = {"low": float(low), "high": float(high), "start": float(start), "width": float(width)}
                histograms[name] = Histogram(**ends, zeros=float(zeros), counts=count)
            channels = {name: Channels(*arrays[f"channels/{i}"]) for i, name in enumerate(names["channels"])}
            means = {name: arrays[f"means/{i}"] for i, name in enumerate(names["means"])}
            moments = {
                name: [arrays[f"moments/{i}/{j}"] for j in range(int(arrays[f"moments/{i}"]))]
                for i, name in enumerate(names["moments"])
            }
            return Observed(histograms, channels, means, moments, int(arrays["samples"]))
    except Exception:  # whatever numpy and zipfile make of a damaged file: it is observed again
        return None


def _prune(where: Path) -> None:
    files = sorted(where.glob("*.npz"), key=lambda path: path.stat().st_mtime, reverse=True)
    total = 0
    for path in files:
        total += path.stat().st_size
        if total > KEPT_BYTES:
            path.unlink(missing_ok=True)
