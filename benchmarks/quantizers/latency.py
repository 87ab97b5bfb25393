"""Files of one runtime against each other. Usage: latency.py RUNTIME THREADS ROUNDS DATA.npz OUT.json FILE...

A round times a block of single inferences of every file, first to last and last to first: a drift that is linear over
the round cancels. All files are loaded in this one process.
"""

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

from runtimes import load
from samples import batches

BLOCK_S, LEAST, WARM_UP = 0.1, 3, 10


def block(run: Callable[[], object]) -> float:
    """Median seconds of single inferences over at least `BLOCK_S`."""
    seen: list[float] = []
    end = time.perf_counter() + BLOCK_S
    while len(seen) < LEAST or time.perf_counter() < end:
        start = time.perf_counter()
        run()
        seen.append(time.perf_counter() - start)
    return median(seen)


def main(runtime: str, threads: str, rounds: str, data: str, out: str, *files: str) -> None:
    """Write a list of rounds, each a pair of block medians a file."""
    image = next(batches(data, 1))
    loaded = [load(runtime, file, int(threads)) for file in files]
    runs = [partial(each.run, each.prepare(image)) for each in loaded]  # converting an image is not the file's time
    for run in runs:
        for _ in range(WARM_UP):
            run()
    taken = []
    for _ in range(int(rounds)):
        there = [block(run) for run in runs]
        back = [block(run) for run in reversed(runs)][::-1]
        taken.append(list(zip(there, back, strict=True)))
    Path(out).write_text(json.dumps(taken), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
