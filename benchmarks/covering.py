"""One network on one of the ways of `coverage.py`, measured in this process."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from architectures import Architecture

if TYPE_CHECKING:
    from torch import nn

    from edgekit.model import Step, TorchModel

KEEP = 0.5
"""Share of the multiply-accumulates that is asked for."""

REACHED, PEER_REACHED = 0.505, 0.55
"""Share that counts as reached: the plan is to hold what was asked, Torch-Pruning goes by steps."""

CLOSE = 1e-3
"""How far outputs may differ, relative to the largest of them, in float32."""

SAMPLES, PEER_STEPS = 32, 45
MASKED = r"masked: largest difference ([0-9.e+-]+) of"
"""The step's metric: largest relative difference between the pruned network and its masked original."""


ROUTES = ("export", "module", "file", "peer")
"""In this order: `export` writes the file that `file` starts from."""


@dataclass
class Row:
    """What became of one network on one route. `reason` is empty where all went well.

    `masked` and `runtime` are the largest differences relative to the largest output: of the pruned network from its
    masked original, and of ONNX Runtime from the pruned network. `macs` is `[before, after]`, for one sample.
    `prune_s` are the processor seconds of pruning; `wall_s`, `cpu_s` and `peak_rss_bytes` are the whole process's.
    """

    name: str
    route: str
    reason: str = ""
    macs: list[int] = field(default_factory=list)
    masked: float | None = None
    runtime: float | None = None
    prune_s: float | None = None
    notes: list[str] = field(default_factory=list)
    wall_s: float = 0.0
    cpu_s: float = 0.0
    peak_rss_bytes: int = 0

    @property
    def passed(self) -> bool:
        """Whether it was pruned, is right, and runs."""
        return not self.reason

    @property
    def share(self) -> float | None:
        """Of the multiply-accumulates that is left."""
        return self.macs[1] / self.macs[0] if len(self.macs) == 2 and self.macs[0] else None


class MissedError(Exception):
    """What was asked for did not come out; says what did."""


def measured(architecture: Architecture, route: str, folder: Path, at: Callable[[Row], None] = lambda row: None) -> Row:
    """The row of one network on one route, measured here. `at` is told of each part before it begins."""
    row = Row(architecture.name, route)

    def begin(part: str) -> None:
        row.reason = part
        at(row)

    try:
        begin("import")
        WAYS[route](architecture, folder, row, begin)
        row.reason = ""
        if route != "export":
            judge(row)
    except MissedError as error:
        row.reason = str(error)
    except Exception as error:  # whatever libraries raise is a row
        row.reason = f"{row.reason}: {type(error).__name__}: {one_line(str(error))}"
    return row


def judge(row: Row) -> None:
    """Raise what is not as it must be.

    Raises:
        MissedError: the first that is not.
    """
    peer = row.route == "peer"
    share, limit = row.share, PEER_REACHED if peer else REACHED
    if share is None or share > limit:
        raise MissedError(f"{'unknown' if share is None else f'{share:.1%}'} of the multiply-accumulates left")
    if not peer and row.masked is None:
        raise MissedError("the stage does not say how far it is from its masked original")
    for what, seen in (("its masked original", row.masked), ("ONNX Runtime", row.runtime)):
        if seen is not None and not seen <= CLOSE:  # NaN too
            raise MissedError(f"differs from {what} by {seen:.1e} of the largest output")


def export(architecture: Architecture, folder: Path, row: Row, begin: Callable[[str], None]) -> None:
    """Write the dense network as any user would: `dense.onnx` is all that the route `file` gets."""
    import torch

    begin("build")
    module = architecture.build()
    examples = (torch.from_numpy(architecture.samples(2)),)
    begin("torch.onnx.export")
    with torch.no_grad():
        program = torch.onnx.export(
            module,
            examples,
            dynamo=True,
            verbose=False,
            opset_version=20,
            input_names=[architecture.spec.name],
            dynamic_shapes=({0: "batch"},),
        )
    assert program is not None
    program.save(folder / "dense.part")
    (folder / "dense.part").replace(folder / "dense.onnx")


def through_module(architecture: Architecture, folder: Path, row: Row, begin: Callable[[str], None]) -> None:
    """Prune the eager module, as a recipe with a Python source does."""
    from edgekit.graph.crossing import export_module
    from edgekit.model import TorchModel

    begin("build")
    module, inputs = architecture.build(), (architecture.spec,)
    begin("export the original")
    reference = export_module(module, inputs, architecture.name)
    model = TorchModel(
        name=architecture.name, module=module, inputs=inputs, outputs=reference.outputs, reference=reference
    )
    prune(model, architecture, folder, row, begin)


