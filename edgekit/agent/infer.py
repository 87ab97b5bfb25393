"""Samples through the model: preprocessing, batches of the size that the model takes, results in order."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import arrays, output, state
from .failures import USAGE, Failure, missing, usage
from .preprocess import check, preprocess

IN_FLOAT = ("session.disable_quant_qdq", "1")
"""Has ONNX Runtime compute what lies between quantizing and dequantizing in float: slower, and by exact sums."""


def runner_module(folder: Path, manifest: dict[str, Any]) -> Any:
    """The module that runs the bundle's backend, with its runtime imported.

    A backend from elsewhere brings its runner among the model's files: `manifest.runner.module` names it.
    """
    own = manifest["runner"].get("module")
    if own is None:
        module = importlib.import_module("." + manifest["backend"], __package__ + ".runners")
        module.runtime(manifest)
        return module
    spec = importlib.util.spec_from_file_location("edgekit_runner", folder / own)
    if spec is None or spec.loader is None:
        raise usage(f"the bundle's runner {own!r} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    with _needed(manifest):
        spec.loader.exec_module(module)
    return module


def make_runner(folder: Path, manifest: dict[str, Any], threads: int, batch: int, kind: str = "Runner") -> Any:
    """The runner with the model loaded, the class `kind` of its module; one call gets at most `batch` samples."""
    module = runner_module(folder, manifest)
    with _needed(manifest):
        return getattr(module, kind)(folder, manifest, threads, batch)


@contextlib.contextmanager
def _needed(manifest: dict[str, Any]) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise missing(error.name or manifest["backend"], "running this bundle", error) from error


def batch_size(manifest: dict[str, Any], wanted: int) -> int:
    """`wanted` where the first axis of every input is dynamic, otherwise the size that the model is fixed to."""
    fixed = [entry["shape"][0] for entry in manifest["inputs"] if entry["shape"] and isinstance(entry["shape"][0], int)]
    if len(set(fixed)) > 1:
        raise usage(
            f"the model's inputs have the batch sizes {', '.join(map(str, fixed))}: they cannot be cut into samples"
        )
    return int(fixed[0]) if fixed else wanted


def ready(array: Any, entry: dict[str, Any]) -> bool:
    """Whether `array` `[N, ...]` has the type and shape of the model's input and needs no preprocessing."""
    shape = entry["shape"]
    fits = array.ndim == len(shape) and all(isinstance(d, str) or d == n for d, n in zip(shape[1:], array.shape[1:]))
    return bool(fits and array.dtype == np.dtype(entry["dtype"]))


class Samples:
    """The inputs of a run: raw or ready arrays `[N, ...]`, one for each input of the model, given out in chunks."""

    def __init__(self, sources: Sequence[Any], manifest: dict[str, Any]) -> None:
        self.sources, self.entries, self.settings = sources, manifest["inputs"], manifest["preprocess"]
        lengths = {len(source) if source.ndim else 0 for source in sources}
        if len(lengths) != 1 or 0 in lengths:
            raise usage(f"the inputs hold {sorted(lengths)} samples: each needs the same number, at least one")
        self.count = lengths.pop()
        for source, entry in zip(sources, self.entries):
            self._fit(source, entry)

    def chunk(self, start: int, size: int) -> list[Any]:
        """Model inputs for samples `start` to `start + size`; the last sample is repeated to fill up."""
        return [self._prepared(source, entry, start, size) for source, entry in zip(self.sources, self.entries)]

    def _prepared(self, source: Any, entry: dict[str, Any], start: int, size: int) -> Any:
        part = np.asarray(source[start : start + size])
        if not ready(source, entry):
            s = self.settings
            part = preprocess(part, s["scale"], s["offset"], s["layout"], s["to"]).astype(entry["dtype"], copy=False)
        if part.dtype.kind == "f" and not np.isfinite(part).all():
            broken = start + int(np.isfinite(part.reshape(len(part), -1)).all(axis=1).argmin())
            raise usage(f"input {entry['name']} holds NaN or infinity in sample {broken}")
        if len(part) < size:
            part = np.concatenate([part, np.repeat(part[-1:], size - len(part), axis=0)])
        return np.ascontiguousarray(part)

    def _fit(self, source: Any, entry: dict[str, Any]) -> None:
        if ready(source, entry):
            return
        seen, expected = f"{source.dtype} {list(source.shape)}", f"{entry['dtype']} {entry['shape']}"
        if source.dtype.kind not in "biuf":
            raise usage(f"input {entry['name']} expects {expected}, got {seen}")
        s = self.settings
        try:
            check(source.shape, s["scale"], s["offset"], s["layout"], s["to"])
        except ValueError as error:
            raise usage(f"input {entry['name']} expects {expected}, got {seen}, which does not fit: {error}") from error
        made = preprocess(np.zeros((1, *source.shape[1:]), source.dtype), s["scale"], s["offset"], s["layout"], s["to"])
        if not ready(made.astype(entry["dtype"]), entry):
            raise usage(f"input {entry['name']} expects {expected}, got {seen}, preprocessed to {list(made.shape)}")


def outputs_of(runner: Any, samples: Samples, batch: int) -> Iterator[list[Any]]:
    """The model's outputs, chunk by chunk; arrays `[n, ...]` with `n <= batch`."""
    for start in range(0, samples.count, batch):
        left = min(batch, samples.count - start)
        yield [np.asarray(array)[:left] for array in runner.infer(samples.chunk(start, batch))]


def run(archive: Any, options: Any) -> dict[str, Any]:
    """All samples of the file `inputs` through the model, to the file `outputs`. Memory stays flat."""
    manifest = in_float(archive.manifest) if options.exact else archive.manifest
    names = [entry["name"] for entry in manifest["inputs"]]
    samples = Samples(arrays.read(options.inputs, names), manifest)
    size = batch_size(manifest, min(options.batch, samples.count))
    runner = make_runner(archive.unpack(), manifest, options.threads, size)
    writer = arrays.Writer(options.outputs, [entry["name"] for entry in manifest["outputs"]], samples.count)
    started, told = time.perf_counter(), 0.0
    try:
        for chunk in outputs_of(runner, samples, size):
            _complete(chunk, manifest)
            writer.add(chunk)
            if options.progress and time.perf_counter() - told > 0.1:
                told = time.perf_counter()
                print(json.dumps({"done": writer.done, "of": samples.count}), file=sys.stderr, flush=True)
        output.allow()
        writer.finish()
    finally:
        writer.close()
    return {
        "samples": samples.count,
        "batch": size,
        "threads": options.threads,
        "seconds": time.perf_counter() - started,
        "peak_rss_bytes": state.peak_rss()[0],
        "versions": runner.versions,
    }


def in_float(manifest: dict[str, Any]) -> dict[str, Any]:
    """The manifest for ONNX Runtime's kernels in float: where those for 8 bits overflow, these do not."""
    runner = manifest["runner"]
    session = {**runner.get("session", {}), IN_FLOAT[0]: IN_FLOAT[1]}
    return {**manifest, "runner": {**runner, "session": session}}


def _complete(chunk: Sequence[Any], manifest: dict[str, Any]) -> None:
    names = [entry["name"] for entry in manifest["outputs"]]
    if len(chunk) != len(names):
        raise Failure(USAGE, f"the model gave {len(chunk)} outputs, the manifest names {', '.join(names)}")
