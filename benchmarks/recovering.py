"""One row of `pruning.py`: a way to make ResNet-20 smaller and to win its accuracy back, and what came of it."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import onnx

    from edgekit.data import DataSet
    from edgekit.model import TorchModel
    from edgekit.workspace import Context

Images, Labels = npt.NDArray[np.uint8], npt.NDArray[np.int64]
Judge = Literal["test", "held-out"]
Stages = tuple[tuple[str, Mapping[str, Any]], ...]
"""Kinds of stages with their settings, in order."""
HELD_OUT = 2_500
"""So many training images are kept from everything where they are to judge."""
CALIBRATE = 1_024
DEVIATION = (0.229, 0.224, 0.225)
MEAN = (0.485, 0.456, 0.406)
PREPROCESS = {
    "scale": [1 / (255 * d) for d in DEVIATION],
    "offset": [-m / d for m, d in zip(MEAN, DEVIATION, strict=True)],
    "layout": "NHWC",
    "to": "NCHW",
}
PEER_STEPS = 400
"""Torch-Pruning goes in so many steps and stops at the first below the budget: all of them rank the same weights."""


@dataclass
class Row:
    """A network that was made smaller by `method` to one `ratio`-th of the multiply-accumulates, with `seed`.

    `macs` and `parameters` are `[before, after]`. `steps` are those of recovery; `recover_cpu_s` its processor seconds,
    evaluations included, `recover_s` those on the clock.
    """

    method: str
    ratio: float
    seed: int
    judge: Judge
    settings: list[Any] = field(default_factory=list)
    macs: list[int] = field(default_factory=list)
    parameters: list[int] = field(default_factory=list)
    widths: list[int] = field(default_factory=list)
    cut_cpu_s: float = 0.0
    recover_cpu_s: float = 0.0
    recover_s: float = 0.0
    epochs: float = 0.0
    notes: list[str] = field(default_factory=list)
    curve: list[dict[str, float]] = field(default_factory=list)
    hits: dict[str, int] = field(default_factory=dict)
    samples: int = 0

    @property
    def key(self) -> str:
        """Its folder under `--work`."""
        name = "".join(c if c.isalnum() else "-" for c in self.method)
        return f"{self.judge}-{self.ratio:g}-{name}-{self.seed}"


@dataclass(frozen=True)
class Bench:
    """Where the images and weights are, where rows are kept, and which images judge."""

    source: Path
    work: Path
    judge: Judge

    def folder(self, row: Row) -> Path:
        """Of one row."""
        return self.work / row.key

    def kept(self, row: Row) -> Row | None:
        """The row as an earlier call left it."""
        file = self.folder(row) / "row.json"
        return Row(**json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else None

    def keep(self, row: Row) -> None:
        """Write a row, whole or not at all."""
        draft = self.folder(row) / "row.part"
        draft.write_text(json.dumps(asdict(row), indent=1), encoding="utf-8")
        draft.replace(self.folder(row) / "row.json")

    def data(self) -> DataSet:
        """What may be learned from: no image that judges is among it."""
        from edgekit.data import DataSet, Preprocess, Split

        x, y, rows = *self._training(), self._order()[HELD_OUT if self.judge == "held-out" else 0 :]
        values = {key: tuple(value) if isinstance(value, list) else value for key, value in PREPROCESS.items()}
        split = Split("train", x[rows], y[rows], tuple(map(str, rows)), Preprocess(**values))
        return DataSet("cifar10", {"train": split}, task="classification")

    def judging(self) -> tuple[Images, Labels]:
        """The images that judge. The file of test images is opened here alone, and only where they do."""
        if self.judge == "held-out":
            x, y = self._training()
            rows = self._order()[:HELD_OUT]
            return x[rows], y[rows]
        with np.load(self.source / "cifar10_test_1228.npz", allow_pickle=False) as file:
            return file["x"], file["y"].astype(np.int64)

    def _training(self) -> tuple[Images, Labels]:
        with np.load(self.source / "cifar10_train_25k.npz", allow_pickle=False) as file:
            return file["x"], file["y"].astype(np.int64)

    def _order(self) -> npt.NDArray[np.int64]:
        """The same for all rows."""
        return np.random.default_rng(12345).permutation(25_000)

    def dense(self) -> TorchModel:
        """The network as it came."""
        from edgekit.model import TensorSpec
        from edgekit.sources import load_model

        image = TensorSpec("image", "float32", ("batch", 3, 32, 32))
        source = f"{Path(__file__).parent / 'resnet20.py'}:build"
        weights = (self.source / "resnet20_cifar10.pt").resolve()
        return load_model(source, weights=weights, inputs={"image": image}, name="resnet20")  # type: ignore[return-value]

    def context(self, row: Row, data: DataSet, number: int) -> Context:
        """What the pipeline would lend the row's stage of this number."""
        from edgekit.context import Silent
        from edgekit.workspace import Context

        work = self.folder(row) / f"stage-{number}"
        work.mkdir(parents=True, exist_ok=True)
        return Context(data, (), row.seed, work, None, Silent(), lambda model, target: {})


