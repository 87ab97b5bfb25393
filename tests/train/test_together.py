"""Several processes train as one does: the same steps, up to the order of sums."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")
HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "prune")]

from prune_models import stripes  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from edgekit.errors import UsageError  # noqa: E402
from edgekit.launched import processes, rank  # noqa: E402
from edgekit.train.processes import Processes  # noqa: E402

MODEL = """
import sys
sys.path.insert(0, {beside!r})
import torch
from prune_models import Mixed, settled
def build():
    torch.manual_seed(0)
    return settled(Mixed())
"""
RECIPE = """
version: 1
model: {source: model.py:build, inputs: {image: {shape: [batch, 1, 12, 12], dtype: float32}}}
data: {source: data.npz, preprocess: {scale: 0.015625, offset: -2.0, layout: NHW, to: NCHW}}
stages:
  - prune: {macs: 0.7, samples: 64}
  - distill: {epochs: 1, batch_size: 16, augment: none, precision: fp32}
  - quantize: {sensitivity: never, samples: 32}
  - qat: {epochs: 1, batch_size: 16, augment: none}
targets: [{target: x86-64, backends: [onnxruntime]}]
"""


def torchrun(count: int, *what: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count), *what]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, check=False)


def test_a_process_that_torchrun_did_not_start_is_alone(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")  # a cluster may say so of jobs of another kind
    assert (processes(), rank()) == (1, 0)
    alone = Processes()
    assert (alone.count, alone.first, alone.part(7), alone.agree(3.0)) == (1, True, slice(0, 7), 3.0)
    assert alone.total([1.0, 2.0]) == [1.0, 2.0]
    alone.rank, alone.count = 2, 4
    assert [(setattr(alone, "rank", i), alone.part(10))[1] for i in range(4)] == [
        slice(0, 2), slice(2, 5), slice(5, 7), slice(7, 10),
    ]  # fmt: skip
    with pytest.raises(UsageError, match="3 samples cannot be shared by 4 processes"):
        alone.part(3)


@pytest.mark.slow
def test_two_processes_make_the_steps_of_one(tmp_path):
    """BatchNorm over both, features with their projections, mixtures and attacks, batches that do not divide evenly."""
    from together import train

    settings = {
        "match": {"attention": 0.5, "features": 0.5}, "regularize": {"mixup": 0.2, "ema": 0.5}, "batch_size": 15,
        "adversarial": {"epsilon": "2/255", "steps": 1}, "epochs": 2,
    }  # fmt: skip
    (tmp_path / "one").mkdir()
    train(tmp_path / "one", settings)
    done = torchrun(2, str(HERE / "together.py"), str(tmp_path / "two"), json.dumps(settings))
    assert done.returncode == 0, done.stderr
    one, two = (json.loads((tmp_path / name / "curve.json").read_text()) for name in ("one", "two"))
    for a, b in zip(one, two, strict=True):
        assert a["train_loss"] == pytest.approx(b["train_loss"], rel=1e-2)
        assert a["accuracy"] == b["accuracy"]
    assert one[0]["held_out_loss"] == pytest.approx(two[0]["held_out_loss"], rel=0.02)
    first, other = (load_file(tmp_path / "two" / name) for name in ("weights", "others"))
    assert all(torch.equal(value, other[name]) for name, value in first.items())
    straight = load_file(tmp_path / "one" / "weights")
    far = sum(float((value.float() - straight[name].float()).square().sum()) for name, value in first.items())
    assert far < 1e-4 * sum(float(value.float().square().sum()) for value in straight.values())


@pytest.mark.slow
def test_a_recipe_runs_under_torchrun_and_only_the_first_process_writes(tmp_path):
    (tmp_path / "model.py").write_text(MODEL.format(beside=str(HERE.parent / "prune")))
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    train, test = (stripes().splits[name] for name in ("train", "test"))
    np.savez(tmp_path / "data.npz", train_x=train.inputs, train_y=train.labels, test_x=test.inputs, test_y=test.labels)
    run = ("-m", "edgekit", "run", "recipe.yaml", "--until", "emit", "--out")
    done = torchrun(2, *run, "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("QuantSpec: quant.json") == 1
    again = torchrun(2, *run, "out", "--resume", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    from edgekit.pipeline import emit

    emit(tmp_path / "recipe.yaml", out=tmp_path / "alone")
    both = [load_file(tmp_path / out / "work/2-distill/model/weights.safetensors") for out in ("out", "alone")]
    far = sum(float((both[0][name].float() - value.float()).square().sum()) for name, value in both[1].items())
    assert far < 1e-4 * sum(float(value.float().square().sum()) for value in both[1].values())
