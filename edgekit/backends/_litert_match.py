"""Which tensor of the ONNX graph each tensor of the float .tflite is.

The converter keeps no names and changes layouts, so tensors are recognised by their values: the same samples go
through both graphs, and count, minimum, maximum, mean and root mean square are compared, over all samples together
and for each alone. Those don't depend on the order of the axes.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgekit.backends import _litert_flatbuffer as fb
from edgekit.backends._litert_run import every_tensor

if TYPE_CHECKING:
    import onnx

Array = npt.NDArray[Any]
TOLERANCE = 1e-3
"""How far two fingerprints may differ, as a share of the tensor's largest magnitude."""


def fingerprint(values: Sequence[Array]) -> Array:
    """`[samples, 5]`: minimum, maximum, mean, mean magnitude and root mean square of each sample's value."""
    rows = []
    for value in values:
        flat = value.astype(np.float64).reshape(-1)
        rows.append([flat.min(), flat.max(), flat.mean(), np.abs(flat).mean(), np.sqrt(np.mean(flat * flat))])
    return np.array(rows)


def onnx_tensors(proto: onnx.ModelProto, samples: Sequence[Sequence[Array]]) -> dict[str, list[Array]]:
    """The value of every float tensor of the graph (inputs included) for each sample, by its torch view."""
    import torch
    from torch import fx

    from edgekit.graph.torch_view import names_of, torch_view

    view = torch_view(proto)
    wanted = {node: name for name, node in names_of(view).tensors.items()}
    given = [value.name for value in proto.graph.input if value.name not in {t.name for t in proto.graph.initializer}]
    found: dict[str, list[Array]] = defaultdict(list)

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            result = super().run_node(n)
            if n.name in wanted and isinstance(result, torch.Tensor) and result.is_floating_point():
                found[wanted[n.name]].append(result.numpy())
            return result

    with torch.no_grad():
        for sample in samples:
            for name, value in zip(given, sample, strict=True):
                if value.dtype.kind == "f":
                    found[name].append(value)
            Recorder(view).run(*(torch.from_numpy(np.ascontiguousarray(value)) for value in sample))
    return dict(found)


def match(
    content: bytes, tensors: Mapping[str, Sequence[Array]], samples: Sequence[Sequence[Array]]
) -> dict[int, tuple[str, ...]]:
    """For each float activation of the .tflite the ONNX tensors with the same values; empty where there are none."""
    by_count: dict[int, list[tuple[str, Array]]] = defaultdict(list)
    for name, values in tensors.items():
        if values[0].size:
            by_count[values[0].size].append((name, fingerprint(values)))
    result = {}
    for index, values in every_tensor(content, samples).items():
        print_ = fingerprint(values)
        room = TOLERANCE * max(float(np.abs(print_).max()), 1e-6)
        near = [name for name, other in by_count[values[0].size] if np.abs(other - print_).max() <= room]
        result[index] = tuple(_closest(values, near, tensors))
    return result


def _closest(values: Sequence[Array], names: list[str], tensors: Mapping[str, Sequence[Array]]) -> list[str]:
    """Of several with like fingerprints, those whose sorted values agree too."""
    if len(names) < 2:
        return names
    own = np.sort(np.concatenate([value.reshape(-1) for value in values]))
    room = 1e-4 * max(float(np.abs(own).max()), 1e-6)
    exact = [
        name
        for name in names
        if np.abs(np.sort(np.concatenate([value.reshape(-1) for value in tensors[name]])) - own).max() <= room
    ]
    return exact or names


def named(model: Any, index: int, names: Iterable[str], proto: onnx.ModelProto) -> list[str]:
    """Those of `names` whose node the .tflite tensor's own name mentions: modules of the view carry node names."""
    text = fb.tensor_name(model.subgraphs[0].tensors[index])
    makers = {output: node.name for node in proto.graph.node for output in node.output}
    return [
        name
        for name in names
        if re.search(rf"_{re.escape(re.sub(r'[^0-9A-Za-z_]', '_', makers.get(name, name)))}(?=[;/]|$)", text)
    ]
