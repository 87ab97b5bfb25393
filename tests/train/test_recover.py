"""Recovery training: it recovers, it repeats itself, and it goes on after a kill as if nothing had been."""

from __future__ import annotations

import copy
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "prune"))

from prune_models import Mixed, settled, stripes  # noqa: E402

from edgekit.context import Silent  # noqa: E402
from edgekit.errors import UsageError  # noqa: E402
from edgekit.graph.crossing import export_module, to_torch  # noqa: E402
from edgekit.model import TensorSpec, TorchModel  # noqa: E402
from edgekit.stages.distill import Distill  # noqa: E402
from edgekit.train.augment import augmented  # noqa: E402
from edgekit.train.samples import hold_out  # noqa: E402

INPUTS = (TensorSpec("image", "float32", ("batch", 1, 12, 12)),)
FAST = Distill(epochs=3, batch_size=16, precision="fp32", learning_rate=0.02, augment="none")


def context(work: Path, data=None, deadline=None):
    return SimpleNamespace(data=data or stripes(), targets=(), seed=0, work=work, deadline=deadline, progress=Silent())


def teacher_and_damaged_student() -> TorchModel:
    """A trained network as the reference, and the same with a layer's weights drawn anew."""
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
    reference = export_module(module.eval(), INPUTS, "mixed")
    damaged = copy.deepcopy(module)
    damaged.d.reset_parameters()
    return TorchModel(name="mixed", module=damaged, inputs=INPUTS, outputs=reference.outputs, reference=reference)


@pytest.fixture(scope="module")
def damaged() -> TorchModel:
    return teacher_and_damaged_student()


def accuracy(model: TorchModel) -> float:
    test = stripes().splits["test"]
    with torch.no_grad():
        seen = model.module(torch.from_numpy(test.preprocess.apply(test.inputs))).argmax(1).numpy()
    return float((seen == test.labels).mean())


def same(one: TorchModel, two: TorchModel) -> bool:
    pairs = zip(one.module.state_dict().values(), two.module.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("labels", [True, False])
def test_a_damaged_network_learns_again_from_labels_and_teacher_or_teacher_alone(damaged, tmp_path, labels):
    before = copy.deepcopy(damaged.module.state_dict())
    trained = FAST.apply(damaged, context(tmp_path, stripes(labels=labels)))
    assert accuracy(trained) > max(accuracy(damaged) + 0.2, 0.8)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), damaged.module.state_dict().values(), strict=True))
    step = trained.history[-1]
    assert [entry["epoch"] for entry in step.curve] == [1.0, 2.0, 3.0]
    known = {"epoch", "train_loss", "held_out_loss", "accuracy", "seconds", "learning_rate", "samples_per_second"}
    assert set(step.curve[0]) == known
    assert step.config["precision"] == "fp32"
    assert ("learned from the teacher alone" in " ".join(step.notes)) is not labels
    assert not trained.module.training


def test_a_view_without_batchnorm_learns_too(damaged, tmp_path):
    view = to_torch(damaged.reference)
    for layer in view.module.modules():
        if isinstance(layer, torch.nn.Conv2d) and layer.out_channels == 16 and layer.in_channels == 24:
            layer.reset_parameters()
    before = accuracy(view)
    assert accuracy(FAST.apply(view, context(tmp_path))) > max(before + 0.2, 0.8)


def test_two_trainings_give_the_same_bits_and_another_seed_gives_others(damaged, tmp_path):
    one = FAST.apply(damaged, context(tmp_path / "a"))
    two = FAST.apply(damaged, context(tmp_path / "b"))
    other = context(tmp_path / "c")
    other.seed = 1
    assert same(one, two)
    assert not same(one, FAST.apply(damaged, other))


KILLED = """
import sys, time
sys.path.insert(0, {here!r}); sys.path.insert(0, {beside!r})
import test_recover as t
from edgekit.train import checkpoint
save = checkpoint.Checkpoint.save
def told(self, content):
    save(self, content)
    print("saved", content["done"], flush=True)
    time.sleep(0.01)
checkpoint.Checkpoint.save = told
t.OFTEN.apply(t.teacher_and_damaged_student(), t.context(t.Path({work!r})))
"""
OFTEN = FAST.model_copy(update={"save_every": 1e-9})


@pytest.mark.slow
def test_a_run_killed_again_and_again_goes_on_to_the_same_bits(damaged, tmp_path):
    """At any moment: in the middle of an epoch, maybe while a checkpoint is being written."""
    work = tmp_path / "work"
    code = KILLED.format(here=str(HERE), beside=str(HERE.parent / "prune"), work=str(work))
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    rng = np.random.default_rng(0)
    for last in (6, 24):
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env={**os.environ, **threads}
        )
        assert process.stdout is not None
        for line in process.stdout:
            if int(line.split()[1]) >= last:
                break
        time.sleep(rng.uniform(0, 0.02))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        process.stdout.close()
    resumed = OFTEN.apply(damaged, context(work))
    assert any(note.startswith("went on from step") for note in resumed.history[-1].notes)
    assert same(resumed, OFTEN.apply(damaged, context(tmp_path / "straight")))


