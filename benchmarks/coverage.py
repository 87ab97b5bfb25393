"""Which architectures `prune` takes, as modules and from their ONNX files alone, and which Torch-Pruning takes.

    python benchmarks/coverage.py --work build/coverage --out benchmarks/results

Each of the 40 networks of `architectures.py` (random weights) goes three ways, each a process of its own with one
thread, two minutes of processor time (other work on the machine doesn't count) and bounded memory:

- `module`: the stage `prune` cuts the eager module to half of its multiply-accumulates by L2 norms; the result is
  exported to ONNX and run in ONNX Runtime, beside the pruned module.
- `file`: the same from the ONNX file of the dense network, that `torch.onnx.export` wrote before, and nothing else.
- `peer`: Torch-Pruning on the same module: L2, global, in steps until half of the multiply-accumulates is left, the
  layers that give the outputs left whole.

That a pruned network equals its masked original is checked by the stage at every prune; how far they differ is read
from its step. Multiply-accumulates are counted on ONNX graphs, for all alike. What fails is a row with the reason. Rows
are kept under `--work` as they come: a later call goes on, `--again` measures anew what it is asked for.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from architectures import ARCHITECTURES, BY_NAME, find_libraries
from covering import ROUTES, Row, measured, one_line

LIMIT_S, MEMORY_BYTES = 120, 12 << 30
HANGS = 8
"""A process that takes so many times its limit on the clock is waiting for something."""


def main() -> None:
    """Measure what is missing, write what is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/coverage"))
    parser.add_argument("--out", type=Path, help="folder for coverage.md and coverage.json")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=sorted(BY_NAME), help="networks; else all")
    parser.add_argument("--routes", nargs="+", choices=ROUTES[1:], default=ROUTES[1:])
    parser.add_argument("--skip-peer", action="store_true", help="without Torch-Pruning")
    parser.add_argument("--again", action="store_true", help="measure anew what is there already")
    parser.add_argument("--failed", action="store_true", help="measure anew what failed")
    parser.add_argument("--limit-s", type=int, default=LIMIT_S, help="processor seconds of one process")
    parser.add_argument("--memory-bytes", type=int, default=MEMORY_BYTES, help="address space of one process")
    parser.add_argument("--one", nargs=2, metavar=("NAME", "ROUTE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        alone(*options.one, options)
        return
    options.work.mkdir(parents=True, exist_ok=True)
    kept = options.work / "rows.json"
    rows = {(row["name"], row["route"]): Row(**row) for row in (json.loads(kept.read_text()) if kept.exists() else ())}
    for name in options.only or BY_NAME:
        for route in ROUTES:
            asked = route in options.routes and not (route == "peer" and options.skip_peer)
            known = rows.get((name, route))
            if route == "export":
                needed = not known and not (options.work / name / "dense.onnx").exists()
                asked = needed and options.routes != ["module"]  # the others start from it
            elif known and not options.again and not (options.failed and known.reason):
                asked = False
            if asked:
                row = rows[name, route] = in_process(name, route, options)
                write(kept, json.dumps([asdict(one) for one in rows.values()], indent=1))
                print(line(row), flush=True)
    listed = {key: rows[key] for key in ((name, route) for name in BY_NAME for route in ROUTES) if key in rows}
    text = markdown(listed)
    print(text)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        write(options.out / "coverage.md", text)
        raw = {"machine": machine(), "rows": [asdict(row) for row in listed.values()]}
        write(options.out / "coverage.json", json.dumps(raw, indent=1) + "\n")


def write(path: Path, text: str) -> None:
    """Whole or not at all."""
    draft = path.with_suffix(".part")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)


def in_process(name: str, route: str, options: argparse.Namespace) -> Row:
    """The row of one network on one route, whatever happens to the process that measures it."""
    folder = options.work / name
    folder.mkdir(exist_ok=True)
    told, log = folder / f"{route}.json", folder / f"{route}.log"
    told.unlink(missing_ok=True)
    command = [sys.executable, str(Path(__file__).resolve()), "--one", name, route, f"--work={options.work}"]
    command += [f"--memory-bytes={options.memory_bytes}", f"--limit-s={options.limit_s}"]
    root = str(Path(__file__).resolve().parent.parent)
    paths = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    variables = {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": paths}
    started = time.monotonic()
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env=variables, start_new_session=True
        )
        late = False
        while True:
            pid, status, used = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            if not late and time.monotonic() > started + HANGS * options.limit_s:
                late = True
                os.killpg(process.pid, signal.SIGKILL)
            time.sleep(0.02)
        process.returncode = os.waitstatus_to_exitcode(status)
    row = Row(**json.loads(told.read_text(encoding="utf-8"))) if told.exists() else Row(name, route)
    if late or process.returncode == -signal.SIGXCPU:
        row.reason = f"not done after {options.limit_s:g} s (while: {row.reason or 'starting'})"
    elif process.returncode:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or [""]
        row.reason = f"the process ended with {process.returncode}: {one_line(lines[-1])}"
    row.wall_s, row.cpu_s = time.monotonic() - started, used.ru_utime + used.ru_stime
    row.peak_rss_bytes = used.ru_maxrss * 1024
    return row


def alone(name: str, route: str, options: argparse.Namespace) -> None:
    """In a process of its own: measure, and leave the row in a file; what it is at, too, in case it is killed."""
    for kind, most in ((resource.RLIMIT_AS, options.memory_bytes), (resource.RLIMIT_CPU, options.limit_s)):
        _, hard = resource.getrlimit(kind)
        resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
    folder = options.work / name

    def at(row: Row) -> None:
        write(folder / f"{route}.json", json.dumps(asdict(row)))

    at(measured(BY_NAME[name], route, folder, at))


LABELS = {
    "export": "dense ONNX file",
    "module": "from the module",
    "file": "from the ONNX file",
    "peer": "Torch-Pruning",
}
PACKAGES = ("edgekit-toolchain", "torch", "onnx", "onnxscript", "onnxruntime", "torch-pruning", "timm", "torchvision")


def machine() -> dict[str, Any]:
    """Where, and with which versions."""
    find_libraries()
    versions = {name: metadata.version(name) for name in PACKAGES}
    return {"machine": platform.machine(), "python": platform.python_version(), "packages": versions}


def line(row: Row) -> str:
    """A row as it comes, for the terminal."""
    share = "" if row.share is None else f", {row.share:.1%} of the multiply-accumulates"
    return f"{row.name}, {LABELS[row.route]}: {row.reason or 'passed'}{share}, {row.cpu_s:.0f} s"


def markdown(rows: Mapping[tuple[str, str], Row]) -> str:
    """The totals, one line a network, and the reasons."""
    versions = ", ".join(f"{name} {version}" for name, version in machine()["packages"].items())
    lines = [
        f"`python benchmarks/coverage.py`: {len(ARCHITECTURES)} networks, random weights, to half of the "
        f"multiply-accumulates; {platform.machine()}, Python {platform.python_version()}; {versions}.",
        "",
        *(f"- {LABELS[route]}: {total(rows, route)}" for route in ROUTES[1:]),
        "",
        "Left: share of the multiply-accumulates. Masked and runtime: largest difference from the masked original, and "
        "of ONNX Runtime from the pruned module, relative to the largest output. Processor seconds: pruning; the whole "
        "process.",
        "",
        "| network | family | input | M multiply-accumulates | module: left | masked | runtime | s | file: left "
        "| masked | runtime | s | Torch-Pruning: left | runtime | s |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for one in ARCHITECTURES:
        found = {route: rows.get((one.name, route)) for route in ROUTES}
        counted = [row.macs[0] for row in found.values() if row and row.macs]
        cells = [one.name, one.family, " x ".join(map(str, one.shape))]
        cells.append(f"{counted[0] / 1e6:.1f}" if counted else "")
        cells += [*described(found["module"]), *described(found["file"])]
        left, _, runtime, seconds = described(found["peer"])
        cells += [left, runtime, seconds]
        lines.append("| " + " | ".join(cells) + " |")
    reasons = [
        f"- {name}, {LABELS[route]}: {row.reason.replace('|', '/')}"
        for (name, route), row in rows.items()
        if row.reason
    ]
    return "\n".join([*lines, "", "What failed:", "", *(sorted(reasons) or ["- nothing"])]) + "\n"


def total(rows: Mapping[tuple[str, str], Row], route: str) -> str:
    """How many got through, of how many that were measured."""
    some = [row for (_, way), row in rows.items() if way == route]
    return f"{sum(row.passed for row in some)} of {len(some)}" if some else "not measured"


def described(row: Row | None) -> tuple[str, str, str, str]:
    """Cells: share left, difference from the masked original, from the runtime, seconds."""
    if row is None:
        return "", "", "", ""
    left = "" if row.share is None else f"{row.share:.1%}"
    if row.reason:
        left = f"**fails** {left}".rstrip()
    differences = ["" if seen is None else f"{seen:.0e}" for seen in (row.masked, row.runtime)]
    seconds = f"{row.cpu_s:.0f}" if row.prune_s is None else f"{row.prune_s:.0f}; {row.cpu_s:.0f}"
    return left, differences[0], differences[1], seconds


if __name__ == "__main__":
    main()