def by_stages(row: Row, bench: Bench, model: TorchModel, data: DataSet, stages: Stages) -> TorchModel:
    """The stages of a recipe, one after the other."""
    from edgekit.stages.distill import Distill
    from edgekit.stages.prune import Prune

    for number, (kind, settings) in enumerate(stages):
        if kind == "fresh":
            model = replace(model, module=_fresh(model.module, row.seed))
            continue
        stage = {"prune": Prune, "distill": Distill}[kind](**settings)
        cpu, wall = time.process_time(), time.monotonic()
        model = stage.apply(model, bench.context(row, data, number))
        step, cpu, wall = model.history[-1], time.process_time() - cpu, time.monotonic() - wall
        row.notes += step.notes
        if kind == "prune":
            row.cut_cpu_s += cpu
        else:
            row.recover_cpu_s += cpu
            row.recover_s += wall
            row.curve += [dict(entry) for entry in step.curve]
            row.epochs += len(step.curve)
    return model


def by_peer(row: Row, model: TorchModel) -> TorchModel:
    """Torch-Pruning: group norms of the untouched weights, all layers compete (Fang et al. 2023, arXiv:2301.12900).

    The widths of the stages stay: it does not see that the shortcuts pad channels, and what it makes where it may cut
    them does not run.
    """
    import torch
    import torch_pruning as tp

    from edgekit.prune.cost import count_macs

    module, probe, started = copy.deepcopy(model.module), torch.zeros(1, 3, 32, 32), time.process_time()
    whole = count_macs(module, (probe,))
    blocks = [block for layer in (module.layer1, module.layer2, module.layer3) for block in layer]
    pruner = tp.pruner.BasePruner(
        module,
        probe,
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        global_pruning=True,
        pruning_ratio=0.9,
        max_pruning_ratio=0.9,
        iterative_steps=PEER_STEPS,
        round_to=row.settings[0]["round_to"],
        ignored_layers=[module.conv1, *(block.conv2 for block in blocks), module.linear],
    )
    for _ in range(PEER_STEPS):
        pruner.step()
        if count_macs(module, (probe,)) <= whole / row.ratio:
            break
    row.cut_cpu_s = time.process_time() - started
    return replace(model, module=module.eval())


