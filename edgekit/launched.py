"""Who started this process: `torchrun` says by environment variables how many there are, and which this one is."""

from __future__ import annotations

import os


def processes() -> int:
    """How many processes `torchrun` started, this one included; 1 without it."""
    told = all(name in os.environ for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR"))
    return int(os.environ.get("WORLD_SIZE", "1")) if told else 1


def rank() -> int:
    """The number of this process among them, from 0."""
    return int(os.environ["RANK"]) if processes() > 1 else 0
