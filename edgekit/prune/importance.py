"""How much each channel of each group matters: one score a channel, higher is more important.

- `outputs`: how far the network's outputs move, to first order and squared, when the channel is cut off from what reads
  it, once those of its group that matter less are gone already. That is the Gauss-Newton matrix within the group, where
  pruning by the loss takes a Fisher matrix's diagonal (Theis et al. 2018, arXiv:1801.05787), estimated by a random
  projection of the outputs for each sample (Hutchinson 1989). Needs samples alone: a network that is sure of its
  samples has no slope of the loss, but one of its outputs.
- `taylor`: squared first-order change of the loss when the channel is cut off from what reads it, averaged over
  samples (Molchanov et al. 2017, arXiv:1611.06440, and 2019, arXiv:1906.10771). Needs labels.
- `activation`: variance of the channel times the squared norm of the weights that read it: what is lost once
  the biases have taken up the mean (FLAP, An et al. 2023, arXiv:2312.11983). Needs samples alone.
- `l1`, `l2`: norms of all weights of the channel in the group (Li et al. 2016, arXiv:1608.08710; group norms as in
  Fang et al. 2023, arXiv:2301.12900).
- `geometric_median`: how far the weights that make a channel lie from those of all others: what lies in the middle can
  be stood in for (FPGM, He et al. 2019, arXiv:1811.00250).
- `fisher`: half the sum over the channel's weights of their square times the mean square of the loss's gradient, sample
  by sample: optimal brain damage (LeCun et al. 1989) with the diagonal of the empirical Fisher matrix. Needs labels.
- `bn_scale`: magnitude of BatchNorm's scale (Liu et al. 2017, arXiv:1708.06519).
- `random`: the control.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from edgekit.errors import UsageError
from edgekit.prune.axes import Product, factors, positions, resolved
from edgekit.prune.find import Found
from edgekit.prune.follow import Reads
from edgekit.prune.groups import Group, Member
from edgekit.prune.shapes import owner_of

Importance = Literal["outputs", "taylor", "fisher", "activation", "l1", "l2", "geometric_median", "bn_scale", "random"]
LABELLED: tuple[Importance, ...] = ("taylor", "fisher")
"""Those that need labels."""
Batch = tuple[Tensor, Tensor | None]
"""Inputs of the model and class labels `[N]`, or None."""
Scores = dict[str, Tensor]
"""Group name -> `[channels]` float64."""
Index = Sequence[Sequence[int]]
"""By channel of a group: its positions along an axis."""


def score(kind: Importance, found: Found, batches: Iterable[Batch], seed: int = 0) -> Scores:
    """The score of every channel; the network is not changed.

    `batches` is read by `outputs`, `taylor`, `fisher` and `activation` alone.
    """
    if kind == "outputs":
        return _outputs(found, batches, seed)
    if kind == "taylor":
        return _taylor(found, batches)
    if kind == "fisher":
        return _fisher(found, batches)
    if kind == "activation":
        return _activation(found, batches)
    if kind == "geometric_median":
        return {g.name: _spread(found.view, g) for g in found.groups}
    if kind == "random":
        generator = torch.Generator().manual_seed(seed)
        return {g.name: torch.rand(g.channels, generator=generator, dtype=torch.float64) for g in found.groups}
    if kind == "bn_scale":
        return {g.name: _bn_scale(found.view, g) for g in found.groups}
    return {g.name: _norms(found.view, g, 1 if kind == "l1" else 2) for g in found.groups}


def evenly(kind: Importance, scores: Scores) -> Scores:
    """Scores that compare between groups: changes of the outputs as they are, others as shares of their group's sum.

    As shares no group is drained because its numbers are small.
    """
    if kind == "outputs":
        return scores
    return {name: some / some.sum().clamp_min(1e-30) for name, some in scores.items()}


def by_channel(index: Index, values: Tensor) -> Tensor:
    """`values` `[..., positions]` summed into the group's channels: `[..., channels]`."""
    if all(len(p) == 1 and p[0] == c for c, p in enumerate(index)) and values.shape[-1] == len(index):
        return values
    columns = [values[..., list(p)].sum(-1) for p in index]
    return torch.stack(columns, dim=-1)


