"""Does the model give here what it gave where the bundle was built?"""

from __future__ import annotations

from typing import Any

import numpy as np

from .infer import Samples, batch_size, make_runner, outputs_of

FLOAT_ABSOLUTE = 1e-2
"""For a float output of a model that is quantized inside."""


def selftest(archive: Any, threads: int) -> dict[str, Any]:
    """Golden inputs through the model, compared with the golden outputs by the manifest's tolerance.

    `{"steps": n}`: at most n quantization steps of an output whose step is known. `{"absolute": x}`: at most
    x * max(1, largest absolute value of the output). Both may be given: an output without a step takes the second,
    and `FLOAT_ABSOLUTE` where there is none.
    """
    manifest = archive.manifest
    samples = Samples(archive.golden("inputs"), manifest)
    batch = batch_size(manifest, 1)
    runner = make_runner(archive.unpack(), manifest, threads, batch)
    chunks = list(outputs_of(runner, samples, batch))
    found = []
    for i, (entry, golden) in enumerate(zip(manifest["outputs"], archive.golden("outputs"))):
        actual = np.concatenate([chunk[i] for chunk in chunks])
        found.append(judge(entry, golden, actual, manifest["tolerance"]))
    passed = all(one["passed"] for one in found)
    return {"passed": passed, "samples": samples.count, "outputs": found, "versions": runner.versions}


def judge(entry: dict[str, Any], golden: Any, actual: Any, tolerance: dict[str, float]) -> dict[str, Any]:
    """One output against its golden values: the largest difference, what was allowed, and the verdict."""
    if actual.shape != golden.shape:
        seen = f"shape {list(actual.shape)}, expected {list(golden.shape)}"
        return {"name": entry["name"], "passed": False, "reason": seen, "difference": None, "allowed": None}
    a, b = np.asarray(actual, np.float64), np.asarray(golden, np.float64)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    difference = float(np.max(np.where(same, 0.0, np.abs(a - b)), initial=0.0))
    if "steps" in tolerance and entry["step"] is not None:
        # A hair more than whole steps: the difference of two float32 multiples of the step is not exact.
        allowed = tolerance["steps"] * entry["step"] * 1.001
    else:
        allowed = tolerance.get("absolute", FLOAT_ABSOLUTE) * max(1.0, float(np.nanmax(np.abs(b), initial=0.0)))
    return {"name": entry["name"], "passed": bool(difference <= allowed), "difference": difference, "allowed": allowed}


def line(result: dict[str, Any]) -> str:
    """One line for a person."""
    told = ", ".join(
        f"{one['name']}: " + (one.get("reason") or f"difference {one['difference']:.3g}, allowed {one['allowed']:.3g}")
        for one in result["outputs"]
    )
    return f"selftest {'passed' if result['passed'] else 'FAILED'}: {result['samples']} samples; {told}"
