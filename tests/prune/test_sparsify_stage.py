"""The stage `sparsify`: the pattern, the ranking, what is refused, and that zeros stay zeros afterwards."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from pydantic import ValidationError

torch = pytest.importorskip("torch")

from prune_models import Mixed, settled, stripes  # noqa: E402
from torch import nn  # noqa: E402

from edgekit.context import Silent  # noqa: E402
from edgekit.errors import UsageError  # noqa: E402
from edgekit.graph.crossing import export_module, to_onnx, to_torch  # noqa: E402
from edgekit.graph.sparse import is_two_of_four, two_of_four  # noqa: E402
from edgekit.model import Step, TensorSpec, TorchModel  # noqa: E402
from edgekit.prune.sparse import input_norms, scores, share_of_each  # noqa: E402
from edgekit.quant.qdq import emit  # noqa: E402
from edgekit.recipe import load_recipe  # noqa: E402
from edgekit.stages.distill import Distill  # noqa: E402
from edgekit.stages.qat import Qat  # noqa: E402
from edgekit.stages.quantize import Quantize  # noqa: E402
from edgekit.stages.sparsify import Sparsify  # noqa: E402
from edgekit.target import load_target  # noqa: E402
from edgekit.workspace import load_stage, save_stage  # noqa: E402

INPUTS = (TensorSpec("image", "float32", ("batch", 1, 12, 12)),)
X = torch.randn(3, 1, 12, 12, generator=torch.Generator().manual_seed(0))
FITTING = ("b.0", "c", "gate", "d", "head")


def context(tmp_path: Path, *targets: str, measure=None):
    return SimpleNamespace(
        data=stripes(), targets=tuple(map(load_target, targets)), seed=0, work=tmp_path, deadline=None,
        progress=Silent(), base=tmp_path, measure=measure,
    )  # fmt: skip


@pytest.fixture(scope="module")
def dense() -> TorchModel:
    torch.manual_seed(0)
    module = settled(Mixed())
    reference = export_module(module, INPUTS, "mixed")
    return TorchModel(name="mixed", module=module, inputs=INPUTS, outputs=reference.outputs, reference=reference)


@pytest.fixture(scope="module")
def sparse(dense, tmp_path_factory) -> TorchModel:
    folder = tmp_path_factory.mktemp("sparse")
    return Sparsify(pattern="2:4", samples=64).apply(dense, context(folder, "rtx-ampere", "x86-64"))


def of_four(weight: torch.Tensor) -> torch.Tensor:
    """How many of every four input channels are not zero, counted without the code under test."""
    kernels = weight.detach().reshape(len(weight), weight.shape[1], -1)
    return torch.stack([(kernels[:, start : start + 4] != 0).sum(1) for start in range(0, weight.shape[1], 4)])


def test_two_of_every_four_input_channels_stay_as_they_were(dense, sparse):
    before = dict(dense.module.named_parameters())
    for path in FITTING:
        weight = sparse.module.get_submodule(path).weight
        assert bool((of_four(weight) == 2).all()), path
        stay = weight != 0
        assert torch.equal(weight[stay], before[f"{path}.weight"][stay])
    assert torch.equal(sparse.module.a[0].weight, before["a.0.weight"])
    notes = sparse.history[-1].notes
    assert "left dense: a.0 (1 input channels, no multiple of 4)" in notes
    assert "left dense: depthwise (grouped)" in notes
    assert any(note.startswith("pattern 2:4: ") and " weights of 5 layers are zero" in note for note in notes)
    assert "nothing is gained on x86-64" in notes


def test_what_counts_is_the_weight_times_its_input():
    """Sun et al.'s score in numpy: |W| times the norm of what each channel carries, within four neighbours."""
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 6, 3, padding=1)
    x = torch.randn(5, 8, 7, 7) * torch.linspace(0.1, 3, 8)[:, None, None]
    norms = input_norms(nn.Sequential(layer), [x[:2], x[2:]])["0"]
    seen = x.numpy().transpose(0, 2, 3, 1).reshape(-1, 8)
    np.testing.assert_allclose(norms, np.sqrt((seen.astype(np.float64) ** 2).mean(0)), rtol=1e-6)
    weight = layer.weight.detach().numpy()
    wanted = np.abs(weight) * np.linalg.norm(seen, axis=0)[None, :, None, None]
    found = scores(layer.weight, norms, "wanda").numpy()
    np.testing.assert_allclose(found / found.max(), wanted / wanted.max(), rtol=1e-5)
    np.testing.assert_allclose(scores(layer.weight, norms, "magnitude"), np.abs(weight), rtol=1e-6)
    stay = share_of_each(torch.from_numpy(wanted), 0.75)
    assert stay.flatten(1).sum(1).tolist() == [18] * 6
    for kept, score in zip(stay.flatten(1).numpy(), wanted.reshape(6, -1), strict=True):
        assert score[kept].min() >= score[~kept].max()


def test_the_exported_graph_has_the_pattern_where_tensorrt_looks_for_it(dense, sparse):
    assert two_of_four(dense.reference.proto) == ()
    graph = to_onnx(sparse).proto
    assert len(two_of_four(graph)) == len(FITTING)
    for array in (np.eye(8), np.ones((4, 4)), np.zeros((4, 4)), np.eye(6)):
        assert is_two_of_four(array, 1) == (array.shape == (8, 8))


