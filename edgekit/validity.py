"""Does a measurement count? Judged from the device's state before, during and after it. Pure.

What slows the device down, or makes it another one, makes everything invalid. What only other processes do makes an
absolute time invalid: of two bundles that take turns, both meet it alike, so that their ratio still counts.
What a device does not tell is never held against it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from edgekit.errors import MeasurementInvalidError

OTHER_LOAD_CPUS = 0.2
"""Processors that other processes may use, on average over the timed window, before an absolute time does not count."""

DROPPED = 0.95
"""A locked clock that is seen below this share of what it is locked to has dropped."""

_CHIP = re.compile(r"cpu|gpu|soc|tj|pkg|core|cluster", re.IGNORECASE)
_SAME = {
    "boot_id": "the boot (it was started anew meanwhile)",
    "governor": "the governor",
    "power_mode": "the power mode",
}


@dataclass(frozen=True)
class Validity:
    """`reasons`: why nothing counts. `absolute_reasons`: why absolute times don't, though interleaved pairs do."""

    reasons: tuple[str, ...] = ()
    absolute_reasons: tuple[str, ...] = ()

    @property
    def valid(self) -> bool:
        """Whether ratios of interleaved pairs count."""
        return not self.reasons

    @property
    def absolute_valid(self) -> bool:
        """Whether times count as they are."""
        return not self.reasons and not self.absolute_reasons

    def require(self, found: Mapping[str, Any] | None = None) -> None:
        """Return where the measurement is valid.

        Args:
            found: fields of the report's result that are kept with the reason, such as the device's state.

        Raises:
            MeasurementInvalidError: it is not; the message holds every reason and what to do.
        """
        if self.reasons:
            raise MeasurementInvalidError(
                "; ".join(self.reasons) + ". Let the device cool down, check its supply, and measure again.", found
            )


def judge_state(state: Mapping[str, Any], max_temperature_c: float | None = None) -> Validity:
    """The verdict on one measurement.

    Args:
        state: `before`, `after` (see `edgekit.agent.state.read`), `during` (samples) and `other_load`, as the agent's
            `bench` gives them. What is missing, null or of another type says nothing.
        max_temperature_c: what no part of the chip may have exceeded, in degrees Celsius (the target says it).
    """
    before, after = _mapping(state.get("before")), _mapping(state.get("after"))
    during = state.get("during")
    looks = [before, *(_mapping(one) for one in (during if isinstance(during, list) else ())), after]
    reasons = [
        *_throttled(looks),
        *_grown(before, after),
        *([] if max_temperature_c is None else _hot(looks, max_temperature_c)),
        *_changed(before, after),
        *_dropped(before, looks),
    ]
    return Validity(tuple(dict.fromkeys(reasons)), tuple(_busy(_mapping(state.get("other_load")))))


def judge_pairs(infos: Iterable[Mapping[str, Any]], max_temperature_c: float | None = None) -> Validity:
    """The verdict on interleaved rounds: `infos` is what the device told with each of its `Pairs`.

    Other load is none of it: the two bundles load the device themselves, and what else runs meets both.
    """
    sides = [_mapping(_mapping(info.get(side)).get("state")) for info in infos for side in ("a", "b")]
    found = [judge_state(state, max_temperature_c).reasons for state in sides]
    boots = {str(boot) for state in sides for boot in _values([_mapping(state.get("before"))], "boot_id")}
    rebooted = ("the device was started anew between two rounds",) if len(boots) > 1 else ()
    return Validity(tuple(dict.fromkeys((*(reason for reasons in found for reason in reasons), *rebooted))))


