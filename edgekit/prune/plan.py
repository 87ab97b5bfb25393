"""Choosing channels over the whole network until its multiply-accumulates fit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from edgekit.prune.cost import MacModel
from edgekit.prune.groups import Group
from edgekit.prune.importance import Scores


@dataclass(frozen=True)
class Plan:
    """The channels that go, by group, and the multiply-accumulates that stay."""

    removal: dict[str, list[int]]
    macs: int
    reached: bool


def choose(
    groups: Sequence[Group], scores: Scores, cost: MacModel, target: int, *, round_to: int, floor: float
) -> Plan:
    """Remove the blocks of channels that cost least importance for the MACs they free, until `target` is met.

    Importance counts as a share of its group's total, so that groups compare and none is drained. Every group keeps
    a multiple of `round_to` channels (once it is cut at all) and at least the share `floor` of them. Blocks that
    still fit under `target` at the end are given back.
    """
    blocks = {g.name: _blocks(g, scores[g.name], round_to, floor) for g in groups}
    taken = dict.fromkeys(blocks, 0)
    macs = cost.total

    def removal(counts: dict[str, int]) -> dict[str, list[int]]:
        return {n: sorted(c for block in blocks[n][:k] for c in block[0]) for n, k in counts.items() if k}

    while macs > target:
        best = None
        for name, queue in blocks.items():
            if taken[name] < len(queue):
                after = cost.after(groups, removal({**taken, name: taken[name] + 1}))
                price = queue[taken[name]][1] / max(macs - after, 1)
                if best is None or price < best[0]:
                    best = (price, name, after)
        if best is None:
            break
        taken[best[1]] += 1
        macs = best[2]
    reached = macs <= target
    while reached:
        options = [(blocks[n][k - 1][1], n) for n, k in taken.items() if k]
        fitting = [
            (price, n, after)
            for price, n in options
            if (after := cost.after(groups, removal({**taken, n: taken[n] - 1}))) <= target
        ]
        if not fitting:
            break
        _, name, macs = max(fitting)
        taken[name] -= 1
    return Plan(removal(taken), macs, reached)


def _blocks(group: Group, scores: Tensor, round_to: int, floor: float) -> list[tuple[list[int], float]]:
    """The group's removable channels, least important first, in blocks with the importance that each costs."""
    order = torch.argsort(scores, stable=True).tolist()
    normed = (scores / scores.sum().clamp_min(1e-30)).tolist()
    least = max(math.ceil(group.channels * floor), min(round_to, group.channels), 1)
    cuts, at = [], 0
    while True:
        size = (group.channels - at) % round_to or round_to
        if group.channels - at - size < least:
            break
        cuts.append(order[at : at + size])
        at += size
    return [(block, sum(normed[c] for c in block)) for block in cuts]
