"""The verbs, and what they share."""

from __future__ import annotations

from typing import Annotated

import typer

from edgekit.cli import (
    baseline,
    bundle,
    check,
    compare,
    devices,
    doctor,
    explain,
    gate,
    history,
    profile,
    run,
    schema,
    targets,
)

app = typer.Typer(
    name="edgekit",
    help="Prune, distil, quantize, compile, measure and gate a trained model for edge devices, from one recipe.",
    epilog="Exit codes: 0 pass, 1 gate failed, 2 usage, 3 measurement invalid, 4 inconclusive, 5 device, "
    "6 missing dependency, 7 build failed, 8 integrity, 70 internal error, 130 interrupted.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("run")(run.run)
app.command("compare")(compare.compare)
app.command("profile")(profile.profile)
app.command("explain")(explain.explain)
app.command("gate")(gate.gate)
app.command("targets")(targets.targets)
app.command("doctor")(doctor.doctor)
app.command("check")(check.check)
app.command("history")(history.history)
app.command("schema")(schema.schema)
app.add_typer(baseline.app, name="baseline")
app.add_typer(bundle.app, name="bundle")
app.add_typer(devices.app, name="devices")


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        from edgekit.extras import DISTRIBUTION

        typer.echo(f"edgekit {version(DISTRIBUTION)}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and end.")
    ] = False,
) -> None:
    """Prune, distil, quantize, compile, measure and gate a trained model for edge devices, from one recipe."""
