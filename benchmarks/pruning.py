"""ResNet-20 on CIFAR-10 made smaller by edgekit and by Torch-Pruning, with the same minutes of recovery.

    python benchmarks/pruning.py --data DATA --work build/pruning --out benchmarks/results

`--data` holds `cifar10_train_25k.npz`, `cifar10_test_1228.npz` (`x` uint8 `[n, 32, 32, 3]` and `y`) and the weights
`resnet20_cifar10.pt`. Each row is a way, a ratio of multiply-accumulates and a seed:

- `edgekit`: the stages `prune` and `distill`;
- `torch-pruning`: its groups by L2 norms, global, at once, then cross-entropy for as many processor seconds as
  edgekit's recovery with that seed took, with the same augmentation, batches and arithmetic;
- `torch-pruning, distilled`: the same network, then edgekit's `distill`.

All go through edgekit's `quantize` for ONNX Runtime, and are judged by the test images, once, after everything else;
`distill` chooses its epoch on a part of the training images. With `--ablation` rows are short trainings that change one
thing, judged by 2,500 training images that they don't see; the test images are not touched. Latency: the files of all
rows take turns in one process. Rows are kept under `--work`: a later call goes on, within a training too.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
from recovering import Bench, Row, Stages, by_peer, by_stages, measured, plainly

RATIOS = (2.07, 1.37)
SEEDS = (0, 1, 2)
CUT: Mapping[float, Mapping[str, Any]] = {
    2.07: {"importance": "taylor", "round_to": 4, "keep_at_least": 0.5},
    1.37: {"importance": "taylor", "round_to": 2, "keep_at_least": 0.5},
}
RECOVERY: Mapping[str, Any] = {"augment": "flip_shift", "held_out": 0.02, "learning_rate": 0.02, "patience": 100}
EPOCHS = {2.07: 25, 1.37: 9}
SHORT = 2
"""Epochs of a row of the ablation."""
IMPORTANCES = ("l2", "random", "fisher", "activation", "l1", "geometric_median", "bn_scale", "outputs")
METHODS = ("dense", "edgekit", "torch-pruning", "torch-pruning, distilled")


def stages(ratio: float, epochs: int, cut: Mapping[str, Any] | None = None, **recovery: Any) -> Stages:
    """Prune to one `ratio`-th of the multiply-accumulates, then distil; what is given replaces the defaults."""
    return (
        ("prune", {"macs": 1 / ratio, **CUT[ratio], **(cut or {})}),
        ("distill", {**RECOVERY, "epochs": epochs, **recovery}),
    )


def ablations(ratio: float) -> dict[str, Stages]:
    """By name: the default, and what it becomes with one thing changed. Each trains for as many epochs."""
    default = stages(ratio, SHORT)
    cut, recover = default

    def ranked(**changed: Any) -> Stages:
        return stages(ratio, SHORT, changed)

    half = ("distill", {**recover[1], "epochs": SHORT - 1})
    return {
        "prune, distill": default,
        "prune alone": (cut,),
        "distill, prune": (recover, cut),
        "distill 1 epoch, prune, distill 1 epoch": (("distill", {**recover[1], "epochs": 1}), cut, half),
        "prune, weights drawn anew, distill": (cut, ("fresh", {}), recover),
        "labels alone (alpha 0)": stages(ratio, SHORT, alpha=0.0),
        "teacher alone (alpha 1)": stages(ratio, SHORT, alpha=1.0),
        **{f"importance {name}": ranked(importance=name) for name in IMPORTANCES},
        "scope local": ranked(scope="local"),
        "iterations 4": ranked(iterations=4),
        "round_to 8": ranked(round_to=8),
        "keep_at_least 0.125": ranked(keep_at_least=0.125),
        "importance outputs, keep_at_least 0.125": ranked(importance="outputs", keep_at_least=0.125),
        "learning_rate 0.05": stages(ratio, SHORT, learning_rate=0.05),
        "cutmix 1": stages(ratio, SHORT, regularize={"cutmix": 1.0}),
    }


def main() -> None:
    """Measure what is missing, write what is there."""
    options = arguments()
    import torch

    torch.set_num_threads(options.threads)
    bench = Bench(options.data, options.work, "held-out" if options.ablation else "test")
    bench.work.mkdir(parents=True, exist_ok=True)
    rows = []
    for row, way in planned(bench, options):
        known = bench.kept(row)
        if known is None and not options.report:
            print(f"{row.method}, {row.ratio:g}, seed {row.seed} ...", file=sys.stderr, flush=True)
            known = measured(row, bench, way)
        if known:
            rows.append(known)
            print(said(known), file=sys.stderr, flush=True)
    if options.ablation:
        write(options.out, "pruning_ablation", ablation_table(rows, bench), rows, {})
    else:
        times = {} if options.no_latency else latency(rows, bench, options.rounds)
        write(options.out, "pruning", table(rows, bench, times), rows, times)


def arguments() -> argparse.Namespace:
    """What is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with images and weights")
    parser.add_argument("--work", type=Path, default=Path("build/pruning"), help="what is kept between calls")
    parser.add_argument("--out", type=Path, help="folder for the tables, in Markdown and JSON")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--ratios", nargs="+", type=float, choices=RATIOS, default=RATIOS)
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--ablation", action="store_true", help="the ablation at 2.07, in the place of the comparison")
    parser.add_argument("--only", nargs="+", metavar="TEXT", help="of the ablation, rows whose names hold one of these")
    parser.add_argument("--report", action="store_true", help="measure no row, tell what there is")
    parser.add_argument("--no-latency", action="store_true")
    parser.add_argument("--rounds", type=int, default=20, help="of the latency comparison")
    parser.add_argument("--threads", type=int, default=1, help="of training")
    return parser.parse_args()


