"""Who else used the processors in a window of time: all that were busy, less what the measuring processes used."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

from .system import System, UnknownError

TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
SHORTEST_S = 0.2
"""The kernel counts in ticks of 10 ms: a shorter window says nothing."""

NAMED = 3


class Window:
    """From its making to `told()`; reads outside the timed calls, twice a few milliseconds.

    `own` are the processes of the measurement. The counters are those of /proc/stat (Linux, proc_stat(5)): user, nice,
    system, irq, softirq and steal are busy, idle and iowait are not. Steal is time that the hypervisor gave to others.
    """

    def __init__(self, own: Sequence[int] = (), system: System | None = None) -> None:
        self.system, self.own = system or System(), {os.getpid(), *own}
        self.started = self._look()

    def _look(self) -> Any:
        try:
            return time.monotonic(), _busy(self.system), _processes(self.system)
        except (UnknownError, ValueError, IndexError) as error:
            return str(error)

    def told(self) -> dict[str, Any]:
        """`{"seconds", "others_cpus", "processes"}`, or null with the `reason`.

        `others_cpus` is in processors: 0.5 means that others used half of one all the time. `processes` names those
        that used most of it, of what still ran at the end.
        """
        ended = self._look()
        for look in (self.started, ended):
            if isinstance(look, str):
                return {"others_cpus": None, "reason": look}
        (start, busy, before), (end, busy_after, after) = self.started, ended
        seconds = end - start
        if seconds < SHORTEST_S:
            return {"others_cpus": None, "reason": f"the window of {seconds:.3f} s is too short to count in"}
        used = {pid: ticks - before.get(pid, ("", 0))[1] for pid, (_, ticks) in after.items()}
        mine = sum(ticks for pid, ticks in used.items() if pid in self.own)
        others = sorted((pid for pid in used if pid not in self.own and used[pid] > 0), key=used.__getitem__)
        return {
            "seconds": seconds,
            "others_cpus": max(0.0, (busy_after - busy - mine) / TICKS / seconds),
            "processes": [
                {"name": after[pid][0], "cpus": used[pid] / TICKS / seconds} for pid in reversed(others[-NAMED:])
            ],
        }


def _busy(system: System) -> int:
    """Ticks of all processors that were not idle."""
    fields = [int(value) for value in system.text("proc/stat").splitlines()[0].split()[1:9]]
    return sum(fields[:3]) + sum(fields[5:8])


def _processes(system: System) -> dict[int, tuple[str, int]]:
    """Name and ticks (user and system) of every process that can be seen, by its number."""
    found = {}
    for entry in os.listdir(system.root / "proc"):
        if not entry.isdigit():
            continue
        try:
            text = system.text(f"proc/{entry}/stat")
            name, _, rest = text.partition("(")[2].rpartition(")")
            fields = rest.split()
            found[int(entry)] = name, int(fields[11]) + int(fields[12])
        except (UnknownError, ValueError, IndexError):  # it ended meanwhile
            continue
    return found
