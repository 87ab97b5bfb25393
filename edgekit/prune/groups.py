"""Channels that must go together, as tensors by name and axis.

Importance, planning and removal work on these values, and don't depend on who found them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Side = Literal["in", "out"]


@dataclass(frozen=True)
class Member:
    """One axis of one parameter or buffer; channel `c` of the group owns the positions `index[c]` along it.

    `side` is "in" where the tensor's layer consumes the channels, "out" where it makes or carries them.
    """

    tensor: str
    axis: int
    side: Side
    index: tuple[tuple[int, ...], ...]

    @property
    def layer(self) -> str:
        """The module that holds the tensor."""
        return self.tensor.rpartition(".")[0]

    def positions(self, channels: Sequence[int]) -> list[int]:
        """What these channels of the group own along the axis, sorted."""
        return sorted(p for c in channels for p in self.index[c])


@dataclass(frozen=True)
class Group:
    """`channels` channels that are removed together in every member. Named after the layer that makes them."""

    name: str
    channels: int
    members: tuple[Member, ...]

    @property
    def consumers(self) -> tuple[Member, ...]:
        """The members whose layers read the channels."""
        return tuple(m for m in self.members if m.side == "in")