def test_a_finished_or_foreign_checkpoint_is_used_or_left_alone(damaged, tmp_path):
    first = FAST.apply(damaged, context(tmp_path))
    again = FAST.apply(damaged, context(tmp_path))
    assert same(first, again)
    assert "went on from epoch 3" in again.history[-1].notes
    other = FAST.model_copy(update={"temperature": 2.0}).apply(damaged, context(tmp_path))
    assert not any("went on" in note for note in other.history[-1].notes)


def test_a_damaged_checkpoint_is_one_clear_error(damaged, tmp_path):
    (tmp_path / "checkpoint.pt").write_bytes(b"half")
    with pytest.raises(UsageError, match=r"checkpoint .*checkpoint\.pt cannot be read"):
        FAST.apply(damaged, context(tmp_path))


def test_divergence_is_one_clear_error(damaged, tmp_path):
    wild = FAST.model_copy(update={"learning_rate": 1e9})
    with pytest.raises(UsageError, match=r"diverged: the loss is .* Set distill\.learning_rate lower than 1e"):
        wild.apply(damaged, context(tmp_path))


def test_training_that_does_not_help_keeps_the_weights_and_stops(damaged, tmp_path):
    perfect = to_torch(damaged.reference)
    useless = FAST.model_copy(update={"learning_rate": 1.0, "epochs": 5, "patience": 1})
    after = useless.apply(perfect, context(tmp_path, stripes(labels=False)))
    for name, value in perfect.module.state_dict().items():
        torch.testing.assert_close(after.module.state_dict()[name], value, atol=1e-5, rtol=1e-4)
    notes = " ".join(after.history[-1].notes)
    assert "did not help" in notes
    assert "stopped early" in notes


@pytest.mark.parametrize(("given", "expected"), [({"epochs": 24}, 12), ({"epochs": 2}, 3), ({"patience": 5}, 5)])
def test_without_a_word_half_of_the_epochs_may_bring_nothing(given, expected):
    assert Distill(**given).settings(0).patience == expected


def test_a_deadline_ends_training_with_what_there_is(damaged, tmp_path):
    stopped = FAST.apply(damaged, context(tmp_path, deadline=time.monotonic() - 1))
    assert same(stopped, damaged)
    assert any("stopped at the deadline in epoch 1 of 3" in note for note in stopped.history[-1].notes)


def test_the_held_out_part_is_disjoint_and_balanced():
    split = stripes().splits["train"]
    train, held_out = hold_out(split, 0.25, seed=3)
    assert len(train) + len(held_out) == len(split)
    assert not set(train.rows) & set(held_out.rows)
    whole, part = np.bincount(split.labels) / len(split), np.bincount(split.labels[held_out.rows]) / len(held_out)
    np.testing.assert_allclose(part, whole, atol=0.02)
    with pytest.raises(UsageError, match="too few to hold out"):
        hold_out(split.take(np.arange(1)), 0.5, seed=0)


def test_augmentation_moves_images_by_whole_pixels_and_repeats_the_border():
    images = torch.arange(28 * 28.0).reshape(1, 1, 28, 28).repeat(64, 2, 1, 1)
    changed = augmented(images, "shift", torch.Generator().manual_seed(0))
    assert changed.shape == images.shape
    corners = set()
    for image in changed:
        down, right = divmod(int(image[0, 14, 14]) - (14 * 28 + 14) + 2 * 28 + 2, 28)
        corners.add((down - 2, right - 2))
        rows = (torch.arange(28) + down - 2).clamp(0, 27)
        columns = (torch.arange(28) + right - 2).clamp(0, 27)
        assert torch.equal(image, images[0][:, rows][:, :, columns])
    assert len(corners) > 15
    assert torch.equal(augmented(images, "none", torch.Generator()), images)
    mirrored = augmented(images, "flip_shift", torch.Generator().manual_seed(0))
    assert 16 < sum(bool(m[0, 14, 20] < m[0, 14, 8]) for m in mirrored) < 48


@pytest.mark.parametrize(("layers", "shape"), [((torch.nn.Conv2d(1, 3, 3),), "10, 10"), ((torch.nn.Flatten(),), "1")])
def test_a_network_without_class_logits_is_refused(tmp_path, layers, shape):
    """A map for each image; one number for each, on which a softmax would always be 1 and teach nothing."""
    head = () if len(shape) > 1 else (torch.nn.Linear(144, 1),)
    module = torch.nn.Sequential(*layers, *head).eval()
    reference = export_module(module, INPUTS, "plain")
    model = TorchModel(name="plain", module=module, inputs=INPUTS, outputs=reference.outputs, reference=reference)
    with pytest.raises(UsageError, match=rf"needs class logits \[N, classes\] as the model's first output.*{shape}\]"):
        FAST.apply(model, context(tmp_path, stripes(labels=False)))
