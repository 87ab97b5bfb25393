"""Progress on stderr: bars with the time left on a terminal, a few plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

from edgekit.context import Progress, Silent, Task

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as RichBars
    from rich.progress import TaskID

EVERY_S = 15.0
"""How often a plain line tells how far a task is."""


@contextmanager
def progress_on_stderr(*, quiet: bool = False) -> Iterator[Progress]:
    """The right kind for where stderr goes."""
    if quiet:
        yield Silent()
    elif sys.stderr.isatty():
        from rich.console import Console

        with _bars(Console(stderr=True)) as bars:
            yield _Rich(bars)
    else:
        yield Plain(lambda line: print(line, file=sys.stderr, flush=True))


def _bars(console: Console) -> RichBars:
    from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as RichBars

    return RichBars(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        console=console,
        refresh_per_second=4,  # a faster one would disturb measurements on a small machine
    )


class _Rich:
    """A `Progress` of rich's bars; what is done leaves one line with its time."""

    def __init__(self, bars: RichBars) -> None:
        self._bars = bars

    @contextmanager
    def task(self, description: str, total: float | None = None) -> Iterator[Task]:
        started, handle = time.monotonic(), self._bars.add_task(description, total=total, note="")
        try:
            yield _RichTask(self._bars, handle)
            self.say(f"{description}: {clock(time.monotonic() - started)}")
        finally:
            self._bars.remove_task(handle)

    def say(self, line: str) -> None:
        self._bars.console.print(line, markup=False, highlight=False, soft_wrap=True)


class _RichTask:
    def __init__(self, bars: RichBars, handle: TaskID) -> None:
        self._bars, self._handle = bars, handle

    def advance(self, amount: float = 1, note: str = "") -> None:
        self._bars.advance(self._handle, amount)
        if note:
            self._bars.update(self._handle, note=note)


class Plain:
    """A `Progress` of plain lines: one when a task ends, one every `EVERY_S` seconds while it runs."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write

    def task(self, description: str, total: float | None = None) -> AbstractContextManager[Task]:
        """A line that stands while the context is open."""
        return _PlainTask(self._write, description, total)

    def say(self, line: str) -> None:
        """One plain line."""
        self._write(line)


class _PlainTask:
    def __init__(self, write: Callable[[str], None], description: str, total: float | None) -> None:
        self._write, self._description, self._total = write, description, total
        self._done, self._note = 0.0, ""

    def __enter__(self) -> _PlainTask:
        self._started = self._told = time.monotonic()
        return self

    def __exit__(self, failed: type[BaseException] | None, *_: object) -> None:
        if failed is None:
            self._write(f"{self._description}: {clock(time.monotonic() - self._started)}")

    def advance(self, amount: float = 1, note: str = "") -> None:
        self._done += amount
        self._note = note or self._note
        now = time.monotonic()
        if now - self._told >= EVERY_S:
            self._told = now
            self._write(self._line(now - self._started))

    def _line(self, seconds: float) -> str:
        tail = f" ({self._note})" if self._note else ""
        if not self._total or not self._done:
            return f"{self._description}: {clock(seconds)} so far{tail}"
        left = seconds * max(self._total - self._done, 0) / self._done
        return f"{self._description}: {self._done / self._total:.0%}, about {clock(left)} left{tail}"


def clock(seconds: float) -> str:
    """A duration as people say it.

    >>> clock(3.21), clock(75)
    ('3.2 s', '1 min 15 s')
    """
    return f"{seconds:.1f} s" if seconds < 60 else f"{int(seconds) // 60} min {int(seconds) % 60} s"
