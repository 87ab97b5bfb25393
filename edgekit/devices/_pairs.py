"""Two bundles in interleaved rounds: sent to a board with them, and run there by its Python (3.9 and later).

`python3 pairs.py ROUNDS BLOCK_S A.edge B.edge [options of bench]` prints one line of JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

ORDER = (0, 1, 1, 0)
"""A, B, B, A: a drift that is linear over the round cancels."""
DEVICE = 5
"""The exit code of an agent that the device ended."""


def pairs(first: str, second: str, rounds: int, block_s: float, options: Sequence[str]) -> dict[str, Any]:
    """Rounds of ABBA: both processes are loaded and warm, and one works while the other sleeps on its stdin.

    `options` go to `bench --blocks` of both. Gives `{"a", "b"}` (what each told of its session), `block_s` and
    `samples_s`: a round holds its four blocks in the order in which they were taken, raw and in seconds.
    """
    servers: list[_Server] = []
    try:
        servers += [_Server(first, options)]
        servers += [_Server(second, options)]
        for server in servers:
            server.answer()
        taken = [[servers[which].block(block_s) for which in ORDER] for _ in range(rounds)]
        a, b = (server.finish() for server in servers)
    finally:
        for server in servers:
            server.kill()
    return {"a": a, "b": b, "block_s": block_s, "samples_s": taken}


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
    found = pairs(sys.argv[3], sys.argv[4], int(sys.argv[1]), float(sys.argv[2]), sys.argv[5:])
    print(json.dumps(found), flush=True)
