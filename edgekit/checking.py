"""Is a file a recipe or a gate file that could be used? Nothing is run and nothing heavy is imported."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from edgekit.clauses import placed_clauses
from edgekit.recipe import load_recipe
from edgekit.yamlfile import read_yaml

_OF_A_RECIPE = {"model", "data", "stages", "targets"}


def check_file(path: Path) -> Literal["recipe", "gate file"]:
    """Check one file, and say what it is: one without a recipe's sections that has a `gate` is a gate file.

    Raises:
        UsageError: with file, line and what to do, as `edgekit run` or `edgekit gate` would say it.
    """
    document = read_yaml(path, "recipe or gate file")
    if "gate" in document.value and not _OF_A_RECIPE & document.value.keys():
        if not placed_clauses(document):
            raise document.error(("gate",), "there is no clause: nothing to judge. Add one.")
        return "gate file"
    load_recipe(path)
    placed_clauses(document)
    return "recipe"
