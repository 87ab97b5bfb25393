"""Which weights become zero: two of four input channels, or a share of every output's, and how that is ranked."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn

from edgekit.graph.exporting import without_fast_path
from edgekit.prune.factored import usable

Ranking = Literal["wanda", "magnitude"]
GROUP = 4
"""Of so many input channels in a row, half stay."""


def input_norms(module: nn.Module, batches: Iterable[Tensor]) -> dict[str, Tensor]:
    """Of every layer of `usable` that runs: the root mean square of each input channel, `[I]`."""
    squares: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def watch(path: str, layer: nn.Module, inputs: Tensor) -> None:
        channels = -1 if isinstance(layer, nn.Linear) else 1
        rows = inputs.movedim(channels, -1).reshape(-1, inputs.shape[channels])
        squares[path] = squares.get(path, torch.zeros(1)) + rows.double().square().sum(0)
        counts[path] = counts.get(path, 0) + len(rows)

    handles = [
        layer.register_forward_hook(lambda layer, given, _, path=path: watch(path, layer, given[0]))
        for path, layer in usable(module)[0].items()
    ]
    try:
        with torch.no_grad(), without_fast_path():
            for inputs in batches:
                module(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return {path: (total / counts[path]).sqrt() for path, total in squares.items()}


def scores(weight: Tensor, norms: Tensor, ranking: Ranking) -> Tensor:
    """How much each weight `[O, I, k, ...]` counts: its size, by `wanda` times that of its input.

    Sun et al. 2023, arXiv:2306.11695.
    """
    size = weight.detach().abs().double()
    return size if ranking == "magnitude" else size * norms.reshape(-1, *[1] * (weight.ndim - 2))


def two_of_four(rank: Tensor) -> Tensor:
    """What stays: of four neighbouring input channels the two that count most, at every output and kernel position.

    That is the pattern of NVIDIA's sparse tensor cores: the channels are summed over.

    >>> two_of_four(torch.tensor([[1.0, 4.0, 3.0, 2.0]])).tolist()
    [[False, True, True, False]]
    """
    rows = rank.movedim(1, -1)
    groups = rows.reshape(*rows.shape[:-1], -1, GROUP)
    stay = torch.zeros_like(groups, dtype=torch.bool).scatter(-1, groups.topk(GROUP // 2, dim=-1).indices, True)
    return stay.reshape(rows.shape).movedim(-1, 1)


def share_of_each(rank: Tensor, share: float) -> Tensor:
    """What stays when `share` of every output's weights goes, those that count least.

    >>> share_of_each(torch.tensor([[1.0, 4.0, 3.0, 2.0]]), 0.75).tolist()
    [[False, True, False, False]]
    """
    rows = rank.flatten(1)
    order = rows.argsort(dim=1, stable=True)
    stay = torch.ones_like(rows, dtype=torch.bool).scatter(1, order[:, : round(share * rows.shape[1])], False)
    return stay.reshape(rank.shape)
