"""Does `edgekit gate` stop the wrong model, and never the right one, on a busy machine?

    python benchmarks/gate_power.py RUN [--times 100] [--slow-times 50] [--batch 10] [--load 1] [--work DIR] [--out DIR]

RUN is the folder of a run whose recipe timed ONNX Runtime on x86-64 (the demo's). Its int8 bundle is the one before.
Three others are gated against it, each gate a process of its own as a CI job starts it, with `--previous` and
`--device local`: accuracy at 1 point, size at 5 %, p50 at 5 %, while `--load` processes keep a core busy each.

- `same`: the same model in another file. Whatever stops it is a false alarm.
- `slowed`: with more operators in its graph, whose output goes, times a millionth, into the model's (no sleep). What
  its time truly is comes from 200 further interleaved rounds.
- `worse`: with noise on its weights that costs about 2 points on the test images; it is not timed.

Beside the first two stands what a stored number would have said: one `bench` of the candidate against one `bench` of
the bundle before that was taken at the start, both with their intervals. All is kept under `--work` as it comes; a
later call goes on. Writes `gate_power.md` and `gate_power.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from compare_power import TRUE_BATCH, slowed

from edgekit.bundle import Bundle, extract_model, open_bundle, read_golden, write_bundle
from edgekit.compare import paired_ratio
from edgekit.datasource import load_data
from edgekit.devices.local import Local
from edgekit.metrics import evaluate
from edgekit.profile import latency
from edgekit.report.predictions import write_predictions
from edgekit.report.report import Result, read_report, write_report

PAIR = ("x86-64", "onnxruntime")
TOLERANCE, CHANNELS, WORSE = 0.05, 9, 0.02
CLAUSES = """\
version: 1
gate:
  - {metric: accuracy, vs: previous, max_regression: 1pp}
  - {metric: size, vs: previous, max_ratio: 1.05}
  - {metric: latency.p50, vs: previous, max_regression: 5%}
"""
DATA = Path(__file__).resolve().parent.parent / "calibration_data" / "fashion_mnist"

Record = dict[str, Any]


def main() -> None:
    """Go on with what is missing, and write what is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--work", type=Path, default=Path("build/gate_power"))
    parser.add_argument("--times", type=int, default=100, help="gates of the same model")
    parser.add_argument("--slow-times", type=int, default=50, help="gates of the slowed and of the worse one")
    parser.add_argument("--true-rounds", type=int, default=200, help="rounds for the true ratio")
    parser.add_argument("--batch", type=int, default=10_000, help="gates in this call; 20 true rounds count as one")
    parser.add_argument("--seconds", type=float, default=1e9, help="begin nothing more after that")
    parser.add_argument("--load", type=int, default=1, help="processes that keep a core busy each")
    parser.add_argument("--channels", type=int, default=CHANNELS, help="how wide the added convolutions are")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    kept = options.work / "gate_power.json"
    records: list[Record] = json.loads(kept.read_text()) if kept.exists() else []
    ends = time.monotonic() + options.seconds
    prepare(options)
    with busy(options.load):
        for job in missing(records, options)[: options.batch]:
            if time.monotonic() > ends:
                break
            records.append(job())
            kept.write_text(json.dumps(records))
            print({key: value for key, value in records[-1].items() if key != "rounds_s"}, flush=True)
    if options.out:
        (options.out / "gate_power.json").write_text(json.dumps(records) + "\n")
        (options.out / "gate_power.md").write_text(table(records, options))


