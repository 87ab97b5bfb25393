"""Run by `torchrun` in tests: one training over all processes, its weights written by the first."""

from __future__ import annotations

import json
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "prune")]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from prune_models import stripes  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from test_recover import FAST, teacher_and_damaged_student  # noqa: E402

from edgekit.context import Silent  # noqa: E402
from edgekit.graph.torch_view import torch_view  # noqa: E402
from edgekit.stages.distill import Distill  # noqa: E402
from edgekit.train.loop import recover  # noqa: E402
from edgekit.train.processes import Processes  # noqa: E402
from edgekit.train.samples import hold_out  # noqa: E402


def train(out: Path, settings: dict) -> None:
    torch.set_num_threads(1)
    student = teacher_and_damaged_student()
    train, held_out = hold_out(stripes().splits["train"], 0.1, 0)
    stage = Distill(**{**FAST.model_dump(exclude_unset=True), **settings})
    result = recover(
        student.module, torch_view(student.reference.proto), train, held_out, stage.settings(0),
        folder=out / "work", progress=Silent(),
    )  # fmt: skip
    assert np.isfinite(result.curve[-1]["train_loss"])
    if Processes().first:
        save_file({name: value.contiguous() for name, value in result.module.state_dict().items()}, out / "weights")
        (out / "curve.json").write_text(json.dumps(result.curve))
    else:
        save_file({name: value.contiguous() for name, value in result.module.state_dict().items()}, out / "others")


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    train(folder, json.loads(sys.argv[2]))
