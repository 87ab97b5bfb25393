"""The stage `qat`: it gives back what 8 bits cost, repeats itself, goes on after a kill, and never makes it worse."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "prune"))

from prune_models import Mixed, settled, stripes  # noqa: E402

from edgekit.assess import outputs_of  # noqa: E402
from edgekit.context import Silent  # noqa: E402
from edgekit.data import DataSet  # noqa: E402
from edgekit.errors import UsageError  # noqa: E402
from edgekit.graph.crossing import export_module, to_torch  # noqa: E402
from edgekit.model import Step, TensorSpec  # noqa: E402
from edgekit.quant.qdq import emit  # noqa: E402
from edgekit.quant.spec import QuantSpec  # noqa: E402
from edgekit.stages.qat import Qat  # noqa: E402
from edgekit.stages.quantize import Quantize  # noqa: E402
from edgekit.target import load_target  # noqa: E402
from edgekit.testing.subjects import unchanged  # noqa: E402
from edgekit.workspace import load_stage, save_stage  # noqa: E402

INPUTS = (TensorSpec("image", "float32", ("batch", 1, 12, 12)),)
FAST = Qat(epochs=6, batch_size=16, learning_rate=1e-3, augment="none")


def context(work: Path, data=None, deadline=None, targets=()):
    work.mkdir(parents=True, exist_ok=True)
    return SimpleNamespace(
        data=data or stripes(), targets=targets, seed=0, work=work, deadline=deadline, progress=Silent(),
        measure=None,
    )  # fmt: skip


def spoiled(count: int = 32, by: int = 40) -> DataSet:
    """Calibration samples with one that is far too bright: min-max ranges become `by` times too wide."""
    train = stripes().splits["train"].take(np.arange(count))
    pictures = train.inputs.astype(np.float32)
    pictures[3] *= by
    return replace(stripes(), splits={"calibration": replace(train, inputs=pictures)})


@pytest.fixture(scope="module")
def trained():
    """A network that tells the stripes apart."""
    torch.manual_seed(0)
    module = settled(Mixed()).train()
    split = stripes().splits["train"]
    x, y = torch.from_numpy(split.preprocess.apply(split.inputs)), torch.from_numpy(split.labels)
    optimizer = torch.optim.Adam(module.parameters(), 0.01)
    for _ in range(60):
        loss = torch.nn.functional.cross_entropy(module(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        for value in module.head.parameters():
            value.mul_(0.1)  # the stripes are easy: it would be too sure of them for a loss to be left
    return export_module(module.eval(), INPUTS, "mixed")


@pytest.fixture(scope="module")
def rough(trained):
    """The same in 8 bits, badly calibrated."""
    return Quantize(calibration="minmax").apply(trained, context(Path(), spoiled()))


def distance(model, data=None) -> float:
    """Energy of the outputs' error against the reference, as a share."""
    test = (data or stripes()).splits["test"]
    x = [test.preprocess.apply(test.inputs)]
    wanted, seen = outputs_of(model.reference, x)[0], outputs_of(model, x)[0]
    return float(np.square(seen - wanted).sum() / np.square(wanted).sum())


def same(one, two) -> bool:
    return one.quant == two.quant and all(
        np.array_equal(one.corrections[v][name], two.corrections[v][name])
        for v in one.corrections
        for name in one.corrections[v]
    )


@pytest.mark.parametrize("labels", [True, False])
def test_it_brings_the_outputs_back(rough, tmp_path, labels):
    before = list(unchanged(rough))
    done = FAST.apply(rough, context(tmp_path, stripes(labels=labels)))
    assert distance(done) < 0.5 * distance(rough)
    assert list(unchanged(rough)) == before
    # The float network stays what `quantize` got: it is what the quantized one is judged against.
    assert done.proto.SerializeToString(deterministic=True) == before[0]
    assert set(done.corrections) == {"affine", "symmetric", "reduced_range"}
    step = done.history[-1]
    assert (step.name, step.config["grid"]) == ("qat", "affine")
    assert [entry["epoch"] for entry in step.curve] == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    assert ("learned from the teacher alone" in " ".join(step.notes)) is not labels
    steps = [
        done.quant.grid(name, "affine").scale / rough.quant.grid(name, "affine").scale for name in done.quant.tensors
    ]
    assert min(steps) < 0.9  # ranges that were far too wide become narrower


