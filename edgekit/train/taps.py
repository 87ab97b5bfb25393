"""What goes on inside: outputs of layers of student and teacher, paired, and how unlike they are.

Layers are paired by name where both networks bear the same (a pruned graph and its original); else, where the two run
the same kinds of layers in the same order (a module, and the graph that was exported from it), one by one. A layer's
output is taken behind the BatchNorm that follows it: an exporter folds the two. Two layers that `factorize` put in the
place of one count as that one. Compared are few of the pairs: the last
before each change of the number of positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekit.errors import UsageError
from edgekit.prune.factored import Factored

MOST = 4
"""So many pairs of layers are compared at most."""
POSITIONS = 8192
"""Vectors that a projection is fitted to, at most."""


@dataclass(frozen=True)
class Layer:
    """A convolution or dense layer as it ran: where its output is taken, and the shape of that."""

    name: str
    tap: str
    kind: tuple[object, ...]
    shape: tuple[int, ...]

    @property
    def positions(self) -> tuple[int, ...]:
        """The shape without batch and channels."""
        return self.shape[2:] if self.kind[0] == "conv" else self.shape[1:-1]


@dataclass(frozen=True)
class Pair:
    """The same layer in both networks; `conv` says that channels lie along the second axis, not the last."""

    student: str
    teacher: str
    conv: bool


def layers(module: nn.Module, inputs: Tensor) -> list[Layer]:
    """Convolutions and dense layers in the order in which they run, each once. Changes nothing in `module`."""
    found: dict[str, Layer] = {}
    last: dict[int, tuple[str, Tensor]] = {}

    def watch(name: str, layer: nn.Module, seen: Tensor, output: object) -> None:
        if not isinstance(output, Tensor):
            return
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            before = last.get(id(seen))
            if before is not None and before[1] is seen:
                old = found[before[0]]
                found[before[0]] = Layer(old.name, name, old.kind, tuple(output.shape))
        elif name not in found:
            found[name] = Layer(name, name, _kind(layer), tuple(output.shape))
            last[id(output)] = name, output

    watched = (nn.modules.conv._ConvNd, nn.Linear, nn.modules.batchnorm._BatchNorm)
    handles = [
        layer.register_forward_hook(lambda m, args, out, name=name: watch(name, m, args[0], out))
        for name, layer in module.named_modules()
        if isinstance(layer, watched)
    ]
    mode = module.training
    try:
        with torch.no_grad():
            module.eval()(inputs)
    finally:
        module.train(mode)
        for handle in handles:
            handle.remove()
    return _joined(module, found)


def _joined(module: nn.Module, found: dict[str, Layer]) -> list[Layer]:
    """The layers, where two that took the place of one are one again."""
    for path in [path for path, part in module.named_modules() if isinstance(part, Factored)]:
        inside = [name for name in found if name.startswith(f"{path}.")]
        if len(inside) == 2:
            first, second = (found[name] for name in inside)
            kind = second.kind
            if kind[0] == "conv":
                kernel, stride = ([*zip(first.kind[at], second.kind[at], strict=True)] for at in (1, 2))  # type: ignore[call-overload]
                kind = "conv", tuple(map(max, kernel)), tuple(map(math.prod, stride)), True
            whole = Layer(path, second.tap, kind, second.shape)
            found = {(path if name == inside[1] else name): layer for name, layer in found.items()} | {path: whole}
            del found[inside[0]]
    return list(found.values())


def _kind(layer: nn.Module) -> tuple[object, ...]:
    """What pruning leaves as it is."""
    if isinstance(layer, nn.modules.conv._ConvNd):
        return "conv", tuple(layer.kernel_size), tuple(layer.stride), layer.groups == 1  # some write lists
    return ("linear",)


def paired(student: Sequence[Layer], teacher: Sequence[Layer]) -> tuple[Pair, ...]:
    """The pairs to compare, in order of execution; the last layer is the outputs' own and stays out.

    Raises:
        UsageError: the networks have no layers in common.
    """
    known = {layer.name: layer for layer in teacher}
    both = [(layer, known[layer.name]) for layer in student if layer.name in known]
    if 2 * len(both) < len(student):
        alike = [one.kind for one in student] == [other.kind for other in teacher]
        both = list(zip(student, teacher, strict=True)) if alike else []
    usable = [(a, b) for a, b in both[:-1] if a.kind[0] == b.kind[0] and a.positions == b.positions]
    if not usable:
        raise UsageError(
            f"The teacher's layers ({len(teacher)}) cannot be paired with the network's ({len(student)}): their "
            "names and kinds differ. Leave `match: {features, attention}` out; `relations` needs no pairs."
        )
    ends = [i for i, (a, _) in enumerate(usable) if i + 1 == len(usable) or usable[i + 1][0].positions != a.positions]
    if len(ends) < MOST:
        step = max(len(usable) // MOST, 1)
        for i in range(len(usable) - 1, -1, -step):
            if len(ends) < MOST and i not in ends:
                ends.append(i)
    chosen = [usable[i] for i in sorted(sorted(ends)[-MOST:])]
    return tuple(Pair(a.tap, b.tap, a.kind[0] == "conv") for a, b in chosen)


@dataclass
class Taps:
    """The outputs of the paired layers of both networks, while they run; `projections` by the student's layer."""

    pairs: tuple[Pair, ...]
    student: nn.Module
    teacher: nn.Module
    projections: nn.ModuleDict
    seen: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, student: nn.Module, teacher: nn.Module, inputs: Tensor, *, features: bool) -> Taps:
        """Pairs of the two networks. With `features`, a projection wherever numbers of channels differ.

        Projections start as the least-squares map from the student's features to the teacher's on `inputs`.
        """
        pairs = paired(layers(student, inputs[:2]), layers(teacher, inputs[:2]))  # all outputs are held meanwhile
        taps = cls(pairs, student, teacher, nn.ModuleDict())
        if features:
            mode = student.training
            with torch.no_grad(), taps.recording():
                student.eval()(inputs)
                teacher(inputs)
                for pair, one, other in taps.outputs():
                    if one.shape[-1] != other.shape[-1]:
                        taps.projections[pair.student.replace(".", "/")] = _projection(one, other)
            student.train(mode)
        return taps

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Keep what the layers give while the context is open."""

        def keep(key: str) -> Callable[[nn.Module, object, Tensor], None]:
            def hook(_: nn.Module, __: object, output: Tensor) -> None:
                self.seen[key] = output

            return hook

        handles = []
        for pair in self.pairs:
            handles.append(self.student.get_submodule(pair.student).register_forward_hook(keep("s" + pair.student)))
            handles.append(self.teacher.get_submodule(pair.teacher).register_forward_hook(keep("t" + pair.teacher)))
        try:
            yield
        finally:
            self.seen.clear()
            for handle in handles:
                handle.remove()

    def outputs(self) -> Iterator[tuple[Pair, Tensor, Tensor]]:
        """Every pair with both outputs in float32, channels last."""
        for pair in self.pairs:
            both = (self.seen["s" + pair.student].float(), self.seen["t" + pair.teacher].float())
            one, other = (x.movedim(1, -1) if pair.conv else x for x in both)
            yield pair, one, other

    def terms(self, features: float, attention: float) -> dict[str, Tensor]:
        """The mean distances over the pairs, times their weights."""
        found: dict[str, list[Tensor]] = {"features": [], "attention": []}
        for pair, one, other in self.outputs():
            if attention and one.ndim > 2:
                found["attention"].append(attention * attention_distance(one, other))
            if features:
                key = pair.student.replace(".", "/")
                fitted = self.projections[key](one) if key in self.projections else one
                found["features"].append(features * feature_distance(fitted, other))
        return {name: torch.stack(parts).mean() for name, parts in found.items() if parts}


def feature_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """The energy of the difference as a share of the teacher's (hints of Romero et al. 2014, arXiv:1412.6550)."""
    return (student - teacher).square().sum() / teacher.square().sum().clamp(min=1e-12)


