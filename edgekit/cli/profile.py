"""`edgekit profile MODEL|BUNDLE...`: time, memory, energy and layers on one device or several."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from edgekit.cli.options import Inputs, KillOnInterrupt, Quiet, Threads, Wait
from edgekit.cli.verb import Json, say, stdout_for_results, verb


@verb
def profile(
    bundles: Annotated[list[Path], typer.Argument(help=".edge files, or plain models: .onnx, .pt2.",
                                                    show_default=False)],
    devices: Annotated[
        list[str] | None,
        typer.Option("--device", "-d", help="`local`, or a board of `edgekit devices`; may be given again.",
                     show_default="local"),
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="What plain models are built for.", show_default="the device's own target")
    ] = None,
    backend: Annotated[
        list[str] | None,
        typer.Option("--backend", "-b", help="What plain models are built with; may be given again.",
                     show_default="all of the target's"),
    ] = None,
    threads: Threads = 1,
    percentile: Annotated[float, typer.Option(help="The highest percentile that is wanted.")] = 99.0,
    inputs: Inputs = None,
    layers: Annotated[bool, typer.Option("--layers/--no-layers", help="Time layer by layer too.")] = True,
    html: Annotated[Path | None, typer.Option(help="Write a page with charts here.", show_default=False)] = None,
    wait: Wait = False,
    kill_on_interrupt: KillOnInterrupt = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> int:  # fmt: skip
    """Measure bundles or plain models on devices, with the state of the device; several devices at the same time."""
    from edgekit.cli.progress import progress_on_stderr
    from edgekit.errors import worst
    from edgekit.profiling import profile_bundles
    from edgekit.report.profile_page import render
    from edgekit.report.profiled import text
    from edgekit.report.report import write_text

    with stdout_for_results(), progress_on_stderr(quiet=quiet) as progress:
        found = profile_bundles(
            bundles,
            devices or ("local",),
            target=target,
            backends=backend,
            threads=threads,
            inputs=inputs,
            percentile=percentile,
            layers=layers,
            wait=wait,
            kill_on_interrupt=kill_on_interrupt,
            progress=progress,
        )
        if html:
            write_text(html, render(found))
    say(json.dumps(found.to_json(), indent=2) if as_json else text(found))
    return worst(one.exit_code for one in found.results)