def test_it_takes_what_distill_takes(rough, tmp_path):
    """Also averaged weights and steps, which stay within the bounds of the grid."""
    settings = {
        "match": {"logits": "dkd", "dkd_others": 2.0}, "regularize": {"ema": 0.9, "mixup": 0.2},
        "accumulate": 2, "learning_rate": "auto", "batch_size": "auto",
    }  # fmt: skip
    done = Qat(epochs=6, augment="none", **settings).apply(rough, context(tmp_path))
    assert distance(done) < 0.5 * distance(rough)
    assert "ema_accuracy" in done.history[-1].curve[0]
    assert any("by a range test" in note for note in done.history[-1].notes)
    with pytest.raises(UsageError, match="cannot be paired"):
        Qat(match={"features": 1.0}).apply(rough, context(tmp_path / "features"))


@pytest.mark.parametrize("grid", ["symmetric", "reduced_range"])
def test_it_trains_in_the_grid_that_the_recipe_names(rough, tmp_path, grid):
    backend = {"symmetric": "tensorrt", "reduced_range": "onnxruntime"}[grid]
    targets = (load_target("x86-64"),)
    done = FAST.model_copy(update={"grid": grid}).apply(rough, context(tmp_path, targets=targets))
    from edgekit.graph.execute import run_onnx

    test = stripes().splits["test"]
    x = [test.preprocess.apply(test.inputs)]
    wanted = outputs_of(rough.reference, x)[0]
    off = [
        np.square(run_onnx(emit(m.lowered(grid), m.quant, grid, backend), x)[0] - wanted).sum() for m in (rough, done)
    ]
    assert off[1] < 0.5 * off[0]
    assert done.quant.source["steps"] == f"learned in the grid {grid}"
    assert any(
        note.startswith("in the grid affine, which was not trained in: accuracy") for note in done.history[-1].notes
    )


def test_outputs_that_are_no_classes_are_held_against_the_teachers(rough, tmp_path):
    data = replace(stripes(labels=False), task="none")
    done = FAST.apply(rough, context(tmp_path, data))
    assert distance(done) < 0.5 * distance(rough)
    assert "learned from the teacher's outputs alone" in " ".join(done.history[-1].notes)
    assert {"snr_db", "held_out_loss"} <= set(done.history[-1].curve[0])


def test_two_trainings_give_the_same_bits_and_another_seed_gives_others(rough, tmp_path):
    quick = FAST.model_copy(update={"epochs": 1})
    one, two = (quick.apply(rough, context(tmp_path / name)) for name in "ab")
    other = context(tmp_path / "c")
    other.seed = 1
    assert same(one, two)
    assert not same(one, quick.apply(rough, other))


def test_it_goes_on_from_a_checkpoint_to_the_same_bits(rough, tmp_path, monkeypatch):
    from edgekit.train.checkpoint import Checkpoint

    save = Checkpoint.save

    def killed(self, content):
        save(self, content)
        raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoint, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        FAST.apply(rough, context(tmp_path / "work"))
    monkeypatch.setattr(Checkpoint, "save", save)
    resumed = FAST.apply(rough, context(tmp_path / "work"))
    assert "went on from epoch 1" in resumed.history[-1].notes
    assert same(resumed, FAST.apply(rough, context(tmp_path / "straight")))


def test_its_result_is_kept_and_loaded_whole(rough, tmp_path):
    done = FAST.apply(rough, context(tmp_path / "work"))
    save_stage(tmp_path, "key", done)
    loaded = load_stage(tmp_path, "key", rough)
    assert same(done, loaded) and loaded.corrections.keys() == done.corrections.keys()
    assert distance(loaded) == distance(done)


def test_training_that_does_not_help_leaves_everything_as_it_was(rough, tmp_path):
    spoils = FAST.model_copy(update={"learning_rate": 0.5, "epochs": 1})
    done = spoils.apply(rough, context(tmp_path))
    assert list(unchanged(done)) == list(unchanged(rough))
    assert any(note.startswith("did not help: no epoch was better") for note in done.history[-1].notes)


def test_it_stops_at_the_deadline(rough, tmp_path):
    done = FAST.apply(rough, context(tmp_path, deadline=0.0))
    assert "stopped at the deadline in epoch 1 of 6" in done.history[-1].notes
    assert done.quant == rough.quant


def test_float_networks_are_refused(trained, tmp_path):
    for model in (trained, to_torch(trained)):
        with pytest.raises(UsageError, match="put it after 'quantize' in the recipe"):
            FAST.apply(model, context(tmp_path))
    other = trained.after(Step("quantize", {}, 0.0))
    spec = QuantSpec(precision="int8_weights", nodes=("head",), tensors={}, weights={})
    with pytest.raises(UsageError, match="'qat' trains int8, and the network is in int8_weights"):
        FAST.apply(replace(other, quant=spec), context(tmp_path))


def test_a_network_without_8_bit_operators_is_said_to_be_one(trained, tmp_path):
    done = FAST.apply(trained.after(Step("quantize", {}, 0.0)), context(tmp_path))
    assert "nothing to train" in done.history[-1].notes[0]
