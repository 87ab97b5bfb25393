"""Which operators of a graph a backend runs in integers, and which tensors it keeps in 8 bits for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekit.quant.plan import WEIGHTED

if TYPE_CHECKING:
    import onnx

    from edgekit.quant.spec import QuantSpec
    from edgekit.quant.view import GraphView


def active_nodes(view: GraphView, spec: QuantSpec, backend: str) -> frozenset[str]:
    """The operators of `spec` that run in integers on `backend`.

    An operator without weights does where one of its inputs comes from one that does: among float operators it would
    cost conversions and precision for nothing.
    """
    planned = {name for name in spec.nodes if spec.is_float(name, backend) is None}
    found: set[str] = set()
    for node in view.nodes:
        if node.name not in planned:
            continue
        made = (view.producer.get(name) for name in node.input)
        if node.op_type in WEIGHTED or any(one is not None and one.name in found for one in made):
            found.add(node.name)
    return frozenset(found)


def is_shift(node: onnx.NodeProto, view: GraphView) -> bool:
    """Whether an Add adds a constant: runtimes that fuse it need no 8-bit input for that."""
    return node.op_type == "Add" and any(view.is_constant(name) for name in node.input)
