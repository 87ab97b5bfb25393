"""`edgekit schema`: editor support, and what the outputs of a gate hold."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from edgekit.cli.verb import say, verb


@verb
def schema(
    gate: Annotated[bool, typer.Option("--gate", help="That of the gate.json which a gate writes.")] = False,
) -> None:
    """Write the JSON Schema of a recipe to stdout, for completion and checks in an editor.

    Save it beside the recipe and start the recipe with `# yaml-language-server: $schema=recipe.schema.json`.
    """
    if gate:
        from edgekit.report.verdicts import gate_schema

        say(json.dumps(gate_schema(), indent=2))
        return
    from edgekit.recipe import recipe_schema

    say(json.dumps(recipe_schema(), indent=2))
