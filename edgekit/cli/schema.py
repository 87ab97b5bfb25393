"""`edgekit schema`: editor support."""

from __future__ import annotations

import json

from edgekit.cli.verb import say, verb


@verb
def schema() -> None:
    """Write the JSON Schema of a recipe to stdout, for completion and checks in an editor.

    Save it beside the recipe and start the recipe with `# yaml-language-server: $schema=recipe.schema.json`.
    """
    from edgekit.recipe import recipe_schema

    say(json.dumps(recipe_schema(), indent=2))