@pytest.mark.parametrize("source", ["module", "view"])
def test_zeros_stay_zeros_through_training_and_quantization(dense, tmp_path, source):
    model = dense if source == "module" else to_torch(dense.reference)
    ctx = context(tmp_path, "rtx-ampere")
    made = Sparsify(pattern="2:4", samples=64).apply(model, ctx)
    save_stage(tmp_path, "key", made)
    again = load_stage(tmp_path, "key", model)
    assert isinstance(again, TorchModel)
    trained = Distill(epochs=3, batch_size=32, alpha=0.0, weight_decay=0.1).apply(again, ctx)
    assert not torch.equal(trained.module(X), made.module(X))
    folders = [tmp_path / name for name in ("plain", "trained")]
    for folder in folders:
        folder.mkdir()
    quantized = Quantize(samples=64, sensitivity="never").apply(to_onnx(trained), context(folders[0], "rtx-ampere"))
    qat = Qat(epochs=1, grid="symmetric").apply(quantized, context(folders[1], "rtx-ampere"))
    assert qat.corrections["symmetric"]
    for last in (quantized, qat):
        assert last.quant is not None
        graph = emit(last.lowered("symmetric"), last.quant, "symmetric", "tensorrt")
        assert len(two_of_four(graph)) == len(FITTING)


def timing(low: float, high: float, log: list[str], backends: tuple[str, ...] = ("onnxruntime", "openvino")):
    """A `measure` whose ratio is `low` to `high` on the last of the recipe's backends, and about 1 on others."""

    def measure(model, target, *, backend, against):
        if backend not in backends:
            raise UsageError("not in this recipe")
        log.append(backend)
        zeros = [sum(int((p == 0).sum()) for p in m.module.parameters() if p.ndim > 1) for m in (model, against)]
        assert zeros[0] > 500 > zeros[1]
        ends = (low, high) if backend == backends[-1] else (0.99, 1.01)
        return {"latency_s": 1e-3, "precision": "fp32", "ratio": sum(ends) / 2, "low": ends[0], "high": ends[1]}

    return measure


def test_a_share_is_taken_where_a_device_is_faster_and_else_not(dense, tmp_path):
    log: list[str] = []
    stage = Sparsify(share=0.8, samples=64)
    made = stage.apply(dense, context(tmp_path, "x86-64", measure=timing(0.7, 0.9, log)))
    assert log == ["onnxruntime", "openvino"]
    assert (made.module.head.weight == 0).sum(1).tolist() == [round(0.8 * 256)] * 4
    step = made.history[-1]
    assert "x86-64, openvino, fp32: 1 ms with zeros, 0.800 [0.700, 0.900] of the time without" in step.notes
    assert not step.warnings
    kept = stage.apply(dense, context(tmp_path, "x86-64", measure=timing(0.9, 1.01, [])))
    assert kept.module is dense.module
    (warning,) = kept.history[-1].warnings
    assert warning.startswith("sparsify left the weights as they were: no device is faster for zeros (x86-64, onnxrun")
    assert "0.955 [0.900, 1.010] of the time without, not shown faster" in warning


def nowhere(model, target, *, backend, against):
    return {"latency_s": None, "precision": "fp32"}


def test_what_cannot_be_sparse_is_refused(dense, tmp_path):
    with pytest.raises(UsageError, match=r"no target of the recipe has one \(targets: x86-64\). Add one, such as rtx"):
        Sparsify(pattern="2:4").apply(dense, context(tmp_path, "x86-64"))
    with pytest.raises(UsageError, match="no target of the recipe has one that can be timed"):
        Sparsify(share=0.5, samples=64).apply(dense, context(tmp_path, "x86-64", measure=nowhere))
    with pytest.raises(UsageError, match="put it before 'quantize'"):
        Sparsify(pattern="2:4").apply(dense.reference, context(tmp_path, "rtx-ampere"))
    small = nn.Sequential(nn.Flatten(), nn.Linear(144, 4, bias=False))
    small[1] = nn.utils.parametrizations.weight_norm(small[1])
    reference = export_module(copy.deepcopy(small).eval(), INPUTS, "small")
    model = TorchModel(name="small", module=small, inputs=INPUTS, outputs=reference.outputs, reference=reference)
    with pytest.raises(UsageError, match=r"No layer of the model can be made sparse: left dense: 1 \(a Parametrized"):
        Sparsify(pattern="2:4").apply(model, context(tmp_path, "rtx-ampere"))
    for wrong in ({}, {"pattern": "2:4", "share": 0.5}, {"share": 1.0}, {"pattern": "1:4"}):
        with pytest.raises(ValidationError):
            Sparsify(**wrong)


RECIPE = """
version: 1
model: {source: model.py:build, inputs: {image: {shape: [batch, 1, 12, 12], dtype: float32}}}
data: {source: data.npz}
stages: [{sparsify: {pattern: "2:4"}}, {prune: {macs: 0.5}}]
targets: [rtx-ampere]
"""


def test_a_recipe_that_would_undo_it_is_refused(tmp_path):
    for name, text in (("recipe.yaml", RECIPE), ("model.py", ""), ("data.npz", "")):
        (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=r"stages\[1\]: 'prune' would undo what 'sparsify' does. Move it in front"):
        load_recipe(tmp_path / "recipe.yaml")


def test_the_history_says_that_a_model_is_sparse(dense):
    from edgekit.stages._training import is_sparse

    assert not is_sparse(dense)
    assert is_sparse(dense.after(Step("sparsify", {}, 0.0)))
