"""`edgekit compare A B`: which of two bundles is faster on a device, and is that a difference?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgekit.cli.options import Inputs, KillOnInterrupt, Quiet, Threads, Wait
from edgekit.cli.verb import Json, say, stdout_for_results, verb

if TYPE_CHECKING:
    from edgekit.compare import Judged

VERSION = 1


@verb
def compare(
    a: Annotated[Path, typer.Argument(help="A .edge file.", show_default=False)],
    b: Annotated[Path, typer.Argument(help="Another.", show_default=False)],
    device: Annotated[str, typer.Option("--device", "-d", help="`local`, or a board of `edgekit devices`.")] = "local",
    tolerance: Annotated[str, typer.Option(help="What counts as no difference.")] = "5%",
    threads: Threads = 1,
    inputs: Inputs = None,
    wait: Wait = False,
    kill_on_interrupt: KillOnInterrupt = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> int:
    """Time two bundles in interleaved rounds. Ends with 0 for no difference, 1 for one, 4 if that is not clear."""
    from edgekit.cli.progress import progress_on_stderr
    from edgekit.compare import compare_bundles
    from edgekit.errors import ExitCode
    from edgekit.units import parse_percent

    with stdout_for_results(), progress_on_stderr(quiet=quiet) as progress:
        found = compare_bundles(
            a,
            b,
            device=device,
            tolerance=parse_percent(tolerance),
            threads=threads,
            inputs=inputs,
            wait=wait,
            kill_on_interrupt=kill_on_interrupt,
            progress=progress,
        )
    say(json.dumps(_value(found), indent=2) if as_json else _text(found))
    codes = {"no difference": ExitCode.PASS, "inconclusive": ExitCode.INCONCLUSIVE}
    return codes.get(found.verdict, ExitCode.GATE_FAILED)


def _text(found: Judged) -> str:
    seen = found.seen
    words = {
        "no difference": f"no difference beyond {found.tolerance:.1%}",
        "a is faster": f"{found.a.path.name} is faster",
        "b is faster": f"{found.b.path.name} is faster",
        "inconclusive": f"inconclusive at {found.tolerance:.1%}: a quieter device, or a wider tolerance, would tell",
    }[found.verdict]
    return (
        f"{found.a.path.name} takes {seen.ratio:.3f} [{seen.low:.3f}, {seen.high:.3f}] of {found.b.path.name}'s time "
        f"on {found.device}, {len(seen.rounds)} rounds: {words}"
    )


def _value(found: Judged) -> dict[str, Any]:
    seen = found.seen
    sides = {
        side: {"bundle": str(bundle.path), "sha256": bundle.sha256} for side, bundle in (("a", found.a), ("b", found.b))
    }
    return {
        "version": VERSION,
        "verdict": found.verdict,
        "device": found.device,
        "tolerance": found.tolerance,
        "ratio": {"value": seen.ratio, "low": seen.low, "high": seen.high, "confidence": 0.95},
        **sides,
        "rounds_s": seen.rounds,
    }
