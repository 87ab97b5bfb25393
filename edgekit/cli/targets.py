"""`edgekit targets [NAME]`: what can be built for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from edgekit.cli.verb import Json, say, verb
from edgekit.cli.wrap import TIE, labelled

if TYPE_CHECKING:
    from edgekit.target import BackendFacts, Target

WIDE = 18
"""Room for a name in the list."""


@verb
def targets(
    name: Annotated[str | None, typer.Argument(help="Show all that is known of this one.", show_default=False)] = None,
    as_json: Json = False,
) -> None:
    """List the device kinds that edgekit knows, or show one."""
    from edgekit.target import list_targets, load_target

    chosen = [load_target(each) for each in ([name] if name else list_targets())]
    if as_json:
        values = [target.model_dump(mode="json") for target in chosen]
        say(json.dumps(values[0] if name else values, indent=2))
    elif name:
        say(_one(chosen[0]))
    else:
        say("\n".join(line for target in chosen for line in _listed(target)))


def _listed(target: Target) -> list[str]:
    """The name, what it is, and below it the backends."""
    return labelled(target.name, target.description, WIDE) + labelled("", ", ".join(target.backends), WIDE)


def _one(target: Target) -> str:
    cpu, gpu, budget = target.cpu, target.gpu, target.budget
    facts = [
        ("processor", f"{cpu.model}, {cpu.cores} cores, {target.arch}; {', '.join(cpu.features) or 'nothing special'}")
    ]
    if gpu:
        memory = f", {_gigabytes((gpu.memory_mb,))}" if gpu.memory_mb else ""
        facts.append(("graphics", f"{gpu.model}, compute capability {gpu.compute}{memory}"))
    if target.memory_mb:
        facts.append(("memory", _gigabytes(target.memory_mb)))
    facts.append(("python", ", ".join(target.python)))
    if budget.size_mb and budget.latency_ms:
        facts.append(("budget", f"{budget.size_mb:g} MB, {budget.latency_ms:g} ms, as a guide"))
    facts += [(backend, _facts(has)) for backend, has in target.backends.items()]
    facts += [("source", source) for source in target.sources]
    lines = [f"{target.name}: {target.description}"]
    return "\n".join([*lines, *(line for name, text in facts for line in labelled(f"  {name}", text, 15))])


def _gigabytes(sizes_mb: Sequence[int]) -> str:
    *most, last = (f"{size / 1024:g}" for size in sizes_mb)
    return f"{', '.join(most)} or {last} GB" if most else f"{last} GB"


def _facts(facts: BackendFacts) -> str:
    precisions = [f"int8 ({facts.grid.replace('_', ' ')})" if p == "int8" else p for p in facts.precisions]
    parts = [", ".join(precisions)]
    if facts.min_version:
        parts.append(f"{' or '.join(facts.runtimes) or 'runtime'} {facts.min_version} or later")
    if facts.max_opset:
        parts.append(f"ONNX opset {facts.max_opset} at most".replace(" ", TIE))
    if facts.built_on == "device":
        parts.append("compiled on the device")
    return "; ".join(parts)
