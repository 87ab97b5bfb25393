"""Options that several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Threads = Annotated[int, typer.Option(min=1, help="Threads of the runtime.")]
Inputs = Annotated[
    Path | None, typer.Option(help="Samples, .npy or .npz.", show_default="the bundles' golden samples")
]  # fmt: skip
Wait = Annotated[bool, typer.Option("--wait", help="Queue behind whoever measures there.")]
KillOnInterrupt = Annotated[
    bool, typer.Option("--kill-on-interrupt", help="Ctrl-C ends what runs there; else it goes on.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]
