"""The state of a device while it is measured: a line of JSON a second from a process of its own, read afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

from . import load, output, state
from .system import System, UnknownError

INTERVAL_S = 1.0
READY_S = 10.0
NICENESS = 10


def serve(interval: float, power: bool = False) -> None:
    """One sample every `interval` seconds until stdin ends: with the process that measures, this one ends too.

    A sample is the state, or, with `power`, what the device's meter of power shows (`watts`).
    """
    look = _meter() if power else _state
    begun = time.monotonic()
    for turn in range(1, sys.maxsize):
        line = look()
        output.emit({**line, "watcher_cpu_s": time.process_time()})
        # Not sleep(interval): a sample takes its time, and they would drift.
        left = max(0.0, begun + turn * interval - time.monotonic())
        if select.select([sys.stdin], [], [], left)[0] and not sys.stdin.readline():
            return


def _state() -> dict[str, Any]:
    seen = state.glance()
    reasons = seen.pop("reasons")
    return {"time_s": time.monotonic(), **{name: value for name, value in seen.items() if name not in reasons}}


def _meter() -> Callable[[], dict[str, Any]]:
    from . import power

    source = power.meter(System())

    def look() -> dict[str, Any]:
        start = time.monotonic()
        try:
            watts = {"watts": source.watts()}
        except UnknownError:  # one reading that failed leaves a gap
            watts = {}
        return {"time_s": (start + time.monotonic()) / 2, **watts}

    return look


class Watch:
    """Samples of the state from another process, on a processor that the measurement leaves free where there is one.

    Its lines go to a file without a name: the measuring process does nothing for them until `stop`. Its priority is
    lower. A watch that does not work is told by `info["reason"]`, and is no reason to stop measuring.
    """

    def __init__(self, bundle: str, interval: float = INTERVAL_S, threads: int = 1, power: bool = False) -> None:
        self.info: dict[str, Any] = {"interval_s": interval, "affinity": None}
        self.lines = tempfile.TemporaryFile()  # noqa: SIM115  (closed by stop)
        try:
            self.process: Any = subprocess.Popen(
                [sys.executable, "-B", bundle, "state", "--watch", f"--interval={interval}", *["--power"] * power],
                stdin=subprocess.PIPE,
                stdout=self.lines,
                stderr=subprocess.DEVNULL,
            )
        except OSError as error:
            self.process, self.info["reason"] = None, f"no second process could be started: {error}"
            return
        self.info["affinity"] = _step_aside(self.process.pid, threads)

    @property
    def own(self) -> Sequence[int]:
        """The processes that belong to the measurement."""
        return [] if self.process is None else [self.process.pid]

    def ready(self) -> None:
        """Wait for its first sample: starting Python is the most that it ever costs, and is over before the timing."""
        deadline = time.monotonic() + READY_S
        while self.process is not None and os.fstat(self.lines.fileno()).st_size == 0 and self.process.poll() is None:
            if time.monotonic() > deadline:
                break
            time.sleep(0.01)

    def stop(self) -> list[dict[str, Any]]:
        """End it: its samples in order, each with `time_s` of the monotonic clock. Further calls give none."""
        if self.process is not None:
            with contextlib.suppress(OSError):
                self.process.stdin.close()
            # Not waited for: where all processors are busy, its low priority would make that long.
            self.process.kill()
            self.process.wait()
        if self.lines.closed:
            return []
        self.lines.seek(0)
        samples = [json.loads(line) for line in self.lines.read().split(b"\n")[:-1]]  # the last may be half a line
        self.lines.close()
        if not samples:
            self.info.setdefault("reason", "the watching process told nothing")
        return samples

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class Beside:
    """What is seen beside a measurement: `Watch` from `begin` to `end`, and who else used the processors meanwhile."""

    def __init__(self, bundle: str, threads: int, interval: float = INTERVAL_S) -> None:
        self.watch = Watch(bundle, interval, threads)
        self.window: load.Window | None = None
        self.began = 0.0

    def ready(self) -> None:
        """See `Watch.ready`."""
        self.watch.ready()

    def begin(self) -> None:
        """The timing begins."""
        self.window, self.began = load.Window(self.watch.own), time.monotonic()

    def end(self) -> dict[str, Any]:
        """The timing has ended: its monotonic times, the samples, what `load.Window` tells, how the watching went."""
        ended = time.monotonic()
        other = self.window.told() if self.window else {"others_cpus": None, "reason": "the timing never began"}
        during = self.watch.stop()
        return {"timed_s": [self.began, ended], "during": during, "other_load": other, "watch": self.watch.info}

    def __enter__(self) -> Beside:
        return self

    def __exit__(self, *_: object) -> None:
        self.watch.stop()


def _step_aside(pid: int, threads: int) -> list[int] | None:
    """Bind the watcher outside the affinity of this process; else to its last processor, if it has one to spare."""
    with contextlib.suppress(OSError, AttributeError):
        os.setpriority(os.PRIO_PROCESS, pid, NICENESS)
    if not hasattr(os, "sched_setaffinity"):
        return None
    mine = sorted(os.sched_getaffinity(0))
    free = [cpu for cpu in range(os.cpu_count() or 1) if cpu not in mine]
    wanted = free or (mine[-1:] if len(mine) > threads else [])
    try:
        if wanted:
            os.sched_setaffinity(pid, wanted)
        return sorted(os.sched_getaffinity(pid))
    except OSError:  # a cpuset that leaves no other choice
        return mine