def through_file(architecture: Architecture, folder: Path, row: Row, begin: Callable[[str], None]) -> None:
    """Prune what the ONNX file holds, as a recipe with an ONNX source does."""
    from edgekit.graph.crossing import to_torch
    from edgekit.model import OnnxModel
    from edgekit.sources import load_model

    if not (folder / "dense.onnx").exists():
        raise MissedError("torch.onnx.export writes no file of it")
    begin("read the file")
    model = load_model(str(folder / "dense.onnx"), name=architecture.name)
    assert isinstance(model, OnnxModel)
    prune(to_torch(model), architecture, folder, row, begin)


def prune(model: TorchModel, architecture: Architecture, folder: Path, row: Row, begin: Callable[[str], None]) -> None:
    """The stage, the export, and a run beside it."""
    from edgekit.graph.cost import cost
    from edgekit.graph.crossing import to_onnx
    from edgekit.stages.prune import Prune

    begin("prune")
    stage = Prune(macs=KEEP, importance="l2", samples=SAMPLES)
    started = time.process_time()
    after = stage.apply(model, context(architecture, folder))
    row.prune_s = time.process_time() - started
    step = after.history[-1]
    row.notes, row.masked = [*step.notes, *step.warnings], masked_difference(step)
    begin("export")
    graph = to_onnx(after)
    before, left = cost(model.reference.proto).macs, cost(graph.proto).macs
    row.macs = [before, left] if before and left else []
    begin("run")
    row.runtime = runtime_difference(graph.proto, after.module, architecture)


def context(architecture: Architecture, folder: Path) -> Any:
    """What the pipeline would lend the stage: random samples without labels."""
    from edgekit.context import Silent
    from edgekit.data import DataSet, Preprocess, Split

    ids = tuple(f"random {i}" for i in range(SAMPLES))
    split = Split("calibration", architecture.samples(SAMPLES, 1), None, ids, Preprocess())
    work = folder / "stage"
    work.mkdir(exist_ok=True)
    data = DataSet("random", {"calibration": split})
    return SimpleNamespace(data=data, targets=(), seed=0, work=work, deadline=None, progress=Silent())


def masked_difference(step: Step) -> float | None:
    """What the stage found when it held the pruned network against its masked original."""
    found = (re.search(MASKED, note) for note in step.notes)
    return next((float(match[1]) for match in found if match), None)


def runtime_difference(proto: Any, module: nn.Module, architecture: Architecture) -> float:
    """The largest difference of ONNX Runtime from the module on three samples, relative to the largest output."""
    import onnxruntime
    import torch

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads, settings.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(proto.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    inputs = architecture.samples(3, 2)
    found = session.run(None, {session.get_inputs()[0].name: inputs})
    with torch.no_grad():
        wanted = module.eval()(torch.from_numpy(inputs))
    outputs = wanted if isinstance(wanted, tuple | list) else (wanted,)
    pairs = zip(found, (output.numpy() for output in outputs), strict=True)
    return max(float(abs(one - other).max() / abs(other).max()) for one, other in pairs)


def through_peer(architecture: Architecture, folder: Path, row: Row, begin: Callable[[str], None]) -> None:
    """Torch-Pruning, out of the box."""
    import torch
    import torch_pruning as tp

    from edgekit.graph.cost import cost
    from edgekit.graph.crossing import export_module
    from edgekit.sources import load_model

    begin("build")
    module = architecture.build()
    inputs = torch.from_numpy(architecture.samples(1))
    begin("build the dependency graph")
    started = time.process_time()
    pruner = tp.pruner.BasePruner(
        module,
        inputs,
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        global_pruning=True,
        pruning_ratio=0.9,
        max_pruning_ratio=0.9,
        iterative_steps=PEER_STEPS,
        round_to=8,
        ignored_layers=architecture.outputs_of(module),
    )
    begin("prune")
    whole = multiply_accumulates(module, inputs)
    for _ in range(PEER_STEPS):
        pruner.step()
        if multiply_accumulates(module, inputs) <= KEEP * whole:
            break
    row.prune_s = time.process_time() - started
    begin("export")
    graph = export_module(module, (architecture.spec,), architecture.name)
    before = cost(load_model(str(folder / "dense.onnx")).reference.proto).macs
    left = cost(graph.proto).macs
    row.macs = [before, left] if before and left else []
    begin("run")
    row.runtime = runtime_difference(graph.proto, module, architecture)


def multiply_accumulates(module: nn.Module, inputs: Any) -> int:
    """Of one pass, as PyTorch counts them: only to know when Torch-Pruning has removed enough."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(inputs)
    return int(counter.get_total_flops()) // 2


def one_line(text: str, most: int = 240) -> str:
    """The beginning of a message."""
    words = " ".join(text.split())
    return words if len(words) <= most else words[: most - 3] + "..."


Way = Callable[[Architecture, Path, Row, Callable[[str], None]], None]
WAYS: Mapping[str, Way] = {
    "export": export,
    "module": through_module,
    "file": through_file,
    "peer": through_peer,
}
