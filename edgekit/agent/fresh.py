"""What a latency must not disturb, nor be disturbed by: cold starts and peak memory, each in processes of their own."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np

from . import bench, state
from .failures import DEVICE, INTERRUPTED, Failure
from .infer import batch_size, make_runner, runner_module

PARTS = ("import_s", "load_s", "first_inference_s", "to_first_answer_s")


def cold(archive: Any, options: Any) -> dict[str, Any]:
    """Start `repeat` fresh processes one after the other, and none any more after `max_seconds` (but one at least).

    Seconds of each: `import_s` of the runtime, `load_s` of the model, `first_inference_s`, and `to_first_answer_s`
    from before the process was started: Python, the check of the bundle and all of these. The model's files are
    unpacked and read once before, so that all starts find them where the second start of a real program would.
    """
    archive.unpack()
    command = [sys.executable, "-B", archive.path, "cold", "--once", f"--threads={options.threads}"]
    command += [f"--inputs={options.inputs}"] if options.inputs else []
    seen: list[dict[str, float]] = []
    started = time.perf_counter()
    while len(seen) < options.repeat and (not seen or time.perf_counter() - started < options.max_seconds):
        seen.append(_start(command))
    result: dict[str, Any] = {"repeats": len(seen), "wanted": options.repeat, "threads": options.threads}
    for part in PARTS:
        raw = [one[part] for one in seen]
        result[part] = {"median": float(np.median(raw)), "samples": raw}
    return {**result, "affinity": bench.affinity()}


def _start(command: list[str]) -> dict[str, float]:
    """One fresh process: what it tells, with how long it took from its start to its first answer."""
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as messages:
        started = time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=messages, text=True) as process:
            try:
                assert process.stdout
                told = process.stdout.readline()
                answered = time.perf_counter() - started
            except BaseException:
                process.kill()
                raise
        messages.seek(0)
        errors = messages.read()
    if process.returncode == INTERRUPTED:
        raise KeyboardInterrupt
    if process.returncode:
        message = errors.strip().replace("edgekit: ", "", 1) or "no message"
        code = process.returncode if process.returncode > 0 else DEVICE
        raise Failure(code, f"a fresh process ended with {process.returncode}: {message}")
    return {**json.loads(told), "to_first_answer_s": answered}


def once(archive: Any, options: Any) -> dict[str, float]:
    """In a fresh process: import, load and the first inference, in seconds."""
    manifest = archive.manifest
    folder, batch = archive.unpack(), batch_size(manifest, 1)
    first = bench.samples_of(archive, options.inputs).chunk(0, batch)
    started = time.perf_counter()
    runner_module(folder, manifest)
    imported = time.perf_counter()
    runner = make_runner(folder, manifest, options.threads, batch)
    loaded = time.perf_counter()
    runner.infer(first)
    answered = time.perf_counter()
    return {"import_s": imported - started, "load_s": loaded - imported, "first_inference_s": answered - loaded}


def memory(archive: Any, options: Any) -> dict[str, Any]:
    """The most memory that this process held (VmHWM, bytes): before the runtime, with it, loaded, after inferences.

    At most `inferences` of them, and none any more after `max_seconds` (but one at least); one input is held at a time.
    """
    manifest = archive.manifest
    folder, batch = archive.unpack(), batch_size(manifest, 1)
    samples = bench.samples_of(archive, options.inputs)
    there = max(1, samples.count // batch)
    samples.chunk(0, batch)
    before, reason = state.peak_rss()
    runner_module(folder, manifest)
    imported, _ = state.peak_rss()
    runner = make_runner(folder, manifest, options.threads, batch)
    loaded, _ = state.peak_rss()
    done, started = 0, time.perf_counter()
    while done < options.inferences and (not done or time.perf_counter() - started < options.max_seconds):
        runner.infer(samples.chunk(done % there * batch, batch))
        done += 1
    return {
        "before_import_bytes": before,
        "after_import_bytes": imported,
        "after_load_bytes": loaded,
        "peak_rss_bytes": state.peak_rss()[0],
        "inferences": done,
        "threads": options.threads,
        "affinity": bench.affinity(),
        "reason": reason,
        "versions": bench.versions(runner),
    }
