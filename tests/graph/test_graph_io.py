from __future__ import annotations

import os

import numpy as np
import onnx
import pytest
from graph_models import make, weights
from onnx import helper

from edgekit.errors import ExitCode, UsageError
from edgekit.graph.io import load_onnx, save_onnx
from edgekit.graph.normalise import normalise
from edgekit.graph.tools import initializers


def small() -> onnx.ModelProto:
    node = helper.make_node("Gemm", ["x", "w"], ["y"], name="dense")
    return make([node], {"x": ["batch", 4]}, {"y": ["batch", 3]}, {"w": weights(4, 3)})


def external(location: str, **more: str) -> onnx.ModelProto:
    """The small model with its weight said to be in another file."""
    model = small()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {"location": location, **more}.items():
        tensor.external_data.add(key=key, value=value)
    return model


def test_round_trip_is_exact_and_leaves_no_other_file(tmp_path):
    save_onnx(small(), tmp_path / "m.onnx")
    assert load_onnx(tmp_path / "m.onnx") == small()
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    save_onnx(small(), tmp_path / "m.onnx")
    before = (tmp_path / "m.onnx").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fdopen", full)
    with pytest.raises(OSError, match="No space"):
        save_onnx(make([helper.make_node("Relu", ["x"], ["y"])], {"x": [1]}, {"y": [1]}), tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"", r"the file is empty \(0 bytes\)"),
        (b"\x00" * 100, "truncated, or not an ONNX file"),
        (b"PK\x03\x04 a zip, not a model", "not an ONNX file|no ONNX graph|not a valid"),
        (make([], {"x": [1]}, {"x": [1]}, opset=999).SerializeToString(), "uses ONNX opset 999, this is read up to"),
        (small().SerializeToString()[:-20], "truncated, or not an ONNX file"),
    ],
)
def test_damaged_files_are_refused(tmp_path, content, message):
    path = tmp_path / "m.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=message) as caught:
        load_onnx(path)
    assert caught.value.exit_code == ExitCode.USAGE
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7, 0.9, 0.99])
def test_every_truncation_is_refused(tmp_path, share):
    content = small().SerializeToString()
    (tmp_path / "m.onnx").write_bytes(content[: int(len(content) * share)])
    with pytest.raises(UsageError):
        load_onnx(tmp_path / "m.onnx")


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(UsageError, match="cannot be read"):
        load_onnx(tmp_path)


def test_a_model_that_breaks_the_rules_is_refused(tmp_path):
    model = small()
    model.graph.node[0].input[1] = "nowhere"
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(UsageError, match=r"not a valid ONNX model.*nowhere"):
        load_onnx(tmp_path / "m.onnx")


def test_external_data_of_the_folder_is_read(tmp_path):
    values = initializers(small().graph)["w"]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "w.bin").write_bytes(b"12345678" + values.tobytes() + b"more")
    model = external("data/w.bin", offset="8", length=str(values.nbytes))
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    loaded = load_onnx(tmp_path / "m.onnx")
    np.testing.assert_array_equal(initializers(loaded.graph)["w"], values)
    assert not loaded.graph.initializer[0].external_data


@pytest.mark.parametrize("location", ["{outside}", "../secret.bin", "data/../../secret.bin", "..\\secret.bin", ""])
def test_external_data_outside_of_the_folder_is_refused_unread(tmp_path, location):
    folder = tmp_path / "model"
    folder.mkdir()
    secret = tmp_path / "secret.bin"
    os.mkfifo(secret)  # reading it would hang
    model = external(location.format(outside=secret))
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(UsageError, match=r"external data of tensor 'w' is refused.*out of the model's folder"):
        load_onnx(folder / "m.onnx")


def test_external_data_over_a_link_is_refused(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(48))
    (folder / "w.bin").symlink_to(tmp_path / "secret.bin")
    (folder / "m.onnx").write_bytes(external("w.bin").SerializeToString())
    with pytest.raises(UsageError, match="over a link"):
        load_onnx(folder / "m.onnx")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"offset": "40", "length": "48"}, "48 at offset 40 are wanted"),
        ({"offset": "-1"}, "at offset -1"),
        ({"offset": "many"}, "not a number"),
    ],
)
def test_external_data_of_the_wrong_size_is_refused(tmp_path, more, message):
    (tmp_path / "w.bin").write_bytes(bytes(48))
    (tmp_path / "m.onnx").write_bytes(external("w.bin", **more).SerializeToString())
    with pytest.raises(UsageError, match=message):
        load_onnx(tmp_path / "m.onnx")


def test_missing_external_data_is_named(tmp_path):
    (tmp_path / "m.onnx").write_bytes(external("w.bin").SerializeToString())
    with pytest.raises(UsageError, match=r"'w.bin' is not a file"):
        load_onnx(tmp_path / "m.onnx")


def test_external_data_inside_a_constant_and_a_subgraph_is_refused_too(tmp_path):
    tensor = onnx.TensorProto(data_type=1, dims=[1], name="c", data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="/etc/hostname")
    branch = helper.make_graph(
        [helper.make_node("Constant", [], ["c"], value=tensor)],
        "branch",
        [],
        [helper.make_tensor_value_info("c", 1, [1])],
    )
    node = helper.make_node("If", ["flag"], ["y"], then_branch=branch, else_branch=branch)
    flag = helper.make_tensor_value_info("flag", onnx.TensorProto.BOOL, [])
    graph = helper.make_graph([node], "g", [flag], [helper.make_tensor_value_info("y", 1, [1])])
    (tmp_path / "m.onnx").write_bytes(helper.make_model(graph).SerializeToString())
    with pytest.raises(UsageError, match="tensor 'c' is refused: location '/etc/hostname'"):
        load_onnx(tmp_path / "m.onnx")


def test_damaged_bytes_never_surprise(tmp_path):
    """A flipped byte is refused with a usage error or gives a model that can be normalised; nothing else comes out."""
    content = small().SerializeToString()
    rng = np.random.default_rng(0)
    outcomes = {"refused": 0, "read": 0}
    for _ in range(400):
        damaged = bytearray(content)
        damaged[rng.integers(len(damaged))] = rng.integers(256)
        (tmp_path / "m.onnx").write_bytes(bytes(damaged))
        try:
            normalise(load_onnx(tmp_path / "m.onnx"))
            outcomes["read"] += 1
        except UsageError:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 20


@pytest.mark.parametrize("location", ["a\0b", "a" * 5000])
def test_external_data_that_no_file_can_be_named_is_refused(tmp_path, location):
    (tmp_path / "m.onnx").write_bytes(external(location).SerializeToString())
    with pytest.raises(UsageError, match="cannot be the name of a file"):
        load_onnx(tmp_path / "m.onnx")
