"""Choosing channels over the whole network until its cost fits a budget."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from edgekit.prune.cost import Cost
from edgekit.prune.find import Found
from edgekit.prune.groups import Group
from edgekit.prune.importance import Scores

NEAR = 0.02
"""A plan that ends below its target by this share of the whole is as near as can be asked."""
TRIES = 12
"""So many blocks that go far below it are left out in turn, at most."""


@dataclass(frozen=True)
class Line:
    """One group of a plan: how many of its channels stay, what share of its importance goes, and what that frees.

    `freed` is what the network would cost more if the group had been left whole.
    """

    group: str
    channels: int
    kept: int
    lost: float
    freed: int


@dataclass(frozen=True)
class Plan:
    """The channels that go, by group, and what is left of the cost; `binding` are groups that can give no more."""

    removal: dict[str, list[int]]
    left: int
    reached: bool
    lines: tuple[Line, ...] = ()
    binding: tuple[str, ...] = field(default=())


def choose(
    found: Found,
    scores: Scores,
    cost: Cost,
    target: int,
    *,
    round_to: int,
    least: Mapping[str, int],
    local: bool = False,
) -> Plan:
    """Remove the blocks of channels that lose least importance for what they free, until `target` is met.

    Scores compare between groups (`edgekit.prune.importance.evenly`). Every group keeps a multiple of `round_to`
    positions (once it is cut at all; a head of 64 is one already) and at least `least` of its channels. With `local`
    importance ranks within groups alone, and all give about the same share. Blocks that still fit under `target` at the
    end are given back.
    """
    return _Choice(found, scores, cost, round_to, least, local=local).until(target)


class _Choice:
    def __init__(
        self, found: Found, scores: Scores, cost: Cost, round_to: int, least: Mapping[str, int], *, local: bool
    ) -> None:
        self.cost, self.factors, self.local = cost, found.factors, local
        self.totals = {name: max(float(some.sum()), 1e-30) for name, some in scores.items()}
        self.blocks = {g.name: _blocks(g, scores[g.name], round_to, least.get(g.name, 1)) for g in found.groups}
        self.taken = dict.fromkeys(self.blocks, 0)
        self.left_out: set[str] = set()
        self.counts = {found.factors[name]: found.factors[name].extent for name in self.blocks}

    def until(self, target: int) -> Plan:
        """The plan for a target. Where the last block goes far below it, others are tried in that one's place.

        That is the greedy way to cover a knapsack, with the block that overshoots left out in turn: a residual stream
        may free a quarter of a network at once where a few channels elsewhere would do.
        """
        take = self.take_lazily if self.cost.falling else self.take_anew
        best: tuple[float, dict[str, int]] | None = None
        while (last := take(target)) is not None:
            before = {**self.taken, last: self.taken[last] - 1}
            while (name := self.affordable(target)) is not None:
                self.move(name, -1)
            if best is None or self.lost < best[0]:
                best = self.lost, dict(self.taken)
            near = target - self.cost.left(self.counts) <= NEAR * self.cost.total
            if near or self.local or len(self.left_out) == TRIES:
                break
            self.restore(before)
            self.left_out.add(last)
        if best is not None:
            self.restore(best[1])
        left = self.cost.left(self.counts)
        removal = {n: sorted(c for block, _ in self.blocks[n][:k] for c in block) for n, k in self.taken.items() if k}
        binding = () if left <= target else tuple(n for n, some in self.blocks.items() if self.taken[n] == len(some))
        return Plan(removal, left, left <= target, tuple(self.line(name, left) for name in self.blocks), binding)

    @property
    def lost(self) -> float:
        """All importance that goes."""
        return sum(lost for name, number in self.taken.items() for _, lost in self.blocks[name][:number])

    def restore(self, taken: Mapping[str, int]) -> None:
        """Go back to so many blocks of every group."""
        for name, number in taken.items():
            while self.taken[name] != number:
                self.move(name, 1 if self.taken[name] < number else -1)

    def price(self, name: str) -> float:
        """Importance lost for what the next block frees."""
        block, lost = self.blocks[name][self.taken[name]]
        one = self.factors[name]
        freed = self.cost.freed(self.counts, one, self.counts[one] - len(block))
        if self.local and freed > 0:
            return 1 - (self.counts[one] - len(block)) / one.extent
        return lost / freed if freed > 0 else math.inf

    def move(self, name: str, step: int) -> None:
        """Take the group's next block, or give the last one back."""
        block = self.blocks[name][self.taken[name] - (step < 0)][0]
        self.counts[self.factors[name]] -= step * len(block)
        self.taken[name] += step

    @property
    def open(self) -> list[str]:
        """Groups that have more to give."""
        return [n for n, some in self.blocks.items() if self.taken[n] < len(some) and n not in self.left_out]

    def take_lazily(self, target: int) -> str | None:
        """A price seen earlier is never too high, so that only the cheapest group's is asked anew."""
        queue = [(self.price(name), name) for name in self.open] if self.cost.left(self.counts) > target else []
        heapq.heapify(queue)
        while queue:
            seen, name = heapq.heappop(queue)
            now = self.price(name)
            if now > seen and queue and now > queue[0][0]:
                heapq.heappush(queue, (now, name))
            elif math.isfinite(now):
                self.move(name, 1)
                if self.cost.left(self.counts) <= target:
                    return name
                if self.taken[name] < len(self.blocks[name]):
                    heapq.heappush(queue, (self.price(name), name))
        return None

    def take_anew(self, target: int) -> str | None:
        """Where the bottleneck moves, every price is asked anew."""
        while self.cost.left(self.counts) > target:
            best = min(((self.price(name), name) for name in self.open), default=(math.inf, ""))
            if not math.isfinite(best[0]):
                break
            self.move(best[1], 1)
            if self.cost.left(self.counts) <= target:
                return best[1]
        return None

    def affordable(self, target: int) -> str | None:
        """The most important block that was taken last in its group and whose return `target` allows."""
        best: tuple[float, str] | None = None
        for name, number in self.taken.items():
            if not number or (best is not None and (self.blocks[name][number - 1][1], name) <= best):
                continue
            self.move(name, -1)
            if self.cost.left(self.counts) <= target:
                best = self.blocks[name][number - 1][1], name
            self.move(name, 1)
        return None if best is None else best[1]

    def line(self, name: str, left: int) -> Line:
        """What came of one group."""
        one = self.factors[name]
        whole = self.cost.left({**self.counts, one: one.extent})
        lost = sum(lost for _, lost in self.blocks[name][: self.taken[name]]) / self.totals[name]
        return Line(name, one.extent, self.counts[one], lost, whole - left)


def _blocks(group: Group, scores: Tensor, round_to: int, least: int) -> list[tuple[list[int], float]]:
    """The group's removable channels, least important first, in blocks with the importance that each costs."""
    order = torch.argsort(scores, stable=True).tolist()
    costs = scores.tolist()
    unit = block_of(group, round_to)
    least = max(least, min(unit, group.channels), 1)
    cuts, at = [], 0
    while True:
        size = (group.channels - at) % unit or unit
        if group.channels - at - size < least:
            break
        cuts.append(order[at : at + size])
        at += size
    return [(block, sum(costs[c] for c in block)) for block in cuts]


def block_of(group: Group, round_to: int) -> int:
    """How many channels go at once so that every axis shrinks by a multiple of `round_to` positions."""
    each = [len(some[0]) for some in _indices(group)]
    return max((round_to // math.gcd(round_to, n) for n in each), default=round_to)


def _indices(group: Group) -> Iterable[tuple[tuple[int, ...], ...]]:
    return [member.index for member in group.members if member.index and member.index[0]]
