"""Two bundles in interleaved rounds: sent to a board with them, and run there by its Python (3.9 and later).

`python3 pairs.py ROUNDS TIMED_S A.edge B.edge [options of bench]` prints one line of JSON.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ORDER = (0, 1, 1, 0)
"""A, B, B, A: a drift that is linear over the turn cancels."""
BLOCK_S = 0.01
"""Inferences for so long (three at least), then the other's turn: what slows the machine for longer meets both."""
TIMED_S, LEAST_TURNS = 0.7, 5
"""A round takes turns for so long, and at least so many of them."""
WARM_UP_S = 0.1
DEVICE = 5
"""The exit code of an agent that the device ended."""


def pairs(first: str, second: str, rounds: int, options: Sequence[str], timed_s: float = TIMED_S) -> dict[str, Any]:
    """Rounds of two fresh processes each: where memory happens to lie is part of what varies.

    `options` go to `bench --blocks` of both. They keep to the same processors, as many as they have threads, unless
    `options` name some: of two processors, another machine's or process's work may slow one and not the other for as
    long as a round lasts. Gives `block_s` and `rounds`: of each what `a` and `b` told of their session, and
    `samples_s`, which holds for each turn its four blocks in the order in which they were taken, raw, in seconds.
    """
    kept = [] if any(option.startswith("--affinity") for option in options) else processors(_threads(options))
    both = [f"--warm-up-seconds={WARM_UP_S}", *options]
    both += [f"--affinity={','.join(map(str, kept))}"] if kept else []
    return {"block_s": BLOCK_S, "rounds": [_round(first, second, both, timed_s) for _ in range(rounds)]}


def _round(first: str, second: str, options: Sequence[str], timed_s: float) -> dict[str, Any]:
    """Both are loaded and warm, and one works while the other sleeps on its stdin."""
    servers: list[_Server] = []
    try:
        servers += [_Server(first, options)]
        servers += [_Server(second, options)]
        for server in servers:
            server.answer()
        taken: list[list[list[float]]] = []
        ends = time.monotonic() + timed_s
        # An odd number: then one of them is the middle one.
        while len(taken) < LEAST_TURNS or time.monotonic() < ends or len(taken) % 2 == 0:
            taken.append([servers[which].block(BLOCK_S) for which in ORDER])
        a, b = (server.finish() for server in servers)
    finally:
        for server in servers:
            server.kill()
    return {"a": a, "b": b, "samples_s": taken}


def _threads(options: Sequence[str]) -> int:
    return int(next((option.partition("=")[2] for option in options if option.startswith("--threads=")), 1))


def processors(threads: int, root: str = "/sys/devices/system/cpu") -> list[int]:
    """The `threads` processors to keep to; none where there are no more than that, or the system binds no process.

    The fastest cores first, one processor a core before its other ones, the last of them before the first, which has
    most of the interrupts to serve (Linux: `cpu_capacity`, `cpuinfo_max_freq`, `thread_siblings_list`).
    """
    there = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []

    def rank(cpu: int) -> tuple[int, bool, int]:
        folder = Path(root) / f"cpu{cpu}"
        speed = _number(folder / "cpu_capacity", 0) or _number(folder / "cpufreq/cpuinfo_max_freq", 0)
        return speed, _number(folder / "topology/thread_siblings_list", cpu) == cpu, cpu

    return sorted(sorted(there, key=rank)[-threads:]) if threads < len(there) else []


def _number(path: Path, default: int) -> int:
    """The first number in a file."""
    try:
        found = re.match(r"\d+", path.read_text())
    except OSError:
        return default
    return int(found[0]) if found else default


class _Server:
    """A bundle that measures a block whenever it is asked to. Its messages go where this process' own go."""

    def __init__(self, path: str, options: Sequence[str]) -> None:
        command = [sys.executable, "-B", path, "bench", "--blocks", *options]
        self.path = path
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            if code < 0:
                guess = ", out of memory?" if code == -9 else ""
                print(f"edgekit: {self.path} was ended by signal {-code}{guess}", file=sys.stderr, flush=True)
            sys.exit(code if code > 0 else DEVICE)  # it told why by itself
        found: dict[str, Any] = json.loads(line)
        return found

    def block(self, seconds: float) -> list[float]:
        assert self.process.stdin
        try:
            self.process.stdin.write(f"{seconds}\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it ended: reading its answer tells how
        samples: list[float] = self.answer()["samples_s"]
        return samples

    def finish(self) -> dict[str, Any]:
        assert self.process.stdin
        self.process.stdin.close()
        return self.answer()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream:
                stream.close()


if __name__ == "__main__":
    found = pairs(sys.argv[3], sys.argv[4], int(sys.argv[1]), sys.argv[5:], float(sys.argv[2]))
    print(json.dumps(found), flush=True)