def _weights(module: nn.Module, group: Group) -> list[tuple[Member, Tensor]]:
    """The members that are weights of two or more axes: not biases or normalisation."""
    pairs = [(m, getattr(*owner_of(module, m.tensor)).detach()) for m in group.members]
    return [(m, t) for m, t in pairs if t.ndim >= 2 and t.is_floating_point()]


def _norms(module: nn.Module, group: Group, power: int) -> Tensor:
    total = torch.zeros(group.channels, dtype=torch.float64)
    for member, tensor in _weights(module, group):
        values = tensor.double().abs().pow(power).movedim(member.axis, -1).reshape(-1, tensor.shape[member.axis])
        total += by_channel(member.index, values.sum(0))
    return total if power == 1 else total.sqrt()


def _spread(module: nn.Module, group: Group) -> Tensor:
    """Sum of the distances to all other channels' weights, over the layers that make the channels."""
    total = torch.zeros(group.channels, dtype=torch.float64)
    for member, tensor in _weights(module, group):
        if member.side == "out":
            rows = tensor.double().movedim(member.axis, 0).reshape(tensor.shape[member.axis], -1)
            if len({len(places) for places in member.index}) == 1 and member.index[0]:
                vectors = torch.stack([rows[list(places)].flatten() for places in member.index])
                total += torch.cdist(vectors, vectors).sum(1)
    return total


def _bn_scale(module: nn.Module, group: Group) -> Tensor:
    total, found = torch.zeros(group.channels, dtype=torch.float64), False
    for member in group.members:
        owner, attribute = owner_of(module, member.tensor)
        if isinstance(owner, nn.modules.batchnorm._BatchNorm) and attribute == "weight":
            total += by_channel(member.index, owner.weight.detach().double().abs())
            found = True
    if not found:
        raise UsageError(f"importance 'bn_scale': layer {group.name!r} has no BatchNorm. Use 'taylor' or 'l2'.")
    return total


