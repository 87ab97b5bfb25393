"""Latency of single inferences: one run that ends by itself, or blocks on request so that two can take turns."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from . import arrays, output, state, stats, watch
from .failures import usage
from .infer import Samples, batch_size, make_runner

DISTINCT, INPUT_BYTES = 64, 64_000_000
"""The most different inputs that are held ready, and the most memory for them (but two are held in any case)."""

EXTENSION = 4
"""How many times as long a run may last as its stop rule asks for, while the device has not become steady."""


class Subject:
    """A loaded model with inputs at hand, and what it took to get there."""

    def __init__(self, archive: Any, inputs: str, threads: int) -> None:
        manifest = archive.manifest
        samples, batch = samples_of(archive, inputs), batch_size(manifest, 1)
        self.inputs = spread(samples, batch)
        folder = archive.unpack()
        self.before = state.read()
        resident, _ = state.rss()
        started = time.perf_counter()
        self.runner = make_runner(folder, manifest, threads, batch)
        loaded = time.perf_counter()
        self.runner.infer(self.inputs[0])
        first = time.perf_counter()
        self.turn, self.places = 1, [array.copy() for array in self.inputs[0]]
        self.info: dict[str, Any] = {
            "threads": threads,
            "batch": batch,
            "distinct_inputs": len(self.inputs),
            "affinity": affinity(),
            "load_s": loaded - started,
            "first_inference_s": first - loaded,
            "rss_before_load_bytes": resident,
            "versions": versions(self.runner),
        }

    def once(self) -> float:
        """One inference on the next input: its time in seconds.

        The input is written just before, to where all inputs stand in turn, as an application's own preprocessing
        would: it lies in the cache as far as it fits, and no time is lost to what the last inferences left there.
        """
        for place, array in zip(self.places, self.inputs[self.turn % len(self.inputs)]):
            place[...] = array
        self.turn += 1
        started = time.perf_counter()
        self.runner.infer(self.places)
        return time.perf_counter() - started

    def repeat(self, enough: Callable[[int, float], bool]) -> list[float]:
        """Times of inferences, in order, until `enough(count, seconds)`."""
        samples: list[float] = []
        started = time.perf_counter()
        while not samples or not enough(len(samples), time.perf_counter() - started):
            samples.append(self.once())
        return samples

    def block(self, wanted: float) -> list[float]:
        """Inferences for `wanted` seconds, three at least: the median of them is no first one."""
        return self.repeat(lambda count, seconds: count > 2 and seconds >= wanted)

    def warm_up(self, least: int, least_s: float, most_s: float) -> list[float]:
        """Inferences that do not count: at least so many and for so long, but no longer than `most_s`."""
        return self.repeat(lambda count, seconds: seconds >= most_s or (count >= least and seconds >= least_s))

    def finish(self, during: dict[str, Any]) -> dict[str, Any]:
        """`info` with what is known only at the end; `during` is what was seen beside the measurement."""
        peak, reason = state.peak_rss()
        self.info.update(peak_rss_bytes=peak, state={"before": self.before, **during, "after": state.read()})
        if reason:
            self.info["peak_rss_reason"] = reason
        return self.info


def bench(archive: Any, options: Any) -> dict[str, Any]:
    """Warm up, then measure until the stop rule holds.

    It asks for at least `min_seconds`, as many samples as `percentile` needs by MLPerf Inference's early-stopping rule,
    and a steady device (`stats.steadiness`): an unsteady one is measured for up to `EXTENSION` times as long.
    `max_seconds` ends the run in any case. Nothing is left out of the samples, and the result says which of these held.
    """
    if not 0 < options.percentile < 100:
        raise usage(f"--percentile must be between 0 and 100, got {options.percentile}")
    with watch.Beside(archive.path, options.threads) as beside:
        subject = Subject(archive, options.inputs, options.threads)
        beside.ready()
        subject.info["warm_up_s"] = subject.warm_up(options.warm_up, options.warm_up_seconds, options.max_seconds)
        rule = StopRule(options.percentile, options.min_seconds, options.max_seconds)
        samples: list[float] = []
        beside.begin()
        started = time.perf_counter()
        while not samples or not rule.ends(samples, time.perf_counter() - started):
            samples.append(subject.once())
        during = beside.end()
    return {**subject.finish(during), "samples_s": samples, **rule.told(samples)}


class StopRule:
    """When a run may end. It is asked after every inference, between two timings, and must cost next to nothing."""

    def __init__(self, percentile: float, min_s: float, max_s: float) -> None:
        self.percentile, self.needed = percentile, stats.least_samples(percentile)
        self.min_s, self.next_look, self.last = min_s, min_s, max_s

    def ends(self, samples: list[float], seconds: float) -> bool:
        """Whether these samples, taken in so many seconds, are enough, or time is up."""
        if seconds >= self.last:
            return True
        if seconds < self.next_look or len(samples) < self.needed:
            return False
        if self.next_look == self.min_s:
            self.last = min(self.last, seconds * EXTENSION)
        self.next_look = seconds * 1.5
        return stats.steadiness(samples)["steady"] is not False

    def told(self, samples: list[float]) -> dict[str, Any]:
        """What the run came to."""
        steadiness = stats.steadiness(samples)
        return {
            "percentile": self.percentile,
            "needed_samples": self.needed,
            "enough": len(samples) >= self.needed,
            "highest_percentile": stats.highest_percentile(len(samples)),
            "steady": steadiness.pop("steady"),
            "steadiness": steadiness,
        }


def line(result: dict[str, Any]) -> str:
    """What `bench` prints for a person: the percentiles that the samples allow, and what is wrong with them."""
    samples, highest = result["samples_s"], result["highest_percentile"] or 0
    wanted = sorted({50.0, 90.0, result["percentile"]})
    told = [f"p{p:g} {stats.percentile(samples, p) * 1e3:.3f} ms" for p in wanted if p <= highest]
    told.append(f"({len(samples)} inferences)")
    if not result["enough"]:
        allowed = f"they allow p{highest:g}" if highest else "they allow no percentile"
        told.append(f"time ran out: p{result['percentile']:g} needs {result['needed_samples']} inferences, {allowed}")
    if result["steady"] is False:
        seen = result["steadiness"]
        told.append(f"not steady: medians of four blocks differ by {seen['spread']:.1%}, trend {seen['trend']:+.1%}")
    return " ".join(told)


def serve(archive: Any, options: Any) -> None:
    """Load and warm up, then one block of inferences for every line on stdin, which holds its seconds.

    Between the blocks the process sleeps on stdin, so that another one can be measured. Ends with stdin.
    """
    with watch.Beside(archive.path, options.threads) as beside:
        subject = Subject(archive, options.inputs, options.threads)
        beside.ready()
        subject.info["warm_up_s"] = subject.warm_up(options.warm_up, options.warm_up_seconds, options.max_seconds)
        beside.begin()
        output.emit({"ready": True})
        for line in sys.stdin:
            try:
                wanted = float(line)
            except ValueError:
                raise usage(f"a line on stdin must hold the seconds of a block, got {line.strip()!r}") from None
            output.emit({"samples_s": subject.block(wanted)})
        during = beside.end()
    output.emit(subject.finish(during))


def samples_of(archive: Any, inputs: str) -> Samples:
    """The samples of the file `inputs`, or the golden ones where that is ""."""
    names = [entry["name"] for entry in archive.manifest["inputs"]]
    return Samples(arrays.read(inputs, names) if inputs else archive.golden("inputs"), archive.manifest)


def spread(samples: Samples, batch: int) -> list[list[Any]]:
    """Model inputs from all over the data (it may be sorted by class), each different from the next."""
    first = samples.chunk(0, batch)
    fit = max(2, INPUT_BYTES // max(1, sum(array.nbytes for array in first)))
    there = max(1, samples.count // batch)
    count = min(DISTINCT, fit, there)
    return [first, *(samples.chunk(i * there // count * batch, batch) for i in range(1, count))]


def affinity() -> list[int] | None:
    """The processors that this process may run on; None where the system does not tell."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None


def versions(runner: Any) -> dict[str, str]:
    """What ran: the runtime, numpy and Python."""
    return {**runner.versions, "numpy": np.__version__, "python": platform.python_version()}
