"""ONNX to OpenVINO's own file pair, and what its CPU plugin makes of it."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from edgekit.backends import Placement
from edgekit.backends._emitted import nodes, nodes_in, one_line, operators
from edgekit.errors import BuildError

if TYPE_CHECKING:
    import onnx

    from edgekit.quant.spec import QuantSpec

MOVES_DATA = frozenset(
    {"Cast", "Concat", "Expand", "Flatten", "Gather", "Identity", "Pad", "Reshape", "Resize"}
    | {"Shape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}
)
NO_RULE = "No conversion rule found"
INTEGERS = frozenset({"i4", "u4", "i8", "u8"})


def convert(ov: ModuleType, proto: onnx.ModelProto, work: Path) -> Any:
    """OpenVINO's graph of an ONNX model: Q/DQ pairs become FakeQuantize, integer weights stay integers.

    Raises:
        BuildError: OpenVINO has no rule for some operators, which are named, or stumbles over the graph.
    """
    import onnx

    from edgekit.graph.tools import transposed_apart

    path = work / "model.onnx"
    onnx.save_model(transposed_apart(proto), path)
    try:
        return ov.convert_model(path)
    except _failures(ov) as error:
        stopped = nodes_in(str(error), proto)
        types = sorted({node.op_type for node in nodes(proto.graph) if node.name in stopped})
        seen = one_line(str(error))
        if stopped and NO_RULE in seen:
            seen = f"it has no rule for {', '.join(types)} at {', '.join(stopped)}"
        raise BuildError(f"OpenVINO cannot convert the model: {seen}.", stopped) from error


def _failures(ov: ModuleType) -> tuple[type[Exception], ...]:
    """What converting can raise: the frontend's own errors share no base class."""
    kinds = ("General", "Initialization", "NotImplemented", "OpConversion", "OpValidation")
    return (RuntimeError, *(getattr(ov.frontend, f"{kind}Failure") for kind in kinds))


def tidy(model: Any, proto: onnx.ModelProto) -> None:
    """Make the file small and the same at every build, and change nothing that is computed.

    Both limit pairs of a FakeQuantize are the same numbers: one pair serves. Names that OpenVINO made up hold a
    counter of the whole process: they become numbers within this graph.
    """
    for node in model.get_ops():
        if node.get_type_name() == "FakeQuantize":
            for given, wanted in ((3, 1), (4, 2)):
                a, b = (node.input_value(i).get_node() for i in (given, wanted))
                if a.get_type_name() == b.get_type_name() == "Constant" and bytes(a.data) == bytes(b.data):
                    node.input(given).replace_source_output(node.input_value(wanted))
    known = {n.name for n in proto.graph.node} | {o for n in proto.graph.node for o in n.output}
    known |= {tensor.name for tensor in (*proto.graph.initializer, *proto.graph.input, *proto.graph.output)}
    for index, node in enumerate(model.get_ordered_ops()):
        if node.get_friendly_name() not in known and re.search(r"_\d+$", node.get_friendly_name()):
            node.set_friendly_name(f"{node.get_type_name()}_{index}")


def save(ov: ModuleType, model: Any, work: Path, *, half: bool) -> tuple[Path, Path]:
    """`model.xml` and `model.bin` under `work`, the XML without indentation and shapes, a half of it."""
    xml = work / "model.xml"
    ov.save_model(model, xml, compress_to_fp16=half)
    xml.write_text(_short(xml.read_text(encoding="utf-8")), encoding="utf-8")
    return xml, xml.with_suffix(".bin")


def _short(xml: str) -> str:
    """The same network without what reading infers anyway: the shapes of ports, and the types of inputs."""
    xml = re.sub(r"<dim>-?\d+</dim>", "", re.sub(r">\s+<", "><", xml))
    xml = re.sub(r"<input>.*?</input>", lambda part: re.sub(r' precision="\w+"', "", part[0]), xml, flags=re.DOTALL)
    return re.sub(r"<port ([^>]*)></port>", r"<port \1/>", xml)


def placement(compiled: Any, proto: onnx.ModelProto, spec: QuantSpec | None) -> Placement:
    """Which operators of the ONNX graph run in integers, from the graph that the CPU plugin executes.

    Operators that OpenVINO folded away leave no trace there and count neither way.
    """
    known = operators(proto)
    by_output = {output: node.name for node in known.values() for output in node.output}
    runs: dict[str, tuple[str, str]] = {}
    for step in compiled.get_runtime_model().get_ops():
        about = {key: step.get_rt_info()[key].astype(str) for key in ("layerType", "runtimePrecision")}
        names = step.get_rt_info()["originalLayersNames"].astype(str).split(",")
        for name in (_onnx_name(name, known.keys() | by_output.keys()) for name in names):
            if name is not None:
                runs[by_output.get(name, name)] = (about["runtimePrecision"], about["layerType"])
    floats = {name: (kind, layer) for name, (kind, layer) in runs.items() if kind not in INTEGERS}
    if spec is None:
        return Placement(int8_nodes=0, float_nodes=len(runs))
    reasons = {name: _reason(known[name], kind, layer, proto, spec) for name, (kind, layer) in floats.items()}
    return Placement(int8_nodes=len(runs) - len(floats), float_nodes=len(floats), reasons=reasons)


def _onnx_name(name: str, known: set[str]) -> str | None:
    """`conv1` for what OpenVINO calls `conv1/WithoutBiases/DequantizationMultiply`."""
    while name and name not in known:
        name = name.rpartition("/")[0]
    return name or None


def _reason(node: onnx.NodeProto, kind: str, layer: str, proto: onnx.ModelProto, spec: QuantSpec) -> str:
    planned = spec.is_float(node.name, "openvino")
    if planned:
        return planned
    if node.op_type in MOVES_DATA:
        return f"{node.op_type} only moves data"
    dequantized = {o for n in proto.graph.node if n.op_type == "DequantizeLinear" for o in n.output}
    if dequantized.isdisjoint(node.input):
        return f"no input of this {node.op_type} is quantized in the graph"
    return f"OpenVINO's {layer} kernel for {node.op_type} computes in {kind} here"
