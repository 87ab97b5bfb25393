"""Acceptance of `qat` on a real network: it gives back what a bad calibration in a narrow grid cost."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "prune"))

from prune_models import ResNet20  # noqa: E402

from edgekit.context import Silent  # noqa: E402
from edgekit.data import DataSet, Preprocess, Split  # noqa: E402
from edgekit.graph.crossing import export_module  # noqa: E402
from edgekit.graph.execute import run_onnx  # noqa: E402
from edgekit.model import TensorSpec  # noqa: E402
from edgekit.quant.qdq import emit  # noqa: E402
from edgekit.stages.qat import Qat  # noqa: E402
from edgekit.stages.quantize import Quantize  # noqa: E402

MEAN, DEVIATION = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
PREPARED = Preprocess(
    scale=tuple(1 / (255 * DEVIATION)), offset=tuple(-MEAN / DEVIATION), layout="NHWC", to="NCHW"
)  # fmt: skip


def cifar10(folder: Path, count: int) -> DataSet:
    """`count` images to learn from, 64 others of which one is 32 times too bright to calibrate on, and the test set."""
    splits = {}
    with np.load(folder / "cifar10_train_25k.npz", allow_pickle=False) as file:
        order = np.random.default_rng(0).permutation(len(file["x"]))
        x, y = file["x"][order[: count + 64]], file["y"][order[: count + 64]]
    bright = x[:64].astype(np.float32)
    bright[0] *= 32
    splits["calibration"] = bright, y[:64]
    splits["train"] = x[64:], y[64:]
    with np.load(folder / "cifar10_test_1228.npz", allow_pickle=False) as file:
        splits["test"] = file["x"], file["y"]
    return DataSet(
        "cifar10",
        {
            name: Split(name, images, labels.astype(np.int64), tuple(map(str, range(len(images)))), PREPARED)
            for name, (images, labels) in splits.items()
        },
        task="classification",
    )


@pytest.mark.slow
def test_a_badly_calibrated_resnet_in_7_bits_gets_its_accuracy_back(shared_data, tmp_path):
    module = ResNet20()
    module.load_state_dict(torch.load(shared_data / "resnet20_cifar10.pt", weights_only=True))
    network = export_module(module.eval(), (TensorSpec("image", "float32", ("batch", 3, 32, 32)),), "resnet20")
    data = cifar10(shared_data, 2400)
    ctx = SimpleNamespace(
        data=data, targets=(), seed=0, work=tmp_path, deadline=None, progress=Silent(), measure=None
    )  # fmt: skip
    rough = Quantize(calibration="minmax", sensitivity="never", equalize=False).apply(network, ctx)
    done = Qat(epochs=2, grid="reduced_range", batch_size=64).apply(rough, ctx)
    test = data.splits["test"]
    x = [test.preprocess.apply(test.inputs)]

    def accuracy(proto) -> float:
        return float((run_onnx(proto, x, batch=64)[0].argmax(1) == test.labels).mean())

    before, after = (
        accuracy(emit(m.lowered("reduced_range"), m.quant, "reduced_range", "onnxruntime")) for m in (rough, done)
    )
    assert accuracy(network.proto) > 0.91
    assert before < 0.8
    assert after > before + 0.1
    assert after > 0.83