Way = Callable[..., Any]


def planned(bench: Bench, options: argparse.Namespace) -> Iterable[tuple[Row, Way]]:
    """All rows that are asked for, each with the way to measure it."""
    if options.ablation:
        for name, steps in ablations(RATIOS[0]).items():
            if not options.only or any(text in name for text in options.only):
                yield from ((ours(name, RATIOS[0], seed, bench, steps)) for seed in options.seeds[:1])
        return
    if "dense" in options.methods:
        yield Row("dense", 1.0, 0, bench.judge), lambda row, bench, model, data: model
    for ratio in options.ratios:
        for method in options.methods:
            for seed in options.seeds:
                if method == "edgekit":
                    yield ours(method, ratio, seed, bench, stages(ratio, EPOCHS[ratio]))
                elif method != "dense":
                    yield theirs(method, ratio, seed, bench)


def ours(name: str, ratio: float, seed: int, bench: Bench, steps: Stages) -> tuple[Row, Way]:
    """A row of edgekit's stages."""
    row = Row(name, ratio, seed, bench.judge, settings=[list(step) for step in steps])
    return row, lambda row, bench, model, data: by_stages(row, bench, model, data, steps)


def theirs(name: str, ratio: float, seed: int, bench: Bench) -> tuple[Row, Way]:
    """A row of Torch-Pruning."""
    cut, (_, recovery) = {"round_to": CUT[ratio]["round_to"]}, stages(ratio, EPOCHS[ratio])[1]
    plain = {"batch_size": 128, "learning_rate": recovery["learning_rate"], "augment": recovery["augment"]}
    distilled = name.endswith("distilled")

    def way(row: Row, bench: Bench, model: Any, data: Any) -> Any:
        smaller = by_peer(row, model)
        if distilled:
            return by_stages(row, bench, smaller, data, (("distill", recovery),))
        own = bench.kept(replace(row, method="edgekit"))
        if own is None:
            raise SystemExit(f"Torch-Pruning is given the time of edgekit's recovery: run edgekit, {ratio:g} first.")
        return plainly(row, smaller, data, own.recover_cpu_s)

    return Row(name, ratio, seed, bench.judge, settings=[cut, dict(recovery) if distilled else plain]), way


