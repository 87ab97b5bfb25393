"""The agent's p50 beside that of each runtime's own tool, or of the shortest loop that its API allows.

    python benchmarks/harness.py X.edge ... [--inputs in.npy] [--threads 1] [--rounds 12] [--out harness.md]

The same model file, settings, threads and processors for both; the two take turns (agent, peer, peer, agent) in short
blocks, so that what the machine does besides meets both, and each round starts them anew, because where memory happens
to lie is part of what varies. Peers: a loop over `InferenceSession.run`, over an OpenVINO request whose inputs are set,
over a LiteRT interpreter, and OpenVINO's `benchmark_app` (its median has two decimals of a millisecond: take models of
some milliseconds). Writes a Markdown table: ratio agent / peer with its 95 % interval, and the spread of single rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from edgekit.agent.bench import samples_of, spread
from edgekit.agent.infer import batch_size
from edgekit.agent.unpack import Archive
from edgekit.compare import paired_ratio
from edgekit.devices._pairs import BLOCK_S, LEAST_TURNS, TIMED_S, processors
from edgekit.devices.benching import interleaved

TARGET = 0.03
"""How far the agent's p50 may be from the peer's."""

APP_S = 1.0
"""What benchmark_app is run for, and the agent against it."""

Turns = list[list[list[float]]]
"""Of one round: for each turn the blocks agent, peer, peer, agent, in seconds."""


@dataclass(frozen=True)
class Job:
    """One bundle: its model file unpacked, its inputs ready in an .npz (`<turn>/<position>`), and how to run it."""

    archive: Archive
    model: Path
    inputs: Path
    raw: str
    threads: int

    @property
    def backend(self) -> str:
        """The bundle's."""
        return str(self.archive.manifest["backend"])

    def settings(self) -> str:
        """What the peer needs, as one argument."""
        manifest = self.archive.manifest
        return json.dumps(
            {
                "backend": self.backend,
                "model": str(self.model),
                "inputs": str(self.inputs),
                "names": [entry["name"] for entry in manifest["inputs"]],
                "threads": self.threads,
                "runner": manifest["runner"],
            }
        )


def main() -> None:
    """Measure what was asked for, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="*", type=Path)
    parser.add_argument("--inputs", default="", help="samples for the agent and the loops; the golden ones otherwise")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--app-rounds", type=int, default=8, help="rounds with benchmark_app: one turn of 1 s blocks")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peer:
        serve_peer(json.loads(options.peer))
        return
    if kept := processors(options.threads):
        os.sched_setaffinity(0, kept)  # which all processes inherit
    lines = [
        "| bundle | peer | agent p50 | peer p50 | agent / peer | 95 % | single rounds | p10 | |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as folder:
        for path in options.bundles:
            job = prepared(path, options, Path(folder))
            taken = {"bare loop": [round_of(job, loop) for _ in range(options.rounds)]}
            if job.backend == "openvino" and options.app_rounds:
                app = [round_of(job, benchmark_app, APP_S, 1) for _ in range(options.app_rounds)]
                taken["benchmark_app"] = app
            lines += [row(path, name, rounds) for name, rounds in taken.items()]
            print("\n".join(lines[-len(taken) :]), flush=True)
    if options.out:
        options.out.write_text("\n".join(lines) + "\n")


def prepared(path: Path, options: argparse.Namespace, folder: Path) -> Job:
    """The bundle's model unpacked, and the inputs that the agent would take from the data, made ready."""
    archive = Archive(str(path))
    batch = batch_size(archive.manifest, 1)
    ready = spread(samples_of(archive, options.inputs), batch)
    inputs = folder / f"{path.stem}.npz"
    np.savez(inputs, **{f"{turn}/{i}": array for turn, feeds in enumerate(ready) for i, array in enumerate(feeds)})
    model = archive.unpack() / archive.manifest["entry"]
    return Job(archive, model, inputs, options.inputs, options.threads)


Blocks = Callable[[float], list[float]]
"""Measures one block of so many seconds: times of its inferences, or their median where a tool tells no more."""


def loop(job: Job, stack: ExitStack) -> Blocks:
    """The bare loop of the bundle's backend, in a process of its own."""
    command = [sys.executable, str(Path(__file__).resolve()), "--peer", job.settings()]
    return stack.enter_context(serving(command))


