"""`edgekit run --dry-run`: what pruning would take away, and what that gives and costs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from edgekit.context import Progress, RunContext, Silent
from edgekit.devices import Devices
from edgekit.errors import UsageError
from edgekit.model import Model
from edgekit.pipeline import Run
from edgekit.probing import cleared
from edgekit.recipe import load_recipe
from edgekit.report.plan_page import render
from edgekit.report.report import write_text
from edgekit.workspace import writing_to

if TYPE_CHECKING:
    from edgekit.prune.planned import Planned


@runtime_checkable
class Plans(Protocol):
    """A stage that can say beforehand what it would do."""

    def plan(self, model: Model, ctx: RunContext) -> Planned:
        """What would go."""


def plan(
    recipe: str | Path,
    *,
    out: str | Path | None = None,
    targets: Sequence[str] | None = None,
    resume: bool = False,
    wait: bool = False,
    progress: Progress | None = None,
) -> Planned:
    """Run a recipe up to its first stage that plans, and write its plan as `plan.json` and `plan.html`.

    Nothing is removed, trained further, built or judged; a budget in latency is measured. Arguments and other errors
    are those of `edgekit.run`.

    Raises:
        UsageError: no stage of the recipe plans.

    >>> planned = plan("examples/fashion_mnist/recipe.yaml", out=getfixture("tmp_path"))
    >>> planned.budget, planned.reached, planned.left < 0.5 * planned.total
    ('macs', True, True)
    """
    chosen, shown = load_recipe(recipe, targets=targets), progress or Silent()
    number = next((i for i, stage in enumerate(chosen.stages) if isinstance(stage, Plans)), None)
    if number is None:
        raise UsageError(f"{chosen.path}: --dry-run shows what 'prune' would remove, and the recipe has no such stage.")
    stage = chosen.stages[number]
    devices = Devices(wait=wait, progress=shown)
    job = Run.start(chosen, out, resume=resume, progress=shown, judged=False, devices=devices)
    try:
        model = job.compress(number)
        folder = job.space.stage(number + 1, stage.kind)
        assert isinstance(stage, Plans)
        with writing_to(job.space.root):
            planned = stage.plan(model, job.context(stage, folder))
            write_text(job.space.root / "plan.json", planned.model_dump_json(indent=1) + "\n")
            write_text(job.space.root / "plan.html", render(planned))
    finally:
        cleared(job.space)
        job.space.close()
    return planned
