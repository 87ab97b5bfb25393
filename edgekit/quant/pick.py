"""Which 8-bit form a transformer gets on each backend: static, dynamic, or weights alone.

Static ranges must hold the few huge values that a transformer's activations have (Dettmers et al. 2022,
arXiv:2208.07339); ranges found for each input, row or group lose less to them and cost about the same time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.context import Progress, Silent
from edgekit.graph.execute import saturates_here
from edgekit.quant import dynamic, forms
from edgekit.quant.histogram import snr_db
from edgekit.quant.session import open_session
from edgekit.quant.view import GraphView, typed

if TYPE_CHECKING:
    import onnx

    from edgekit.quant.observe import Batches
    from edgekit.quant.spec import Form, QuantSpec, Variant

FAST: Mapping[str, tuple[Form, ...]] = {
    "onnxruntime": ("int8", "int8_dynamic"),
    "openvino": ("int8", "int8_dynamic"),
    "litert": ("int8", "int8_dynamic"),
}
"""Forms that take about the same time in a backend (0.3 to 0.5 of fp32 on all-MiniLM-L6-v2, one thread, with VNNI)."""

SLOWER: Mapping[str, Form] = {"onnxruntime": "int8_weights"}
"""A form that is more accurate and takes longer (0.76 of fp32), for where the fast ones are too far from float."""

JUDGED, LEAST_JUDGED, JUDGED_MACS = 64, 16, 3 * 10**11
"""So many held-out samples judge the forms; fewer of a network that takes more multiply-accumulates for all of them."""

KEPT_BYTES = 2**28
"""No more samples than have outputs of this size."""


@dataclass(frozen=True)
class Picked:
    """The QuantSpec with a form for every backend, and what is to be told about it."""

    spec: QuantSpec
    notes: tuple[str, ...] = ()
    snr_db: Mapping[str, Mapping[Form, float]] = field(default_factory=dict)


def attends(proto: onnx.ModelProto) -> bool:
    """Whether most weights are matrices and a product of computed values takes a Softmax: a transformer."""
    view = GraphView(typed(proto).graph)
    softmax = {node.output[0] for node in view.nodes if node.op_type == "Softmax"}
    if not softmax:
        return False
    attention = any(
        node.op_type == "MatMul" and softmax & set(node.input) and not any(view.is_constant(i) for i in node.input)
        for node in view.nodes
    )
    return attention and forms.multiplies(view)


def pick(
    proto: onnx.ModelProto,
    spec: QuantSpec,
    held_out: Batches,
    backends: Sequence[str],
    least: float,
    *,
    progress: Progress | None = None,
) -> Picked:
    """Of the forms that take about the same time in a backend the one nearest to float on `held_out`.

    If that is nearer than `least` dB to none, the slower one, where there is one.
    """
    spec = spec.model_copy(update={"tables": forms.table_scales(GraphView(typed(proto).graph))})
    wanted = [name for name in FAST if name in backends]
    tried = {(name, form) for name in wanted for form in FAST[name]}
    seen = _measured(proto, spec, held_out, sorted(tried), progress or Silent())
    short = {name: SLOWER[name] for name in wanted if name in SLOWER and max(seen[name].values()) < least}
    if short:
        more = _measured(proto, spec, held_out, sorted(short.items()), progress or Silent())
        seen = {name: {**values, **more.get(name, {})} for name, values in seen.items()}
    chosen: dict[str, Form] = {}
    for name, values in seen.items():
        chosen[name] = max(values, key=values.__getitem__)
    notes = [_said(name, chosen[name], seen[name], slow=name in short) for name in chosen]
    return Picked(spec.model_copy(update={"forms": chosen}), tuple(notes), seen)


def _said(backend: str, form: Form, values: Mapping[Form, float], *, slow: bool) -> str:
    others = ", ".join(f"{name} {value:.1f} dB" for name, value in values.items() if name != form)
    why = "it is nearer to float" if not slow else "the faster forms are too far from float"
    return f"{backend} gets {form}, {values[form]:.1f} dB from float on held-out samples ({others}): {why}"


def _measured(
    proto: onnx.ModelProto,
    spec: QuantSpec,
    held_out: Batches,
    tried: Sequence[tuple[str, Form]],
    progress: Progress,
) -> dict[str, dict[Form, float]]:
    """The signal-to-noise ratio in dB of every (backend, form).

    One graph is in memory at a time: a large transformer would otherwise stand there once for every form.
    """
    from edgekit.graph.large import fingerprint

    wanted = _exact(proto, held_out)
    signal = sum(float(np.square(output, dtype=np.float64).sum()) for outputs in wanted for output in outputs)
    noise: dict[bytes, float] = {}
    found: dict[str, dict[Form, float]] = {}
    with progress.task("comparing forms of int8", len(tried)) as task:
        for backend, form in tried:
            graph = _simulated(proto, spec, backend, form)
            key = fingerprint(graph)
            if key not in noise:
                noise[key] = _noise(graph, held_out, wanted)
            found.setdefault(backend, {})[form] = snr_db(signal, noise[key])
            task.advance()
    return found


def _exact(proto: onnx.ModelProto, held_out: Batches) -> list[list[Any]]:
    """What the float graph gives for the samples that judge, batch by batch."""
    from edgekit.graph.cost import cost

    samples = int(np.clip(JUDGED_MACS // max(cost(proto).macs or 1, 1), LEAST_JUDGED, JUDGED))
    session, found, held = open_session(proto), [], 0
    for batch in _first(held_out, samples):
        found.append(session(batch))
        held += sum(output.nbytes for output in found[-1])
        if held > KEPT_BYTES:
            break
    return found


def _noise(graph: onnx.ModelProto, held_out: Batches, wanted: Sequence[Sequence[Any]]) -> float:
    """The energy of the differences from `wanted`."""
    session, total = _session(graph), 0.0
    for batch, outputs in zip(held_out(), wanted, strict=False):  # the samples go on
        for seen, exact in zip(session(batch), outputs, strict=True):
            total += float(np.square(np.subtract(seen, exact, dtype=np.float64)).sum())
    return total


def _session(graph: onnx.ModelProto) -> Callable[[Sequence[Any]], list[Any]]:
    """ONNX Runtime where it is there: it alone knows its own operators, and OpenVINO merges roundings."""
    import importlib.util

    return open_session(graph, runtime="onnxruntime" if importlib.util.find_spec("onnxruntime") else None)


def _simulated(proto: onnx.ModelProto, spec: QuantSpec, backend: str, form: Form) -> onnx.ModelProto:
    """A graph for ONNX Runtime that gives what `backend` would, to about 2 dB."""
    from edgekit.quant.qdq import emit

    asked = spec.model_copy(update={"forms": {backend: form, "onnxruntime": form}})
    # Where 8-bit sums overflow, those of the dynamic form cannot be had exactly: all forms are compared in 7 bits.
    variant: Variant = "reduced_range" if saturates_here() else "affine"
    if form != "int8_dynamic" or backend == "onnxruntime":
        return emit(proto, asked, variant, "onnxruntime")
    group = 32 if backend == "openvino" else None
    return forms.rewritten(proto, asked, variant, backend, partial(dynamic.rounded, group=group))


def _first(batches: Batches, samples: int) -> Iterator[Sequence[Any]]:
    left = samples
    for batch in batches():
        if left <= 0:
            return
        yield batch
        left -= len(batch[0])
