"""What a bundle is compared with where a clause says `vs`, and what it means that there is none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgekit.report.predictions import Predictions
from edgekit.report.report import Result

Loader = Callable[[str], Predictions]
"""Reads a predictions file by its path in the report."""


class AbsentError(Exception):
    """Why there is nothing to judge; `invalid` where there is something that must not be judged."""

    def __init__(self, reason: str, *, invalid: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.invalid = invalid


@dataclass(frozen=True)
class Rival:
    """The other bundle: what is known of it, how its predictions are read, and the file, for measuring it again.

    `bundle` fetches the file where that takes doing (from a store), and raises `AbsentError` where it is gone.
    `stale` says why what is stored must not be held against new numbers (another device, another runtime version), and
    is empty where it may. Sizes compare all the same, and so does what is measured again side by side.
    """

    name: str
    result: Result
    load: Loader | None = None
    bundle: Callable[[], Path] | None = None
    stale: str = ""


Rivals = Callable[[str, Result], Rival]
"""`baseline` or `previous`, and the result that ships, to the rival of that result.

Raises:
    AbsentError: nothing comparable is stored, and why.
"""
