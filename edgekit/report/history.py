"""What gates said one after another: a file of JSON lines, one a gate, that grows at its end."""

from __future__ import annotations

import fcntl
import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from io import RawIOBase
from pathlib import Path
from typing import BinaryIO, Literal

from pydantic import ValidationError

from edgekit.errors import UsageError
from edgekit.report import gated
from edgekit.report.values import Number, Observed, Value
from edgekit.report.verdicts import GateFile, Judgement, Verdict

LONGEST = 1 << 16
"""Bytes of the longest line."""
MOST = 1_000
"""Gates that are read, the last ones."""
_NAME = 200


class Point(Value):
    """One judgement of a gate: what was seen, in the unit of `observed`, and what of."""

    clause: str
    metric: str = ""
    kind: str = ""
    vs: str | None = None
    target: str | None = None
    backend: str | None = None
    verdict: Verdict
    observed: Observed | None = None
    limit: Number = None

    @property
    def series(self) -> tuple[str | None, ...]:
        """What a point has in common with those it is drawn with; the limit may change."""
        unit = self.observed.unit if self.observed else None
        return (self.target, self.backend, self.metric or self.clause, self.vs, self.kind, unit)


class Entry(Value):
    """One gate. `cut` counts the judgements that the line had no room for."""

    schema_version: Literal[1] = 1
    edgekit: str
    created: str
    model: str
    report_sha256: str
    device: str | None = None
    exit_code: int
    points: tuple[Point, ...] = ()
    cut: int = 0


@dataclass(frozen=True)
class History:
    """The last gates of a file, oldest first; `skipped` lines could not be read, `left_out` are older ones."""

    entries: tuple[Entry, ...]
    skipped: int = 0
    left_out: int = 0


def append(gate: GateFile, path: Path) -> None:
    """Add a line for `gate`, whole or not at all; several gates at a time take turns.

    Raises:
        OSError: the file cannot be written. What stood in it still stands there.
    """
    left = memoryview(_line(gate))
    with path.open("a+b", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        end = file.seek(0, os.SEEK_END)
        try:
            if end and not _ends_a_line(file, end):  # a line that a crash tore stays apart
                file.write(b"\n")
            while left:
                left = left[file.write(left) :]
            os.fsync(file.fileno())
        except OSError:
            file.truncate(end)
            raise


def read(path: Path) -> History:
    """The last gates; lines that are damaged, too long or of another schema version are counted and left out.

    Raises:
        UsageError: the file cannot be read, or no line of it is a gate.
    """
    kept: deque[Entry] = deque(maxlen=MOST)
    skipped = whole = 0
    try:
        with path.open("rb") as file:
            for line in _lines(file):
                entry = _entry(line)
                skipped += entry is None
                if entry:
                    kept.append(entry)
                    whole += 1
    except OSError as error:
        raise UsageError(
            f"{path}: cannot be read: {error.strerror}. Give the file of edgekit gate --history."
        ) from error
    if skipped and not kept:
        raise UsageError(f"{path}: none of {skipped} lines is a gate. Give the file of edgekit gate --history.")
    return History(entries=tuple(kept), skipped=skipped, left_out=whole - len(kept))


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Lines of at most `LONGEST` bytes; a longer one comes as b"-", in little memory."""
    while line := file.readline(LONGEST + 1):
        long = len(line) > LONGEST
        while long and line and not line.endswith(b"\n"):
            line = file.readline(LONGEST)
        if long or line.strip():
            yield b"-" if long else line


def _entry(line: bytes) -> Entry | None:
    try:
        return Entry.model_validate_json(line)
    except (ValidationError, ValueError):
        return None


def _line(gate: GateFile) -> bytes:
    """The gate in one line of bounded length: judgements that do not fit are counted, the least serious first."""
    points = [_point(judgement) for judgement in gated.by_weight(gate.judgements)]
    entry = Entry(
        edgekit=gate.edgekit[:_NAME],
        created=gate.created[:_NAME],
        model=gate.model[:_NAME],
        report_sha256=gate.report.sha256[:_NAME],
        device=gate.device[:_NAME] if gate.device else None,
        exit_code=gate.exit_code,
    )
    room, kept = LONGEST - len(entry.model_dump_json().encode()) - 32, 0
    for point in points:
        room -= len(point.model_dump_json().encode()) + 1
        if room < 0:
            break
        kept += 1
    filled = entry.model_copy(update={"points": tuple(points[:kept]), "cut": len(points) - kept})
    return filled.model_dump_json().encode() + b"\n"


def _point(judgement: Judgement) -> Point:
    def short(text: str | None) -> str | None:
        return text[:_NAME] if text else text

    observed = judgement.observed
    return Point(
        clause=judgement.clause[:_NAME],
        metric=judgement.metric[:_NAME],
        kind=judgement.kind,
        vs=short(judgement.vs),
        target=short(judgement.target),
        backend=short(judgement.backend),
        verdict=judgement.verdict,
        observed=observed.model_copy(update={"unit": observed.unit[:_NAME], "of": observed.of[:_NAME]})
        if observed
        else None,
        limit=judgement.limit,
    )


def _ends_a_line(file: RawIOBase, end: int) -> bool:
    file.seek(end - 1)
    return file.read(1) == b"\n"
