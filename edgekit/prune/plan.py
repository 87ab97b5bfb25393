"""Choosing channels over the whole network until its multiply-accumulates fit."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from edgekit.prune.axes import Factor
from edgekit.prune.cost import MacModel
from edgekit.prune.find import Found
from edgekit.prune.groups import Group
from edgekit.prune.importance import Scores


@dataclass(frozen=True)
class Plan:
    """The channels that go, by group, and the multiply-accumulates that stay."""

    removal: dict[str, list[int]]
    macs: int
    reached: bool


def choose(found: Found, scores: Scores, cost: MacModel, target: int, *, round_to: int, floor: float) -> Plan:
    """Remove the blocks of channels that cost least importance for the MACs they free, until `target` is met.

    Importance counts as a share of its group's total, so that groups compare and none is drained. Every group keeps
    a multiple of `round_to` positions (once it is cut at all; a head of 64 is one already) and at least the share
    `floor` of its channels. Blocks that still fit under `target` at the end are given back.
    """
    blocks = {g.name: _blocks(g, scores[g.name], round_to, floor) for g in found.groups}
    taken = dict.fromkeys(blocks, 0)
    counts = {found.factors[name]: found.factors[name].extent for name in blocks}
    macs = cost.total

    def price(name: str) -> tuple[float, int]:
        """Importance lost a MAC freed by the next block, and those MACs."""
        block, lost = blocks[name][taken[name]]
        one = found.factors[name]
        freed = cost.freed(counts, one, counts[one] - len(block))
        return lost / freed if freed > 0 else math.inf, freed

    # The fewer channels there are, the fewer MACs another block frees: a price seen earlier is never too high.
    queue = [(price(name)[0], name) for name, some in blocks.items() if some]
    heapq.heapify(queue)
    while macs > target and queue:
        seen, name = heapq.heappop(queue)
        now, freed = price(name)
        if now > seen and queue and now > queue[0][0]:
            heapq.heappush(queue, (now, name))
            continue
        if not math.isfinite(now):
            continue
        counts[found.factors[name]] -= len(blocks[name][taken[name]][0])
        taken[name] += 1
        macs -= freed
        if taken[name] < len(blocks[name]):
            heapq.heappush(queue, (price(name)[0], name))
    macs = cost.left(counts)
    reached = macs <= target
    while reached:
        back = _given_back(found, blocks, taken, counts, cost, target - macs)
        if back is None:
            break
        name, more = back
        taken[name] -= 1
        counts[found.factors[name]] += len(blocks[name][taken[name]][0])
        macs += more
    removal = {n: sorted(c for block, _ in blocks[n][:k] for c in block) for n, k in taken.items() if k}
    return Plan(removal, cost.left(counts), reached)


Blocks = dict[str, list[tuple[list[int], float]]]


def _given_back(
    found: Found, blocks: Blocks, taken: dict[str, int], counts: dict[Factor, int], cost: MacModel, room: int
) -> tuple[str, int] | None:
    """The most important block that was taken last in its group and fits into `room`, with its MACs."""
    best: tuple[float, str, int] | None = None
    for name, number in taken.items():
        if not number:
            continue
        block, lost = blocks[name][number - 1]
        one = found.factors[name]
        more = cost.freed({**counts, one: counts[one] + len(block)}, one, counts[one])
        if 0 < more <= room and (best is None or (lost, name) > best[:2]):
            best = lost, name, more
    return None if best is None else best[1:]


def _blocks(group: Group, scores: Tensor, round_to: int, floor: float) -> list[tuple[list[int], float]]:
    """The group's removable channels, least important first, in blocks with the importance that each costs."""
    order = torch.argsort(scores, stable=True).tolist()
    normed = (scores / scores.sum().clamp_min(1e-30)).tolist()
    unit = _unit(group, round_to)
    least = max(math.ceil(group.channels * floor), min(unit, group.channels), 1)
    cuts, at = [], 0
    while True:
        size = (group.channels - at) % unit or unit
        if group.channels - at - size < least:
            break
        cuts.append(order[at : at + size])
        at += size
    return [(block, sum(normed[c] for c in block)) for block in cuts]


def _unit(group: Group, round_to: int) -> int:
    """How many channels go at once so that every axis shrinks by a multiple of `round_to` positions."""
    each = [len(some[0]) for some in _indices(group)]
    return max((round_to // math.gcd(round_to, n) for n in each), default=round_to)


def _indices(group: Group) -> Iterable[tuple[tuple[int, ...], ...]]:
    return [member.index for member in group.members if member.index and member.index[0]]
