"""`edgekit run RECIPE`: the main job."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from edgekit.cli.options import KillOnInterrupt, Quiet, Wait
from edgekit.cli.verb import Json, say, stdout_for_results, verb
from edgekit.launched import rank


@verb
def run(
    recipe: Annotated[Path, typer.Argument(help="The recipe, a YAML file.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option(help="Folder for bundles, models and the report.", show_default="edgekit-out/<model>")
    ] = None,
    target: Annotated[
        list[str] | None, typer.Option(help="Only this target of the recipe; may be given several times.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last finished stage in the folder.")] = False,
    until: Annotated[
        str | None, typer.Option(help="Stop early: `emit` writes graphs and the QuantSpec, and compiles nothing.")
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Show what `prune` would remove, what that gives and costs, and stop."),
    ] = False,
    time_budget: Annotated[
        str | None, typer.Option(help="Time for training, such as 20m: for `distill` and `qat`, instead of epochs.")
    ] = None,
    wait: Wait = False,
    kill_on_interrupt: KillOnInterrupt = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> int:
    """Compress the recipe's model, build it for every target, measure, report and judge."""
    # numpy's products run beside a runtime that keeps every core busy: threads of their own would only spin.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from edgekit.cli.progress import progress_on_stderr
    from edgekit.pipeline import output_folder
    from edgekit.pipeline import run as run_recipe

    if until is not None:
        return _emit(recipe, until, out, target, time_budget, resume=resume, quiet=quiet, as_json=as_json)
    if dry_run:
        return _plan(recipe, out, target, resume=resume, wait=wait, quiet=quiet, as_json=as_json)
    if rank():
        return _follow(recipe, out, target, time_budget)
    with stdout_for_results(), progress_on_stderr(quiet=quiet) as progress, _resumable():
        report = run_recipe(
            recipe,
            out=out,
            targets=target,
            resume=resume,
            wait=wait,
            kill_on_interrupt=kill_on_interrupt,
            time_budget=time_budget,
            progress=progress,
        )
    if as_json:
        say(report.model_dump_json(indent=2))
    else:
        from edgekit.report.terminal import render, text

        if sys.stdout.isatty():
            from rich.console import Console

            Console(highlight=False).print(render(report))
        else:
            say(text(report))
    if report.recipe and not quiet:
        print(f"The report: {output_folder(report.recipe.name, out) / 'report.html'}", file=sys.stderr)
    return int(report.exit_code)


def _plan(
    recipe: Path, out: Path | None, targets: list[str] | None, *, resume: bool, wait: bool, quiet: bool, as_json: bool
) -> int:
    """`--dry-run`: the plan as a table; the page with charts lies in the output folder."""
    from edgekit.cli.progress import progress_on_stderr
    from edgekit.pipeline import output_folder
    from edgekit.planning import plan
    from edgekit.report.plan_page import shown

    if rank():
        return 0
    with stdout_for_results(), progress_on_stderr(quiet=quiet) as progress, _resumable():
        planned = plan(recipe, out=out, targets=targets, resume=resume, wait=wait, progress=progress)
    if as_json:
        say(planned.model_dump_json(indent=2))
        return 0
    from rich.console import Console

    terminal = sys.stdout.isatty()
    Console(highlight=False, width=None if terminal else 120, color_system="auto" if terminal else None).print(
        shown(planned)
    )
    if not quiet:
        print(f"The plan: {output_folder(planned.model, out) / 'plan.html'}", file=sys.stderr)
    return 0


def _follow(recipe: Path, out: Path | None, targets: list[str] | None, time_budget: str | None) -> int:
    """All processes but the first of those that `torchrun` started."""
    from edgekit.follow import follow

    follow(recipe, out=out, targets=targets, time_budget=time_budget)
    return 0


@contextmanager
def _resumable() -> Iterator[None]:
    """Whoever interrupts a run is told how to go on."""
    try:
        yield
    except KeyboardInterrupt as error:
        error.add_note("The same command with --resume goes on from the last finished stage.")
        raise


def _emit(
    recipe: Path,
    until: str,
    out: Path | None,
    targets: list[str] | None,
    time_budget: str | None,
    *,
    resume: bool,
    quiet: bool,
    as_json: bool,
) -> int:
    """`--until emit`: what was written, a line a file."""
    from edgekit.cli.progress import progress_on_stderr
    from edgekit.errors import UsageError

    if until != "emit":
        raise UsageError(f"--until {until!r}: a run can stop after 'emit' alone.")
    from edgekit.pipeline import emit

    if rank():
        return _follow(recipe, out, targets, time_budget)
    with stdout_for_results(), progress_on_stderr(quiet=quiet) as progress, _resumable():
        emitted = emit(recipe, out=out, targets=targets, resume=resume, time_budget=time_budget, progress=progress)
    if as_json:
        say(emitted.model_dump_json(indent=2))
        return emitted.exit_code
    for graph in emitted.graphs:
        who = f"{graph.target} {graph.backend} {graph.precision}"
        said = graph.reason or f"{graph.bytes / 1e6:.2f} MB  {', '.join(graph.files)}"
        say(f"{who}: {said}")
    if emitted.quant:
        say(f"QuantSpec: {emitted.quant}")
    return emitted.exit_code
