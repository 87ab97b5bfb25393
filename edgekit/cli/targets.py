"""`edgekit targets [NAME]`: what can be built for."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from edgekit.cli.verb import Json, say, verb

if TYPE_CHECKING:
    from edgekit.target import BackendFacts, Target


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
        width = max(len(target.name) for target in chosen)
        say("\n".join(f"{t.name:{width}}  {', '.join(t.backends):34}  {t.description}" for t in chosen))


def _one(target: Target) -> str:
    cpu, gpu, budget = target.cpu, target.gpu, target.budget
    lines = [
        f"{target.name}: {target.description}",
        f"  processor  {cpu.model}, {cpu.cores} cores, {target.arch}; {', '.join(cpu.features) or 'nothing special'}",
    ]
    if gpu:
        memory = f", {gpu.memory_mb} MB" if gpu.memory_mb else ""
        lines.append(f"  graphics   {gpu.model}, compute capability {gpu.compute}{memory}")
    if target.memory_mb:
        lines.append(f"  memory     {', '.join(map(str, target.memory_mb))} MB")
    lines.append(f"  python     {', '.join(target.python)}")
    lines += [f"  {backend:12} {_facts(facts)}" for backend, facts in target.backends.items()]
    if budget.size_mb and budget.latency_ms:
        lines.append(f"  budget     {budget.size_mb:g} MB, {budget.latency_ms:g} ms")
    lines += [f"  source     {source}" for source in target.sources]
    return "\n".join(lines)


def _facts(facts: BackendFacts) -> str:
    parts = [", ".join(facts.precisions), f"{facts.grid} grid"]
    if facts.min_version:
        parts.append(f"{' or '.join(facts.runtimes) or 'runtime'} {facts.min_version} or later")
    if facts.max_opset:
        parts.append(f"ONNX opset {facts.max_opset} at most")
    if facts.built_on == "device":
        parts.append("compiled on the device")
    return "; ".join(parts)