def attention_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """How unlike two networks look at the positions of `[N, ..., channels]`, whatever their numbers of channels.

    A map is the sum of squares over channels, brought to length 1; the squared distance of the two maps, a mean over
    samples (Zagoruyko & Komodakis 2017, arXiv:1612.03928, eq. 2 with p = 2). The paper's code takes a mean over
    positions as well, so that its weight of 1000 is one of 1000 / positions here.
    """
    one, other = (F.normalize(x.square().sum(-1).flatten(1), dim=-1) for x in (student, teacher))
    return (one - other).square().sum(-1).mean()


def _projection(student: Tensor, teacher: Tensor) -> nn.Linear:
    """A learned 1 x 1 map of channels that starts as the best one on these features."""
    one, other = (x.reshape(-1, x.shape[-1]).double() for x in (student, teacher))
    step = max(len(one) // POSITIONS, 1)
    one, other = one[::step], other[::step]
    square = one.T @ one
    ridge = 1e-4 * square.diagonal().mean().clamp(min=1e-12) * torch.eye(len(square), dtype=square.dtype)
    layer = nn.Linear(one.shape[1], other.shape[1], bias=False)
    layer.weight = nn.Parameter(torch.linalg.solve(square + ridge.to(square), one.T @ other).T.float().contiguous())
    return layer
