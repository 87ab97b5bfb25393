"""Networks with several inputs and with inputs of integers: their data, and whole runs."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import edgekit
from edgekit.bundle import open_bundle, read_golden
from edgekit.data import check_against
from edgekit.datasource import load_data
from edgekit.errors import UsageError
from edgekit.graph.execute import run_onnx
from edgekit.model import TensorSpec

CLASSES, WORDS, WIDTH = 4, 50, 16
TOKENS = (TensorSpec("input_ids", "int64", ("batch", "sequence")), TensorSpec("mask", "int64", ("batch", "sequence")))

RECIPE = """
version: 1
model: {{source: net.onnx}}
data: {{source: {source}, task: {task}{more}}}
stages: [{{quantize: {{samples: 64}}}}]
targets: [{{target: x86-64, backends: [onnxruntime, openvino]}}]
measure: {{rounds: 4}}
"""


def encoder(kind: int = TensorProto.INT64) -> onnx.ModelProto:
    """Words and their mask, of any length, to the class of most of the words that count, and to a mean embedding."""
    rng = np.random.default_rng(0)
    table = rng.normal(size=(WORDS, WIDTH)).astype(np.float32) * 0.1
    table[np.arange(WORDS), np.arange(WORDS) % CLASSES] += 2
    weights = {
        "table": table,
        "w1": rng.normal(size=(WIDTH, WIDTH)).astype(np.float32) * 0.05 + np.eye(WIDTH, dtype=np.float32),
        "w2": np.eye(WIDTH, CLASSES, dtype=np.float32),
        "last": np.array([-1], np.int64),
        "middle": np.array([1], np.int64),
    }
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["words"], "words"),
        helper.make_node("Cast", ["mask"], ["counts"], "counts", to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["counts", "last"], ["column"], "column"),
        helper.make_node("Mul", ["words", "column"], ["kept"], "kept"),
        helper.make_node("ReduceMean", ["kept", "middle"], ["mean"], "mean", keepdims=0),
        helper.make_node("MatMul", ["mean", "w1"], ["hidden"], "hidden"),
        helper.make_node("Relu", ["hidden"], ["active"], "active"),
        helper.make_node("MatMul", ["active", "w2"], ["logits"], "logits"),
    ]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "encoder",
        [info("mask", kind, ["batch", "sequence"]), info("input_ids", kind, ["batch", "sequence"])],
        [info("logits", TensorProto.FLOAT, ["batch", CLASSES])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def sentences(count: int, seed: int, length: int = 12) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids, masks and labels: most words of a sentence are of its class, and those that are masked are not."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % CLASSES
    ids = rng.integers(0, WORDS // CLASSES, (count, length)) * CLASSES + labels[:, None]
    mask = (np.arange(length) < rng.integers(4, length, (count, 1))).astype(np.int64)
    return np.where(mask, ids, (ids + 1) % WORDS), mask, labels


def run(folder, proto, source="data.npz", task="classification", more=""):
    onnx.save(proto, folder / "net.onnx")
    (folder / "recipe.yaml").write_text(RECIPE.format(source=source, task=task, more=more))
    return edgekit.run(folder / "recipe.yaml", out=folder / "out")


def save_sentences(path, **types):
    arrays = {}
    for split, count, seed in (("train", 96, 0), ("test", 40, 1)):
        ids, mask, labels = sentences(count, seed)
        arrays |= {f"{split}_x.input_ids": ids, f"{split}_x.mask": mask, f"{split}_y": labels}
    np.savez(path, **arrays)


# -- data


def test_an_npz_holds_one_array_an_input(tmp_path):
    ids, mask, labels = sentences(40, 0)
    np.savez(tmp_path / "one.npz", **{"x.input_ids": ids, "x.mask": mask, "y": labels})
    one = load_data(tmp_path / "one.npz")
    assert {name: len(split) for name, split in one.splits.items()} == {"train": 32, "test": 8, "calibration": 8}
    test = one.split("test")
    rows = [int(name.partition("/")[2]) for name in test.ids]
    np.testing.assert_array_equal(test.inputs["input_ids"], ids[rows])
    np.testing.assert_array_equal(test.inputs["mask"], mask[rows])
    np.testing.assert_array_equal(test.labels, labels[rows])
    save_sentences(tmp_path / "two.npz")
    two = load_data(tmp_path / "two.npz")
    assert len(two.split("test")) == 40
    assert one.sha256 != two.sha256


def test_a_function_gives_a_dict_of_arrays(tmp_path):
    (tmp_path / "data.py").write_text(
        "import numpy as np\ndef load():\n"
        "    x = {'input_ids': np.arange(24).reshape(8, 3), 'mask': np.ones((8, 3), bool)}\n"
        "    return {'train': (x, np.arange(8) % 2), 'test': (x, None)}\n"
    )
    data = load_data("data.py:load", base=tmp_path)
    ready = data.split("test").ready(TOKENS)
    assert [array.dtype.name for array in ready] == ["int64", "int64"]
    np.testing.assert_array_equal(ready[0], np.arange(24).reshape(8, 3))
    check_against(data, TOKENS)


def test_the_hash_depends_on_which_input_an_array_is_for(tmp_path):
    a, b = np.zeros((6, 3)), np.ones((6, 3))
    np.savez(tmp_path / "ab.npz", **{"x.a": a, "x.b": b})
    np.savez(tmp_path / "ba.npz", **{"x.a": b, "x.b": a})
    assert load_data(tmp_path / "ab.npz").sha256 != load_data(tmp_path / "ba.npz").sha256


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            {"x.a": np.zeros((4, 2)), "x.b": np.zeros((3, 2))},
            "different numbers of samples: 'a' 4, 'b' 3",
        ),
        ({"x.a": np.zeros((4, 2)), "x": np.zeros((4, 2))}, "holds both 'x' and x.a"),
        ({"x.a": np.zeros((4, 2)), "x.b": np.full((4, 2), np.inf)}, "input 'b': sample 0 holds NaN or infinity"),
        ({"x.a": np.zeros((0, 2)), "x.b": np.zeros((0, 2))}, "input 'a' is empty"),
        ({"x.a": np.array(["words"] * 4), "x.b": np.zeros((4, 2))}, "input 'a': samples are of type <U5"),
    ],
)
def test_arrays_that_cannot_be_used(tmp_path, arrays, message):
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(UsageError) as caught:
        load_data(tmp_path / "bad.npz")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("arrays", "specs", "preprocess", "message"),
    [
        (
            {"x.ids": np.zeros((8, 3), int)},
            TOKENS,
            {},
            "no samples for the input 'input_ids', 'mask' of the model",
        ),
        ({"x.input_ids": np.zeros((8, 3)), "x.mask": np.zeros((8, 3), int)}, TOKENS, {}, "are float64; the input"),
        ({"x": np.full((8, 3), 300)}, [TensorSpec("x", "uint8", ("n", 3))], {}, "hold values from 300 to 300"),
        ({"x": np.zeros((8, 3), int)}, [TensorSpec("x", "int64", ("n", 3))], {"scale": 0.5}, "gives float32"),
        ({"x": np.zeros((8, 3), int)}, [TensorSpec("x", "int64", ("n", 4))], {}, "wants [4]"),
        (
            {"x.a": np.zeros((8, 3)), "x.b": np.zeros((8, 3))},
            [TensorSpec("a", "float32", ("n", 3)), TensorSpec("b", "float32", ("n", 3))],
            {"scale": 0.5},
            "has `preprocess`, which is for one input of floats",
        ),
        (
            {"x.a": np.zeros((8, 3)), "x.state": np.zeros((8, 2, 3))},
            [TensorSpec("a", "float32", ("n", 3)), TensorSpec("state", "float32", (2, "n", 3))],
            {},
            "'state' [2, 'n', 3] holds the samples (n) along another axis",
        ),
        (
            {"x.a": np.zeros((8, 3)), "x.b": np.zeros((8, 3))},
            [TensorSpec("a", "float32", (2, 3)), TensorSpec("b", "float32", (1, 3))],
            {},
            "fixed to different batches",
        ),
        ({"x": np.zeros((8, 3))}, [TensorSpec("x", "float32", ())], {}, "'x' is a scalar"),
    ],
)
def test_data_that_the_model_cannot_take(tmp_path, arrays, specs, preprocess, message):
    np.savez(tmp_path / "data.npz", **arrays)
    data = load_data(tmp_path / "data.npz", preprocess=preprocess)
    with pytest.raises(UsageError) as caught:
        check_against(data, specs)
    assert message in str(caught.value)


# -- whole runs


@pytest.mark.slow
@pytest.mark.parametrize("kind", [TensorProto.INT64, TensorProto.INT32])
def test_tokens_and_masks_go_through_the_whole_job(tmp_path, kind):
    save_sentences(tmp_path / "data.npz")
    report = run(tmp_path, encoder(kind))
    assert report.exit_code == 0
    assert report.source.metrics.accuracy.value == 1.0
    for backend in ("onnxruntime", "openvino"):
        int8 = next(r for r in report.results if r.backend == backend and r.role == "quantized")
        assert int8.accuracy.value == 1.0 and int8.accuracy.n == 40
        assert int8.int8_nodes >= 2
        assert (tmp_path / "out" / int8.predictions_file).is_file()
        bundle = open_bundle(tmp_path / "out" / int8.bundle)
        assert [entry.name for entry in bundle.manifest.inputs] == ["mask", "input_ids"]
        assert all(len(array) == 4 for array in read_golden(bundle, "inputs"))


def two_headed() -> onnx.ModelProto:
    """Raw pixels and a box in floats to a picture of floats and to integers."""
    nodes = [
        helper.make_node("Cast", ["pixels"], ["image"], "image", to=TensorProto.FLOAT),
        helper.make_node("Conv", ["image", "kernel"], ["seen"], "seen", pads=[1, 1, 1, 1]),
        helper.make_node("Mul", ["seen", "gain"], ["out"], "out"),
        helper.make_node("ArgMax", ["out"], ["best"], "best", axis=1, keepdims=0),
    ]
    kernel = np.random.default_rng(0).normal(size=(6, 3, 3, 3)).astype(np.float32)
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "two_headed",
        [
            info("pixels", TensorProto.UINT8, ["batch", 3, "height", "width"]),
            info("gain", TensorProto.FLOAT, ["batch", 6, 1, 1]),
        ],
        [
            info("out", TensorProto.FLOAT, ["batch", 6, "height", "width"]),
            info("best", TensorProto.INT64, ["batch", "height", "width"]),
        ],
        [numpy_helper.from_array(kernel, "kernel")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


@pytest.mark.slow
def test_raw_pixels_and_floats_and_two_outputs(tmp_path):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (60, 3, 9, 11), dtype=np.uint8)
    raw = rng.normal(size=(60, 6, 1, 1)).astype(np.float32)
    np.savez(tmp_path / "data.npz", **{"x.pixels": pixels, "x.gain": raw})
    report = run(tmp_path, two_headed(), task="none", more=", preprocess: {scale: 0.5, offset: 1}")
    assert report.exit_code == 0
    data = load_data(tmp_path / "data.npz", task="none", preprocess={"scale": 0.5, "offset": 1})
    rows = [int(name.partition("/")[2]) for name in data.split("test").ids]
    wanted = run_onnx(two_headed(), [pixels[rows], (raw[rows] * 0.5 + 1).astype(np.float32)])
    for result in report.results:
        # The float bundle agrees with the host on all samples only if both had the gains preprocessed.
        assert result.snr_db > (100 if result.role != "quantized" else 20), result
        if result.role == "float":
            golden = read_golden(open_bundle(tmp_path / "out" / result.bundle), "outputs")
            assert {array.dtype.name for array in golden} == {"float32", "int64"}
            np.testing.assert_allclose(golden[0], wanted[0][:4], rtol=1e-4, atol=1e-3)
