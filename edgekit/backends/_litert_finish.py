"""The last steps on a .tflite: names, checks, and what will run where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgekit.backends import Placement
from edgekit.backends import _litert_flatbuffer as fb
from edgekit.backends._litert_run import outputs
from edgekit.errors import BuildError

if TYPE_CHECKING:
    import onnx

Array = npt.NDArray[Any]


def rename(content: bytes, matches: Mapping[int, Sequence[str]], proto: onnx.ModelProto) -> bytes:
    """The same model under the source's names: inputs, outputs, the signature, and every tensor that was matched.

    The converter's names are long paths of Python classes; the others become `operator_number`.
    """
    model = fb.read(content)
    (graph,) = model.subgraphs
    constant = {tensor.name for tensor in proto.graph.initializer}
    given = [value.name for value in proto.graph.input if value.name not in constant]
    made = [value.name for value in proto.graph.output]
    fixed = dict(zip(fb.indices(graph.inputs), given, strict=True))
    fixed |= dict(zip(fb.indices(graph.outputs), made, strict=True))
    taken = {*given, *made}
    names = {}
    for place, operator in enumerate(graph.operators):
        for index in [*fb.indices(operator.outputs), *fb.indices(operator.inputs)]:
            if index < 0 or index in names or index in fixed:
                continue
            free = [name for name in matches.get(index, ()) if name not in taken]
            names[index] = free[0] if free else f"{fb.operator_name(model, operator).lower()}_{place}_{index}"
            taken.add(names[index])
    for index, name in {**names, **fixed}.items():
        graph.tensors[index].name = name.encode()
    for signature in model.signatureDefs or []:
        for entries, sources in ((signature.inputs, given), (signature.outputs, made)):
            places = fb.indices(graph.inputs if sources is given else graph.outputs)
            for entry in entries:
                entry.name = sources[places.index(entry.tensorIndex)].encode()
    return fb.write(model)


def finite(content: bytes, samples: Sequence[Sequence[Array]], name: str) -> None:
    """Run the samples.

    Raises:
        BuildError: LiteRT refuses the file, or an output holds NaN or infinity.
    """
    for result in outputs(content, samples):
        if not all(np.isfinite(output).all() for output in result if output.dtype.kind == "f"):
            raise BuildError(f"LiteRT's int8 build of {name!r} gives outputs that are not finite.")


def steady(content: bytes, samples: Sequence[Sequence[Array]]) -> tuple[int, ...] | None:
    """Samples on which XNNPACK and the builtin kernels give int8 outputs within a step; all if there is none.

    tflite-runtime runs int8 on the builtin kernels, which round ties otherwise. One step in an early layer may grow
    to two at the output, for about one sample in forty: such a sample would fail `selftest` on a sound board.
    """
    steps = output_steps(content)
    if not any(steps):
        return None
    pairs = zip(outputs(content, samples), outputs(content, samples, builtin=True), strict=True)
    rows = []
    for row, (one, other) in enumerate(pairs):
        off = [np.abs(a - b).max() / step for a, b, step in zip(one, other, steps, strict=True) if step]
        if max(off) <= 1.01:
            rows.append(row)
    return tuple(rows) or None


def first_unknown(content: bytes, matches: Mapping[int, Sequence[str]]) -> tuple[str, list[str]] | None:
    """The first operator whose inputs are known tensors and whose output is none, with the names of those inputs."""
    model = fb.read(content)
    (graph,) = model.subgraphs
    for operator in graph.operators:
        inputs = [index for index in fb.indices(operator.inputs) if index in matches]
        made = [index for index in fb.indices(operator.outputs) if index in matches]
        if made and not any(matches[index] for index in made) and all(matches[index] for index in inputs):
            return fb.operator_name(model, operator), [matches[index][0] for index in inputs]
    return None


def placement(content: bytes, reasons: Mapping[str, str]) -> Placement:
    """How many operators make int8 and float tensors. QUANTIZE, DEQUANTIZE and shape arithmetic count for neither.

    An operator with integer weights counts as int8, whatever its result: it computes in integers.
    """
    model = fb.read(content)
    (graph,) = model.subgraphs
    counts = {"INT8": 0, "FLOAT32": 0}
    for operator in graph.operators:
        if fb.operator_name(model, operator) in ("QUANTIZE", "DEQUANTIZE"):
            continue
        kinds = {fb.type_name(graph.tensors[index]) for index in fb.indices(operator.outputs)}
        if fb.operator_name(model, operator) == "FULLY_CONNECTED":
            weight = graph.tensors[fb.indices(operator.inputs)[1]]
            kinds = {"INT8"} if fb.type_name(weight) in ("INT4", "INT8") else kinds
        for kind in kinds & counts.keys():
            counts[kind] += 1
    return Placement(counts["INT8"], counts["FLOAT32"], dict(reasons))


def output_steps(content: bytes) -> tuple[float | None, ...]:
    """The quantization step of each output, None for one that was computed in float."""
    model = fb.read(content)
    (graph,) = model.subgraphs
    makers = {index: operator for operator in graph.operators for index in fb.indices(operator.outputs)}
    steps: list[float | None] = []
    for index in fb.indices(graph.outputs):
        maker = makers.get(index)
        if maker is None or fb.operator_name(model, maker) != "DEQUANTIZE":
            steps.append(None)
        else:
            steps.append(float(graph.tensors[fb.indices(maker.inputs)[0]].quantization.scale[0]))
    return tuple(steps)
