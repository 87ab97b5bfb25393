"""`edgekit gate REPORT`: yes or no, for CI."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgekit.cli.options import KillOnInterrupt, Quiet, Wait
from edgekit.cli.verb import Json, say, stdout_for_results, verb

if TYPE_CHECKING:
    from edgekit.report.verdicts import GateFile


def _to(what: str) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(help=f"Write {what} here.", rich_help_panel="Outputs")
    return option


@verb
def gate(
    report: Annotated[Path, typer.Argument(help="A report.json, or the folder of a run.", show_default=False)],
    clauses: Annotated[
        Path | None,
        typer.Option("--clauses", "-c", help="A gate.yaml or a recipe.", show_default="those of the report"),
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", "-d", help="Time relative latencies again there, side by side.")
    ] = None,
    baselines: Annotated[Path | None, typer.Option(help="Accepted baselines: a folder, or a file of it.")] = None,
    previous: Annotated[Path | None, typer.Option(help="An earlier report, for `vs: previous`.")] = None,
    require_signature: Annotated[
        list[Path] | None, typer.Option(help="A public key; what ships must be signed. May be given several times.")
    ] = None,
    retry_invalid: Annotated[
        int, typer.Option(min=0, max=100, help="Measure so often again what was measured in a bad state.")
    ] = 0,
    out: Annotated[
        Path | None, typer.Option(help="The result as JSON.", show_default="gate.json beside the report")
    ] = None,
    junit: Annotated[Path | None, _to("JUnit XML")] = None,
    markdown: Annotated[Path | None, _to("a Markdown summary")] = None,
    gitlab_code_quality: Annotated[Path | None, _to("a GitLab code quality report")] = None,
    gitlab_metrics: Annotated[Path | None, _to("a GitLab metrics report (OpenMetrics)")] = None,
    badge: Annotated[Path | None, _to("a badge (.svg, or .json for shields.io)")] = None,
    history: Annotated[Path | None, _to("one more line of history (JSON lines)")] = None,
    annotations: Annotated[
        str,
        typer.Option(help="Annotations: auto (in GitHub Actions), github, none.", rich_help_panel="Outputs"),
    ] = "auto",
    wait: Wait = False,
    kill_on_interrupt: KillOnInterrupt = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> int:
    """Hold what ships against the clauses. Ends with 0 pass, 1 fail, 3 invalid, 4 inconclusive, or why it could not."""
    from edgekit.cli.progress import progress_on_stderr
    from edgekit.gating import run_gate
    from edgekit.outputs import Outputs

    outputs = Outputs(
        out=out or (report if report.is_dir() else report.parent) / "gate.json",
        junit=junit,
        markdown=markdown,
        gitlab_code_quality=gitlab_code_quality,
        gitlab_metrics=gitlab_metrics,
        badge=badge,
        history=history,
        annotations=annotations,  # type: ignore[arg-type]  # checked below
    )
    reports = [path / "report.json" if path.is_dir() else path for path in (report, previous) if path]
    outputs.check([*reports, *(path for path in (clauses, *(require_signature or ())) if path)])
    with stdout_for_results(), progress_on_stderr(quiet=quiet) as progress:
        judged = run_gate(
            report,
            clauses=clauses,
            device=device,
            baselines=baselines,
            previous=previous,
            keys=require_signature or (),
            retry_invalid=retry_invalid,
            wait=wait,
            kill_on_interrupt=kill_on_interrupt,
            progress=progress,
        )
        outputs.write(judged)
    say(judged.model_dump_json(indent=2) if as_json else _text(judged))
    if lines := outputs.commands(judged):
        print(lines, file=sys.stderr if as_json else sys.stdout)
    return int(judged.exit_code)


def _text(judged: GateFile) -> str:
    from edgekit.report.terminal import gate_text

    return gate_text(judged)
