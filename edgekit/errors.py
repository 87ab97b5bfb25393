"""One base error and a few children; each knows the exit code that the command line ends with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import IntEnum
from typing import Any


class ExitCode(IntEnum):
    """The documented exit codes. They never change meaning."""

    PASS = 0
    GATE_FAILED = 1
    USAGE = 2
    MEASUREMENT_INVALID = 3
    INCONCLUSIVE = 4
    DEVICE = 5
    MISSING_DEPENDENCY = 6
    BUILD_FAILED = 7
    INTEGRITY = 8
    INTERNAL = 70
    INTERRUPTED = 130


PRIORITY: tuple[ExitCode, ...] = (
    ExitCode.INTERRUPTED,
    ExitCode.INTERNAL,
    ExitCode.INTEGRITY,
    ExitCode.USAGE,
    ExitCode.MISSING_DEPENDENCY,
    ExitCode.DEVICE,
    ExitCode.BUILD_FAILED,
    ExitCode.MEASUREMENT_INVALID,
    ExitCode.GATE_FAILED,
    ExitCode.INCONCLUSIVE,
    ExitCode.PASS,
)


def worst(codes: Iterable[int]) -> ExitCode:
    """The code that wins when several things happened in one run; `PASS` when nothing did.

    >>> worst([ExitCode.GATE_FAILED, ExitCode.BUILD_FAILED])
    <ExitCode.BUILD_FAILED: 7>
    """
    return min((ExitCode(code) for code in codes), key=PRIORITY.index, default=ExitCode.PASS)


class EdgekitError(Exception):
    """What failed, what was seen and what to do, in one message for the user."""

    exit_code: ExitCode = ExitCode.INTERNAL


class UsageError(EdgekitError):
    """A recipe, model, data file or option that cannot be used as it is."""

    exit_code = ExitCode.USAGE


class MissingDependencyError(EdgekitError):
    """An optional package is needed and absent; the message holds the pip command."""

    exit_code = ExitCode.MISSING_DEPENDENCY


class DeviceError(EdgekitError):
    """A device cannot be reached, ran out of memory, or its disk is full."""

    exit_code = ExitCode.DEVICE


class BuildError(EdgekitError):
    """A backend cannot build the model; `nodes` names the operators that stop it."""

    exit_code = ExitCode.BUILD_FAILED

    def __init__(self, message: str, nodes: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.nodes = tuple(nodes)


class IntegrityError(EdgekitError):
    """A bundle that is corrupt, unsafe or not what its digest says."""

    exit_code = ExitCode.INTEGRITY


class MeasurementInvalidError(EdgekitError):
    """The device was in no state to measure on; `found` is what the report says of it all the same."""

    exit_code = ExitCode.MEASUREMENT_INVALID

    def __init__(self, message: str, found: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.found = dict(found or {})