def _throttled(looks: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the firmware or the kernel said at any look; and what happened between looks, by the bits since boot."""
    told = [_mapping(value) for value in _values(looks, "throttled")]
    now = {str(name) for one in told for name in _listed(one.get("now"))}
    if told:
        now |= {str(name) for name in _listed(told[-1].get("since_boot"))} - {
            str(name) for name in _listed(told[0].get("since_boot"))
        }
    reasons = [f"the board reported: {', '.join(sorted(now))}"] if now else []
    if any(value is True for value in _values(looks, "under_voltage")) and "under-voltage" not in now:
        reasons.append("the board reported: under-voltage")
    slowed = {
        name for one in _values(looks, "cooling") for name, by in _mapping(one).items() if _real(by) and float(by) > 0
    }
    if slowed:
        reasons.append(f"the kernel lowered a clock to cool the device ({', '.join(sorted(map(str, slowed)))})")
    return reasons


def _grown(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Counters since boot: only their growth from before to after is about this measurement."""
    first, last = before.get("throttle_events"), after.get("throttle_events")
    reasons = []
    if _real(first) and _real(last) and float(last) > float(first):
        reasons.append(f"the processor was slowed down by heat {float(last) - float(first):g} times")
    start, end = _mapping(before.get("over_current_events")), _mapping(after.get("over_current_events"))
    for name, count in end.items():
        known = start.get(name)
        if _real(count) and _real(known) and float(count) > float(known):
            reasons.append(f"the supply slowed the board down {float(count) - float(known):g} times ({name})")
    return reasons


def _hot(looks: Sequence[Mapping[str, Any]], limit: float) -> list[str]:
    zones = [_mapping(value) for value in _values(looks, "temperature_c")]
    readings = [(name, float(value)) for one in zones for name, value in one.items() if _real(value)]
    # A zone of a power chip may report a constant, one of a disk or a radio says nothing about the processor.
    chip = [reading for reading in readings if _CHIP.search(str(reading[0]))] or readings
    name, value = max(chip, key=lambda reading: reading[1], default=("", 0.0))
    return [f"{name} reached {value:.1f} °C, above the target's limit of {limit:g} °C"] if value > limit else []


def _changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    reasons = []
    for name, words in _SAME.items():
        first, last = before.get(name), after.get(name)
        if first is not None and last is not None and first != last:
            shown = "" if name == "boot_id" else f" from {_said(first)} to {_said(last)}"
            reasons.append(f"{words} changed{shown}")
    return reasons


def _dropped(before: Mapping[str, Any], looks: Sequence[Mapping[str, Any]]) -> list[str]:
    """Limits that were lowered, and locked clocks that were not held. A free clock may go where it likes."""
    limits = [_numbers(value) for value in _values(looks, "cpu_max_mhz")]
    for one in limits[1:]:
        if len(one) == len(limits[0]) and any(now < first for first, now in zip(limits[0], one, strict=True)):
            return [f"the highest clock was lowered from {max(limits[0]):g} to {min(one):g} MHz"]
    if before.get("clocks_locked") is not True or not limits:
        return []
    for one in map(_numbers, _values(looks, "cpu_mhz")):
        if len(one) == len(limits[0]) and any(now < DROPPED * most for most, now in zip(limits[0], one, strict=True)):
            return [f"a clock that is locked to {max(limits[0]):g} MHz dropped to {min(one):g} MHz"]
    return []


def _busy(other: Mapping[str, Any]) -> list[str]:
    used = other.get("others_cpus")
    if not _real(used) or float(used) <= OTHER_LOAD_CPUS:
        return []
    shown = [_mapping(one) for one in _listed(other.get("processes"))]
    names = ", ".join(str(one.get("name")) for one in shown)
    return [f"other processes used {float(used):.2f} processors meanwhile" + (f" ({names})" if names else "")]


def _real(value: Any) -> TypeGuard[float]:
    """Whether a device gave a number that can be computed with: no NaN, and nothing beyond what a float holds."""
    return isinstance(value, (int, float)) and abs(value) < 1e300


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _numbers(value: Any) -> list[float]:
    return [float(one) for one in _listed(value) if _real(one)]


def _values(looks: Sequence[Mapping[str, Any]], name: str) -> list[Any]:
    return [look[name] for look in looks if look.get(name) is not None]


def _said(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
