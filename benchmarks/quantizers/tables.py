"""From rows to tables in Markdown. Light: the process that starts the others imports this."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np

EDGEKIT, FAST = "edgekit", "edgekit, fast"
"""The two that peers are compared with."""

PACKAGES = ("edgekit-toolchain", "onnxruntime", "openvino", "ai-edge-litert", "torch")


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    found: dict[str, Any] = {"system": platform.platform(), "python": platform.python_version()}
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    found |= {"cpu": models[0] if models else platform.processor(), "logical_cpus": len(models)}
    found["versions"] = {}
    for package in PACKAGES:
        try:
            found["versions"][package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def judge(rows: Sequence[Any], reference: str) -> list[dict[str, Any]]:
    """Signal-to-noise and agreement with float of every row that answered, and a paired test against edgekit's."""
    floats = np.load(reference).astype(np.float64)
    top = floats.argmax(1)
    found, agrees = [], {}
    for row in rows:
        for runtime, file in row.answers.items():
            answered = np.load(file)
            agrees[row.tool, runtime] = answered.argmax(1) == top
            noise = ((floats - answered) ** 2).sum()
            snr = 10 * math.log10((floats**2).sum() / noise) if noise else math.inf
            seen = {"tool": row.tool, "runtime": runtime, "own": row.own, "snr_db": snr, "n": len(top)}
            found.append({**seen, "agreement": float(agrees[row.tool, runtime].mean())})
    for entry in found:
        if not entry["own"]:
            theirs = agrees[entry["tool"], entry["runtime"]]
            own = {
                tool: agrees[tool, entry["runtime"]] for tool in (EDGEKIT, FAST) if (tool, entry["runtime"]) in agrees
            }
            entry["p"] = {tool: mcnemar(ours, theirs) for tool, ours in own.items()}
    return found


def mcnemar(a: np.ndarray, b: np.ndarray) -> float:
    """The exact two-sided p of McNemar's test: could the samples on which one alone is right fall like this by chance?

    >>> round(mcnemar(np.array([True] * 9 + [False]), np.array([False] * 9 + [True])), 4)
    0.0215
    """
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    n, few = only_a + only_b, min(only_a, only_b)
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(few + 1)) / 2**n)


def ratios(taken: Sequence[Any], one: int, other: int) -> tuple[float, float, float]:
    """The time of a file divided by another's: the median over the rounds, and the quartiles."""
    logs = [sum(map(math.log, r[one])) / 2 - sum(map(math.log, r[other])) / 2 for r in taken]
    low, middle, high = (
        (math.exp(v) for v in quantiles(logs, n=4, method="inclusive")) if len(logs) > 1 else (math.exp(logs[0]),) * 3
    )
    return middle, low, high


def markdown(rows: Sequence[Any], judged: Sequence[Mapping[str, Any]], latencies: Mapping[Any, Any]) -> str:
    """Every table."""
    about = machine()
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    lines = [f"{about['cpu']}, {about['logical_cpus']} logical processors, Python {about['python']}; {versions}.", ""]
    lines += [*_cost(rows), "", *_accuracy(judged), "", *_latency(latencies), "", *_failures(rows)]
    return "\n".join(lines).rstrip()


def _cost(rows: Sequence[Any]) -> list[str]:
    """Seconds, memory and size, with the ratios of edgekit's seconds on the same network and images."""
    lines = [
        "| network | images | tool | seconds | edgekit takes | fast takes | processor s | peak memory | file |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    walls = {(r.net, r.images, r.tool): median(run["wall_s"] for run in r.runs) for r in rows if r.runs}
    for row in rows:
        if not row.runs:
            continue
        wall = walls[row.net, row.images, row.tool]
        ours = [walls.get((row.net, row.images, tool)) for tool in (EDGEKIT, FAST)]
        takes = " | ".join(f"{one / wall:.2f} of it" if one and not row.own else "" for one in ours)
        cpu = median(run["cpu_s"] for run in row.runs)
        peak = max(run["peak_rss_bytes"] for run in row.runs)
        sizes = sorted({f"{size / 1e6:.2f}" for size in row.size_bytes.values()})
        lines.append(
            f"| {row.net} | {row.images} | {row.tool} | {wall:.1f} | {takes} | {cpu:.1f} | {peak / 1e9:.2f} GB "
            f"| {' / '.join(sizes)} MB |"
        )
    return lines


def _accuracy(judged: Sequence[Mapping[str, Any]]) -> list[str]:
    if not judged:
        return ["Accuracy was not judged: that takes --images, and the 5M network with 256 images."]
    lines = [
        f"Outputs against float32 on {judged[0]['n']} images that did not calibrate; p is McNemar's against edgekit, "
        "and against it fast.",
        "",
        "| runtime | tool | signal-to-noise | agreement | p |",
        "|---|---|---|---|---|",
    ]
    for e in sorted(judged, key=lambda e: (e["runtime"], not e["own"], -e["snr_db"])):
        p = ", ".join(f"{value:.2f}" for value in e.get("p", {}).values())
        lines.append(f"| {e['runtime']} | {e['tool']} | {e['snr_db']:.2f} dB | {e['agreement']:.2%} | {p} |")
    return lines


def _latency(latencies: Mapping[Any, Any]) -> list[str]:
    if not latencies:
        return []
    lines = [
        "Single images, interleaved; edgekit's time divided by the file's, median of the rounds [quartiles].",
        "",
        "| network | runtime | threads | file | ms | edgekit takes |",
        "|---|---|---|---|---|---|",
    ]
    for (net, runtime, threads), (names, taken) in latencies.items():
        for place, name in enumerate(names):
            ms = median(min(r[place]) for r in taken) * 1e3
            ratio, low, high = ratios(taken, 0, place)
            takes = f"{ratio:.3f} [{low:.3f}, {high:.3f}]" if place and names[0].startswith("edgekit") else ""
            lines.append(f"| {net} | {runtime} | {threads} | {name} | {ms:.2f} | {takes} |")
    return lines


def _failures(rows: Sequence[Any]) -> list[str]:
    return [f"- {row.net}, {row.images} images, {row.tool}: {row.error}" for row in rows if row.error]
