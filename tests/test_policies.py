"""Policies in an environment of gymnasium: returns against a loop that is written out here, and bad input."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import edgekit
from edgekit.data import Environment
from edgekit.datasource import load_data
from edgekit.episodes import actions_of, play
from edgekit.errors import UsageError
from edgekit.report.predictions import read_predictions

gymnasium = pytest.importorskip("gymnasium")

BALANCE = np.array([0.1, 0.4, 1.0, 0.9], np.float32)
RECIPE = """
version: 1
model: {source: net.onnx}
data: {source: data.npz, task: policy, environment: {name: CartPole-v1, episodes: 30, seed: 7}}
stages: [{quantize: {samples: 32}}]
targets: [{target: x86-64, backends: [onnxruntime]}]
gate:
  - {metric: episode_return, min: 50, target: x86-64}
  - {metric: episode_return, vs: reference, max_regression: 400, target: x86-64}
  - {metric: episode_return, min: 501, target: x86-64, severity: warn}
"""


def policy(actions=2):
    """Pushes to where the pole falls: scores `[batch, actions]` of observations `[batch, 4]`."""
    weights = np.zeros((4, actions), np.float32)
    weights[:, 0], weights[:, 1] = -BALANCE, BALANCE
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["seen", "w"], ["score"], "act")],
        "policy",
        [helper.make_tensor_value_info("seen", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["batch", actions])],
        [numpy_helper.from_array(weights, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def one_by_one(seed, episodes):
    """Returns of the same policy, episode after episode."""
    world, returns = gymnasium.make("CartPole-v1"), []
    for number in range(episodes):
        seen, over, total = world.reset(seed=seed + number)[0], False, 0.0
        while not over:
            seen, reward, terminated, truncated, _ = world.step(int(seen @ BALANCE > 0))
            over, total = terminated or truncated, total + reward
        returns.append(total)
    return returns


def observations(folder, shape=(64, 4)):
    x = np.random.default_rng(0).uniform(-0.2, 0.2, shape).astype(np.float32)
    np.savez(folder / "data.npz", train_x=x, test_x=x)


def test_every_bundle_plays_the_same_episodes_as_its_runtime_answers(tmp_path):
    onnx.save(policy(), tmp_path / "net.onnx")
    observations(tmp_path)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    report = edgekit.run(tmp_path / "recipe.yaml", out=tmp_path / "out")
    reference = report.result("x86-64", "onnxruntime", "reference")
    kept = read_predictions(tmp_path / "out" / reference.predictions_file)
    expected = one_by_one(7, 30)
    np.testing.assert_array_equal(kept.evidence["episode_return"], expected)
    seen = reference.metrics.scores["episode_return"]
    assert (seen.value, seen.n) == (pytest.approx(np.mean(expected)), 30)
    assert [entry.verdict for entry in report.gate] == ["pass", "pass", "warn"], [e.reason for e in report.gate]


def test_side_by_side_is_one_by_one():
    def act(seen):
        return [np.stack([-(seen @ BALANCE), seen @ BALANCE], axis=1)]

    np.testing.assert_array_equal(play(Environment("CartPole-v1", 4, 3), act), one_by_one(3, 4))


def test_actions_by_a_function_of_the_users_own(tmp_path):
    (tmp_path / "own.py").write_text("def act(outputs):\n    return [int(v > 0) for v in outputs[0]]\n")
    world = Environment("CartPole-v1", 3, 0, f"{tmp_path / 'own.py'}:act")
    np.testing.assert_array_equal(play(world, lambda seen: [seen @ BALANCE]), one_by_one(0, 3))


def test_values_of_a_box_are_cut_to_its_bounds():
    space = gymnasium.spaces.Box(-2, 2, (1,))
    assert [float(a[0]) for a in actions_of([np.array([[5.0], [-0.5]])], space)] == [2, -0.5]
    assert actions_of([np.array([[0.0, 1.0]])], gymnasium.spaces.Discrete(2, start=3)) == [4]


@pytest.mark.parametrize(
    ("outputs", "message"),
    [([np.zeros((3, 5))], "gives \\[5\\] does not act in Discrete\\(2\\)"), ([np.full((3, 2), np.nan)], "gives NaN")],
)
def test_what_is_no_action_is_refused(outputs, message):
    with pytest.raises(UsageError, match=message):
        play(Environment("CartPole-v1", 3), lambda seen: [outputs[0][: len(seen)]])


@pytest.mark.parametrize(
    ("environment", "shape", "message"),
    [(None, (64, 4), "`task: policy` and `environment` go together"),
     ({"name": "CartPool-v1"}, (64, 4), "data.environment.name: .*CartPool"),
     ({"name": "CartPole-v1", "episodes": 0}, (64, 4), "data.environment.episodes"),
     ({"name": "CartPole-v1"}, (64, 3), "samples have shape \\[3\\]; what CartPole-v1 lets observe has \\[4\\]")],
)  # fmt: skip
def test_an_environment_that_does_not_fit_is_refused_when_the_data_is_read(tmp_path, environment, shape, message):
    observations(tmp_path, shape)
    with pytest.raises(UsageError, match=message):
        load_data(tmp_path / "data.npz", task="policy", environment=environment)


def test_an_environment_without_a_policy_is_refused(tmp_path):
    observations(tmp_path)
    with pytest.raises(UsageError, match="go together"):
        load_data(tmp_path / "data.npz", task="none", environment={"name": "CartPole-v1"})
