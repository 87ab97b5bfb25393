"""Latency of single inferences: one run that ends by itself, or blocks on request so that two can take turns."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from . import arrays, output, state, stats
from .failures import usage
from .infer import Samples, batch_size, make_runner

WARM_UP_COUNT, WARM_UP_S = 5, 0.3
DISTINCT = 64


class Subject:
    """A loaded model with inputs at hand, and what it took to get there."""

    def __init__(self, archive: Any, inputs: str, threads: int) -> None:
        manifest = archive.manifest
        names = [entry["name"] for entry in manifest["inputs"]]
        samples = Samples(arrays.read(inputs, names) if inputs else archive.golden("inputs"), manifest)
        folder, batch = archive.unpack(), batch_size(manifest, 1)
        count = max(1, min(DISTINCT, samples.count // batch))
        self.inputs = [samples.chunk(i * batch, batch) for i in range(count)]
        self.before = state.read()
        resident, _ = state.rss()
        started = time.perf_counter()
        self.runner = make_runner(folder, manifest, threads, batch)
        loaded = time.perf_counter()
        self.runner.infer(self.inputs[0])
        first = time.perf_counter()
        self.turn = 0
        self.info: dict[str, Any] = {
            "threads": threads,
            "batch": batch,
            "distinct_inputs": count,
            "affinity": sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
            "load_s": loaded - started,
            "first_inference_s": first - loaded,
            "rss_before_load_bytes": resident,
            "versions": versions(self.runner),
        }

    def once(self) -> float:
        """One inference on the next input: its time in seconds."""
        arrays = self.inputs[self.turn % len(self.inputs)]
        self.turn += 1
        started = time.perf_counter()
        self.runner.infer(arrays)
        return time.perf_counter() - started

    def repeat(self, enough: Callable[[int, float], bool]) -> list[float]:
        """Times of inferences, in order, until `enough(count, seconds)`."""
        samples: list[float] = []
        started = time.perf_counter()
        while not samples or not enough(len(samples), time.perf_counter() - started):
            samples.append(self.once())
        return samples

    def block(self, wanted: float) -> list[float]:
        """Inferences for `wanted` seconds."""
        return self.repeat(lambda _, seconds: seconds >= wanted)

    def warm_up(self) -> list[float]:
        """Inferences that do not count."""
        return self.repeat(lambda count, seconds: count >= WARM_UP_COUNT and seconds >= WARM_UP_S)

    def finish(self) -> dict[str, Any]:
        """`info` with what is known only at the end."""
        peak, reason = state.peak_rss()
        self.info.update(peak_rss_bytes=peak, state={"before": self.before, "after": state.read()})
        if reason:
            self.info["peak_rss_reason"] = reason
        return self.info


def bench(archive: Any, inputs: str, threads: int, percent: float, min_s: float, max_s: float) -> dict[str, Any]:
    """Warm up, then measure for at least `min_s` and as many samples as the percentile needs, `max_s` at most."""
    if not 0 < percent < 100:
        raise usage(f"--percentile must be between 0 and 100, got {percent}")
    subject = Subject(archive, inputs, threads)
    needed = stats.least_samples(percent)
    subject.info["warm_up_s"] = subject.warm_up()
    samples = subject.repeat(lambda count, seconds: seconds >= max_s or (seconds >= min_s and count >= needed))
    info = subject.finish()
    info.update(samples_s=samples, percentile=percent, needed_samples=needed, enough=len(samples) >= needed)
    return info


def serve(archive: Any, inputs: str, threads: int) -> None:
    """Load and warm up, then one block of inferences for every line on stdin, which holds its seconds.

    Between the blocks the process sleeps on stdin, so that another one can be measured. Ends with stdin.
    """
    subject = Subject(archive, inputs, threads)
    subject.info["warm_up_s"] = subject.warm_up()
    output.emit({"ready": True})
    for line in sys.stdin:
        try:
            wanted = float(line)
        except ValueError:
            raise usage(f"a line on stdin must hold the seconds of a block, got {line.strip()!r}") from None
        output.emit({"samples_s": subject.block(wanted)})
    output.emit(subject.finish())


def versions(runner: Any) -> dict[str, str]:
    """What ran: the runtime, numpy and Python."""
    return {**runner.versions, "numpy": np.__version__, "python": platform.python_version()}
