"""Batch sizes, learning rates and numbers of steps that are found."""

from __future__ import annotations

import itertools
import math
import sys
import time
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "prune")]

from test_recover import FAST, accuracy, context, same, teacher_and_damaged_student  # noqa: E402
from torch import nn  # noqa: E402

from edgekit.errors import UsageError  # noqa: E402
from edgekit.stages.distill import Distill  # noqa: E402
from edgekit.train.checkpoint import Checkpoint  # noqa: E402
from edgekit.train.found import batch_size, kept_bytes, learning_rate, rates  # noqa: E402


@pytest.fixture(scope="module")
def damaged():
    return teacher_and_damaged_student()


def asked(**settings) -> Distill:
    return Distill(**{**FAST.model_dump(exclude_unset=True), **settings})


def test_kept_bytes_are_those_of_the_activations():
    module = nn.Sequential(nn.Linear(100, 50), nn.ReLU(), nn.Linear(50, 10), nn.BatchNorm1d(10))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    # Two dense layers keep their inputs, which are those of the first and of the ReLU's output; BatchNorm keeps its
    # input and two statistics.
    assert kept_bytes(module, torch.randn(8, 100)) == 4 * (8 * 100 + 8 * 50 + 8 * 10 + 10 + 10)
    assert kept_bytes(module, torch.randn(16, 100)) == 4 * (16 * (100 + 50 + 10) + 20)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert module.training


def test_a_batch_fits_in_half_of_the_memory_and_an_epoch_has_some_steps():
    module, inputs = nn.Sequential(nn.Linear(1000, 1), nn.Flatten()), torch.randn(4, 1000)
    each = 1000 * 4 * 1.5
    assert batch_size(module, inputs, 10_000, int(each * 128 * 2 + 1)) == 128
    assert batch_size(module, inputs, 10_000, int(each * 128 * 2 - 1)) == 64
    assert batch_size(module, inputs, 8 * 32, 10**12) == 32
    assert batch_size(module, inputs, 3, 10**12) == 8
    assert batch_size(module, inputs, 10_000, int(each * 8)) == 8
    with pytest.raises(UsageError, match=r"A batch of 8 samples needs .* MB"):
        batch_size(module, inputs, 10_000, int(each * 8) - 1)


@pytest.mark.parametrize("curvature", [1.0, 10.0, 100.0])
def test_the_rate_that_is_found_is_stable_and_not_timid_on_a_parabola(curvature):
    """Gradient descent on `curvature / 2 * x^2` is stable below a rate of `2 / curvature`; gradients are noisy."""
    x, draw = np.ones(32), np.random.default_rng(0)

    def step(_: int, rate: float) -> float:
        nonlocal x
        loss = float(curvature / 2 * np.square(x).mean())
        x = x - rate * curvature * (x + 0.3 * draw.standard_normal(32))
        return loss if loss < 1e30 else math.nan

    found = learning_rate(step, rates(10.0))
    assert 0.02 / curvature < found < 2 / curvature


def test_rates_rise_by_one_factor_to_the_highest():
    tried = np.array(rates(0.5))
    assert tried[-1] == 0.5
    assert np.ptp(np.diff(np.log(tried))) < 1e-9


def test_a_rate_and_a_batch_that_were_found_train_and_are_told_and_kept(damaged, tmp_path, monkeypatch):
    stage = asked(learning_rate="auto", batch_size="auto")
    straight = stage.apply(damaged, context(tmp_path / "a"))
    assert accuracy(straight) > 0.9
    notes = " ".join(straight.history[-1].notes)
    assert "batches of 16 samples" in notes  # 216 of them: 13 steps an epoch
    assert "learning rate" in notes and "by a range test of 48 steps" in notes
    peak = max(entry["learning_rate"] for entry in straight.history[-1].curve)
    assert 1e-3 < peak < 0.5
    save = Checkpoint.save

    def killed(self, content):
        save(self, content)
        raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoint, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        stage.apply(damaged, context(tmp_path / "b"))
    monkeypatch.setattr(Checkpoint, "save", save)
    monkeypatch.setattr("edgekit.train.training.learning_rate", None)  # it is not looked for again
    assert same(stage.apply(damaged, context(tmp_path / "b")), straight)


def test_time_takes_the_place_of_epochs(damaged, tmp_path):
    """The pace is what a clock of the test's own says: 10 ms a step, and nothing else takes time."""
    from edgekit.train import training

    class Clock:
        now = 0.0

        def monotonic(self) -> float:
            return self.now

    clock, taken = Clock(), []
    step, real = training.Training.step, time

    def slow(self, rows, rate):
        clock.now += 0.01 if len(taken) < 40 else 0.02  # the machine becomes slower
        taken.append(rate)
        return step(self, rows, rate)

    try:
        training.time, training.Training.step = clock, slow
        done = asked(time_budget="1s", patience=1).apply(damaged, context(tmp_path))
    finally:
        training.time, training.Training.step = real, step
    assert 0.9 < clock.now <= 1.0
    used = [rate for rate in taken if rate > 0]
    assert max(used) == pytest.approx(0.02, rel=0.1)
    assert used[-1] < 0.001  # the cosine came to its end
    fall = used[used.index(max(used)) :]
    assert all(a >= b - 1e-9 for a, b in itertools.pairwise(fall))
    assert accuracy(done) > 0.9
    assert any("steps of 16 samples fit in 1 s" in note for note in done.history[-1].notes)


def test_a_time_in_which_nothing_fits_is_one_clear_error(damaged, tmp_path):
    with pytest.raises(UsageError, match=r"distill\.time_budget of 0\.0001 s is too short"):
        asked(time_budget="0.1ms").apply(damaged, context(tmp_path))


def test_a_runs_time_is_shared_by_stages_that_train(tmp_path):
    from dataclasses import replace as changed

    from edgekit.pipeline import timed
    from edgekit.recipe import load_recipe

    recipe = load_recipe(HERE.parents[1] / "examples/fashion_mnist/recipe.yaml")
    assert [getattr(s, "time_budget", None) for s in timed(recipe, "20m").stages] == [None, 1200.0, None]
    two = changed(recipe, stages=(*recipe.stages, asked(time_budget="1m"), asked()))
    assert [getattr(s, "time_budget", None) for s in timed(two, 60).stages] == [None, 30.0, None, "1m", 30.0]
    assert timed(recipe, None) is recipe
    for budget, stages, why in (("20m", recipe.stages[:1], "no stage trains"), ("-1s", recipe.stages, "longer than")):
        with pytest.raises(UsageError, match=f"--time-budget {budget}: .*{why}"):
            timed(changed(recipe, stages=stages), budget)
    with pytest.raises(UsageError, match="is not a duration"):
        timed(recipe, "soon")
