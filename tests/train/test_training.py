"""The stage `distill` with everything that it can be asked for, and what goes wrong while it trains."""

from __future__ import annotations

import copy
import errno
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "prune")]

from prune_models import Mixed, settled, stripes  # noqa: E402
from test_recover import FAST, INPUTS, accuracy, context, same, teacher_and_damaged_student  # noqa: E402
from torch import nn  # noqa: E402

from edgekit.data import DataSet, Preprocess  # noqa: E402
from edgekit.errors import DeviceError, UsageError  # noqa: E402
from edgekit.graph.crossing import export_module, to_torch  # noqa: E402
from edgekit.graph.io import save_onnx  # noqa: E402
from edgekit.model import TorchModel  # noqa: E402
from edgekit.stages.distill import Distill  # noqa: E402
from edgekit.train.checkpoint import Checkpoint  # noqa: E402
from edgekit.train.schedule import FAR, PATIENCE, WINDOW, Schedule, Watch, steps_within  # noqa: E402
from edgekit.train.training import Training  # noqa: E402


@pytest.fixture(scope="module")
def damaged() -> TorchModel:
    return teacher_and_damaged_student()


def asked(**settings) -> Distill:
    return Distill(**{**FAST.model_dump(exclude_unset=True), **settings})


@pytest.mark.parametrize(
    "settings",
    [
        {"match": {"logits": "dkd", "dkd_others": 2.0}},
        {"match": {"features": 1.0, "attention": 1.0}},
        {"match": {"relations": 1.0}},
        {"regularize": {"mixup": 0.2, "cutmix": 1.0, "bootstrap": 0.1, "l1": 1e-5, "dropout": 0.1, "ema": 0.9}},
        {"adversarial": {"attack": "pgd", "epsilon": "4/255", "steps": 2}},
        {"accumulate": 3},
        {"precision": "fp16"},
        {"objective": "outputs"},
    ],
    ids=lambda settings: (
        "-".join(settings) + "-" + "-".join(next(iter(settings.values()), {}))
        if isinstance(next(iter(settings.values())), dict)
        else "-".join(settings)
    ),
)
def test_it_recovers_and_goes_on_after_a_kill_to_the_same_bits(damaged, tmp_path, monkeypatch, settings):
    """Whatever is asked for, all that changes is in the checkpoint, in the middle of an epoch too."""
    stage = asked(**settings, epochs=2, save_every=1e-9)
    straight = stage.apply(damaged, context(tmp_path / "straight"))
    assert accuracy(straight) > accuracy(damaged) + 0.15
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in straight.module.modules())
    save = Checkpoint.save

    def killed(self, content):
        save(self, content)
        if content["done"] == 17:  # the fourth step of the second epoch
            raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoint, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        stage.apply(damaged, context(tmp_path / "work"))
    monkeypatch.setattr(Checkpoint, "save", save)
    resumed = stage.apply(damaged, context(tmp_path / "work"))
    assert "went on from step 4 of epoch 2" in resumed.history[-1].notes
    assert same(resumed, straight)
    timed = {"seconds", "samples_per_second"}
    curves = [
        [{k: v for k, v in e.items() if k not in timed} for e in m.history[-1].curve] for m in (resumed, straight)
    ]
    assert curves[0] == curves[1]


