"""Model sources: what loads, and what is refused without running it."""

from __future__ import annotations

import os
import pickle
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from edgekit.errors import UsageError
from edgekit.model import OnnxModel, TensorSpec, TorchModel
from edgekit.sources import load_model, load_weights, read_state

torch = pytest.importorskip("torch")

MODEL = """
from torch import nn
from layers import block

def build():
    return nn.Sequential(block(3, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(4, 5))

def fails():
    raise ValueError("no such size")

def number():
    return 3

constant = 7
"""
LAYERS = """
from torch import nn

def block(a, b):
    return nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.ReLU())
"""
INPUTS = {"image": TensorSpec("image", "float32", ("batch", 3, 8, 8))}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model.py").write_text(MODEL)
    (tmp_path / "layers.py").write_text(LAYERS)
    return tmp_path


def module():
    nn = torch.nn
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU()),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(1),
        nn.Linear(4, 5),
    )


def load(folder: Path, source: str = "model.py:build", **settings):
    return load_model(source, inputs=INPUTS, base=folder, name="tiny", **settings)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_python_source_with_weights_equals_the_module_it_came_from(folder, suffix):
    from safetensors.torch import save_file

    source = module().eval()
    file = folder / f"weights{suffix}"
    save_file(source.state_dict(), file) if suffix == ".safetensors" else torch.save(source.state_dict(), file)
    before = list(sys.path), sys.modules.get("layers")
    model = load(folder, weights=Path(file.name))
    assert (list(sys.path), sys.modules.get("layers")) == before
    assert isinstance(model, TorchModel)
    x = torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(model.module(x), source(x))
    assert model.inputs == (INPUTS["image"],)
    assert model.outputs[0].shape == ("batch", 5)

    from edgekit.graph.execute import run_onnx

    (seen,) = run_onnx(model.reference.proto, [x.numpy()])
    np.testing.assert_allclose(seen, source(x).detach().numpy(), atol=1e-5)


def test_a_sibling_may_bear_the_name_of_a_loaded_module(folder):
    import types

    other = types.ModuleType("layers")
    sys.modules["layers"] = other
    try:
        load(folder)
        assert sys.modules["layers"] is other
    finally:
        del sys.modules["layers"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("absent.py:build", "there is no file"),
        ("model.py:nothing", "has no function 'nothing'. It defines: block, build, fails, number"),
        ("model.py:constant", "is not a function"),
        ("model.py:fails", r"fails\(\) raised ValueError: no such size"),
        ("model.py:number", "returned int: it must return a torch.nn.Module"),
        ("weights.pt", "holds weights alone"),
        ("model.py", "expected 'file.py:function'"),
    ],
)
def test_a_source_that_gives_no_module_says_why(folder, source, message):
    with pytest.raises(UsageError, match=message):
        load(folder, source)


def test_a_file_that_cannot_be_imported_says_why(folder):
    (folder / "broken.py").write_text("import a_module_that_is_not_there\n")
    with pytest.raises(UsageError, match="raised ModuleNotFoundError: No module named 'a_module_that_is_not_there'"):
        load(folder, "broken.py:build")


def test_a_file_that_ends_python_is_an_error_and_no_success(folder):
    (folder / "ends.py").write_text("import sys\nsys.exit(0)\n")
    with pytest.raises(UsageError, match="raised SystemExit: 0"):
        load(folder, "ends.py:build")


def test_a_module_that_cannot_be_exported_is_refused(folder):
    (folder / "text.py").write_text(
        "import torch\nclass Text(torch.nn.Module):\n    def forward(self, x):\n        return 'text'\nbuild = Text\n"
    )
    with pytest.raises(UsageError, match="cannot be exported to ONNX"):
        load(folder, "text.py:build")


def test_height_and_width_may_be_dynamic(folder):
    """They are tried with an extent that pooling can halve, not with 1."""
    pool = "nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.MaxPool2d(2), nn.MaxPool2d(2))"
    (folder / "any.py").write_text(f"from torch import nn\ndef build():\n    return {pool}\n")
    inputs = {"image": TensorSpec("image", "float32", ("batch", 3, "height", "width"))}
    model = load_model("any.py:build", inputs=inputs, base=folder)
    assert model.inputs[0].shape == ("batch", 3, "height", "width")


def test_inputs_beyond_all_memory_are_one_clear_error(folder):
    huge = {"image": TensorSpec("image", "float32", ("batch", 99999999999999999999))}
    with pytest.raises(UsageError, match="fails on inputs of the recipe's shapes"):
        load_model("model.py:build", inputs=huge, base=folder)


def test_inputs_that_do_not_fit_are_said_before_anything_starts(folder):
    wrong = {"image": TensorSpec("image", "float32", ("batch", 1, 8, 8))}
    with pytest.raises(UsageError, match=r"image float32\[2, 1, 8, 8\]"):
        load_model("model.py:build", inputs=wrong, base=folder)
    with pytest.raises(UsageError, match="its inputs are unknown"):
        load_model("model.py:build", base=folder)


def test_weights_of_another_model_are_listed_by_name_and_shape(tmp_path):
    state = module().state_dict()
    state["3.weight"] = torch.zeros(7, 4)
    state["extra"] = torch.zeros(2)
    del state["0.0.bias"]
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(UsageError) as caught:
        load_weights(module(), tmp_path / "w.pt")
    text = str(caught.value)
    assert "1 missing (0.0.bias [4])" in text
    assert "1 unexpected (extra [2])" in text
    assert "1 of another shape (3.weight [7, 4] for [5, 4])" in text


