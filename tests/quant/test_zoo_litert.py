"""The zoo as LiteRT computes it, against the same simulation as `test_zoo`. A conversion takes seconds: all slow.

The builtin kernels show every tensor; each lies within one step of what the simulation makes of the same inputs. The
output of XNNPACK, which is what ships, is judged as in `test_zoo`.
"""

import itertools
import re

import numpy as np
import pytest
import zoo
from onnx import numpy_helper
from test_zoo import ONE_STEP, off, quantized

from edgekit.backends import Job
from edgekit.backends import _litert_flatbuffer as fb
from edgekit.backends import _litert_run as litert
from edgekit.backends.litert import LiteRT
from edgekit.graph.tools import tensor_specs
from edgekit.model import OnnxModel
from edgekit.quant.simulate import simulate
from edgekit.quant.weights import quantize_weight
from edgekit.target import load_target

pytest.importorskip("litert_torch")
pytestmark = pytest.mark.slow
NETWORKS = ("resnet_bottleneck", "mobilenet_v2", "mobilenet_v3", "efficientnet", "densenet", "inception", "unet",
            "shufflenet", "leaky", "waveform", "autoencoder", "group_norm", "shared_weights")  # fmt: skip


def built(name, work):
    """The bytes of the .tflite and where its operators run."""
    net, spec = quantized(name)
    inputs, outputs = tensor_specs(net)
    model = OnnxModel(name=name, proto=net, inputs=inputs, outputs=outputs, quant=spec)
    target = load_target("x86-64")
    samples = (zoo.inputs(net, 4, seed=9),)
    made = LiteRT().build(Job(model, "quantized", "int8", target, target.backends["litert"], work, samples))
    return made.files[made.entry].read_bytes(), made.placement


def laid_out(values, like):
    """An activation in the order of axes of its ONNX tensor: of those that fit, the one nearest to `like`."""
    extents = [extent for extent in like.shape[1:] if extent != 1]
    core = values.reshape(len(values), *[extent for extent in values.shape[1:] if extent != 1])
    orders = [core.transpose(0, *order) for order in itertools.permutations(range(1, core.ndim))]
    fitting = [order.reshape(like.shape) for order in orders if list(order.shape[1:]) == extents]
    return min(fitting, key=lambda value: float(np.abs(value - like).sum()), default=None)


def observe(content, spec, samples, expected):
    """Every 8-bit activation that is on the grid of an ONNX tensor of its name, as real numbers."""
    loaded, model = litert.interpreter(content, keep=True), fb.read(content)
    (graph,) = model.subgraphs
    places = {}
    for index, tensor in enumerate(graph.tensors):
        name = fb.tensor_name(tensor).removesuffix("_int8")
        if fb.type_name(tensor) == "INT8" and name in spec.tensors and fb.constant(model, tensor) is None:
            grid = spec.grid(name, "affine")
            seen = tensor.quantization
            if (float(seen.scale[0]), int(seen.zeroPoint[0])) == (grid.scale, grid.zero_point - 128):
                places[name] = (index, grid)
    found = {name: [] for name in places}
    for sample in samples:
        loaded.set_tensor(int(graph.inputs[0]), sample[None])
        loaded.invoke()
        for name, (index, grid) in places.items():
            value = loaded.get_tensor(index).astype(np.float64)
            found[name].append((value - (grid.zero_point - 128)) * grid.scale)
    values = {name: laid_out(np.concatenate(value), expected[name]) for name, value in found.items()}
    return {name: value for name, value in values.items() if value is not None}


@pytest.mark.parametrize("name", NETWORKS)
def test_litert_agrees_with_the_simulation(name, tmp_path):
    net, spec = quantized(name)
    x = zoo.inputs(net, 4, seed=9)
    content, placement = built(name, tmp_path)
    assert {node.name for node in net.graph.node} & placement.reasons.keys() <= spec.keep_float.get("*", {}).keys()
    expected = simulate(net, spec, "affine", "litert", [x])
    seen = observe(content, spec, x, expected)
    assert len(seen) > len(spec.tensors) // 2
    alone = off(spec, "affine", simulate(net, spec, "affine", "litert", [x], observed=seen), seen)
    wrong = {tensor: f"{steps:.2f} steps" for tensor, steps in alone.items() if steps > ONE_STEP}
    assert not wrong, f"operators that make something else of their inputs: {wrong}"
    y = np.concatenate([result[0] for result in litert.outputs(content, [[image[None]] for image in x])])
    steps = np.abs(expected["y"] - y) / spec.grid("y", "affine").scale
    assert (steps <= ONE_STEP).mean() >= 0.85 and steps.max() < 3 * ONE_STEP
    assert weights_of(content) >= weights_by_spec(net, spec)


def weights_by_spec(net, spec):
    """The bytes of every weight whose scales are one a channel or one for all, in ascending order within a channel."""
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in net.graph.initializer}
    kinds = {node.input[1]: node.op_type for node in net.graph.node if len(node.input) > 1}
    found = set()
    for name, scales in spec.weights.items():
        if kinds[name] != "ConvTranspose":
            integers = quantize_weight(values[name], scales, "affine")
            channels = np.moveaxis(integers, getattr(scales, "axis", 0), 0).reshape(-1)
            found.add(np.sort(channels.reshape(integers.shape[scales.axis], -1), axis=1).tobytes())
    return found


def weights_of(content):
    """The same of every 8-bit constant in a .tflite, channels along the axis that it says."""
    model = fb.read(content)
    (graph,) = model.subgraphs
    found = set()
    for tensor in graph.tensors:
        value = fb.constant(model, tensor)
        if value is not None and value.dtype == np.int8 and value.ndim:
            channels = np.moveaxis(value, int(tensor.quantization.quantizedDimension), 0).reshape(-1)
            count = len(tensor.quantization.scale)
            found.add(np.sort(channels.reshape(count, -1), axis=1).tobytes())
    return found


def test_what_is_float_in_the_plan_is_float_in_pieces_too(tmp_path):
    """The converter writes Erf as a polynomial: none of its terms is rounded to 8 bits, for the plan keeps it float."""
    content, placement = built("attention", tmp_path)
    model = fb.read(content)
    (graph,) = model.subgraphs
    integers = [tensor for tensor in graph.tensors if fb.type_name(tensor) == "INT8"]
    made = [fb.tensor_name(tensor) for tensor in integers if fb.constant(model, tensor) is None]
    assert not [name for name in made if re.fullmatch(r"(mul|add)_\d+_\d+_int8", name)]
    assert placement.reasons["erf36"] == "no 8-bit form of Erf"
