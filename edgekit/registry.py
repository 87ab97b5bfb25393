"""Tables of parts: `name -> "module:Class"`, and what third parties add to them by entry points."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any

from edgekit.errors import UsageError
from edgekit.extras import unknown


def places(table: Mapping[str, str], group: str) -> dict[str, str]:
    """Every known name with its `module:Class`; edgekit's own win over entry points of the same name.

    >>> places({"local": "edgekit.devices.local:Local"}, "edgekit.devices")["local"]
    'edgekit.devices.local:Local'
    """
    return {**{point.name: point.value for point in entry_points(group=group)}, **table}


def resolve(kind: str, name: str, table: Mapping[str, str], group: str) -> Any:
    """The class behind `name`, imported now.

    Raises:
        UsageError: no table holds it; the message guesses what was meant.
    """
    known = table if name in table else places(table, group)  # looking for entry points reads every package's list
    if name not in known:
        raise UsageError(unknown(kind, name, known))
    module, _, attribute = known[name].partition(":")
    return getattr(importlib.import_module(module), attribute)
