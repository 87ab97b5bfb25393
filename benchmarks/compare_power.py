"""Does `edgekit compare` tell what is so: no difference where there is none, and one of about 10 % where there is one?

    python benchmarks/compare_power.py X.edge ... [--times 50] [--batch 10] [--work DIR] [--out benchmarks/results]

For each bundle, in turns: `edgekit compare X X`, and `edgekit compare SLOWED X`, in processes of their own as a user
starts them, at 5 %. SLOWED is X with two more convolutions in its graph, whose output goes, times a millionth, into the
model's (no sleep; ONNX Runtime and OpenVINO). What its time truly is comes from 200 further interleaved rounds. All is
kept under `--work` as it comes, and a later call goes on where the last one ended: `--batch` is how many comparisons
one call makes. Writes `compare_power.md` and `compare_power.json` with whatever is there so far.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from edgekit.bundle import Bundle, extract_model, open_bundle, read_golden, write_bundle
from edgekit.compare import paired_ratio
from edgekit.devices.local import Local

TOLERANCE, TRUE_BATCH = 0.05, 20
CHANNELS = {"onnxruntime": 3, "openvino": 6}
"""How wide the added convolutions are by default: about 10 % of the demo's int8 model."""

Record = dict[str, Any]


def main() -> None:
    """Go on with what is missing, and write what is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="+", type=Path)
    parser.add_argument("--work", type=Path, default=Path("build/power"))
    parser.add_argument("--times", type=int, default=50, help="comparisons of each kind")
    parser.add_argument("--batch", type=int, default=1000, help="comparisons in this call; 20 true rounds count as one")
    parser.add_argument("--true-rounds", type=int, default=200, help="rounds for the true ratio")
    parser.add_argument("--channels", type=int, help="how wide the added convolutions are")
    parser.add_argument("--seconds", type=float, default=1e9, help="begin nothing more after that")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    kept = options.work / "compare_power.json"
    records: list[Record] = json.loads(kept.read_text()) if kept.exists() else []
    ends = time.monotonic() + options.seconds
    for job in missing(records, options)[: options.batch]:
        if time.monotonic() > ends:
            break
        records.append(job())
        kept.write_text(json.dumps(records))
        print({key: value for key, value in records[-1].items() if key != "rounds_s"}, flush=True)
    if options.out:
        (options.out / "compare_power.json").write_text(json.dumps(records) + "\n")
        (options.out / "compare_power.md").write_text(table(records))


def missing(records: Sequence[Record], options: argparse.Namespace) -> list[Callable[[], Record]]:
    """What is still to do: of each bundle the kinds of comparison in turns, and the rounds that tell the true ratio."""
    done = Counter((one["bundle"], one["kind"]) for one in records)
    jobs: list[Callable[[], Record]] = []
    last: list[Callable[[], Record]] = []
    for path in options.bundles:
        kinds = [("against itself", path, path)]
        bundle = open_bundle(path)
        if bundle.manifest.backend in CHANNELS:
            slow = slowed(bundle, options.work, options.channels or CHANNELS[bundle.manifest.backend])
            kinds.append(("slowed", slow, path))
            wanted = -(-options.true_rounds // TRUE_BATCH) - done[path.name, "truth"]
            last += [lambda a=slow, b=path: truth(a, b)] * wanted
        for number in range(options.times):
            jobs += [lambda k=k, a=a, b=b: compared(k, a, b) for k, a, b in kinds if number >= done[path.name, k]]
    return jobs + last


def compared(kind: str, a: Path, b: Path) -> Record:
    """`edgekit compare a b`, from its start to its end."""
    command = [str(Path(sys.executable).with_name("edgekit")), "compare", str(a), str(b), "--json", "--quiet"]
    busy, own, started = ticks(), spent(), time.monotonic()
    done = subprocess.run([*command, f"--tolerance={TOLERANCE:.0%}"], capture_output=True, text=True)
    wall = time.monotonic() - started
    others = ((ticks() - busy) / os.sysconf("SC_CLK_TCK") - (spent() - own)) / wall
    if done.returncode not in (0, 1, 4):
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}: {done.stderr}")
    found = json.loads(done.stdout)
    seen = {key: found[key] for key in ("verdict", "ratio", "rounds_s")}
    common = {"bundle": b.name, "kind": kind, "code": done.returncode, "wall_s": wall}
    return {**common, "others_cpus": max(0.0, others), **seen}


def truth(a: Path, b: Path) -> Record:
    """Some of the rounds that tell the true ratio."""
    rounds = Local().pairs(open_bundle(a), open_bundle(b), rounds=TRUE_BATCH).rounds
    return {"bundle": b.name, "kind": "truth", "rounds_s": rounds}


def ticks() -> int:
    """Of all processors, busy since the boot (Linux, proc_stat(5)), in clock ticks."""
    fields = [int(value) for value in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return sum(fields[:3]) + sum(fields[5:8])


def spent() -> float:
    """Processor seconds of this process, and of all that it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def slowed(bundle: Bundle, folder: Path, channels: int) -> Path:
    """The bundle with two more convolutions, `channels` wide; its golden outputs are those of the plain one."""
    path = folder / f"{bundle.path.stem}-slowed-{channels}.edge"
    if path.exists():
        return path
    manifest = bundle.manifest.model_copy(update={"members": {}})
    rng = np.random.default_rng(0)
    source, outputs = manifest.inputs[0].shape[1], manifest.outputs[0].shape[1]
    weights = [
        rng.standard_normal((after, before, 3, 3)).astype(np.float32)
        for before, after in ((source, channels), (channels, outputs))
    ]
    add = {"onnxruntime": add_to_onnx, "openvino": add_to_openvino}[manifest.backend]
    with tempfile.TemporaryDirectory() as temporary:
        files = {file.name: file for file in extract_model(bundle, Path(temporary))}
        add(files[manifest.entry], weights)
        write_bundle(path, manifest, files, read_golden(bundle, "inputs"), read_golden(bundle, "outputs"))
    subprocess.run([sys.executable, str(path), "selftest"], check=True, stdout=subprocess.DEVNULL)
    return path


