"""`edgekit doctor`: what this machine can do."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from edgekit.cli.verb import Json, say, verb
from edgekit.cli.wrap import TIE, labelled

if TYPE_CHECKING:
    from edgekit.doctor import BackendState, Diagnosis, Extra


@verb
def doctor(as_json: Json = False) -> None:
    """Show what is installed, which backends can compile and run here and why not, and what to type."""
    from edgekit.doctor import diagnose

    found = diagnose()
    say(json.dumps(asdict(found), indent=2) if as_json else _text(found))


def _text(found: Diagnosis) -> str:
    memory = f", {found.memory_bytes / 1e9:.1f} GB memory" if found.memory_bytes else ""
    yes = [name for name, there in found.features.items() if there]
    no = [name for name, there in found.features.items() if not there]
    without = f"; without {', '.join(no)}" if no else ""
    lines = [
        f"edgekit {found.edgekit}, Python {found.python}, {found.system}",
        f"Processor: {found.processor}, {found.cores} cores{memory}",
        f"  for int8: {', '.join(yes) or 'nothing known'}{without}",
        *(line for note in found.notes for line in labelled("", note, 2)),
        "",
        *_backends(found.backends),
        "",
        "Extras",
        *(line for extra in found.extras for line in _extra(extra)),
    ]
    return "\n".join(lines)


def _backends(states: Sequence[BackendState]) -> list[str]:
    wide = max((len(state.availability.version or "") for state in states), default=0)
    lines = [f"{'Backends':14} {'':{wide}} compiles  runs"]
    for state in states:
        here = state.availability
        lines.append(f"  {state.name:12} {here.version or '':{wide}} {_mark(here.compiles):9} {_mark(here.runs)}")
        lines += labelled("", here.reason, 6) if here.reason else []
    return lines


def _mark(possible: bool) -> str:
    return "yes" if possible else "no"


def _extra(extra: Extra) -> list[str]:
    packages = ", ".join(f"{name}{TIE}{version or '(missing)'}" for name, version in extra.packages.items())
    return labelled(f"  {extra.name}", packages, 15) + ([] if extra.complete else [f"      {extra.command}"])
