"""What a bundle is compared with where a clause says `vs`, and what it means that there is none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgekit.report.predictions import Predictions
from edgekit.report.report import DeviceInfo, Result

Loader = Callable[[str], Predictions]
"""Reads a predictions file by its path in the report."""


class AbsentError(Exception):
    """Why there is nothing to judge.

    `invalid` where there is something that must not be judged; `damaged` where there is something that is not what it
    should be: that was not just left out, and no clause's `on_missing` lets it pass.
    """

    def __init__(self, reason: str, *, invalid: bool = False, damaged: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.invalid = invalid
        self.damaged = damaged


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


def incomparable(now: Result, then: Result) -> str:
    """Why two sessions' numbers must not be held against each other, or "".

    Told apart are the device, its power mode and governor, the threads, and the versions of the runtime.
    """
    if now.device is None or then.device is None:
        was, is_now = _scored_on(then), _scored_on(now)
        return "" if was == is_now else f"it was scored on {was}, now on {is_now}"
    mine, theirs = _conditions(now.device), _conditions(then.device)
    unequal = ((name, theirs.get(name), mine.get(name)) for name in dict.fromkeys((*mine, *theirs)))
    return next((f"its {name} was {was}, now it is {is_now}" for name, was, is_now in unequal if was != is_now), "")


def _scored_on(result: Result) -> str:
    known = f" ({result.device.fingerprint[:12]})" if result.device else ""
    return f"{result.measured_on}{known}"


def _conditions(device: DeviceInfo) -> dict[str, str]:
    before = device.state.get("before")
    state = before if isinstance(before, dict) else {}
    versions = {name: version for name, version in device.versions.items() if name not in ("python", "numpy")}
    return {
        "device": f"{device.name} ({device.fingerprint[:12]})",
        "threads": str(device.threads),
        **versions,
        "power mode": _power(state.get("power_mode")),
        "governor": _power(state.get("governor")),
    }


def _power(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) and value else str(value or "unknown")
