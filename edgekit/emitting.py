"""What `--until emit` writes: the graph of every target and backend, and the QuantSpec; nothing is run or judged."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from edgekit.backends import BACKENDS, Job
from edgekit.building import Part, bundle_name, contained, parts
from edgekit.errors import BuildError, MissingDependencyError, worst
from edgekit.model import Model, TensorSpec
from edgekit.registry import resolve
from edgekit.workspace import Workspace, writing_to

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from edgekit.context import Progress
    from edgekit.data import DataSet
    from edgekit.recipe import PlannedTarget

QUANT_FILE = "quant.json"


class Emission(BaseModel):
    """The files of one target and backend, relative to the output folder; or the `reason` why there are none."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    target: str
    backend: str
    precision: str
    files: tuple[str, ...] = ()
    bytes: int = 0
    reason: str = ""


class Emitted(BaseModel):
    """Everything that one run emitted. `quant` is the QuantSpec's file, None where nothing was quantized."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    quant: str | None = None
    graphs: tuple[Emission, ...] = ()
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    exit_code: int = 0


def emit_all(
    final: Model, planned: tuple[PlannedTarget, ...], data: DataSet, space: Workspace, progress: Progress
) -> Emitted:
    """Write the graphs of the model as the stages left it. A backend that cannot emit fails alone."""
    part = parts(final)[-1]
    samples = _few(data, part.model.inputs)
    orders = [(target, backend) for target in planned for backend in target.backends]
    graphs, codes = [], []
    with progress.task("emit graphs", len(orders)) as task:
        for target, backend in orders:
            task.advance(0, f"{target.target.name} {backend}")
            try:
                graphs.append(_emit(part, target, backend, samples, space))
            except (BuildError, MissingDependencyError) as error:
                failed = Emission(target=target.target.name, backend=backend, precision=part.precision)
                graphs.append(failed.model_copy(update={"reason": str(error)}))
                codes.append(int(error.exit_code))
            task.advance(1)
    quant = None
    if part.model.quant is not None:
        quant = QUANT_FILE
        (space.root / quant).write_text(part.model.quant.to_json(), encoding="utf-8")
    history = part.model.history
    return Emitted(
        model=final.name,
        quant=quant,
        graphs=tuple(graphs),
        notes=tuple(note for step in history for note in step.notes),
        exit_code=int(worst(codes)),
    )


def _emit(
    part: Part, planned: PlannedTarget, name: str, samples: tuple[npt.NDArray[np.generic], ...], space: Workspace
) -> Emission:
    backend = resolve("backend", name, BACKENDS, "edgekit.backends")()
    facts = planned.target.backends.get(name)
    if facts is None:
        raise BuildError(f"{planned.target.name} has no {name}. It has: {', '.join(planned.target.backends)}.")
    own = bundle_name(part, planned.target, name)
    work, folder = space.work / "build" / own, space.models / own
    with writing_to(space.root):
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        job = Job(part.model, part.role, part.precision, planned.target, facts, work, samples)
        # A backend from elsewhere need not know how to stop before it compiles.
        files = contained(backend, job, getattr(backend, "emit", None) or (lambda job: backend.build(job).files))
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        placed = [path.replace(folder / inner) for inner, path in files.items()]
        shutil.rmtree(work, ignore_errors=True)
    return Emission(
        target=planned.target.name,
        backend=name,
        precision=part.precision,
        files=tuple(map(space.relative, placed)),
        bytes=sum(path.stat().st_size for path in placed),
    )


def _few(data: DataSet, specs: tuple[TensorSpec, ...]) -> tuple[npt.NDArray[np.generic], ...]:
    """A few samples as the network takes them: some emitters recognise tensors by their values."""
    split = data.splits.get("calibration") or next(iter(data.splits.values()))
    fixed = [spec.shape[0] for spec in specs if spec.shape and isinstance(spec.shape[0], int)]
    return tuple(split.ready(specs, slice(0, min(len(split), max([4, *fixed])))))
