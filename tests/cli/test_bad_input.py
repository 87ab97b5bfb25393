"""Bad models, data and disks through the real command: one message, the documented code, nothing executed."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.slow

ENTRY = [sys.executable, "-c", "from edgekit.cli import main; main()"]
INPUTS = "inputs: {x: {shape: [batch, 4], dtype: float32}}"
MODEL_PY = "import torch\ndef build():\n    return torch.nn.Sequential(torch.nn.Linear(4, 3))\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small linear classifier as Python and as ONNX, and data for it."""
    onnx = pytest.importorskip("onnx")
    (tmp_path / "model.py").write_text(MODEL_PY)
    weight = onnx.numpy_helper.from_array(np.eye(4, 3, dtype=np.float32), "w")
    node = onnx.helper.make_node("MatMul", ["x", "w"], ["y"])
    info = onnx.helper.make_tensor_value_info
    x, y = info("x", onnx.TensorProto.FLOAT, ["batch", 4]), info("y", onnx.TensorProto.FLOAT, ["batch", 3])
    graph = onnx.helper.make_graph([node], "g", [x], [y], [weight])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)]), tmp_path / "model.onnx")
    write_data(tmp_path)
    return tmp_path


def write_data(folder: Path, shape: tuple[int, ...] = (20, 4), labels: int = 3, dtype: str = "float32") -> None:
    np.savez(folder / "data.npz", x=np.zeros(shape, dtype), y=np.arange(shape[0]) % labels)


def run(folder: Path, model: str) -> subprocess.CompletedProcess[str]:
    (folder / "recipe.yaml").write_text(
        f"version: 1\nmodel: {{{model}}}\ndata: {{source: data.npz}}\n"
        "targets: [{target: x86-64, backends: [onnxruntime]}]\n"
    )
    words = [*ENTRY, "run", folder / "recipe.yaml", "--out", folder / "out", "--quiet"]
    return subprocess.run(words, capture_output=True, text=True, timeout=300)


def refused(done: subprocess.CompletedProcess[str], code: int = 2) -> str:
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("edgekit: ")
    return done.stderr


def test_the_linear_classifier_itself_goes_through(folder):
    done = run(folder, "source: model.onnx")
    assert done.returncode == 0, done.stderr
    assert (folder / "out" / "report.json").is_file()


def test_a_truncated_onnx(folder):
    path = folder / "model.onnx"
    path.write_bytes(path.read_bytes()[:-40])
    assert "model.onnx" in refused(run(folder, "source: model.onnx"))


def test_onnx_with_external_data_outside_its_folder(folder):
    import onnx

    secret = folder.parent / "secret.bin"
    secret.write_bytes(np.zeros(12, np.float32).tobytes())
    model = onnx.load(folder / "model.onnx")
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", "../secret.bin"), ("offset", "0"), ("length", "48")):
        weight.external_data.add(key=key, value=value)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    assert "secret.bin" in refused(run(folder, "source: model.onnx"))


def test_weights_that_do_not_fit(folder):
    from safetensors.numpy import save_file

    save_file({"0.weight": np.zeros((3, 5), np.float32), "0.bias": np.zeros(3, np.float32)}, folder / "w.safetensors")
    message = refused(run(folder, f"source: model.py:build, weights: w.safetensors, {INPUTS}"))
    assert "don't fit the model" in message
    assert "0.weight" in message


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("how", ["pickle", "torch"])
def test_a_pt_that_holds_code_is_refused_and_never_executed(folder, how):
    import torch

    proof = folder / "executed"
    if how == "torch":
        torch.save({"0.weight": Bomb(proof)}, folder / "w.pt")
    else:
        (folder / "w.pt").write_bytes(pickle.dumps(Bomb(proof)))
    assert "w.pt" in refused(run(folder, f"source: model.py:build, weights: w.pt, {INPUTS}"))
    assert not proof.exists()


def test_data_of_the_wrong_shape(folder):
    write_data(folder, (20, 5))
    assert "a sample has shape [5], after preprocessing [5]; the model's input 'x' wants [4]" in refused(
        run(folder, "source: model.onnx")
    )


def test_data_of_the_wrong_type(folder):
    write_data(folder, dtype="int64")
    assert "samples are int64, the model's input 'x' is float32" in refused(run(folder, "source: model.onnx"))


def test_labels_beyond_the_models_classes(folder):
    write_data(folder, labels=4)
    assert "label 3 " in refused(run(folder, "source: model.onnx"))


def test_a_full_disk_ends_with_5(repo_root, tmp_path):
    """On a file system of one megabyte, in a mount namespace of its own."""
    recipe = repo_root / "examples" / "fashion_mnist" / "quantize.yaml"
    mount = f"mount -t tmpfs -o size=1m tmpfs {tmp_path}"
    if subprocess.run(["unshare", "-m", "bash", "-c", mount], capture_output=True).returncode:
        pytest.skip("making a small file system needs the right to mount")
    script = f'{mount} && exec "$@"'
    words = [*ENTRY, "run", recipe, "--out", tmp_path / "out", "--quiet"]
    done = subprocess.run(["unshare", "-m", "bash", "-c", script, "-", *words], capture_output=True, text=True)
    assert "the disk is full" in refused(done, 5)
