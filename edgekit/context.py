"""What the pipeline lends a stage, so that stages import neither backends nor devices."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from edgekit.data import DataSet
    from edgekit.model import Model
    from edgekit.target import Target


class Task(Protocol):
    """One line of progress."""

    def advance(self, amount: float = 1, note: str = "") -> None:
        """Move on by `amount` of the task's total; `note` replaces the text at the end of the line."""


class Progress(Protocol):
    """Where long work reports: a rich bar with time left on stderr, or nothing."""

    def task(self, description: str, total: float | None = None) -> AbstractContextManager[Task]:
        """A line that stands while the context is open; `total` None means of unknown length."""

    def say(self, line: str) -> None:
        """One plain line that stays."""


class RunContext(Protocol):
    """Everything a stage may use beside the model.

    `work` is the stage's own folder, kept between a killed run and its `--resume`; `deadline` is a
    `time.monotonic()` value or None.
    """

    @property
    def data(self) -> DataSet:
        """The data set, in splits."""

    @property
    def targets(self) -> tuple[Target, ...]:
        """What the result is for."""

    @property
    def seed(self) -> int:
        """Of everything random in the stage."""

    @property
    def base(self) -> Path:
        """The folder that relative paths in the stage's settings start at."""

    @property
    def work(self) -> Path:
        """The stage's own folder."""

    @property
    def deadline(self) -> float | None:
        """When the run must be over, in `time.monotonic()`'s terms."""

    @property
    def progress(self) -> Progress:
        """Where to say how far it is."""

    def measure(
        self, model: Model, target: Target, *, backend: str = "", against: Model | None = None
    ) -> dict[str, Any]:
        """How long `model` takes on `target`'s device, as the recipe will ship it (`backend`: else the first one's).

        Returns:
            `latency_s`, the median in seconds, None without a device; the `precision` of the build; and `where`, text
            that is the same where times compare: device, threads, versions. With `against` also `ratio` to that model's
            time in interleaved rounds, with `low` and `high`, its 95 % interval.
        """


class Silent:
    """A `Progress` that shows nothing: for library use and tests."""

    class _Task:
        def advance(self, amount: float = 1, note: str = "") -> None:
            """Nothing to show."""

        def __enter__(self) -> Silent._Task:
            return self

        def __exit__(self, *_: object) -> None:
            return None

    def task(self, description: str, total: float | None = None) -> AbstractContextManager[Task]:
        """A line that is never shown."""
        return self._Task()

    def say(self, line: str) -> None:
        """Nothing to say."""