def test_weights_with_nan_are_refused(tmp_path):
    state = module().state_dict()
    state["3.bias"][0] = float("nan")
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(UsageError, match=r"NaN or infinity in 3\.bias"):
        load_weights(module(), tmp_path / "w.pt")


def test_a_checkpoint_with_nested_weights_and_data_parallel_names_loads(tmp_path):
    state = {f"module.{name}": value for name, value in module().state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "w.pth")
    assert set(read_state(tmp_path / "w.pth")) == set(module().state_dict())


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("legacy", [False, True])
def test_pickled_code_in_weights_is_refused_and_never_runs(tmp_path, legacy):
    torch.save(
        {"weight": torch.zeros(2), "evil": Evil(tmp_path / "pwned")},
        tmp_path / "w.pt",
        _use_new_zipfile_serialization=not legacy,
    )
    with pytest.raises(UsageError, match="would run code when read, so they are refused") as caught:
        read_state(tmp_path / "w.pt")
    assert "weights_only" not in str(caught.value), "torch's message tells how to run the code"
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Evil(tmp_path / "pwned")))
    with pytest.raises(UsageError, match=r"refused|cannot be read"):
        read_state(tmp_path / "plain.pt")
    assert not (tmp_path / "pwned").exists()


def test_damaged_weights_are_one_clear_error(tmp_path):
    for name in ("w.pt", "w.safetensors"):
        (tmp_path / name).write_bytes(b"\x00" * 100)
        with pytest.raises(UsageError, match=str(tmp_path / name)):
            read_state(tmp_path / name)
    with pytest.raises(UsageError, match=r"there is no weights file .*absent\.pt"):
        read_state(tmp_path / "absent.pt")


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("pt2") / "tiny.pt2"
    batch = torch.export.Dim("batch")
    exported = torch.export.export(module().eval(), (torch.zeros(2, 3, 8, 8),), dynamic_shapes=({0: batch},))
    torch.export.save(exported, file)
    return file


def test_a_torch_export_archive_becomes_the_same_graph(program):
    from edgekit.graph.execute import run_onnx

    model = load_model(program.name, inputs=INPUTS, base=program.parent)
    assert isinstance(model, OnnxModel)
    assert model.inputs == (INPUTS["image"],)
    x = torch.randn(3, 3, 8, 8)
    expected = torch.export.load(program).module()(x).detach().numpy()
    np.testing.assert_allclose(run_onnx(model.proto, [x.numpy()])[0], expected, atol=1e-5)


def rewritten(program: Path, target: Path, change) -> Path:
    with zipfile.ZipFile(program) as source, zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as copy:
        for name in source.namelist():
            copy.writestr(name, change(name, source.read(name)))
    return target


def harmful(kind: str, name: str, content: bytes, marker: Path) -> bytes:
    code = f"__import__('os').mkdir('{marker}')"
    if kind == "sample inputs" and "sample_inputs" in name:
        return pickle.dumps(Evil(marker))
    if kind == "pickled weight" and name.endswith("weights_config.json"):
        return content.replace(b'"use_pickle": false', b'"use_pickle": true', 1).replace(
            b'"use_pickle":false', b'"use_pickle":true', 1
        )
    if name.endswith("models/model.json"):
        if kind == "operator":
            return content.replace(b"torch.ops.aten.relu.default", b"torch.os.system")
        if kind == "expression":
            start = content.index(b'"expr_str"')
            begin = content.index(b'"', start + 11) + 1
            return content[:begin] + code.encode() + content[content.index(b'"', begin) :]
        if kind == "guard":
            for empty in (b'"guards_code": []', b'"guards_code":[]'):
                content = content.replace(empty, f'"guards_code": ["{code}"]'.encode())
    return content


@pytest.mark.parametrize("kind", ["sample inputs", "pickled weight", "operator", "expression", "guard"])
def test_code_in_a_torch_export_archive_is_refused_and_never_runs(program, tmp_path, kind):
    from edgekit.pt2 import load_program

    marker = tmp_path / "pwned"
    file = rewritten(program, tmp_path / "bad.pt2", lambda name, content: harmful(kind, name, content, marker))
    with pytest.raises(UsageError, match="holds code that would run"):
        load_program(file)
    assert not marker.exists()


def test_a_compressed_archive_is_refused_unread(program, tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.pt2", "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr("bomb/data/weights", bytes(10_000_000))
    with pytest.raises(UsageError, match="is compressed"):
        load_model("bomb.pt2", base=tmp_path)


def test_a_damaged_archive_is_one_clear_error(program, tmp_path):
    from edgekit.pt2 import load_program

    (tmp_path / "cut.pt2").write_bytes(program.read_bytes()[:1000])
    with pytest.raises(UsageError, match=r"is not a torch\.export archive, or is damaged"):
        load_program(tmp_path / "cut.pt2")


def test_an_onnx_file_gives_its_own_inputs_and_checks_the_recipes(folder):
    import onnx

    file = folder / "tiny.onnx"
    onnx.save(load(folder).reference.proto, file)
    model = load_model("tiny.onnx", base=folder)
    assert isinstance(model, OnnxModel)
    assert model.inputs == (INPUTS["image"],)
    with pytest.raises(UsageError, match=r"the recipe names the inputs \['x'\], the file has \['image'\]"):
        load_model("tiny.onnx", base=folder, inputs={"x": TensorSpec("x", "float32", (1, 3, 8, 8))})
    with pytest.raises(UsageError, match="input 'image' is float32"):
        load_model("tiny.onnx", base=folder, inputs={"image": TensorSpec("image", "float32", (1, 3, 9, 8))})
    with pytest.raises(UsageError, match="holds its own weights"):
        load_model("tiny.onnx", base=folder, weights=Path("w.pt"))
