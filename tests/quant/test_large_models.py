"""Models that one protobuf message cannot hold: the same road with the weights in a file beside the model.

The limit is lowered, so that a small model takes that road; a model that is really beyond 2 GiB is slow to make.
"""

import numpy as np
import onnx
import pytest
from bad_inputs import built, dataset, quantized
from onnx import numpy_helper
from quant_graphs import residual_net, run, samples, snr

from edgekit.backends import Built
from edgekit.graph import large
from edgekit.graph.cost import cost
from edgekit.graph.execute import run_onnx
from edgekit.graph.io import load_onnx, save_onnx
from edgekit.graph.normalise import normalise
from edgekit.graph.tools import initializers
from edgekit.workspace import load_stage, save_stage

OLD, NET = residual_net(opset=13), residual_net()


@pytest.fixture
def lowered(monkeypatch):
    monkeypatch.setattr(large, "HEAVY", 512)
    monkeypatch.setattr(large, "LIMIT", 4096)


@pytest.fixture
def refusing(monkeypatch):
    """onnx's tools, which refuse weights that are large, as they would refuse those beyond 2 GiB."""
    for module, name in ((onnx.shape_inference, "infer_shapes"), (onnx.version_converter, "convert_version")):
        monkeypatch.setattr(module, name, narrow(getattr(module, name)))


def narrow(tool):
    def used(proto, *args, **kwargs):
        assert not large.heavy(proto.graph), "a large model cannot pass through this tool"
        return tool(proto, *args, **kwargs)

    return used


def same(a, b):
    assert [n.name for n in a.graph.node] == [n.name for n in b.graph.node]
    mine, theirs = initializers(a.graph), initializers(b.graph)
    assert set(mine) == set(theirs)
    for name in mine:
        np.testing.assert_array_equal(mine[name], theirs[name])


@pytest.mark.parametrize("net", [OLD, NET], ids=["opset 13", "opset 18"])
def test_normalising_keeps_weights_out_of_onnxs_tools(monkeypatch, net, refusing):
    expected = normalise(net)
    monkeypatch.setattr(large, "HEAVY", 512)
    before = net.SerializeToString()
    done = normalise(net)
    assert net.SerializeToString() == before
    same(done, expected)
    assert {v.name for v in done.graph.value_info} == {v.name for v in expected.graph.value_info}
    assert [v.name for v in done.graph.input] == ["x"]


def test_a_file_beside_the_model(tmp_path, lowered):
    net = normalise(NET)
    assert large.is_large(net)
    save_onnx(net, tmp_path / "net.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.onnx", "net.onnx.data"]
    assert (tmp_path / "net.onnx").stat().st_size < (tmp_path / "net.onnx.data").stat().st_size
    same(load_onnx(tmp_path / "net.onnx"), net)
    x = samples(8)
    np.testing.assert_array_equal(run(onnx.load(tmp_path / "net.onnx"), x), run(net, x))
    np.testing.assert_array_equal(run_onnx(net, [x])[0], run(net, x))
    assert abs(cost(net).bytes - net.ByteSize()) < 4096
    other = onnx.ModelProto()
    other.CopyFrom(net)
    assert large.fingerprint(other) == large.fingerprint(net)
    value = initializers(net.graph)["head.weight"] + 1
    next(t for t in other.graph.initializer if t.name == "head.weight").CopyFrom(
        numpy_helper.from_array(value, "head.weight")
    )
    assert large.fingerprint(other) != large.fingerprint(net)


def test_the_whole_road(tmp_path, lowered, refusing):
    model, oracle = quantized(NET, dataset(samples(64)), tmp_path)
    assert model.history[-1].snr_db > 25
    floats = built(model, oracle, tmp_path, role="reference")
    assert all("a bundle, which is one file that runs, holds less than 2.1 GB" in text for text in floats.values())
    folder = tmp_path / "stage"
    folder.mkdir()
    save_stage(folder, "key", model)
    kept = load_stage(folder, "key", model)
    assert kept is not None and kept.quant == model.quant
    same(kept.proto, model.proto)


def test_int8_of_a_large_model_fits(tmp_path, monkeypatch, refusing):
    monkeypatch.setattr(large, "HEAVY", 512)
    monkeypatch.setattr(large, "LIMIT", 9000)  # between the size of the float weights and that of the integers
    model, oracle = quantized(NET, dataset(samples(64)), tmp_path)
    made = built(model, oracle, tmp_path)
    assert all(isinstance(result, Built) for result in made.values()), made
    x = samples(16, seed=5)
    emitted = onnx.load(made["onnxruntime"].files["model.onnx"])
    assert snr(run(NET, x), run(emitted, x)) > 25
