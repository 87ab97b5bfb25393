"""What `quantize` says: of a model that came quantized, of thin calibration, and of what stays float."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgekit.model import OnnxModel
    from edgekit.quant.choose import Choice
    from edgekit.quant.plan import Plan

FEW = 16
"""Fewer calibration samples than this are warned of."""


def already(model: OnnxModel) -> str | None:
    """A line where the model came quantized, with its first operators that say so; None for a float one."""
    from edgekit.graph.tools import quantized_nodes

    found = quantized_nodes(model.proto.graph)
    if not found:
        return None
    named = ", ".join(f"{node.name} ({node.op_type})" for node in found[:3])
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return (
        f"the model is quantized already, at {named}{more}: quantize leaves it as it is. Give the float model that it "
        "was made from to get one in each backend's own grid."
    )


def doubts(choice: Choice, samples: int) -> tuple[str, ...]:
    """Warnings where calibration says little about other samples."""
    ranges, found = choice.spec.tensors, []
    if ranges and samples < FEW:
        found.append(
            f"quantize calibrated on {samples} sample{'s' if samples > 1 else ''} only: what others bring beyond the "
            "ranges seen there is clipped, which costs accuracy. Give a hundred or more; they take seconds."
        )
    still = [name for name, seen in ranges.items() if seen.low == seen.high and not seen.fixed]
    if still:
        named = ", ".join(map(repr, still[:3])) + (f" and {len(still) - 3} more" if len(still) > 3 else "")
        found.append(
            f"quantize saw one value alone in {named}: whatever else comes there is lost. If the calibration samples "
            "are not all alike, the network makes a constant of them."
        )
    return tuple(found)


def notes(planned: Plan, choice: Choice) -> tuple[str, ...]:
    """How many operators run in 8 bits, who chose the ranges, and what stays float for which reason."""
    if not planned.nodes:
        return ("nothing to quantize: no operator of this network has an 8-bit form",)
    notes = [f"{len(planned.nodes)} operators in 8 bits, ranges by {choice.calibrators or 'none'}"]
    floats = planned.keep_float.get("*", {})
    notes += [f"{name} stays float: {reason}" for name, reason in list(floats.items())[:10]]
    if len(floats) > 10:
        notes.append(f"{len(floats) - 10} more operators stay float")
    return tuple(notes)
