"""Time layer by layer, as the runtime itself measures it, in a process that times nothing else."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from . import bench
from .infer import batch_size, make_runner, runner_module

WARM_UP = 3


def layers(archive: Any, options: Any) -> dict[str, Any]:
    """`layers`: name, type, seconds (median over inferences) and share of each, in the order in which they ran.

    It is None, with the `reason`, where the runtime tells no times of layers. Measuring layers costs time itself:
    `inference_s`, the median of whole inferences meanwhile, is no latency. At most `repeat` inferences, and none any
    more after `max_seconds` (but one at least), on inputs that differ.
    """
    manifest = archive.manifest
    folder, batch = archive.unpack(), batch_size(manifest, 1)
    module = runner_module(folder, manifest)
    if not hasattr(module, "Profiled"):
        reason = getattr(module, "NO_PROFILE", f"the runner for {manifest['backend']!r} tells no times of layers")
        return {"layers": None, "reason": reason}
    inputs = bench.spread(bench.samples_of(archive, options.inputs), batch)
    runner = make_runner(folder, manifest, options.threads, batch, "Profiled")
    seconds: list[float] = []
    started = time.perf_counter()
    while len(seconds) < WARM_UP + options.repeat:
        if len(seconds) > WARM_UP and time.perf_counter() - started > options.max_seconds:
            break
        begun = time.perf_counter()
        runner.infer(inputs[len(seconds) % len(inputs)])
        seconds.append(time.perf_counter() - begun)
    found = [
        {"name": name, "type": kind, "seconds": float(np.median(taken[WARM_UP:]))}
        for name, kind, taken in runner.layers()
        if len(taken) > WARM_UP
    ]
    whole = sum(layer["seconds"] for layer in found)
    return {
        "layers": [{**layer, "share": layer["seconds"] / whole if whole else 0.0} for layer in found],
        "reason": "",
        "inferences": len(seconds) - WARM_UP,
        "inference_s": float(np.median(seconds[WARM_UP:])),
        "threads": options.threads,
        "affinity": bench.affinity(),
        "versions": bench.versions(runner),
    }


def table(result: dict[str, Any], most: int = 20) -> str:
    """The slowest layers, a line each."""
    if result["layers"] is None:
        return f"no times of layers: {result['reason']}"
    ranked = sorted(result["layers"], key=lambda layer: -layer["seconds"])
    lines = [
        f"{x['seconds'] * 1e6:10.1f} us {x['share']:6.1%}  {x['type'] or '-':24s} {x['name']}" for x in ranked[:most]
    ]
    left = len(ranked) - most
    return "\n".join([*lines, *([f"and {left} more"] if left > 0 else [])])