def round_of(
    job: Job, peer: Callable[[Job, ExitStack], Blocks], block_s: float = BLOCK_S, least: int = LEAST_TURNS
) -> Turns:
    """Turns of agent, peer, peer, agent, in a pair of fresh processes: an odd number, so that one is the middle one."""
    command = [sys.executable, "-B", job.archive.path, "bench", "--blocks", f"--threads={job.threads}"]
    command += [f"--inputs={job.raw}"] if job.raw else []
    turns: Turns = []
    with ExitStack() as stack:
        agent, other = stack.enter_context(serving(command)), peer(job, stack)
        ends = time.monotonic() + TIMED_S
        while len(turns) < least or time.monotonic() < ends or len(turns) % 2 == 0:
            turns.append([take(block_s) for take in (agent, other, other, agent)])
    return turns


def row(path: Path, name: str, taken: Sequence[Turns]) -> str:
    """One line of the table."""
    rounds = interleaved([{"samples_s": turns} for turns in taken]).rounds
    ratio, low, high = paired_ratio(rounds)
    single = sorted(float(np.sqrt(a1 * a2 / b1 / b2)) for a1, b1, b2, a2 in rounds)
    agent, peer = (
        [x for turns in taken for turn in turns for i in places for x in turn[i]] for places in ((0, 3), (1, 2))
    )
    fast = "" if name == "benchmark_app" else f"{np.quantile(agent, 0.1) / np.quantile(peer, 0.1):.4f}"
    inside, outside = max(high - 1, 1 - low) <= TARGET, low > 1 + TARGET or high < 1 - TARGET
    verdict = f"within {TARGET:.0%}" if inside else "**off**" if outside else "too noisy to tell"
    return (
        f"| {path.stem} | {name} | {median(agent) * 1e3:.3f} ms | {median(peer) * 1e3:.3f} ms | {ratio:.4f} "
        f"| {low:.4f} to {high:.4f} | {single[0]:.3f} to {single[-1]:.3f} | {fast} | {verdict} |"
    )


@contextmanager
def serving(command: Sequence[str]) -> Iterator[Blocks]:
    """A process that measures a block for every line on its stdin: the agent's protocol, the peers speak it too."""
    hidden = ("PYTHON", "OMP_", "KMP_", "MKL_")
    own = {key: value for key, value in os.environ.items() if not key.startswith(hidden) or key == "PYTHONPATH"}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=own
    ) as process:
        assert process.stdin and process.stdout
        given, told = process.stdin, process.stdout
        if not told.readline():
            raise SystemExit(f"{' '.join(command)[:300]} did not start")

        def block(block_s: float) -> list[float]:
            given.write(f"{block_s}\n")
            given.flush()
            seconds: list[float] = json.loads(told.readline())["samples_s"]
            return seconds

        try:
            yield block
        finally:
            process.kill()