def plainly(row: Row, model: TorchModel, data: DataSet, seconds: float) -> TorchModel:
    """Cross-entropy alone, for so many processor seconds: SGD, a cosine, the augmentation and arithmetic of `distill`.

    All images are learned from; the last step's weights count.
    """
    import torch
    from torch.nn import functional as F

    from edgekit.prune.shapes import laid_out
    from edgekit.train.augment import augmented
    from edgekit.train.loop import native_bf16
    from edgekit.train.samples import Samples
    from edgekit.train.schedule import Schedule

    (settings,) = row.settings[1:]
    split, size = data.splits["train"], settings["batch_size"]
    samples = Samples(split, np.arange(len(split)))
    module = laid_out(copy.deepcopy(model.module), torch.channels_last).train()
    draw = torch.Generator().manual_seed(row.seed)
    begun, wall, steps = time.process_time(), time.monotonic(), len(samples) // size
    optimizer = torch.optim.SGD(module.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule, done, order = Schedule(settings["learning_rate"], 20 * steps), 0, np.arange(0)
    while done < schedule.total:
        if done % steps == 0:
            order = torch.randperm(len(samples), generator=draw).numpy()
        at = done % steps * size
        inputs, labels = samples.batch(order[at : at + size])
        inputs = augmented(inputs, settings["augment"], draw).contiguous(memory_format=torch.channels_last)
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate(done)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=native_bf16()):
            loss = F.cross_entropy(module(inputs).float(), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        done += 1
        if done % 20 == 0:
            spent = time.process_time() - begun
            schedule.replan(done, done + int((seconds - spent) * done / spent))
    row.epochs, row.recover_s = done / steps, time.monotonic() - wall
    row.recover_cpu_s = time.process_time() - begun
    return replace(model, module=laid_out(module, torch.contiguous_format).eval())


def finish(row: Row, bench: Bench, model: TorchModel, data: DataSet) -> None:
    """The files of a network, fp32 and int8 for ONNX Runtime, and how many of the judging images they get right."""
    import onnx
    from torch import nn

    from edgekit.graph.cost import cost
    from edgekit.graph.crossing import export_module
    from edgekit.prune.shapes import parameters

    dense = bench.dense()
    graph = export_module(model.module, model.inputs, "resnet20").proto
    row.macs = [int(cost(dense.reference.proto).macs or 0), int(cost(graph).macs or 0)]
    row.parameters = [parameters(dense.module), parameters(model.module)]
    row.widths = [layer.weight.shape[0] for layer in model.module.modules() if isinstance(layer, nn.Conv2d)]
    folder = bench.folder(row)
    onnx.save(graph, folder / "fp32.onnx")
    quantized(folder, data, row.seed)
    graphs = {name: onnx.load(folder / f"{name}.onnx") for name in ("fp32", "int8")}
    x, y = bench.judging()
    found = {name: answers(proto, data, x) == y for name, proto in graphs.items()}
    np.savez(folder / "hits.npz", **found)
    row.hits, row.samples = {name: int(hits.sum()) for name, hits in found.items()}, len(y)


def quantized(folder: Path, data: DataSet, seed: int) -> None:
    """`int8.onnx` beside `fp32.onnx`, by a recipe of one stage, calibrated on training images."""
    from edgekit.pipeline import emit

    split = data.splits["train"]
    rows = np.random.default_rng(seed).permutation(len(split))
    images = folder / "images"
    images.mkdir(exist_ok=True)
    for name, part in (("calibration", rows[:CALIBRATE]), ("test", rows[CALIBRATE : CALIBRATE + 64])):
        np.savez(images / f"{name}.npz", x=split.array[part], y=split.labels[part])  # nothing is judged by the latter
    recipe = {
        "version": 1,
        "model": {"source": "fp32.onnx"},
        "data": {"source": "images", "preprocess": PREPROCESS},
        "stages": ["quantize"],
        "targets": [{"target": this_machine(), "backends": ["onnxruntime"]}],
        "seed": seed,
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe, indent=1), encoding="utf-8")  # JSON is YAML
    emitted = emit(folder / "recipe.yaml", out=folder / "emitted")
    (file,) = emitted.graphs[0].files
    (folder / "emitted" / file).replace(folder / "int8.onnx")


def this_machine() -> str:
    """The target that the machine is one of: without VNNI, 8-bit weights would cost accuracy that is not theirs."""
    from edgekit.devices import Devices
    from edgekit.wrapping import target_of

    return target_of(Devices().open("local")).name


def answers(proto: onnx.ModelProto, data: DataSet, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """The class of every image, by ONNX Runtime."""
    from edgekit.graph.execute import run_onnx

    inputs = data.splits["train"].preprocess.apply(images)
    return run_onnx(proto, [inputs], threads=1)[0].argmax(1)


def _fresh(module: Any, seed: int) -> Any:
    """The same network with weights drawn anew."""
    import torch

    module = copy.deepcopy(module)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for layer in module.modules():
            if callable(reset := getattr(layer, "reset_parameters", None)):
                reset()
    return module.eval()


Way = Callable[[Row, Bench, "TorchModel", "DataSet"], "TorchModel"]


def measured(row: Row, bench: Bench, way: Way) -> Row:
    """The row as `way` fills it, kept."""
    bench.folder(row).mkdir(parents=True, exist_ok=True)
    data = bench.data()
    model = way(row, bench, bench.dense(), data)
    finish(row, bench, model, data)
    bench.keep(row)
    return row