class _Watched(fx.Interpreter):
    """Runs a network and shows every tensor whose channels are summed over to `watch`, which may replace it."""

    def __init__(self, view: fx.GraphModule, reads: Sequence[Reads], watch: Callable[[Reads, Tensor], Tensor]) -> None:
        super().__init__(view)
        self.by_node: dict[fx.Node, list[Reads]] = {}
        for one in reads:
            self.by_node.setdefault(one.node, []).append(one)
        self.watch = watch

    def run_node(self, n: fx.Node) -> object:
        if n not in self.by_node:
            return super().run_node(n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        given = list(args)
        for reads in self.by_node[n]:
            given[reads.argument] = self.watch(reads, given[reads.argument])
        run = self.call_module if n.op == "call_module" else self.call_function
        return run(n.target, tuple(given), kwargs)


def _edges(found: Found) -> dict[str, list[tuple[Reads, Index]]]:
    """By group: where its channels are read, and the positions of each along the axis there."""
    result: dict[str, list[tuple[Reads, Index]]] = {group.name: [] for group in found.groups}
    for reads in found.followed.reads:
        source = reads.node.args[reads.argument]
        axis = resolved(found.followed.nodes[source][reads.axis])  # type: ignore[index]
        inside = set(factors(axis))
        for name in result:
            if found.factors[name] in inside:
                result[name].append((reads, positions(axis, found.factors[name])))
    return result


def _activation(found: Found, batches: Iterable[Batch]) -> Scores:
    edges = _edges(found)
    wanted = list({reads: None for some in edges.values() for reads, _ in some})
    sums: dict[Reads, tuple[int, Tensor, Tensor]] = {}

    def watch(reads: Reads, x: Tensor) -> Tensor:
        last = x.detach().movedim(reads.axis, -1)
        flat = last.reshape(-1, last.shape[-1]).double()
        zero = torch.zeros(flat.shape[-1], dtype=torch.float64)
        count, mean, square = sums.get(reads, (0, zero, zero))
        sums[reads] = (count + len(flat), mean + flat.sum(0), square + (flat * flat).sum(0))
        return x

    runner = _Watched(found.view, wanted, watch)
    with torch.no_grad():
        for inputs, _ in batches:
            runner.run(inputs)
    scores = {}
    for group in found.groups:
        total = torch.zeros(group.channels, dtype=torch.float64)
        for reads, index in edges[group.name]:
            count, mean, square = sums[reads]
            variance = (square / count - (mean / count) ** 2).clamp_min(0)
            total += by_channel(index, variance * _read_by(found, reads, len(variance)))
        scores[group.name] = total
    return scores


def _read_by(found: Found, reads: Reads, channels: int) -> Tensor:
    """The squared norm of the weights that read each position; ones where it is no weight that does."""
    if not reads.weight:
        return torch.ones(channels, dtype=torch.float64)
    weight = getattr(*owner_of(found.view, reads.weight)).detach().double()
    norms: Tensor = weight.pow(2).movedim(reads.weight_axis, -1).reshape(-1, weight.shape[reads.weight_axis]).sum(0)
    return norms if len(norms) == channels else norms.repeat(channels // len(norms))  # a group reads its own part


def _taylor(found: Found, batches: Iterable[Batch]) -> Scores:
    count, scores = 0, {g.name: torch.zeros(g.channels, dtype=torch.float64) for g in found.groups}
    for samples, moved in _cut_off(found, batches, _loss):
        count += samples
        for name, rows in moved.items():
            for one in rows:
                scores[name] += one.pow(2).sum(0)
    return {name: total / max(count, 1) for name, total in scores.items()}


def _outputs(found: Found, batches: Iterable[Batch], seed: int) -> Scores:
    directions = torch.Generator().manual_seed(seed)
    count, seen = 0, {g.name: [torch.zeros(0, g.channels)] for g in found.groups}
    for samples, moved in _cut_off(found, batches, lambda outputs, _: _projected(outputs, directions)):
        count += samples
        for name, rows in moved.items():
            seen[name] += [one.float() for one in rows]
    return {name: _together(torch.cat(rows).double()) / max(count, 1) for name, rows in seen.items()}


def _together(moved: Tensor) -> Tensor:
    """What every channel adds to the squared change when all that matter less are gone already, `[channels]`.

    `moved` `[n, channels]` is how far each channel moves every sample. Channels that move it the same way add up to
    more than one by one, those that go against each other to less. A channel never counts less than those before it.
    """
    gram = moved.T @ moved
    own, among = gram.diagonal(), torch.zeros(len(gram), dtype=gram.dtype)
    scores, gone = torch.zeros_like(own), torch.zeros(len(gram), dtype=torch.bool)
    highest = 0.0
    for _ in range(len(gram)):
        adds = (own + 2 * among).masked_fill(gone, torch.inf)
        at = int(adds.argmin())
        highest = max(highest, float(adds[at]))
        scores[at], gone[at] = highest, True
        among += gram[at]
    return scores


def _cut_off(
    found: Found, batches: Iterable[Batch], scalar: Callable[[Tensor | Sequence[Tensor], Tensor | None], Tensor]
) -> Iterator[tuple[int, dict[str, list[Tensor]]]]:
    """How far `scalar`, a sum over samples, moves without each channel, to first order.

    For every batch: how many samples it has, and by group `[samples, channels]`, or several such where not all readers
    tell samples apart.
    """
    edges = _edges(found)
    wanted = list({reads: None for some in edges.values() for reads, _ in some})
    seen: dict[Reads, Tensor] = {}

    def watch(reads: Reads, x: Tensor) -> Tensor:
        # A tensor of its own for each reader: the gradient along this edge, not of all that read the channel.
        edge = x.view_as(x) if x.requires_grad else x.detach().requires_grad_(True)
        edge.retain_grad()
        seen[reads] = edge
        return edge

    runner = _Watched(found.view, wanted, watch)
    for inputs, labels in batches:
        seen.clear()
        with torch.enable_grad():
            torch.autograd.backward(scalar(runner.run(inputs), labels))
        changes = {reads: _changes(found, reads, seen[reads], len(inputs)) for reads in wanted}
        yield (
            len(inputs),
            {name: _summed([by_channel(i, changes[reads]) for reads, i in some]) for name, some in edges.items()},
        )
    for parameter in found.view.parameters():
        parameter.grad = None


def _loss(outputs: Tensor | Sequence[Tensor], labels: Tensor | None) -> Tensor:
    if labels is None:
        raise UsageError("importance 'taylor' needs labels. Use 'outputs' for data without.")
    return F.cross_entropy(_logits(outputs), labels, reduction="sum")


def _projected(outputs: Tensor | Sequence[Tensor], generator: torch.Generator) -> Tensor:
    """All outputs along random directions; each counts as a share of its size, so that several compare."""
    several = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    parts = []
    for one in several:
        if one.is_floating_point() and one.requires_grad and one.ndim:
            size = one.detach().flatten(1).norm(dim=1) if one.ndim > 1 else one.detach().abs()
            direction = torch.randn(one.shape, generator=generator)
            parts.append((one * direction).sum() / size.mean().clamp_min(1e-30))
    if not parts:
        raise UsageError("importance 'outputs' needs outputs with a slope, and the model has none. Use 'activation'.")
    return torch.stack(parts).sum()


def _fisher(found: Found, batches: Iterable[Batch]) -> Scores:
    """One backward pass a sample, for a sum over samples of squares is not the square of a sum."""
    view = copy.deepcopy(found.view).requires_grad_(True)
    squares = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in view.named_parameters()}
    count = 0
    with torch.enable_grad():
        for inputs, labels in batches:
            if labels is None:
                raise UsageError("importance 'fisher' needs labels. Use 'outputs' for data without.")
            for at in range(len(labels)):
                view.zero_grad(set_to_none=True)
                logits = _logits(view(inputs[at : at + 1]), "fisher")
                torch.autograd.backward(F.cross_entropy(logits, labels[at : at + 1]))
                for name, parameter in view.named_parameters():
                    if parameter.grad is not None:
                        squares[name] += parameter.grad.double().square()
                count += 1
    scores = {}
    for group in found.groups:
        total = torch.zeros(group.channels, dtype=torch.float64)
        for member in group.members:
            if member.tensor in squares:
                weight = getattr(*owner_of(found.view, member.tensor)).detach().double()
                lost = weight.square() * squares[member.tensor] / (2 * max(count, 1))
                lost = lost.movedim(member.axis, -1).reshape(-1, weight.shape[member.axis]).sum(0)
                total += by_channel(member.index, lost)
        scores[group.name] = total
    return scores


def _changes(found: Found, reads: Reads, edge: Tensor, samples: int) -> Tensor:
    """`[samples, positions]`: minus the first-order change of each sample's loss without the position.

    Where an axis in front is not the batch's (a layout that puts time first) the samples are taken together.
    """
    assert edge.grad is not None
    change = (edge * edge.grad).detach().double().movedim(reads.axis, -1)
    source = reads.node.args[reads.argument]
    first = resolved(found.followed.nodes[source][0])  # type: ignore[index]
    outer = first.parts[0] if isinstance(first, Product) else first
    batch = next(node for node in found.view.graph.nodes if node.op == "placeholder")
    by_sample = outer is resolved(found.followed.nodes[batch][0]) and change.ndim > 1
    by_row: Tensor = change.reshape(samples if by_sample else 1, -1, change.shape[-1])
    return by_row.sum(1)


def _summed(changes: Sequence[Tensor]) -> list[Tensor]:
    """The changes of all readers of a group together; each by itself where not all tell samples apart."""
    if len({len(one) for one in changes}) > 1:
        return list(changes)
    return [torch.stack(list(changes)).sum(0)] if changes else []


def _logits(output: Tensor | Sequence[Tensor], kind: str = "taylor") -> Tensor:
    logits = output if isinstance(output, Tensor) else output[0]
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise UsageError(
            f"importance {kind!r} needs class logits [N, classes] as the model's first output, got "
            f"{list(logits.shape)}. Set prune.importance to 'outputs'."
        )
    return logits