def benchmark_app(job: Job, stack: ExitStack) -> Blocks:
    """OpenVINO's own tool, started for every block, with the bundle's hints."""
    manifest = job.archive.manifest
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    hints = {"ENABLE_CPU_PINNING": "NO", **manifest["runner"].get("hints", {})}
    (folder / "config.json").write_text(json.dumps({"CPU": {key: str(value) for key, value in hints.items()}}))
    batch = batch_size(manifest, 1)
    shapes = [[d if isinstance(d, int) else batch for d in entry["shape"]] for entry in manifest["inputs"]]
    named = zip((entry["name"] for entry in manifest["inputs"]), shapes, strict=True)
    command = [str(Path(sys.executable).with_name("benchmark_app")), "-m", str(job.model), "-d", "CPU", "-api", "sync"]
    command += ["-hint", "none", "-nstreams", "1", "-nthreads", str(job.threads), "-t", f"{APP_S:.0f}"]
    command += ["-load_config", str(folder / "config.json")]
    command += ["-shape", ",".join(f"{name}[{','.join(map(str, shape))}]" for name, shape in named)]

    def block(_: float) -> list[float]:
        done = subprocess.run(command, capture_output=True, text=True)
        found = re.search(r"Median:\s+([0-9.]+) ms", done.stdout)
        if found is None:
            raise SystemExit(f"{' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        return [float(found[1]) / 1e3]

    return block


def serve_peer(settings: dict[str, Any]) -> None:
    """In a process of its own: the bare loop, warm, then a block for every line on stdin."""
    with np.load(settings["inputs"]) as file:
        turns = 1 + max(int(name.partition("/")[0]) for name in file.files)
        feeds = [[file[f"{turn}/{i}"] for i in range(len(settings["names"]))] for turn in range(turns)]
    infer = LOOPS[settings["backend"]](settings)
    block(infer, feeds, 0.5)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        print(json.dumps({"samples_s": block(infer, feeds, float(line))}), flush=True)


def block(infer: Callable[[list[Any]], float], feeds: Sequence[list[Any]], seconds: float) -> list[float]:
    """Times of inferences, on one input after the other."""
    taken: list[float] = []
    turn, ends = 0, time.perf_counter() + seconds
    while len(taken) < 3 or time.perf_counter() < ends:
        taken.append(infer(feeds[turn % len(feeds)]))
        turn += 1
    return taken


def own(settings: dict[str, Any]) -> list[Any]:
    """Arrays for the inputs of one inference."""
    with np.load(settings["inputs"]) as file:
        return [file[f"0/{i}"] for i in range(len(settings["names"]))]


def written(places: list[Any], arrays: list[Any]) -> list[Any]:
    """The places, with these inputs written there, before the time is taken, as the agent does it."""
    for place, array in zip(places, arrays, strict=True):
        place[...] = array
    return places


def onnxruntime_loop(settings: dict[str, Any]) -> Callable[[list[Any]], float]:
    """`InferenceSession.run`, all outputs."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = settings["threads"]
    for key, value in settings["runner"].get("session", {}).items():
        options.add_session_config_entry(key, str(value))
    session = ort.InferenceSession(settings["model"], options, providers=["CPUExecutionProvider"])
    names, places = settings["names"], own(settings)

    def infer(arrays: list[Any]) -> float:
        feed = dict(zip(names, written(places, arrays), strict=True))
        started = time.perf_counter()
        session.run(None, feed)
        return time.perf_counter() - started

    return infer


def openvino_loop(settings: dict[str, Any]) -> Callable[[list[Any]], float]:
    """`InferRequest.infer` with the inputs in place: as little as Python can do."""
    import openvino as ov

    core, runner = ov.Core(), settings["runner"]
    model = core.read_model(settings["model"])
    if model.is_dynamic():
        with np.load(settings["inputs"]) as file:
            model.reshape({name: list(file[f"0/{i}"].shape) for i, name in enumerate(settings["names"])})
    hints = {"NUM_STREAMS": "1", "INFERENCE_NUM_THREADS": settings["threads"], "ENABLE_CPU_PINNING": False}
    hints = {"PERFORMANCE_HINT": "LATENCY", **hints, **runner.get("hints", {})}
    request = core.compile_model(model, runner.get("device", "CPU"), hints).create_infer_request()
    places = [request.get_tensor(name).data for name in settings["names"]]

    def infer(arrays: list[Any]) -> float:
        written(places, arrays)
        started = time.perf_counter()
        request.infer()
        return time.perf_counter() - started

    return infer


def litert_loop(settings: dict[str, Any]) -> Callable[[list[Any]], float]:
    """`set_tensor`, `invoke`, `get_tensor`."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=settings["model"], num_threads=settings["threads"])
    interpreter.allocate_tensors()
    details, outputs = interpreter.get_input_details(), interpreter.get_output_details()
    order, places = settings["runner"].get("inputs", range(len(details))), own(settings)

    def infer(arrays: list[Any]) -> float:
        written(places, arrays)
        started = time.perf_counter()
        for position, array in zip(order, places, strict=True):
            interpreter.set_tensor(details[position]["index"], array)
        interpreter.invoke()
        for output in outputs:
            interpreter.get_tensor(output["index"])
        return time.perf_counter() - started

    return infer


LOOPS = {"onnxruntime": onnxruntime_loop, "openvino": openvino_loop, "litert": litert_loop}


if __name__ == "__main__":
    main()
