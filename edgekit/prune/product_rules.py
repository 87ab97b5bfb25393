"""Operations that multiply and sum: matrix products, dense layers as functions, attention, Einstein sums."""

from __future__ import annotations

import torch
from torch import fx

from edgekit.prune.axes import (
    Axis,
    extent,
    factor,
    freeze,
    product,
    resolved,
    unify,
)
from edgekit.prune.basic_rules import REDUCED, broadcast
from edgekit.prune.follow import Axes, Call

aten = torch.ops.aten


def matmul(call: Call) -> Axes:
    """[..., m, k] x [..., k, n]."""
    names = list(call.nodes)[:2]
    a, b = (call.axes(name) for name in names)
    made, work = _contract(call, a, b)
    call.reads(0, -1, *_weight(call, 1, max(len(b) - 2, 0)))
    call.works(work, 1)
    return made


def _contract(call: Call, a: Axes, b: Axes) -> tuple[Axes, Axes]:
    unify(a[-1], b[-2] if len(b) > 1 else b[0])
    left, right = (a[-2:-1] if len(a) > 1 else []), (b[-1:] if len(b) > 1 else [])
    outer = call.shape[: len(call.shape) - len(left) - len(right)]
    batch = broadcast(outer, [a[:-2], b[:-2]])
    made = [resolved(axis) for axis in (*batch, *left, *right)]
    return made, [*made, resolved(a[-1])]


def _weight(call: Call, argument: int, axis: int) -> tuple[str, int]:
    """Path and axis of an argument that is a weight as it is."""
    node = call.node.args[argument]
    is_weight = isinstance(node, fx.Node) and node.op == "get_attr"
    return (str(node.target), axis) if is_weight else ("", 0)  # type: ignore[union-attr]


def addmm(call: Call) -> Axes:
    """A matrix product onto something."""
    names = list(call.nodes)
    made, work = _contract(call, call.axes(names[1]), call.axes(names[2]))
    call.reads(1, -1, *_weight(call, 2, max(len(call.axes(names[2])) - 2, 0)))
    call.works(work, 1)
    return broadcast(call.shape, [made, call.axes(names[0])])


def linear(call: Call) -> Axes:
    """A dense layer whose weights are made by the network itself."""
    source, weight = call.axes("input"), call.axes("weight")
    unify(source[-1], weight[1])
    if call.nodes.get("bias") is not None:
        unify(call.axes("bias")[0], weight[0])
    made = [*source[:-1], resolved(weight[0])]
    call.reads(0, -1, *_weight(call, 1, 1))
    call.works([*made, source[-1]], 1)
    return made


def attention(call: Call) -> Axes:
    """Scaled dot products: the products go over what a head holds, the result over the keys."""
    q, k, v = (call.axes(name) for name in ("query", "key", "value"))
    if call.values.get("enable_gqa"):
        return _grouped(call, q, k, v)
    batch = broadcast(call.shape[:-2], [q[:-2], k[:-2], v[:-2]])
    _attend(call, q, k, v)
    return [*batch, q[-2], v[-1]]


def _grouped(call: Call, q: Axes, k: Axes, v: Axes) -> Axes:
    times = factor(extent(q[-3]) // extent(k[-3]))
    unify(k[-3], v[-3])
    unify(q[-3], product([k[-3], times]))
    batch = broadcast(call.shape[:-3], [q[:-3], k[:-3], v[:-3]])
    _attend(call, q, k, v)
    return [*batch, resolved(q[-3]), q[-2], v[-1]]


def _attend(call: Call, q: Axes, k: Axes, v: Axes) -> None:
    unify(q[-1], k[-1])
    unify(k[-2], v[-2])
    freeze(k[-2], REDUCED)
    if call.nodes.get("attn_mask") is not None:
        mask = call.axes("attn_mask")
        scores = [*call.shape[:-2], extent(q[-2]), extent(k[-2])]
        broadcast(scores, [mask, [*q[:-1], k[-2]]])
    call.reads(0, -1)
    outer = [resolved(axis) for axis in q[:-1]]
    call.works([*outer, k[-2], q[-1]], 1)
    call.works([*outer, k[-2], v[-1]], 1)


def contraction(call: Call) -> Axes:
    """Einstein summation of one tensor or two: axes by letter; letters that the result lacks are summed over."""
    before, after = str(call.node.args[0]).split("->")
    terms, nodes = before.split(","), call.node.args[1:]
    letters: dict[str, Axis] = {}
    for term, node in zip(terms, nodes, strict=True):
        for letter, axis in zip(term, call.found.nodes[node], strict=True):  # type: ignore[index]
            unify(letters.setdefault(letter, axis), axis)
    for letter in letters.keys() - set(after):
        places = [(number + 1, term.index(letter)) for number, term in enumerate(terms) if letter in term]
        places.sort(key=lambda place: bool(_weight(call, *place)[0]))  # what is computed comes first
        call.reads(*places[0], *(_weight(call, *places[-1]) if len(places) > 1 else ("", 0)))
    if len(terms) > 1:
        call.works([resolved(axis) for axis in letters.values()], 1)
    return [resolved(letters[letter]) for letter in after]