def test_accumulated_parts_make_the_gradient_of_the_whole_batch(damaged):
    """Without BatchNorm, whose statistics are of each part, the sum of parts is the batch."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(144, 8), nn.ReLU(), nn.Linear(8, 4))
    teacher = copy.deepcopy(module)
    split = stripes().splits["train"]
    from edgekit.train.samples import hold_out

    train, held_out = hold_out(split, 0.2, 0)
    found = []
    for count in (1, 5):
        nn.init.zeros_(module[3].bias)
        training = Training(module, teacher, train, held_out, asked(accumulate=count, batch_size=32).settings(0))
        loss = training.step(np.arange(32), 0.0)
        found.append((loss, [p.grad.clone() for p in training.student.parameters()]))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    for one, other in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(one, other)


def test_averaged_weights_are_scored_and_kept_where_they_are_better(damaged, tmp_path):
    rough = asked(learning_rate=0.1, epochs=3, regularize={"ema": 0.9})
    done = rough.apply(damaged, context(tmp_path))
    curve = done.history[-1].curve
    assert all({"ema_held_out_loss", "ema_accuracy"} <= set(entry) for entry in curve)
    best = min(min(entry["held_out_loss"], entry["ema_held_out_loss"]) for entry in curve)
    assert f"-> {best:.3f}," in done.history[-1].notes[0]


def test_a_penalty_on_sizes_makes_weights_smaller(damaged, tmp_path):
    sizes = []
    for name, l1 in (("a", 0.0), ("b", 1e-2)):
        done = asked(regularize={"l1": l1}).apply(damaged, context(tmp_path / name))
        sizes.append(sum(float(p.detach().abs().sum()) for p in done.module.parameters() if p.ndim > 1))
    assert sizes[1] < 0.9 * sizes[0]


def test_learning_from_changed_samples_bears_changes_better(damaged, tmp_path):
    from edgekit.train.adversarial import Attacker
    from edgekit.train.samples import Samples
    from edgekit.train.settings import AdversarialTraining

    test = stripes().splits["test"]
    taken = Samples(test, np.arange(len(test)))
    x, y = taken.batch(np.arange(len(test)))
    attacker = Attacker.of(AdversarialTraining(attack="fgsm", epsilon=0.15), taken, torch.device("cpu"))
    found = []
    for name, adversarial in (("a", None), ("b", {"attack": "fgsm", "epsilon": 0.15, "share": 0.8})):
        done = asked(adversarial=adversarial, epochs=4, alpha=0.0).apply(damaged, context(tmp_path / name))
        changed = attacker.changed(x, None, lambda v, m=done.module: nn.functional.cross_entropy(m(v), y))
        with torch.no_grad():
            found.append(float((done.module(changed).argmax(1) == y).float().mean()))
    assert found[1] > found[0] + 0.1


# ---- teachers


@pytest.fixture
def taught(tmp_path):
    """A model file and a Python source of a teacher of another architecture, which knows the stripes."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(144, 32), nn.ReLU(), nn.Linear(32, 4))
    split = stripes().splits["train"]
    x, y = torch.from_numpy(split.preprocess.apply(split.inputs)), torch.from_numpy(split.labels)
    optimizer = torch.optim.Adam(module.parameters(), 0.01)
    for _ in range(100):
        loss = nn.functional.cross_entropy(module(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    save_onnx(export_module(module.eval(), INPUTS, "teacher").proto, tmp_path / "teacher.onnx")
    torch.save(module.state_dict(), tmp_path / "teacher.pt")
    (tmp_path / "teacher.py").write_text(
        "from torch import nn\ndef build():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(144, 32), nn.ReLU(), nn.Linear(32, 4))\n"
    )
    return tmp_path


@pytest.mark.parametrize("teacher", ["teacher.onnx", {"source": "teacher.py:build", "weights": "teacher.pt"}])
def test_another_network_teaches(damaged, tmp_path, taught, teacher):
    torch.manual_seed(3)
    blank = export_module(settled(Mixed()), INPUTS, "mixed")
    student = replace(damaged, reference=blank)  # its own teacher knows nothing
    ctx = context(tmp_path / "work", stripes(labels=False))
    ctx.base = taught
    done = asked(teacher=teacher, epochs=6).apply(student, ctx)
    assert accuracy(done) > 0.8
    stage = asked(teacher=teacher)
    assert {path.name for path in stage.files(taught)} <= {"teacher.onnx", "teacher.py", "teacher.pt"}
    assert stage.files(taught)


def test_a_teacher_with_other_classes_or_inputs_is_one_clear_error(damaged, tmp_path):
    for name, module in (
        ("wide", nn.Sequential(nn.Flatten(), nn.Linear(144, 7))),
        ("big", nn.Sequential(nn.Conv2d(1, 1, 1), nn.Flatten(), nn.Linear(400, 4))),
    ):
        side = 20 if name == "big" else 12
        spec = replace(INPUTS[0], shape=("batch", 1, side, side))
        save_onnx(export_module(module.eval(), (spec,), name).proto, tmp_path / f"{name}.onnx")
    ctx = context(tmp_path)
    ctx.base = tmp_path
    with pytest.raises(UsageError, match=r"teacher gives 7 classes and the network 4.*distill\.teacher"):
        asked(teacher="wide.onnx").apply(damaged, ctx)
    with pytest.raises(UsageError, match=r"'big\.onnx' takes other inputs .*20, 20.* than the model .*12, 12"):
        asked(teacher="big.onnx").apply(damaged, ctx)
    with pytest.raises(UsageError, match="no file"):
        asked(teacher="none.onnx").apply(damaged, ctx)


def test_a_network_that_ends_in_a_softmax_learns_as_one_that_does_not(damaged, tmp_path):
    """Of student and teacher alike, or of one of them."""
    plain = FAST.apply(damaged, context(tmp_path / "plain")).history[-1]

    def ending(module):
        return nn.Sequential(module, nn.Softmax(1)).eval()

    soft = export_module(ending(to_torch(damaged.reference).module), INPUTS, "soft")
    for name, module, reference in (
        ("both", ending(damaged.module), soft),
        ("student", ending(damaged.module), damaged.reference),
        ("teacher", damaged.module, soft),
    ):
        step = FAST.apply(replace(damaged, module=module, reference=reference), context(tmp_path / name)).history[-1]
        assert step.curve[0]["train_loss"] == pytest.approx(plain.curve[0]["train_loss"], rel=1e-2)
        start, wanted = (float(s.notes[0].split()[2]) for s in (step, plain))
        assert start == pytest.approx(wanted, rel=1e-3)


def test_a_gpu_that_is_not_there_is_one_clear_error(damaged, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(UsageError, match="needs a GPU, and torch sees none"):
        asked(device="cuda").apply(damaged, context(tmp_path))


# ---- data


def test_samples_without_a_label_are_learned_from_the_teacher(damaged, tmp_path):
    data = stripes()
    train = data.splits["train"]
    labels = np.where(np.arange(len(train)) % 3 == 0, train.labels, -1)
    mixed = replace(data, splits={**data.splits, "train": replace(train, labels=labels)})
    done = FAST.apply(damaged, context(tmp_path, mixed))
    assert accuracy(done) > 0.8
    missing = int((labels < 0).sum())
    seen = next(note for note in done.history[-1].notes if "have no label" in note)
    assert 0.8 * missing < int(seen.split()[0]) < missing  # without the held-out ones


@pytest.mark.parametrize("count", [1, 2, 3])
def test_very_few_samples_are_told_or_learned_from(damaged, tmp_path, count):
    data = stripes()
    few = replace(data, splits={**data.splits, "train": data.splits["train"].take(np.arange(count))})
    if count == 1:
        with pytest.raises(UsageError, match="has 1 sample: too few to hold out"):
            FAST.apply(damaged, context(tmp_path, few))
        return
    FAST.apply(damaged, context(tmp_path, few))


def test_a_sample_that_cannot_be_read_is_named_and_the_checkpoint_stays(damaged, tmp_path, monkeypatch):
    broken = {"now": False}
    apply = Preprocess.apply

    def fails(self, raw):
        if broken["now"] and any((picture == bad).all() for picture in raw):
            raise OSError("input/output error")
        return apply(self, raw)

    data = stripes()
    bad = data.splits["train"].inputs[5]
    monkeypatch.setattr(Preprocess, "apply", fails)
    save = Checkpoint.save

    def then_breaks(self, content):
        save(self, content)
        broken["now"] = True

    monkeypatch.setattr(Checkpoint, "save", then_breaks)
    with pytest.raises(
        UsageError,
        match=r"Sample 'train5' of split 'train' cannot be read, in epoch 2 of distill .*input/output.*--resume",
    ):
        FAST.apply(damaged, context(tmp_path / "work", data))
    monkeypatch.undo()
    resumed = FAST.apply(damaged, context(tmp_path / "work", data))
    assert "went on from epoch 1" in resumed.history[-1].notes
    assert same(resumed, FAST.apply(damaged, context(tmp_path / "straight", data)))


@pytest.mark.parametrize("row", [6, 7])
def test_a_sample_with_nan_is_named(damaged, tmp_path, row):
    """Whether it is learned from, or held out."""
    data = stripes()
    train = data.splits["train"]
    x = train.inputs.astype(np.float32)
    x[row, 3, 3] = np.nan
    spoilt = replace(data, splits={**data.splits, "train": replace(train, inputs=x)})
    with pytest.raises(UsageError, match=f"Sample 'train{row}' holds NaN or infinity"):
        FAST.apply(damaged, context(tmp_path, spoilt))


def test_batches_that_are_too_small_or_too_large_are_one_clear_error(damaged, tmp_path, monkeypatch):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(144, 8), nn.BatchNorm1d(8), nn.Linear(8, 4)).eval()
    reference = export_module(module, INPUTS, "dense")
    model = TorchModel(name="dense", module=module, inputs=INPUTS, outputs=reference.outputs, reference=reference)
    with pytest.raises(
        UsageError, match="distill: BatchNorm has a single value a channel to learn from, with batches of 1"
    ):
        asked(batch_size=1).apply(model, context(tmp_path / "small"))

    def full(*_):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:130] . DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr("edgekit.train.objective.Objective.loss", full)
    with pytest.raises(DeviceError, match=r"ran out of memory with batches of 16 .*distill\.accumulate"):
        FAST.apply(damaged, context(tmp_path / "large"))


# ---- divergence


def test_a_network_that_gives_nan_is_told_before_training(damaged, tmp_path):
    module = copy.deepcopy(damaged.module)
    with torch.no_grad():
        module.head.bias[0] = float("nan")
    with pytest.raises(UsageError, match="distill cannot begin: the held-out loss is nan"):
        FAST.apply(replace(damaged, module=module), context(tmp_path))


def test_a_loss_that_runs_away_goes_back_and_on_at_half_the_rate(damaged, tmp_path, monkeypatch):
    """NaN turns up once: the weights of the last checkpoint come back, and the result is that of half the rate."""
    step, seen = Training.step, []

    def poisoned(self, rows, rate):
        seen.append(rate)
        if len(seen) == 20:
            with torch.no_grad():
                next(self.student.parameters()).fill_(float("nan"))
        return step(self, rows, rate)

    monkeypatch.setattr(Training, "step", poisoned)
    done = FAST.apply(damaged, context(tmp_path))
    assert accuracy(done) > 0.8
    assert len(seen) == 3 * 13 + 7  # the second epoch began anew
    assert seen[20] == pytest.approx(seen[13] / 2)
    assert done.history[-1].warnings == (
        "distill: the loss ran away once; training went back and on at a learning rate of 0.01. Set "
        "distill.learning_rate to that or lower.",
    )
    assert all(bool(value.isfinite().all()) for value in done.module.state_dict().values())


def test_weights_that_broke_are_not_kept_as_the_last_good_state(damaged, tmp_path, monkeypatch):
    """The step after which there are NaNs is the last before a checkpoint, or the last of an epoch."""
    step = Training.step
    for at, often in ((20, 1e-9), (13, 1e9)):
        seen = []

        def poisoned(self, rows, rate, at=at, seen=seen):
            loss = step(self, rows, rate)
            seen.append(rate)
            if len(seen) == at:
                with torch.no_grad():
                    next(self.student.parameters()).fill_(float("nan"))
            return loss

        monkeypatch.setattr(Training, "step", poisoned)
        done = asked(save_every=often).apply(damaged, context(tmp_path / str(at)))
        assert "the loss ran away once" in done.history[-1].warnings[0]
        assert accuracy(done) > 0.8
        assert all(np.isfinite(list(entry.values())).all() for entry in done.history[-1].curve)


def test_only_a_lasting_jump_far_above_the_median_is_a_divergence():
    watch = Watch()
    assert not any(watch.diverged(1.0 / (1 + i)) for i in range(100))  # a loss that falls as it should
    high = FAR * 1.1
    assert not watch.diverged(high)  # one hard batch
    assert not watch.diverged(0.01)
    found = [watch.diverged(high) for _ in range(PATIENCE)]
    assert found == [False] * (PATIENCE - 1) + [True]
    assert Watch().diverged(float("nan")) and Watch().diverged(float("inf"))
    low = Watch()
    assert not any(low.diverged(1e-6) for _ in range(WINDOW))
    assert low.diverged(1e-4) is False


# ---- room for checkpoints


def test_a_full_disk_is_told_and_training_goes_on(damaged, tmp_path, monkeypatch):
    import os

    straight = FAST.apply(damaged, context(tmp_path / "straight"))
    sync, calls = os.fsync, []

    def full(handle):
        calls.append(handle)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(handle)

    monkeypatch.setattr(os, "fsync", full)
    ctx = context(tmp_path / "work")
    done = FAST.apply(damaged, ctx)
    assert same(done, straight)
    assert len(calls) == 3  # it is tried again after the next epoch
    (line,) = done.history[-1].warnings
    assert "no room for the checkpoint" in line and "No space left on device" in line
    assert sorted(path.name for path in ctx.work.iterdir()) == ["checkpoint.pt"]


def test_a_checkpoint_that_could_not_be_written_leaves_the_last_one(tmp_path, monkeypatch):
    checkpoint = Checkpoint(tmp_path, "key")
    checkpoint.save({"epoch": 1})

    def full(self, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space"):
        checkpoint.save({"epoch": 2})
    assert checkpoint.load()["epoch"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


# ---- the course of a training


def test_the_rate_rises_and_falls_and_goes_on_without_a_jump_when_the_plan_changes():
    plain = Schedule(1.0, 100)
    rates = [plain.rate(step) for step in range(100)]
    assert rates[:10] == pytest.approx(np.arange(1, 11) / 10)
    assert rates[10:] == pytest.approx([(1 + np.cos(np.pi * i / 90)) / 2 for i in range(90)])
    for at, total in ((5, 40), (50, 70), (50, 300)):
        moved = Schedule(1.0, 100)
        moved.replan(at, total)
        assert moved.rate(at) == pytest.approx(plain.rate(at), abs=0.11 if at < 10 else 0.01)
        falling = [moved.rate(step) for step in range(max(at, total // 5), total)]
        assert falling == sorted(falling, reverse=True)
        assert moved.rate(total) == pytest.approx(0, abs=1e-12)


def test_steps_and_evaluations_fit_in_the_time():
    steps = steps_within(100.0, 0.5, 20, 2.0)
    assert 90 < steps * 0.5 + (steps / 20 + 1) * 2.0 <= 97
    assert steps_within(1.0, 2.0, 10, 0.0) == 0


def test_convergence_is_told(damaged, tmp_path):
    done = FAST.apply(damaged, context(tmp_path))
    (line,) = [note for note in done.history[-1].notes if note.startswith("90% of the gain")]
    curve = done.history[-1].curve
    start = float(done.history[-1].notes[0].split()[2])
    best = min(entry["held_out_loss"] for entry in curve)
    first = next(e["epoch"] for e in curve if e["held_out_loss"] <= start - 0.9 * (start - best) + 1e-3)
    assert f"after epoch {first:g} of 3" in line
    assert "samples a second" in line
    assert all(entry["samples_per_second"] > 0 for entry in curve)


def test_the_report_draws_losses_and_scores_and_nothing_else(damaged, tmp_path):
    from edgekit.report.figures import curves
    from edgekit.report.report import StageInfo

    done = asked(regularize={"ema": 0.9}).apply(damaged, context(tmp_path)).history[-1]
    info = StageInfo(name="distill", config=dict(done.config), seconds=done.seconds, curve=tuple(map(dict, done.curve)))
    drawn = [str(chart) for chart in curves(info)]
    assert [chart.partition("</h3>")[0].rpartition(": ")[2] for chart in drawn] == ["loss", "accuracy"]
    assert all(name in drawn[0] for name in ("train loss", "held out loss", "ema held out loss"))


def test_frozen_layers_are_not_learned(damaged, tmp_path):
    module = copy.deepcopy(damaged.module)
    module.a.requires_grad_(False)
    done = FAST.apply(replace(damaged, module=module), context(tmp_path))
    for name, value in module.a.state_dict().items():
        assert torch.equal(done.module.a.state_dict()[name], value), name
    assert not torch.equal(done.module.d.weight, module.d.weight)
    frozen = sum(p.numel() for p in module.a.parameters())
    assert f"{frozen} parameters are frozen in the model and stayed as they were" in done.history[-1].notes
    assert not done.module.a[0].weight.requires_grad


def test_outputs_of_any_kind_are_learned_from_the_teacher(tmp_path):
    """A network that gives a map for each image: no classes, no labels."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1)).eval()
    reference = export_module(module, INPUTS, "maps")
    rough = copy.deepcopy(module)
    with torch.no_grad():
        rough[3].weight.mul_(0.5)
    model = TorchModel(name="maps", module=rough, inputs=INPUTS, outputs=reference.outputs, reference=reference)
    data = DataSet("plain", {"train": replace(stripes().splits["train"], labels=None)}, task="none")
    done = asked(objective="outputs").apply(model, context(tmp_path, data))
    curve = done.history[-1].curve
    assert curve[-1]["snr_db"] > 15
    assert "dB from the teacher's outputs" in done.history[-1].notes[0]


def test_a_view_of_a_graph_matches_features_too(damaged, tmp_path):
    view = to_torch(damaged.reference)
    done = asked(match={"features": 0.5, "attention": 0.5}).apply(view, context(tmp_path))
    assert {n: v.shape for n, v in done.module.state_dict().items()} == {
        n: v.shape for n, v in view.module.state_dict().items()
    }
