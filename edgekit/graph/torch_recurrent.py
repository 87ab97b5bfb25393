"""Recurrent operators: LSTM, GRU and RNN as torch computes them, with the weights as ONNX lays them out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from edgekit.graph.torch_step import Entry, Function, Operator, Step

ACTIVATIONS: Mapping[str, list[str]] = {
    "LSTM": ["sigmoid", "tanh", "tanh"],
    "GRU": ["sigmoid", "tanh"],
    "RNN": ["tanh"],
}
"""What torch computes, a direction."""
GATES: Mapping[str, Sequence[int]] = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2), "RNN": (0,)}
"""Where torch's gates lie in ONNX: i, f, c, o of i, o, f, c; r, z, h of z, r, h."""
STATES: Mapping[str, Sequence[int]] = {"LSTM": (5, 6), "GRU": (5,), "RNN": (5,)}
"""Inputs that are the states before the first step."""


@dataclass(frozen=True)
class _Cells:
    """What the modules of an operator share."""

    kind: str
    hidden: int
    directions: int
    backwards: bool
    batch_first: bool
    with_states: bool


def recurrent(op: Operator) -> Step:
    """LSTM, GRU or RNN with its usual activations, over sequences of one length."""
    given, kind = op.attributes, op.type
    direction = given.get("direction", "forward")
    cells = _Cells(
        kind,
        given["hidden_size"],
        2 if direction == "bidirectional" else 1,
        direction == "reverse",
        bool(given.get("layout", 0)),
        any(op.node.output[1:]),
    )
    usual = ACTIVATIONS[kind] * cells.directions
    seen = [name.lower() for name in given.get("activations", usual)]
    if seen != usual or given.get("activation_alpha") or given.get("activation_beta"):
        raise op.refused(f"its activations are {', '.join(seen)}")
    if kind == "GRU" and not given.get("linear_before_reset", 0):
        raise op.refused("its reset gate comes before the matrix product (linear_before_reset is 0)")
    if given.get("clip") or given.get("input_forget", 0) or op.given(7):
        raise op.refused("it clips, couples its gates or has peepholes")
    if op.given(4):
        raise op.refused("its sequences have lengths of their own")
    inputs = [0, 1, 2, 3, *STATES[kind]]
    return Step(Function(_run, cells=cells), inputs[: max(i for i in inputs if op.given(i)) + 1])


def _run(
    x: Tensor, w: Tensor, r: Tensor, b: Tensor | None = None, *states: Tensor | None, cells: _Cells
) -> Tensor | tuple[Tensor, ...]:
    """`x` `[T, N, I]`, `w` `[D, G H, I]`, `r` `[D, G H, H]`, `b` `[D, 2 G H]`, states `[D, N, H]`.

    Gives `[T, D, N, H]` and, `with_states`, the last ones; with `batch_first` N comes first in all of these.
    """
    if cells.batch_first:
        x = x.transpose(0, 1)
        states = tuple(None if state is None else state.transpose(0, 1) for state in states)
    if cells.backwards:
        x = x.flip(0)
    count, size = (2 if cells.kind == "LSTM" else 1), (cells.directions, x.shape[1], cells.hidden)
    before = [states[i] if i < len(states) else None for i in range(count)]
    first = tuple(x.new_zeros(size) if state is None else state for state in before)
    weights = _weights(w, r, b, cells)
    both = cells.directions == 2
    y, *last = _kernel(cells.kind)(
        x, first if count == 2 else first[0], weights, b is not None, 1, 0.0, False, both, False
    )
    y = y.view(*y.shape[:2], cells.directions, cells.hidden).transpose(1, 2)
    if cells.backwards:
        y = y.flip(0)
    if cells.batch_first:
        y, last = y.permute(2, 0, 1, 3), [state.transpose(0, 1) for state in last]
    return (y, *last) if cells.with_states else y


def _kernel(kind: str) -> Callable[..., tuple[Tensor, ...]]:
    kernels: Mapping[str, Callable[..., tuple[Tensor, ...]]] = {
        "LSTM": torch.lstm,
        "GRU": torch.gru,
        "RNN": torch.rnn_tanh,
    }
    return kernels[kind]


def _weights(w: Tensor, r: Tensor, b: Tensor | None, cells: _Cells) -> list[Tensor]:
    """As torch takes them: of each direction those of the input, of the state, and both biases."""
    result = []
    for direction in range(cells.directions):
        parts = [w[direction], r[direction]]
        if b is not None:
            parts += b[direction].chunk(2)
        for part in parts:
            gates = part.chunk(len(GATES[cells.kind]))
            result.append(torch.cat([gates[i] for i in GATES[cells.kind]]))
    return result


OPERATORS: dict[str, Entry] = dict.fromkeys(("LSTM", "GRU", "RNN"), recurrent)
