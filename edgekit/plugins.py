"""Parts by name: the tables of this project first, then what other packages offer as entry points."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from edgekit.errors import UsageError
from edgekit.extras import unknown


def names(group: str, table: Mapping[str, str]) -> tuple[str, ...]:
    """Every name that `load` knows, this project's own first."""
    return (*table, *(name for name in sorted(_offered(group)) if name not in table))


def load(kind: str, name: str, group: str, table: Mapping[str, str]) -> Any:
    """The class that `name` stands for. `group` is that of the entry points, such as `edgekit.backends`.

    Raises:
        UsageError: no table and no installed package knows the name.
    """
    if name in table:
        module, _, attribute = table[name].partition(":")
        return getattr(importlib.import_module(module), attribute)
    offered = _offered(group)
    if name not in offered:
        raise UsageError(unknown(kind, name, names(group, table)))
    return offered[name].load()


def _offered(group: str) -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=group)}