def said(row: Row) -> str:
    """A row as it comes, for the terminal."""
    shares = ", ".join(f"{name} {hits / row.samples:.2%}" for name, hits in row.hits.items())
    return (
        f"{row.method}, {row.ratio:g}, seed {row.seed}: {row.macs[1] / 1e6:.2f} M multiply-accumulates, {shares} on "
        f"{row.samples:,}; {row.epochs:.1f} epochs, {row.recover_cpu_s / 60:.1f} processor minutes"
    )


def latency(rows: Sequence[Row], bench: Bench, rounds: int) -> dict[str, list[float]]:
    """By file (`key/precision`): its time in each round, in seconds. All files take turns in one process."""
    files = [bench.folder(row) / f"{name}.onnx" for row in rows for name in row.hits]
    made = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]
    kept, image = bench.work / f"latency-{made}-{rounds}.json", bench.work / "image.npz"
    if not kept.is_file():
        np.savez(image, x=bench.judging()[0][:1])
        script = Path(__file__).parent / "quantizers" / "latency.py"
        command = [
            sys.executable,
            str(script),
            "onnxruntime",
            "1",
            str(rounds),
            str(image),
            str(kept),
            *map(str, files),
        ]
        subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)})
    taken = json.loads(kept.read_text(encoding="utf-8"))
    names = [f"{file.parent.name}/{file.stem}" for file in files]
    return {name: [sum(turn[i]) / 2 for turn in taken] for i, name in enumerate(names)}


def hits(row: Row, bench: Bench, name: str) -> npt.NDArray[np.bool_]:
    """Which of the judging images the file gets right."""
    with np.load(bench.folder(row) / "hits.npz", allow_pickle=False) as file:
        return file[name]


def difference(
    some: Sequence[npt.NDArray[np.bool_]], others: Sequence[npt.NDArray[np.bool_]]
) -> tuple[float, float, float]:
    """Accuracy of `some` minus that of `others`, seed by seed on the same images, in points, and its interval.

    Agresti and Min's for matched pairs (Stat. Med. 24, 2005), of every image's mean over the seeds: 95 % over images,
    of these very seeds.
    """
    gaps = np.mean([one.astype(float) - other for one, other in zip(some, others, strict=True)], axis=0)
    wide = len(gaps) + 2
    centre = gaps.sum() / wide
    half = 1.96 * math.sqrt((np.sum(gaps**2) + 1) / wide - centre**2) / math.sqrt(wide)
    return tuple(100 * float(value) for value in (gaps.mean(), centre - half, centre + half))  # type: ignore[return-value]


def middle(some: Sequence[npt.NDArray[np.bool_]], others: Sequence[npt.NDArray[np.bool_]]) -> str:
    """The median difference of the seeds, in points, then their mean with its interval."""
    each = [100 * float(one.mean() - other.mean()) for one, other in zip(some, others, strict=True)]
    return f"{median(each):+.2f}; {points(difference(some, others))}"


def points(found: tuple[float, float, float]) -> str:
    """A difference with its interval."""
    return f"{found[0]:+.2f} [{found[1]:+.2f}, {found[2]:+.2f}]"


def ratio_of(times: Mapping[str, Sequence[float]], some: Sequence[str], base: str) -> str:
    """Time of files over that of another, median of all rounds, and the quartiles."""
    if base not in times or any(name not in times for name in some):
        return ""
    found = np.concatenate([np.array(times[name]) / np.array(times[base]) for name in some])
    low, high = np.quantile(found, (0.25, 0.75))
    return f"{np.median(found):.3f} [{low:.3f}, {high:.3f}]"


