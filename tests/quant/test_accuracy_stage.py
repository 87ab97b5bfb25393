"""What `quantize` does about a network that loses too much: the samples it judges by, the grids, what it writes."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from quant_graphs import residual_net, run, samples, snr
from test_mixed import chain

from edgekit.context import Silent
from edgekit.data import DataSet, Preprocess, Split
from edgekit.graph.normalise import normalise
from edgekit.graph.tools import tensor_specs
from edgekit.model import OnnxModel, TensorSpec
from edgekit.quant.qdq import emit
from edgekit.reporting import _stage
from edgekit.stages._accuracy import gives_classes, grids, judging, macs, spread
from edgekit.stages.quantize import Quantize
from edgekit.target import load_target
from edgekit.workspace import load_stage, save_stage


class Listening(Silent):
    def __init__(self):
        self.said = []

    def say(self, line):
        self.said.append(line)


@dataclass
class Context:
    data: DataSet
    targets: tuple = ()
    seed: int = 0
    work: Path = Path()
    deadline: float | None = None
    progress: Listening = field(default_factory=Listening)

    def measure(self, model, target):
        return {}


def context(x, labels=None, **more):
    part = Split("calibration", x, labels, tuple(map(str, range(len(x)))), Preprocess())
    return Context(DataSet("noise", {"calibration": part}, sha256="abc"), **more)


def model(proto):
    proto = normalise(proto)
    inputs, outputs = tensor_specs(proto)
    return OnnxModel(name="net", proto=proto, inputs=inputs, outputs=outputs)


@pytest.fixture(scope="module")
def sensitive():
    net, ctx = model(chain(bad=("conv2",))), context(samples(128))
    return net, Quantize(calibration="minmax").apply(net, ctx), ctx


def test_the_layers_kept_bring_the_outputs_over_the_floor(sensitive):
    net, done, ctx = sensitive
    assert {"conv2", "conv3"} <= set(done.quant.keep_float["*"])
    x = samples(32, seed=5)
    assert snr(run(net.proto, x), run(emit(done.proto, done.quant, "affine", "onnxruntime"), x)) >= 20
    step = done.history[-1]
    assert {row["layer"] for row in step.sensitivity if row["kept"]} == {"conv2", "conv3"}
    line = next(note for note in step.notes if "in float" in note)
    assert ctx.progress.said == [f"quantize: {line}"]


def test_every_layer_has_its_own_times(sensitive):
    _, done, _ = sensitive
    rows = done.history[-1].sensitivity
    assert all(row["unit"] == "s" and row["int8_s"] > 0 for row in rows)


def test_the_table_survives_a_resumed_run_and_reaches_the_report(sensitive, tmp_path):
    net, done, _ = sensitive
    save_stage(tmp_path, "key", done)
    again = load_stage(tmp_path, "key", net)
    assert again.history[-1].sensitivity == done.history[-1].sensitivity
    info = _stage(again.history[-1])
    assert [layer.layer for layer in info.sensitivity if layer.kept] == ["conv2", "conv3"]
    assert json.loads(info.model_dump_json())["sensitivity"][2]["layer"] == "conv2"


def test_never_does_not_look():
    net = model(chain(bad=("conv2",)))
    done = Quantize(calibration="minmax", sensitivity="never").apply(net, context(samples(64)))
    assert done.quant.keep_float == {}
    assert done.history[-1].sensitivity == ()


def test_always_shows_the_table_of_a_network_that_is_near_enough():
    done = Quantize(calibration="minmax", sensitivity="always").apply(model(residual_net()), context(samples(64)))
    assert done.quant.keep_float == {}
    assert len(done.history[-1].sensitivity) == 13


def test_a_floor_that_cannot_be_met_is_said_and_leaves_all_in_integers():
    ctx = context(samples(64))
    done = Quantize(calibration="minmax", min_snr=180, cache=False).apply(model(residual_net()), ctx)
    assert done.quant.keep_float == {}
    assert len(ctx.progress.said) == 1
    assert list(done.history[-1].refused) == ["*"]
    assert "no set of layers in float short of all" in ctx.progress.said[0]


def test_a_fixed_batch_and_labels_go_together():
    proto = chain(bad=("conv2",))
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 24
    x = samples(100)
    labels = np.zeros(100, np.int64)
    done = Quantize(calibration="minmax", max_drop=0.01).apply(model(proto), context(x, labels))
    assert done.quant is not None  # of 100 samples 96 fill whole batches; the labels of the rest are left out too


def test_grids_are_those_of_the_targets():
    assert grids(()) == {"affine": ("*",)}
    found = grids((load_target("x86-64"), load_target("raspberry-pi-5")))
    assert set(found) == {"affine"}
    assert {"onnxruntime", "litert"} <= set(found["affine"])
    assert grids((load_target("rtx-ampere"),))["symmetric"] == ("tensorrt",)


def test_judging_rows_are_those_that_no_calibration_saw():
    assert list(judging(1000, 512, 4)) == [512, 674, 836, 999]
    assert list(judging(100, 98, 4)) == [98, 99, 97, 96]
    assert list(judging(3, 512, 64)) == [2, 1, 0]
    assert list(spread(np.arange(3), 5)) == [0, 1, 2]


@pytest.mark.parametrize(
    ("shape", "scores"),
    [(("n", 10), True), (("n", 10, 1, 1), True), (("n", 1), False), (("n", 10, 7, 7), False), (("n",), False)],
)
def test_a_classifier_is_known_by_its_output(shape, scores):
    assert gives_classes((TensorSpec("y", "float32", shape),)) is scores


def test_macs_are_counted_where_shapes_are_known():
    from edgekit.graph.cost import cost

    net = residual_net()
    assert macs(net) == cost(net).macs