def add_to_onnx(file: Path, weights: Sequence[Any]) -> None:
    """Into the graph of an ONNX file."""
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load(file)
    graph = model.graph
    output = graph.output[0].name
    for node in graph.node:
        node.output[:] = ["plain" if name == output else name for name in node.output]
    constants = {"first": weights[0], "second": weights[1], "tiny": np.float32(1e-6)}
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    for kind, inputs, name, settings in (
        ("Conv", [graph.input[0].name, "first"], "e1", {"pads": [1] * 4}),
        ("Relu", ["e1"], "e2", {}),
        ("Conv", ["e2", "second"], "e3", {"pads": [1] * 4}),
        ("GlobalAveragePool", ["e3"], "e4", {}),
        ("Flatten", ["e4"], "e5", {}),
        ("Mul", ["e5", "tiny"], "e6", {}),
        ("Add", ["plain", "e6"], output, {}),
    ):
        graph.node.append(helper.make_node(kind, inputs, [name], **settings))
    onnx.save(model, file)


def add_to_openvino(file: Path, weights: Sequence[Any]) -> None:
    """Into the graph of an OpenVINO file."""
    import openvino as ov
    from openvino import opset13 as ops

    model = ov.Core().read_model(file)
    result = model.get_results()[0]
    plain = result.input_value(0)
    names = plain.get_names()
    made = model.get_parameters()[0].output(0)
    for weight in weights:
        made = ops.relu(ops.convolution(made, weight, [1, 1], [1, 1], [1, 1], [1, 1])).output(0)
    pooled = ops.multiply(ops.reduce_mean(made, np.int64([2, 3])), np.float32(1e-6))
    added = ops.add(plain, pooled).output(0)
    plain.set_names(set())
    added.set_names(names)
    result.input(0).replace_source_output(added)
    model.validate_nodes_and_infer_types()
    target = file.with_name("slowed.xml")
    ov.save_model(model, target, compress_to_fp16=False)
    for suffix in (".xml", ".bin"):
        target.with_suffix(suffix).replace(file.with_suffix(suffix))


def table(records: Sequence[Record]) -> str:
    """What was seen, as Markdown."""
    versions = ", ".join(
        f"{name} {metadata.version(name)}"
        for name in ("edgekit-toolchain", "onnxruntime", "openvino", "ai-edge-litert")
    )
    lines = [
        f"`python benchmarks/compare_power.py`: `edgekit compare` at {TOLERANCE:.0%}, one machine with "
        f"{os.cpu_count()} processors ({platform.machine()}), Python {platform.python_version()}; {versions}.",
        "",
        "| bundle | against | true ratio | comparisons | no difference | a difference | inconclusive | holds the truth "
        "| ratios | half-width, median (largest) | rounds | seconds, median (longest) | other load, median (largest) |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for bundle in dict.fromkeys(one["bundle"] for one in records):
        for kind in ("against itself", "slowed"):
            some = [one for one in records if (one["bundle"], one["kind"]) == (bundle, kind)]
            if some:
                lines.append(row(bundle, kind, some, true_ratio(records, bundle) if kind == "slowed" else (1.0, 1, 1)))
    return "\n".join(lines) + "\n"


def true_ratio(records: Sequence[Record], bundle: str) -> tuple[float, float, float]:
    """The slowed bundle's, with its interval, from all rounds that were taken for it."""
    taken = [r for one in records if (one["bundle"], one["kind"]) == (bundle, "truth") for r in one["rounds_s"]]
    return paired_ratio(taken) if taken else (float("nan"),) * 3


def row(bundle: str, kind: str, some: Sequence[Record], true: tuple[float, float, float]) -> str:
    """One line of the table."""
    said = Counter(one["verdict"] for one in some)
    ratios = [one["ratio"] for one in some]
    widths = [(ratio["high"] - ratio["low"]) / 2 for ratio in ratios]
    walls, loads = [one["wall_s"] for one in some], [one["others_cpus"] for one in some]
    rounds = Counter(len(one["rounds_s"]) for one in some)
    held = sum(ratio["low"] <= true[0] <= ratio["high"] for ratio in ratios)
    truth = f"{true[0]:.4f} [{true[1]:.4f}, {true[2]:.4f}]" if true[0] > 0 else "not measured"
    truth = "1" if kind == "against itself" else truth
    cells = [
        bundle.removesuffix(".edge"),
        "itself" if kind == "against itself" else "itself with more operators",
        truth,
        len(some),
        said["no difference"],
        said["a is faster"] + said["b is faster"],
        said["inconclusive"],
        f"{held} of {len(some)}" if true[0] > 0 else "",
        f"{min(r['value'] for r in ratios):.4f} to {max(r['value'] for r in ratios):.4f}",
        f"{median(widths):.2%} ({max(widths):.2%})",
        ", ".join(f"{count} x {number}" for number, count in sorted(rounds.items())),
        f"{median(walls):.1f} ({max(walls):.1f})",
        f"{median(loads):.2f} ({max(loads):.2f})",
    ]
    return "| " + " | ".join(map(str, cells)) + " |"


if __name__ == "__main__":
    main()
