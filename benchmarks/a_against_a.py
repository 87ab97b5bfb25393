"""A bundle against itself, again and again: does the interval of the ratio cover 1 as often as it promises?

Usage: python benchmarks/a_against_a.py X.edge [TIMES] [ROUNDS]. Writes one line a comparison and the share that covers.
A busy machine is a fair test: the interval should widen, not miss.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from edgekit.bundle import open_bundle
from edgekit.compare import paired_ratio
from edgekit.devices.local import Local


def main() -> None:
    """Compare as often as asked for, and count."""
    bundle = open_bundle(Path(sys.argv[1]))
    times = int(sys.argv[2]) if len(sys.argv) > 2 else 20
    rounds = int(sys.argv[3]) if len(sys.argv) > 3 else 10
    covered = 0
    for number in range(times):
        started = time.monotonic()
        ratio, low, high = paired_ratio(Local().pairs(bundle, bundle, rounds=rounds).rounds)
        covered += low <= 1.0 <= high
        print(f"{number + 1:3d}  {ratio:.4f} [{low:.4f}, {high:.4f}]  {time.monotonic() - started:.1f} s", flush=True)
    print(f"{covered} of {times} intervals of 95 % cover 1")


if __name__ == "__main__":
    main()
