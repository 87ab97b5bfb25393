"""`edgekit explain BUNDLE`: why an int8 bundle is as fast and as exact as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgekit.cli.verb import Json, say, stdout_for_results, verb


@verb
def explain(
    bundle: Annotated[Path, typer.Argument(help="A quantized .edge file.", show_default=False)],
    against: Annotated[
        Path | None, typer.Option(help="The float bundle of the same model.", show_default="the one beside it")
    ] = None,
    inputs: Annotated[
        Path | None, typer.Option(help="Samples, .npy or .npz.", show_default="the bundle's golden samples")
    ] = None,
    snr: Annotated[float, typer.Option(help="A layer below this many dB has diverged.")] = 20.0,
    rounds: Annotated[int, typer.Option(min=2, help="Interleaved rounds of int8 against float.")] = 10,
    timing: Annotated[bool, typer.Option("--time/--no-time", help="Time int8 against float.")] = True,
    layers: Annotated[bool, typer.Option("--layers", help="List every layer.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
    as_json: Json = False,
) -> None:
    """Show which layers really run in 8 bits, why the others don't, where outputs diverge, and what to change."""
    from edgekit.cli.progress import progress_on_stderr
    from edgekit.devices.local import Local
    from edgekit.explain import explain as explain_bundle
    from edgekit.report.explanation import text

    with stdout_for_results(), progress_on_stderr(quiet=quiet) as progress:
        seen = explain_bundle(
            bundle,
            against=against,
            inputs=inputs,
            device=Local() if timing else None,
            rounds=rounds,
            threshold_db=snr,
            progress=progress,
        )
    say(seen.model_dump_json(indent=2) if as_json else text(seen, every=layers))