def missing(records: Sequence[Record], options: argparse.Namespace) -> list[Callable[[], Record]]:
    """What is still to do, in turns, so that what is there so far is of every kind."""
    done, work = Counter(one["kind"] for one in records), options.work
    jobs: list[Callable[[], Record]] = [] if done["stored"] else [lambda: stored(work)]
    for number in range(max(options.times, options.slow_times)):
        for kind, times in (("same", options.times), ("slowed", options.slow_times), ("worse", options.slow_times)):
            if done[kind] <= number < times:
                jobs.append(lambda k=kind: gated(k, work))
    wanted = -(-options.true_rounds // TRUE_BATCH) - done["truth"]
    return jobs + [lambda: truth(work)] * wanted


@contextmanager
def busy(count: int) -> Iterator[None]:
    """Other work on the machine: `count` processes that never wait."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def prepare(options: argparse.Namespace) -> None:
    """The run before, and the three candidates, each a folder with a report, a bundle and its predictions."""
    work: Path = options.work
    if (work / "gate.yaml").exists():
        return
    report = read_report(options.run / "report.json")
    shipped = report.shipped(*PAIR)
    if shipped is None or shipped.bundle is None or shipped.device is None:
        raise SystemExit(f"{options.run}: nothing that was timed ships for {' with '.join(PAIR)}")
    before = open_bundle(options.run / shipped.bundle)
    lay(work / "before", report, shipped, before.path)
    lay(work / "same", report, shipped, resealed(before, work / "same.edge"))
    lay(work / "slowed", report, shipped, slowed(before, work, options.channels))
    lay(work / "worse", report, shipped, worsened(before, work))
    (work / "gate.yaml").write_text(CLAUSES)


def lay(folder: Path, report: Any, shipped: Result, bundle: Path) -> None:
    """A report of one bundle, scored here on all test images."""
    folder.mkdir(parents=True, exist_ok=True)
    copied = Path(shutil.copy(bundle, folder / "x.edge"))
    seen = scored(open_bundle(copied))
    write_predictions(seen, folder / "predictions.npz")
    opened = open_bundle(copied)
    result = shipped.model_copy(
        update={
            "bundle": "x.edge", "bundle_sha256": opened.sha256, "bundle_bytes": opened.size_bytes,
            "size_bytes": opened.model_bytes, "predictions_file": "predictions.npz", "paired": (),
            "latency_s": shipped.latency_s and shipped.latency_s.model_copy(update={"samples_file": None}),
        }
    )  # fmt: skip
    targets = tuple(
        entry.model_copy(update={"backends": PAIR[1:]}) for entry in report.targets if entry.target == PAIR[0]
    )
    changed = {"results": (result,), "targets": targets, "gate": (), "exit_code": 0}
    write_report(report.model_copy(update=changed), folder / "report.json")


def scored(bundle: Bundle) -> Any:
    """Predictions of a bundle on the test images, run by its agent."""
    data = load_data(str(DATA), base=Path())
    split = data.split("test")
    with tempfile.TemporaryDirectory() as temporary:
        given, answers = Path(temporary) / "in.npy", Path(temporary) / "out.npz"
        np.save(given, split.array)
        ran = Local().run(bundle, given, answers)
        outputs = np.load(ran.outputs)[bundle.manifest.outputs[0].name]
    return evaluate(outputs, split.labels).predictions(split.ids, split.labels, data_sha256=data.sha256, split="test")


def resealed(bundle: Bundle, path: Path) -> Path:
    """The same model in another file."""
    with tempfile.TemporaryDirectory() as temporary:
        files = {file.name: file for file in extract_model(bundle, Path(temporary))}
        rewritten(bundle, path, files)
    return path


def rewritten(bundle: Bundle, path: Path, files: dict[str, Path]) -> None:
    """The bundle with these model files, and one member more than before."""
    manifest = bundle.manifest.model_copy(update={"members": {}})
    golden = read_golden(bundle, "inputs"), read_golden(bundle, "outputs")
    write_bundle(path, manifest, files, *golden, extra={"note.txt": b"another file\n"})


def worsened(bundle: Bundle, work: Path) -> Path:
    """With as much noise on the int8 weights as costs about 2 points; the same seed always gives the same one."""
    right = float(scored(bundle).correct().mean())
    low, high = 0.0, 64.0
    for number in range(12):
        noise = (low + high) / 2
        path = noisy(bundle, work / f"worse-{number}.edge", noise)
        lost = right - float(scored(open_bundle(path)).correct().mean())
        if abs(lost - WORSE) < 0.001:
            return path
        low, high = (noise, high) if lost < WORSE else (low, noise)
    raise SystemExit("no amount of noise costs 2 points")


def noisy(bundle: Bundle, path: Path, scale: float) -> Path:
    """Normal noise of `scale` steps on every int8 weight."""
    import onnx
    from onnx import numpy_helper

    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as temporary:
        files = {file.name: file for file in extract_model(bundle, Path(temporary))}
        model = onnx.load(files[bundle.manifest.entry])
        for tensor in model.graph.initializer:
            values = numpy_helper.to_array(tensor)
            if values.dtype == np.int8 and values.ndim > 1:
                changed = np.clip(np.rint(values + rng.normal(0, scale, values.shape)), -127, 127).astype(np.int8)
                tensor.CopyFrom(numpy_helper.from_array(changed, tensor.name))
        onnx.save(model, files[bundle.manifest.entry])
        rewritten(bundle, path, files)
    return path


def gated(kind: str, work: Path) -> Record:
    """`edgekit gate`, from its start to its end, and what a stored number would have said."""
    edgekit = str(Path(sys.executable).with_name("edgekit"))
    command = [edgekit, "gate", str(work / kind), f"--clauses={work / 'gate.yaml'}", f"--previous={work / 'before'}"]
    command += ["--json", "--quiet"] + (["--device=local"] if kind != "worse" else [])
    started = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True)
    wall = time.monotonic() - started
    if done.returncode not in (0, 1, 3, 4):
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}: {done.stderr}")
    judged = json.loads(done.stdout)["judgements"]
    found = {one["metric"]: one["verdict"] for one in judged}
    time_seen = next(one["observed"] for one in judged if one["metric"] == "latency.p50")
    if kind == "worse":
        found.pop("latency.p50")
    record = {"kind": kind, "code": done.returncode, "wall_s": wall, "verdicts": found, "ratio": time_seen}
    return record if kind == "worse" else {**record, "stored": against_stored(kind, work)}


def stored(work: Path) -> Record:
    """The number that is stored: one `bench` of the bundle before."""
    return {"kind": "stored", "p50_s": bench(work / "before" / "x.edge")}


def bench(path: Path) -> tuple[float, float, float]:
    """p50 in seconds with its interval, from one session."""
    seen = latency(Local().bench(open_bundle(path)).samples_s).p50
    assert seen is not None
    return seen.value, seen.low, seen.high


def against_stored(kind: str, work: Path) -> dict[str, Any]:
    """One `bench` now over the one that is stored, judged at the same tolerance."""
    records = json.loads((work / "gate_power.json").read_text())
    value, low, high = next(one["p50_s"] for one in records if one["kind"] == "stored")
    now = bench(work / kind / "x.edge")
    ends = now[1] / high, now[2] / low
    limit = 1 + TOLERANCE
    verdict = "pass" if ends[1] <= limit else "fail" if ends[0] > limit else "inconclusive"
    return {"ratio": now[0] / value, "low": ends[0], "high": ends[1], "verdict": verdict}


def truth(work: Path) -> Record:
    """Some of the rounds that tell the slowed bundle's true ratio."""
    bundles = (open_bundle(work / kind / "x.edge") for kind in ("slowed", "before"))
    return {"kind": "truth", "rounds_s": Local().pairs(*bundles, rounds=TRUE_BATCH).rounds}


def table(records: Sequence[Record], options: argparse.Namespace) -> str:
    """What was seen, as Markdown."""
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("edgekit-toolchain", "onnxruntime"))
    taken = [tuple(r) for one in records if one["kind"] == "truth" for r in one["rounds_s"]]
    true = paired_ratio(taken) if taken else (float("nan"),) * 3
    accuracy = {kind: lost(options.work, kind) for kind in ("same", "slowed", "worse")}
    lines = [
        f"`python benchmarks/gate_power.py`: `edgekit gate` at {TOLERANCE:.0%} of p50 and 1 point of accuracy, beside "
        f"{options.load} busy process, {os.cpu_count()} processors ({platform.machine()}), Python "
        f"{platform.python_version()}; {versions}. The slowed bundle truly takes {true[0]:.4f} [{true[1]:.4f}, "
        f"{true[2]:.4f}] ({len(taken)} rounds).",
        "",
        "| candidate | accuracy lost | gates | pass | fail | inconclusive | invalid | wrong on size or accuracy "
        "| ratio of p50 | seconds, median (longest) | a stored number: pass | fail | inconclusive | its ratio |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for kind in ("same", "slowed", "worse"):
        some = [one for one in records if one["kind"] == kind]
        if some:
            lines.append(row(kind, some, accuracy[kind]))
    return "\n".join(lines) + "\n"


def lost(work: Path, kind: str) -> float:
    """Points of accuracy against the bundle before."""
    before, after = (read_report(work / name / "report.json").results[0] for name in ("before", kind))
    from edgekit.report.predictions import read_predictions

    right = [
        read_predictions(work / name / str(result.predictions_file)).correct().mean()
        for name, result in (("before", before), (kind, after))
    ]
    return float(right[0] - right[1])


def row(kind: str, some: Sequence[Record], accuracy_lost: float) -> str:
    """One line of the table."""
    codes = Counter(one["code"] for one in some)
    expected = {"accuracy": "fail" if kind == "worse" else "pass", "size": "pass"}
    wrong = sum(any(one["verdicts"][metric] != verdict for metric, verdict in expected.items()) for one in some)
    ratios = [one["ratio"]["value"] for one in some if one["ratio"]]
    walls = [one["wall_s"] for one in some]
    old = [one["stored"] for one in some if "stored" in one]
    said = Counter(one["verdict"] for one in old)
    cells = [
        kind,
        f"{100 * accuracy_lost:.2f} pp",
        len(some),
        codes[0],
        codes[1],
        codes[4],
        codes[3],
        wrong,
        f"{min(ratios):.4f} to {max(ratios):.4f}" if ratios else "",
        f"{median(walls):.1f} ({max(walls):.1f})",
        *([said["pass"], said["fail"], said["inconclusive"]] if old else ["", "", ""]),
        f"{min(o['ratio'] for o in old):.3f} to {max(o['ratio'] for o in old):.3f}" if old else "",
    ]
    return "| " + " | ".join(map(str, cells)) + " |"


if __name__ == "__main__":
    main()
