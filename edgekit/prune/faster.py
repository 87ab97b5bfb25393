"""A choice of ranks whose network is measured to take no more than a share of the time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from edgekit.prune.ranks import Choice, Option, choose
from edgekit.prune.survey import NEAR, Share

TRIES = 6
"""Networks that are measured at most."""


@dataclass(frozen=True)
class Timed:
    """A choice, and its network's time as a share of the whole one's."""

    choice: Choice
    ratio: float
    low: float
    high: float


def within(
    options: Mapping[str, Sequence[Option]], total: int, wanted: float, measure: Callable[[Choice], Share]
) -> tuple[Timed, bool]:
    """The slowest choice that was seen to take at most `wanted`, and whether there is one: else the fastest.

    Layers become two in the order of `choose`, by multiply-accumulates, of which the network has `total`. How many are
    to go is found by measuring: the next guess lies on the line through the whole network and the last one, between
    what was too slow and what was fast enough.
    """
    seen: list[Timed] = []
    too_fast, too_slow, guess = 0.0, 1.0, wanted
    for _ in range(TRIES if wanted < 1 else 0):
        choice = choose(options, round(total * (1 - guess)))
        timed = next((one for one in seen if one.choice.options == choice.options), None)
        if timed is None:
            timed = Timed(choice, *measure(choice))
            seen.append(timed)
        if NEAR * wanted <= timed.ratio <= wanted or (timed.ratio > wanted and not choice.reached):
            break
        left = 1 - choice.freed / total
        if timed.ratio <= wanted:
            too_fast = max(too_fast, guess)
        else:
            too_slow = min(too_slow, left)
        guess = 1 - (1 - wanted) * (1 - left) / (1 - timed.ratio) if timed.ratio < 1 else 0.0
        if not too_fast < guess < too_slow:
            guess = (too_fast + too_slow) / 2
    fitting = [one for one in seen if one.ratio <= wanted]
    if fitting:
        return max(fitting, key=lambda one: one.ratio), True
    if seen:
        return min(seen, key=lambda one: one.ratio), False
    return Timed(Choice({}, 0, True), 1.0, 1.0, 1.0), True
