"""Which widths of a network are timed, and what that tells: a table of costs, and the step of the staircase.

Timed are the whole network; networks in which every group of channels keeps a random number of full blocks, each on its
own, so that layers can be told apart; and networks at about two thirds whose widths are full blocks of one size and of
no larger one. What those take beyond what the table says of full blocks is the price of widths in between.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgekit.agent.unpack import cache_folder
from edgekit.prune.find import Found
from edgekit.prune.groups import Group
from edgekit.prune.latency import Row, Table, fit, terms
from edgekit.prune.plan import block_of

FULL = 16
"""A block that is full for almost every library."""
ODD = (1, 4, 8, 32)
"""Blocks whose price is asked for; 32 stands for larger ones."""
RANDOM, SEED = 12, 0
"""Networks of random widths, the same in every run."""
PART = 2 / 3
NEAR = 0.97
"""A network that takes so much of its budget uses it up."""
DEAR = 1.05
"""A block that costs more than full ones by this factor is none of the staircase's."""

Share = tuple[float, float, float]
"""Of the whole network's time, with its interval."""
Kept = Mapping[str, int]
"""Group -> how many of its channels stay; all where it is not named."""


@dataclass(frozen=True)
class Surveyed:
    """The table of costs, and the `step` of widths to keep to.

    `dear` is what the same work takes at widths that are full blocks of half that step alone, as a ratio, None where it
    was not asked for.
    """

    table: Table
    step: int
    dear: float | None = None


@dataclass
class Survey:
    """Times variants of a network and keeps what it saw in edgekit's cache folder, so that they are timed once.

    `about` says what else their times depend on: device, versions, precision.
    """

    about: str

    def conduct(
        self,
        found: Found,
        least: Mapping[str, int],
        seconds: float,
        measure: Callable[[Kept], Share],
        *,
        round_to: int | None = None,
        done: Callable[[], None] = lambda: None,
    ) -> Surveyed:
        """Time what tells most and fit the table.

        Args:
            found: the network, with its groups.
            least: how many channels every group keeps at least.
            seconds: what the whole network takes.
            measure: the share of that which a network of these widths takes, with its interval.
            round_to: the step, where it is given: then it is not searched for.
            done: called after each network.
        """
        self._file = cache_folder() / "latency" / f"{key_of(found, self.about)}.json"
        self._known = self._read()
        some, base = terms(found), round_to or FULL

        def timed(kept: Kept) -> Row:
            share = self._share(kept, measure)
            done()
            counts = {found.factors[group]: n for group, n in kept.items()}
            return Row(counts, *(one * seconds for one in share))

        full = [timed(kept) for kept in random_widths(found, least, base)]
        table = fit(some, [Row({}, seconds, seconds, seconds), *full])
        if round_to:
            return Surveyed(table, round_to)
        dear = {}
        for block in ODD:
            kept = odd_widths(found, least, block)
            if kept:
                row = timed(kept)
                dear[block] = row.seconds / table.seconds(some, row.counts)
        return Surveyed(table, *staircase(dear))

    def _share(self, kept: Kept, measure: Callable[[Kept], Share]) -> Share:
        name = json.dumps(kept, sort_keys=True)
        if name not in self._known:
            self._known[name] = measure(kept)
            with contextlib.suppress(OSError):  # a cache that cannot be written is none
                self._file.parent.mkdir(parents=True, exist_ok=True)
                draft = self._file.with_suffix(f".{os.getpid()}")
                draft.write_text(json.dumps({"about": self.about, "shares": self._known}, indent=1), encoding="utf-8")
                draft.replace(self._file)
        share, low, high = self._known[name]
        return share, low, high

    def _read(self) -> dict[str, Share]:
        try:
            held = json.loads(self._file.read_text(encoding="utf-8"))["shares"]
            return {str(name): (float(share), float(low), float(high)) for name, (share, low, high) in held.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}


def key_of(found: Found, about: str) -> str:
    """A hash over what times depend on: the graph, its layers, the shapes of its weights, and `about`."""
    view = found.view
    layers = [f"{name} {layer!r}" for name, layer in view.named_modules() if name]
    weights = [f"{name} {tuple(value.shape)}" for name, value in view.state_dict().items()]
    text = "\n".join((about, view.code, *layers, *weights))
    return hashlib.sha256(text.encode()).hexdigest()


def staircase(dear: Mapping[int, float]) -> tuple[int, float | None]:
    """The smallest block that no larger one undercuts, and what half of it costs, from the prices of odd widths.

    >>> staircase({1: 1.6, 4: 1.5, 8: 1.5, 32: 1.0}), staircase({1: 1.3, 4: 1.01, 8: 1.02, 32: 1.0})
    ((16, 1.5), (4, 1.3))
    >>> staircase({1: 1.0, 4: 1.0, 8: 0.99})
    (1, None)
    """
    blocks = sorted({*dear, FULL})
    dearest = max((block for block in dear if block < FULL and dear[block] > DEAR), default=0)
    step = min(block for block in blocks if block > dearest)
    below = max((block for block in dear if block < step), default=None)
    return step, None if below is None else dear[below]


def most_networks(round_to: int | None) -> int:
    """How many networks are timed at most, beside the whole one."""
    return RANDOM + (0 if round_to else len(ODD))


def random_widths(found: Found, least: Mapping[str, int], block: int) -> Iterator[Kept]:
    """Networks in which every group keeps a random number of full blocks, or all of its channels."""
    generator = np.random.default_rng(SEED)
    for _ in range(RANDOM):
        yield {g.name: int(generator.choice(_widths(g, block, least.get(g.name, 1)))) for g in found.groups}


def odd_widths(found: Found, least: Mapping[str, int], block: int) -> Kept:
    """About two thirds of every group's channels, in full blocks of that size but of no larger one."""
    kept = {}
    for group in found.groups:
        widths = _widths(group, block, least.get(group.name, 1))[:-1]
        odd = [n for n in widths if n // block_of(group, block) % 2]
        if odd:
            kept[group.name] = min(odd, key=lambda n: abs(n - PART * group.channels))
    return kept


def _widths(group: Group, block: int, least: int) -> list[int]:
    """How many channels can stay: full blocks, or all."""
    each = block_of(group, block)
    return [*(n for n in range(each, group.channels, each) if n >= least), group.channels]


def removal_of(groups: Sequence[Group], kept: Kept) -> dict[str, list[int]]:
    """What goes so that this many stay: the last ones, since only the time is asked for."""
    return {
        group.name: list(range(kept[group.name], group.channels))
        for group in groups
        if kept.get(group.name, group.channels) < group.channels
    }
