"""The table of operators that the torch view knows."""

from __future__ import annotations

from edgekit.graph import (
    torch_elementwise,
    torch_host,
    torch_layers,
    torch_layout,
    torch_norms,
    torch_pools,
    torch_recurrent,
    torch_reductions,
    torch_resize,
)
from edgekit.graph.torch_step import Entry

OPERATORS: dict[str, Entry] = {
    **torch_elementwise.OPERATORS,
    **torch_layers.OPERATORS,
    **torch_layout.OPERATORS,
    **torch_norms.OPERATORS,
    **torch_pools.OPERATORS,
    **torch_recurrent.OPERATORS,
    **torch_reductions.OPERATORS,
    "Resize": torch_resize.resize,
    "Shape": torch_host.shape,
    "Size": torch_host.size,
}
"""Operator type -> how it is built. To add one: an entry here, and its cases in the operator tests."""

TAKES_HOST: dict[str, frozenset[int]] = {
    "ConstantOfShape": frozenset({0}),
    "Expand": frozenset({1}),
    "Reshape": frozenset({1}),
    "Resize": frozenset({2, 3}),
    "Tile": frozenset({1}),
    "Range": frozenset({0, 1, 2}),
}
"""Inputs that may be shape arithmetic as it is; elsewhere it is made a tensor first."""

STATIC: dict[str, frozenset[int]] = {
    "Pad": frozenset({1, 2, 3}),
    "Resize": frozenset({1}),
    "Slice": frozenset({1, 2, 3, 4}),
    "Split": frozenset({1}),
    "Squeeze": frozenset({1}),
    "Unsqueeze": frozenset({1}),
    **dict.fromkeys(torch_reductions.OPERATORS, frozenset({1})),
}
"""Inputs that must be constant when the view is built."""