def table(rows: Sequence[Row], bench: Bench, times: Mapping[str, Sequence[float]]) -> str:
    """One line a method and ratio, over its seeds."""
    dense = next((row for row in rows if row.method == "dense"), None)
    lines = [
        *heading(rows),
        "",
        "| network | multiply-accumulates | parameters | seeds | fp32 | int8 | fp32 minus dense fp32 "
        "| int8 minus own fp32 | latency fp32 | latency int8 | recovery, processor min |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    groups: dict[tuple[float, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.ratio, row.method), []).append(row)
    for (ratio, method), some in groups.items():
        own = {name: [hits(row, bench, name) for row in some] for name in ("fp32", "int8")}
        whole = [hits(dense, bench, "fp32")] * len(some) if dense else own["fp32"]
        macs = median(row.macs[1] / row.macs[0] for row in some)
        cells = [method if ratio == 1 else f"{method}, {ratio:g}x", f"{macs:.1%}"]
        cells += [f"{median(row.parameters[1] for row in some):,}", str(len(some))]
        for name in ("fp32", "int8"):
            each = sorted(row.hits[name] / row.samples for row in some)
            cells.append(
                f"{median(each):.2%}" + (f" ({', '.join(f'{one:.2%}' for one in each)})" if len(each) > 1 else "")
            )
        cells += [
            "" if some[0] is dense else middle(own["fp32"], whole),
            middle(own["int8"], own["fp32"]),
        ]
        for name in ("fp32", "int8"):
            files = [f"{row.key}/{name}" for row in some]
            cells.append(ratio_of(times, files, f"{dense.key}/{name}") if dense and some[0] is not dense else "1")
        cells.append(f"{median(row.recover_cpu_s for row in some) / 60:.1f}" if some[0] is not dense else "")
        lines.append("| " + " | ".join(cells) + " |")
    if dense and (both := ratio_of(times, [f"{dense.key}/int8"], f"{dense.key}/fp32")):
        lines += ["", f"The dense network in int8 takes {both} of its time in fp32."]
    return "\n".join(lines) + "\n"


def heading(rows: Sequence[Row]) -> list[str]:
    """Where, with which versions, and what the columns are."""
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in PACKAGES)
    return [
        f"`python benchmarks/pruning.py`: ResNet-20, CIFAR-10, {max((row.samples for row in rows), default=0):,} test "
        f"images, 25,000 training images; {platform.machine()}, one thread; {versions}.",
        "",
        "Accuracy: median over the seeds, then every seed's. Differences in points, image by image: median of the "
        "seeds; their mean with its 95 % interval over images. Latency: ONNX Runtime, one thread, single images, over "
        "that of the dense network in the same precision: median and quartiles of interleaved rounds.",
    ]


PACKAGES = ("edgekit-toolchain", "torch", "torch-pruning", "onnxruntime")


def ablation_table(rows: Sequence[Row], bench: Bench) -> str:
    """One line a variant, against the first."""
    lines = [
        "`python benchmarks/pruning.py --ablation`: ResNet-20, CIFAR-10, to 1/2.07 of the multiply-accumulates, "
        f"{SHORT} epochs on 22,500 training images, judged by the other 2,500; one seed. Differences in points, image "
        "by image, with 95 % intervals over images.",
        "",
        "| variant | fp32 | minus the first | int8 | processor min |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        own, first = hits(row, bench, "fp32"), hits(rows[0], bench, "fp32")
        cells = [row.method, f"{row.hits['fp32'] / row.samples:.2%}"]
        cells += ["" if row is rows[0] else points(difference([own], [first]))]
        cells += [f"{row.hits['int8'] / row.samples:.2%}", f"{row.recover_cpu_s / 60:.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def write(out: Path | None, name: str, text: str, rows: Sequence[Row], times: Mapping[str, Any]) -> None:
    """The table on stdout, and with the raw figures under `out`."""
    print(text)
    if out is None:
        return
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.md").write_text(text, encoding="utf-8")
    raw = {"packages": {name: metadata.version(name) for name in PACKAGES}, "rows": [asdict(row) for row in rows]}
    raw["latency_s"] = dict(times)
    (out / f"{name}.json").write_text(json.dumps(raw, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
