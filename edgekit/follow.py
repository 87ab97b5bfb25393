"""What every process but the first does when `torchrun` started several: train along, and nothing else.

The first one runs the recipe as if it were alone. The others load the same model and data, take over what each stage
made from the first one's output folder, and join in where a stage trains. They measure and write nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgekit.context import Silent
from edgekit.devices import Devices
from edgekit.errors import UsageError
from edgekit.measuring import fit
from edgekit.model import Model
from edgekit.pipeline import Run, output_folder, stage_key, timed
from edgekit.recipe import load_recipe
from edgekit.workspace import Context, Workspace, load_stage


def follow(
    recipe: str | Path,
    *,
    out: str | Path | None = None,
    targets: Sequence[str] | None = None,
    time_budget: str | float | None = None,
) -> None:
    """Train along with the first process, to which the same arguments were given.

    Raises:
        UsageError: recipe, model or data cannot be used as they are, or the output folder is not one for all processes.
    """
    from edgekit.train.processes import Processes

    chosen, together = timed(load_recipe(recipe, targets=targets), time_budget), Processes()
    space = Workspace(output_folder(chosen.name, out).absolute())
    if any(getattr(stage, "by_grid", False) for stage in chosen.stages):
        chosen = replace(chosen, targets=fit(chosen.targets, Devices())[0])
    job = Run.loaded(chosen, space, progress=Silent())
    model = job.entered()
    for number, stage in enumerate(chosen.stages, 1):
        job.key = stage_key(job.key, stage, chosen)
        folder = space.work / f"{number}-{stage.kind}"
        anew = together.agree(0.0)
        if anew and getattr(stage, "joins", False):
            stage.apply(model, _context(job, folder))
        together.wait()
        if number < len(chosen.stages):
            kept = load_stage(folder, job.key, model)
            if kept is None:
                raise UsageError(
                    f"Process {together.rank} does not find in {folder} what the first process made. All of them need "
                    "the same output folder (--out), model and data."
                )
            model = kept


def _context(job: Run, folder: Path) -> Context:
    def measured(model: Model, target: Any) -> dict[str, Any]:
        raise UsageError("Only the first process measures.")

    targets = tuple(planned.target for planned in job.recipe.targets)
    return Context(job.data, targets, job.recipe.seed, folder, None, job.progress, measured, job.recipe.base)
