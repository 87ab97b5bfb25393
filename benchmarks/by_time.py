"""Pruned by time and by work: two networks each, with equal multiply-accumulates and equal recovery.

    python benchmarks/by_time.py --data DATA --work build/by_time --out benchmarks/results

The demo's network on Fashion-MNIST, and with `--data` (a folder with `cifar10_train_25k.npz`,
`cifar10_test_1228.npz` and `resnet20_cifar10.pt`) ResNet-20 on CIFAR-10, over several seeds. One is pruned with a
budget in `latency` for int8 on ONNX Runtime; the other with a budget in `macs`, of as many multiply-accumulates as the
first one ended with, and all other settings as they come. Both are distilled for as many epochs (of equal work each),
quantized, and judged by the test images. Told are the paired difference of accuracy (time minus work; for several seeds
each image counts once, by its mean) and the ratio of latencies in interleaved rounds, each with its 95 % interval. Runs
are kept under `--work`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from recovering import this_machine
from ruamel.yaml import YAML

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "fashion_mnist" / "recipe.yaml"
TIMED = 3
"""Seeds whose two networks are timed against one another; the plan is the same for all."""
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Case:
    """A network, what it is pruned to (share of its time as int8), and how long it recovers."""

    name: str
    latency: float
    distill: dict[str, Any]
    seeds: tuple[int, ...]


CASES = (
    Case("fashion_mnist", 0.6, {"epochs": 3}, (0,)),
    Case("resnet20", 0.97, {"epochs": 8, "augment": "flip_shift", "learning_rate": 0.02}, tuple(range(16))),
)


def main() -> None:
    """Run what is missing, compare, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with CIFAR-10 and ResNet-20; without it the demo alone")
    parser.add_argument("--work", type=Path, default=Path("build/by_time"))
    parser.add_argument("--out", type=Path, help="folder for by_time.md and by_time.json")
    parser.add_argument("--only", choices=[case.name for case in CASES])
    options = parser.parse_args()
    rows = []
    for case in CASES:
        if options.only in (None, case.name) and (case.name == "fashion_mnist" or options.data):
            rows.append(compared(case, options.work / case.name, options.data))
            print(json.dumps(rows[-1], indent=1), flush=True)
    text = markdown(rows)
    print(text)
    if options.out:
        (options.out / "by_time.md").write_text(text, encoding="utf-8")
        (options.out / "by_time.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def compared(case: Case, work: Path, data: Path | None) -> dict[str, Any]:
    """Both ways over all seeds."""
    from edgekit.compare import compare_bundles

    base = prepared(case.name, work, data)
    gains, ratios, seen = [], [], []
    for seed in case.seeds:
        timed = ran(base, work / f"time-{seed}", {"latency": case.latency}, case, seed)
        macs = next(step for step in timed["stages"] if step["name"] == "prune")["macs"]
        worked = ran(base, work / f"work-{seed}", {"macs": float(macs)}, case, seed)
        each = [correct(work / f"{way}-{seed}", one) for way, one in (("time", timed), ("work", worked))]
        gains.append(each[0].astype(float) - each[1].astype(float))
        if len(ratios) < TIMED:
            bundles = [work / f"{way}-{seed}" / bundle(one) for way, one in (("time", timed), ("work", worked))]
            ratio = compare_bundles(*bundles, tolerance=0.005).seen
            ratios.append((ratio.ratio, ratio.low, ratio.high))
        notes = [next(s for s in one["stages"] if s["name"] == "prune")["notes"] for one in (timed, worked)]
        seen.append({"seed": seed, "accuracy": [float(np.mean(e)) for e in each], "notes": notes})
    gain = np.mean(gains, axis=0)
    reach = 1.96 * float(np.std(gain, ddof=1)) / math.sqrt(len(gain))
    middle = float(np.mean(gain))
    logs = [math.log(ratio) for ratio, _, _ in ratios]
    return {
        "name": case.name,
        "images": len(gain),
        "gain": [middle, middle - reach, middle + reach],
        "latency": [math.exp(sum(logs) / len(logs)), min(low for _, low, _ in ratios), max(h for _, _, h in ratios)],
        "latencies": ratios,
        "epochs": case.distill["epochs"],
        "runs": seen,
    }


def prepared(name: str, work: Path, data: Path | None) -> dict[str, Any]:
    """A recipe's model and data, with absolute paths."""
    work.mkdir(parents=True, exist_ok=True)
    if name == "fashion_mnist":
        recipe = YAML(typ="safe").load(EXAMPLE)
        for part, key in (("model", "source"), ("model", "weights"), ("data", "source")):
            recipe[part][key] = str(EXAMPLE.parent / recipe[part][key])
        return {"model": recipe["model"], "data": recipe["data"]}
    import torch
    from safetensors.torch import save_file

    assert data is not None
    save_file(torch.load(data / "resnet20_cifar10.pt", weights_only=True), work / "weights.safetensors")
    parts = {"train": np.load(data / "cifar10_train_25k.npz"), "test": np.load(data / "cifar10_test_1228.npz")}
    np.savez(work / "cifar10.npz", **{f"{part}_{k}": parts[part][k] for part in parts for k in ("x", "y")})
    source = Path(__file__).resolve().parent / "resnet20.py"
    scale = {"scale": [1 / (255 * d) for d in DEVIATION], "layout": "NHWC", "to": "NCHW"}
    offset = {"offset": [-m / d for m, d in zip(MEAN, DEVIATION, strict=True)]}
    return {
        "model": {
            "source": f"{source}:build",
            "weights": str(work / "weights.safetensors"),
            "inputs": {"image": {"shape": ["batch", 3, 32, 32]}},
        },
        "data": {"source": str(work / "cifar10.npz"), "task": "classification", "preprocess": {**scale, **offset}},
    }


def ran(base: dict[str, Any], folder: Path, budget: dict[str, float], case: Case, seed: int) -> dict[str, Any]:
    """The report of the recipe with that budget."""
    stages = [{"prune": budget}, {"distill": case.distill}, {"quantize": {"max_drop": "5pp"}}]
    return told(base, folder, stages, seed, rounds=4, percentile=50)


def told(base: dict[str, Any], folder: Path, stages: list[dict[str, Any]], seed: int, **measure: int) -> dict[str, Any]:
    """The report of a recipe with these stages; it is run where that was not done before."""
    from edgekit import run
    from edgekit.cli.progress import progress_on_stderr

    report = folder / "report.json"
    if not report.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        path = folder.with_suffix(".yaml")
        with path.open("w", encoding="utf-8") as file:
            targets = [{"target": this_machine(), "backends": ["onnxruntime"], "device": "local"}]
            recipe = {"version": 1, **base, "stages": stages, "targets": targets, "measure": measure, "seed": seed}
            YAML().dump(recipe, file)
        with progress_on_stderr(quiet=False) as progress:
            run(path, out=folder, resume=folder.exists(), progress=progress)
    held: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
    return held


def quantized(report: dict[str, Any]) -> dict[str, Any]:
    """The int8 result."""
    found: dict[str, Any] = next(r for r in report["results"] if r["role"] == "quantized")
    return found


def bundle(report: dict[str, Any]) -> str:
    """Its bundle, inside the output folder."""
    return str(quantized(report)["bundle"])


def correct(folder: Path, report: dict[str, Any]) -> npt.NDArray[np.bool_]:
    """Which test images it gets right."""
    from edgekit.report.predictions import read_predictions

    return read_predictions(folder / quantized(report)["predictions_file"]).correct()


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table."""
    lines = [
        "# Pruned by time and by work",
        "",
        "`benchmarks/by_time.py`: each network is pruned twice, to a share of its int8 time on ONNX Runtime, and to as",
        "many multiply-accumulates as that ended with; both recover for as many epochs. In points of accuracy, time",
        "minus work, paired by image; latency of the one by time divided by that of the other, int8, one thread,",
        f"interleaved. Of several seeds the first {TIMED} are timed; their mean, and the range of their intervals.",
        "",
        "| network | test images | seeds | accuracy by time | by work | difference | latency ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        accuracy = [np.mean([run["accuracy"][way] for run in row["runs"]]) for way in (0, 1)]
        gain, latency = (row[key] for key in ("gain", "latency"))
        lines.append(
            f"| {row['name']} | {row['images']:,} | {len(row['runs'])} | {accuracy[0]:.2%} | {accuracy[1]:.2%} | "
            f"{100 * gain[0]:+.2f} [{100 * gain[1]:+.2f}, {100 * gain[2]:+.2f}] | "
            f"{latency[0]:.3f} [{latency[1]:.3f}, {latency[2]:.3f}] |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
