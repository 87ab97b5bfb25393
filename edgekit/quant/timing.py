"""What a layer costs in time: in float and in integers on this machine, or in multiply-accumulates where nothing runs.

ONNX Runtime's own profile of both graphs, one sample at a time on one thread. These times choose between layers; what
ships is decided by bundles that were measured by the agent.
"""

from __future__ import annotations

import importlib.util
import json
import re
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgekit.errors import UsageError
from edgekit.quant.qdq import emit
from edgekit.quant.sensitivity import Layer
from edgekit.quant.spec import QuantSpec

if TYPE_CHECKING:
    import onnx

Array = npt.NDArray[Any]

WARM, ROUNDS = 2, 10
_MADE_BY_RUNTIME = re.compile(r"(_token_\d+|_nchwc)+$")
_CONVERSIONS = ("QuantizeLinear", "DequantizeLinear")


@dataclass(frozen=True)
class Cost:
    """What keeping one layer in float costs, in `unit`: "s" for one sample, or "MACs" where no time was measured.

    `kept` counts the conversions at its ends too. `float_s` and `int8_s` are the layer's own times.
    """

    kept: float
    unit: str
    float_s: float | None = None
    int8_s: float | None = None


def costs(proto: onnx.ModelProto, spec: QuantSpec, layers: Sequence[Layer], inputs: Sequence[Array]) -> dict[str, Cost]:
    """The cost of keeping each layer in float, by its name. `inputs` is one batch, of which one sample is timed."""
    if importlib.util.find_spec("onnxruntime") is None:
        return _by_macs(proto, layers)
    one = [array if _fixed(proto) else array[:1] for array in inputs]
    made_by = {name: node.name for node in proto.graph.node for name in node.output}
    in_layer = {node: layer.name for layer in layers for node in layer.nodes}
    # ONNX Runtime calls a fused operator after its node or after what it makes.
    owner = {name: in_layer[node] for name, node in made_by.items() if node in in_layer} | in_layer
    plain = _profile(proto, one, owner)
    rounded = _profile(emit(proto, spec, "affine", "onnxruntime"), one, owner)
    per_value = rounded.seconds_per_conversion
    return {
        layer.name: Cost(
            kept=max(plain.seconds[layer.name] - rounded.seconds[layer.name], 0.0)
            + per_value * max(plain.values[layer.name], rounded.values[layer.name]),
            unit="s",
            float_s=plain.seconds[layer.name],
            int8_s=rounded.seconds[layer.name],
        )
        for layer in layers
    }


def _fixed(proto: onnx.ModelProto) -> bool:
    return any(item.type.tensor_type.shape.dim[:1] and item.type.tensor_type.shape.dim[0].HasField("dim_value")
               for item in proto.graph.input)  # fmt: skip


def _by_macs(proto: onnx.ModelProto, layers: Sequence[Layer]) -> dict[str, Cost]:
    from edgekit.graph.cost import cost

    try:
        macs: Mapping[str, int] = cost(proto).by_node
    except UsageError:  # shapes that nobody knows: all layers cost the same
        macs = {}
    return {layer.name: Cost(float(sum(macs.get(node, 0) for node in layer.nodes)), "MACs") for layer in layers}


@dataclass
class _Profile:
    """Least of all rounds: seconds of each layer, the values that it reads and makes, and one value's conversion."""

    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    values: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    seconds_per_conversion: float = 0.0


def _profile(proto: onnx.ModelProto, inputs: Sequence[Array], owner: Mapping[str, str]) -> _Profile:
    durations: dict[str, list[float]] = defaultdict(list)
    events: dict[str, dict[str, Any]] = {}
    for event in _events(proto, inputs):
        durations[event["name"]].append(event["dur"] / 1e6)
        events[event["name"]] = event
    found = _Profile()
    conversions = converted = 0.0
    for name, seen in durations.items():
        typical = min(seen[WARM:])  # what other processes take only ever adds, and would choose other layers
        arguments = events[name]["args"]
        layer = _owner(name.removesuffix("_kernel_time"), owner)
        if layer is not None:
            found.seconds[layer] += typical
            found.values[layer] += _count(arguments["input_type_shape"][:1]) + _count(arguments["output_type_shape"])
        if arguments["op_name"] in _CONVERSIONS:
            conversions, converted = conversions + typical, converted + _count(arguments["output_type_shape"])
    found.seconds_per_conversion = conversions / max(converted, 1)
    return found


def _owner(name: str, owner: Mapping[str, str]) -> str | None:
    """The layer of a node of the optimized graph; `conv/pad` is the emitter's work for `conv`."""
    plain = _MADE_BY_RUNTIME.sub("", name)
    return owner.get(plain) or owner.get(plain.rpartition("/")[0])


def _count(shapes: Sequence[Mapping[str, Sequence[int]]]) -> int:
    return sum(int(np.prod(shape, dtype=np.int64)) for entry in shapes for shape in entry.values())


def _events(proto: onnx.ModelProto, inputs: Sequence[Array]) -> list[dict[str, Any]]:
    """The kernels that ONNX Runtime ran, each with its duration in microseconds."""
    import onnxruntime as ort

    from edgekit.graph.large import loadable

    ort.disable_telemetry_events()
    with tempfile.TemporaryDirectory(prefix="edgekit-profile-") as folder:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "run")
        with loadable(proto) as content:
            session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        feed = {item.name: array for item, array in zip(session.get_inputs(), inputs, strict=True)}
        for _ in range(WARM + ROUNDS):
            session.run(None, feed)
        lines = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    kernels = (line for line in lines if line.get("cat") == "Node" and line["name"].endswith("_kernel_time"))
    return [line for line in kernels if "op_name" in line["args"]]
