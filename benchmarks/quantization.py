"""edgekit's int8 beside its peers', in one run on one machine: time, memory, size, accuracy, latency.

Every tool is a process of its own, in an environment of its own where it must be, and is given the same ONNX file and
the same calibration images. What is timed is the whole process from its start to its end, imports included. Then the
files are run and timed on the runtimes that take them.

    python benchmarks/quantization.py --envs build/peers --images imagenet1k_sample.npz --out benchmarks/results

The first run makes the peers' environments (10 GB, from the package index). What is done is kept under `--work`: an
interrupted run goes on, and a tool that changed is run again. Progress is on stderr, the tables in Markdown are on
stdout and, with the raw figures, under `--out`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quantizers.tools import (
    ACCURATE,
    BASE,
    COUNTS,
    EDGEKIT,
    EDGEKIT_FAST,
    EDGEKIT_LITERT,
    ENVIRONMENTS,
    HERE,
    OWN,
    TOOLS,
    Tool,
    recipe,
)  # fmt: skip

ROOT = HERE.parent.parent


@dataclass
class Row:
    """One tool on one network and one calibration set: its runs, its files, and what they answer."""

    tool: str
    net: str
    images: int
    fingerprint: str
    own: bool
    runs: list[dict[str, float]] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)
    size_bytes: dict[str, int] = field(default_factory=dict)
    answers: dict[str, str] = field(default_factory=dict)
    error: str = ""


@dataclass(frozen=True)
class Bench:
    """Where things lie, and how much is wanted."""

    work: Path
    envs: Path
    sample: str
    repeat: int
    rounds: int
    timeout: float

    def prepare(self, nets: Sequence[str]) -> None:
        """Export the networks and cut the images, each once and in a process of its own."""
        (self.work / "home" / "intel").mkdir(parents=True, exist_ok=True)
        # OpenVINO and NNCF count their users unless this file says no.
        (self.work / "home" / "intel" / "openvino_telemetry").write_text("0", encoding="utf-8")
        done = self.images / "done"
        if not done.exists() or done.read_text(encoding="utf-8") != self.sample:
            say("cut images")
            self._must(OWN, str(HERE / "images.py"), str(self.images), self.sample)
        for net in nets:
            if not self.model(net).exists():
                say(f"export {net}")
                self._must(OWN, str(HERE / "networks.py"), net, str(self.model(net)))

    @property
    def images(self) -> Path:
        """`<count>/calibration.npz`, and `judge.npz`."""
        return self.work / "images"

    @property
    def judged(self) -> bool:
        """Whether there are real images to judge by."""
        return (self.images / "judge.npz").exists()

    def model(self, net: str) -> Path:
        """The network's ONNX file."""
        return self.work / f"{net}.onnx"

    def python(self, environment: str) -> str:
        """The interpreter of an environment, which is made if it is not there.

        Raises:
            OSError, CalledProcessError: it cannot be made.
        """
        if environment == OWN:
            return sys.executable
        folder, packages = self.envs / environment, ENVIRONMENTS[environment]
        python, ready = folder / "bin" / "python", folder / "ready"
        if not ready.exists() or ready.read_text(encoding="utf-8").split() != [*packages]:
            say(f"make the environment {environment}: {' '.join(packages)}")
            shutil.rmtree(folder, ignore_errors=True)
            install = [str(python), "-m", "pip", "install", "--quiet", *packages]
            for command in ([sys.executable, "-m", "venv", str(folder)], install):
                subprocess.run(command, check=True, stdout=sys.stderr)
            ready.write_text("\n".join(packages), encoding="utf-8")
        return str(python)

    def row(self, tool: Tool, net: str, images: int, turn: int) -> Row:
        """The row of a tool with at least `turn` runs in it, kept ones included."""
        row, folder = self.kept(tool, net, images), self.folder(tool, net, images)
        if row.error or len(row.runs) >= turn:
            return row
        say(f"{net}, {images} images, {tool.name}: run {turn} of {self.repeat}")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        places = {"model": self.model(net), "net": net, "out": folder}
        places["data"] = self.images / str(images) / "calibration.npz"
        if tool.own:
            text = recipe(tool, self.model(net), self.images / str(images), images)
            (folder / "recipe.yaml").write_text(text, encoding="utf-8")
        try:
            python = self.python(tool.environment)
            row.runs.append(self._run([python, *(part.format(**places) for part in tool.command)], folder))
            row.files = {runtime: _only(folder, pattern) for runtime, pattern in tool.files.items()}
            row.size_bytes = {runtime: _size(Path(file)) for runtime, file in row.files.items()}
            if self.judged and (net, images) == (ACCURATE, BASE):
                row.answers = {runtime: self._answers(runtime, file, folder) for runtime, file in row.files.items()}
        except (OSError, subprocess.SubprocessError, FailedError) as error:
            row.error = str(error)
            say(f"  failed: {row.error}")
        self._keep(row, folder)
        return row

    def folder(self, tool: Tool, net: str, images: int) -> Path:
        """Where a tool writes its files."""
        return self.work / "rows" / f"{net}-{images}-{tool.slug}"

    def kept(self, tool: Tool, net: str, images: int) -> Row:
        """What an earlier run measured of the same code, or a row without runs."""
        fresh = Row(tool.name, net, images, _fingerprint(tool), tool.own)
        try:
            known = Row(**json.loads((self.folder(tool, net, images) / "row.json").read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return fresh
        return known if known.fingerprint == fresh.fingerprint else fresh

    def _keep(self, row: Row, folder: Path) -> None:
        (folder / "row.json").write_text(json.dumps(vars(row), indent=1), encoding="utf-8")

    def _answers(self, runtime: str, file: str, folder: Path) -> str:
        out = folder / f"answers-{runtime}.npy"
        self._must(OWN, str(HERE / "answers.py"), runtime, file, str(self.images / "judge.npz"), str(out))
        return str(out)

    def reference(self) -> str:
        """What the float network answers, on ONNX Runtime."""
        out = self.work / "answers-float.npy"
        if not out.exists():
            self._answers("onnxruntime", str(self.model(ACCURATE)), self.work)
            (self.work / "answers-onnxruntime.npy").replace(out)
        return str(out)

    def latency(self, net: str, runtime: str, threads: int, files: Sequence[str]) -> list[Any]:
        """Rounds of block medians, one pair a file; kept while the files stay the same."""
        key = hashlib.sha256(repr([(_digest(Path(file)), self.rounds) for file in files]).encode()).hexdigest()[:16]
        out = self.work / f"latency-{net}-{runtime}-{threads}-{key}.json"
        if not out.exists():
            say(f"{net} on {runtime}, {threads} threads: {len(files)} files against each other")
            args = (runtime, str(threads), str(self.rounds), str(self.images / "64" / "calibration.npz"), str(out))
            self._must(OWN, str(HERE / "latency.py"), *args, *files)
        taken: list[Any] = json.loads(out.read_text(encoding="utf-8"))
        return taken

    def _must(self, environment: str, *command: str) -> None:
        self._run([self.python(environment), *command], self.work)

    def _run(self, command: Sequence[str], folder: Path) -> dict[str, float]:
        """Seconds and peak memory of a process, those of its children included.

        This process must stay small: what it holds when it starts another counts as that one's memory.
        """
        paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", ""))))
        variables = {**os.environ, "PYTHONPATH": paths, "HOME": str(self.work / "home")}
        variables["EDGEKIT_CACHE"] = str(folder / "cache")
        log = folder / "log.txt"
        with log.open("wb") as file:
            started = time.monotonic()
            process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=variables, cwd=folder)
            used = _wait(process, started + self.timeout)
            wall = time.monotonic() - started
        if process.returncode:
            lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or [""]
            raise FailedError(f"{Path(command[1]).name} ends with {process.returncode}: {lines[-1][:300]} ({log})")
        return {"wall_s": wall, "cpu_s": used.ru_utime + used.ru_stime, "peak_rss_bytes": used.ru_maxrss * 1024}


class FailedError(Exception):
    """A process that did not end well."""


def _wait(process: subprocess.Popen[bytes], end: float) -> Any:
    """Wait, and return what the process used."""
    while True:
        pid, status, used = os.wait4(process.pid, os.WNOHANG)
        if pid:
            process.returncode = os.waitstatus_to_exitcode(status)
            return used
        if time.monotonic() > end:
            process.kill()
            end = float("inf")
        time.sleep(0.01)


def _only(folder: Path, pattern: str) -> str:
    found = sorted(folder.glob(pattern))
    if not found:
        raise FailedError(f"it wrote no {pattern}")
    return str(found[0])


def _size(file: Path) -> int:
    """Bytes of a model file and of what it needs beside it: the `.bin` of an `.xml`, external data of an `.onnx`."""
    beside = [file.with_suffix(".bin")] if file.suffix == ".xml" else sorted(file.parent.glob(f"{file.name}[._]*"))
    return sum(path.stat().st_size for path in (file, *beside) if path.exists())


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _fingerprint(tool: Tool) -> str:
    """What a row is of: a change of it makes the row be measured anew."""
    code = sorted((ROOT / "edgekit").rglob("*.py")) if tool.own else sorted(HERE.glob("*.py"))
    seen = [repr(tool), repr(ENVIRONMENTS.get(tool.environment)), *map(_digest, code)]
    return hashlib.sha256("\n".join(seen).encode()).hexdigest()


def say(line: str) -> None:
    """Progress."""
    print(f"[{time.strftime('%H:%M:%S')}] {line}", file=sys.stderr, flush=True)


def _plan(asked: argparse.Namespace) -> list[tuple[Tool, str, int]]:
    """Everything to run, in order: (tool, network, images)."""
    sizes = asked.sizes or ([ACCURATE] if asked.quick else [*COUNTS])
    plan = []
    for net in sizes:
        for images in asked.counts or ([64] if asked.quick else COUNTS[net]):
            for tool in TOOLS:
                wanted = not asked.only or any(part.lower() in tool.name.lower() for part in asked.only)
                fits = not tool.where or (net, images) in tool.where
                if wanted and fits and (tool.quick or asked.only or not asked.quick):
                    plan.append((tool, net, images))
    return plan


def _arguments() -> argparse.Namespace:
    def several(text: str) -> list[str]:
        return text.split(",")

    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--envs", type=Path, default=Path("build/peers"), help="the peers' environments")
    parser.add_argument("--work", type=Path, default=Path("build/quantization"), help="what is kept between runs")
    parser.add_argument("--images", type=Path, help="an .npz of JPEGs to calibrate with and judge by; else noise")
    parser.add_argument("--out", type=Path, help="write quantization.md and quantization.json here too")
    parser.add_argument("--quick", action="store_true", help="three tools, one network, 64 images")
    parser.add_argument("--only", type=several, help="tools whose names hold one of these, such as 'edgekit,nncf'")
    parser.add_argument("--sizes", type=several, help=f"of {', '.join(COUNTS)}")
    parser.add_argument("--counts", type=lambda text: [int(n) for n in several(text)], help="of 64, 256, 1024")
    parser.add_argument("--repeat", type=int, default=1, help="runs of every tool, in turns; the median counts")
    parser.add_argument("--rounds", type=int, default=10, help="interleaved rounds of a latency comparison")
    parser.add_argument("--no-latency", action="store_true", help="leave latency out")
    parser.add_argument("--timeout", type=float, default=900, help="seconds that a process may take")
    parser.add_argument("--fresh", action="store_true", help="forget what was kept of tools' runs")
    asked = parser.parse_args()
    unknown = [net for net in asked.sizes or () if net not in COUNTS]
    if unknown:
        parser.error(f"--sizes: unknown {', '.join(unknown)}; there are {', '.join(COUNTS)}")
    return asked


def _comparisons(rows: Sequence[Row]) -> Iterator[tuple[str, str, list[Row]]]:
    """Networks and runtimes with the rows whose files are compared there: those of the network's largest plain set."""
    for net in dict.fromkeys(row.net for row in rows):
        counts = {row.images for row in rows if row.net == net}
        images = BASE if BASE in counts else max(counts)
        for runtime in ("onnxruntime", "openvino", "litert"):
            found = [r for r in rows if (r.net, r.images) == (net, images) and runtime in r.files and not r.error]
            found = [r for r in found if not r.own or r.tool in (EDGEKIT, EDGEKIT_FAST, EDGEKIT_LITERT)]
            if len(found) > 1 or (found and runtime != "litert"):
                yield net, runtime, found


def main() -> None:
    """Measure what was asked for, write tables and figures."""
    asked = _arguments()
    bench = Bench(asked.work.resolve(), asked.envs.resolve(), str(asked.images.resolve()) if asked.images else "",
                  asked.repeat, asked.rounds, asked.timeout)  # fmt: skip
    if asked.fresh:
        shutil.rmtree(bench.work / "rows", ignore_errors=True)
    plan = _plan(asked)
    bench.prepare(list(dict.fromkeys(net for _, net, _ in plan)))
    rows: list[Row] = []
    for turn in range(1, asked.repeat + 1):
        rows = [bench.row(tool, net, images, turn) for tool, net, images in plan]
    latencies = {}
    for net, runtime, found in () if asked.no_latency else _comparisons(rows):
        names = [row.tool for row in found]
        files = [row.files[runtime] for row in found]
        if runtime != "litert":
            names, files = [*names, "float"], [*files, str(bench.model(net))]
        for threads in (1, 2):
            latencies[net, runtime, threads] = (names, bench.latency(net, runtime, threads, files))
    _write(bench, rows, latencies, asked.out)


def _write(bench: Bench, rows: Sequence[Row], latencies: Mapping[Any, Any], out: Path | None) -> None:
    from quantizers import tables

    judged = tables.judge(rows, bench.reference()) if any(row.answers for row in rows) else []
    text = tables.markdown(rows, judged, latencies)
    print(text)
    if out:
        out.mkdir(parents=True, exist_ok=True)
        (out / "quantization.md").write_text(f"{text}\n", encoding="utf-8")
        raw = {"machine": tables.machine(), "rows": [vars(row) for row in rows], "accuracy": judged}
        raw["latency"] = [
            {"network": n, "runtime": r, "threads": t, "files": names, "rounds_s": taken}
            for (n, r, t), (names, taken) in latencies.items()
        ]
        written = json.dumps(raw, indent=1).replace(f"{bench.work}/", "")  # files by their names under --work
        (out / "quantization.json").write_text(f"{written}\n", encoding="utf-8")


if __name__ == "__main__":
    try:
        main()
    except FailedError as error:
        sys.exit(f"quantization.py: {error}")
