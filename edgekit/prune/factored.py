"""Layers that can become two, what that costs, and the module in which they are; rebuilt without pickled code."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from edgekit.errors import UsageError
from edgekit.graph.exporting import copied, without_fast_path
from edgekit.graph.lifted import is_lifted, lift
from edgekit.prune.lowrank import Channel, Factors, Moments, Scheme, Spatial

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
POSITIONS = 64
"""Of every sample so many are looked at where whole patches are."""
PATCH = 2400
"""Kernels that cover more numbers than this are not cut into columns and rows: their covariance would be too large."""

Entries = dict[str, list[Any]]
"""Path -> scheme, rank, and whether the module was a lifted graph then. Fit for JSON."""


class Factored(nn.Sequential):
    """Two layers in the place of one."""


@dataclass
class Layer:
    """A layer that can become two. `outer` and `between` count positions for one sample, over all its calls.

    They are those of its output, and those between the two layers where columns go before rows.
    """

    layer: nn.Module
    outer: int = 0
    between: int = 0
    outputs: Moments | None = None
    patches: Moments | None = None
    calls: int = field(default=0, repr=False)
    _schemes: dict[Scheme, Channel | Spatial] = field(default_factory=dict, repr=False)

    @property
    def weight(self) -> Tensor:
        """`[O, I, k, ...]`, or `[O, I]`."""
        assert isinstance(self.layer.weight, Tensor)
        return self.layer.weight

    @property
    def pointwise(self) -> bool:
        """Whether it sees one position at a time."""
        return all(k == 1 for k in self.weight.shape[2:])

    @property
    def separable(self) -> bool:
        """Whether its kernel can be cut into columns and rows."""
        shape = self.weight.shape
        return isinstance(self.layer, nn.Conv2d) and min(shape[2:]) > 1 and shape[1:].numel() <= PATCH

    def shapes(self, scheme: Scheme, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Of the two weights."""
        o, i, *kernel = self.weight.shape
        if scheme == "channel":
            return (rank, i, *kernel), (o, rank, *[1] * len(kernel))
        return (rank, i, kernel[0], 1), (o, rank, 1, kernel[1])

    def schemes(self) -> dict[Scheme, Channel | Spatial]:
        """The decompositions that it allows, ready for every rank, of its outputs divided by `evened`."""
        assert self.outputs is not None
        if not self._schemes:
            scale = 1 / self.evened()
            weight = self.weight.detach().double() * scale.reshape(-1, *[1] * (self.weight.ndim - 1))
            bias = None if self.layer.bias is None else self.layer.bias.detach().double() * scale  # type: ignore[operator]
            inputs = _by_inputs(self)
            seen = self.outputs if inputs else self.outputs.times(scale)
            self._schemes["channel"] = Channel(weight, bias, seen, inputs=inputs)
            if self.patches is not None:
                self._schemes["spatial"] = Spatial(weight, bias, self.patches, most=_useful(self))
        return self._schemes

    def factors(self, scheme: Scheme, rank: int) -> Factors:
        """The two layers."""
        made, scale = self.schemes()[scheme].factors(rank), self.evened().float()
        second = made.second * scale.reshape(-1, *[1] * (made.second.ndim - 1))
        return Factors(made.first, second, made.bias * scale)

    def evened(self) -> Tensor:
        """What each output is divided by before energies are compared, `[O]`: the root of its deviation.

        Transformers have a few channels that are a hundred times the others; their variance alone would take all of
        the rank. Divided by the whole deviation, channels that hardly vary would take it.
        """
        assert self.outputs is not None
        if _by_inputs(self):
            weight = self.weight.detach().double().flatten(1)
            variance = ((weight @ self.outputs.covariance) * weight).sum(1)
        else:
            variance = self.outputs.covariance.diagonal()
        return variance.clamp_min(variance.max() * 1e-8).clamp_min(1e-30).pow(0.25)


def _by_inputs(layer: Layer) -> bool:
    """Whether moments of the inputs are the smaller ones."""
    return layer.pointwise and layer.weight.shape[1] < layer.weight.shape[0]


def _useful(layer: Layer) -> int:
    """The highest rank at which columns and rows hold fewer weights than the layer."""
    o, i, h, w = layer.weight.shape
    return max(1, o * i * h * w // (i * h + o * w))


def usable(module: nn.Module) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """The layers that could become two, by path, and why others couldn't."""
    paths: dict[int, int] = {}
    for _, tensor in module.named_parameters(remove_duplicate=False):
        paths[id(tensor)] = paths.get(id(tensor), 0) + 1
    read = set()
    if isinstance(module, fx.GraphModule):
        read = {str(node.target).rpartition(".")[0] for node in module.graph.nodes if node.op == "get_attr"}
    found: dict[str, nn.Module] = {}
    refused: dict[str, str] = {}
    for path, layer in module.named_modules():
        if not isinstance(layer, (nn.Linear, *CONVOLUTIONS)):
            continue
        if type(layer) not in (nn.Linear, *CONVOLUTIONS) or set(layer._parameters) != {"weight", "bias"}:
            refused[path] = f"a {type(layer).__name__} of its own kind"
        elif paths[id(layer.weight)] > 1 or path in read:
            refused[path] = "its weight is used elsewhere too"
        elif getattr(layer, "groups", 1) > 1:
            refused[path] = "grouped"
        elif getattr(layer, "padding_mode", "zeros") != "zeros":
            refused[path] = "not padded with zeros"
        elif layer.weight.dtype != torch.float32:
            refused[path] = f"its weights are {layer.weight.dtype}"
        else:
            found[path] = layer
    return found, refused


def splittable(module: nn.Module, inputs: tuple[Tensor, ...]) -> nn.Module:
    """A copy of `module` whose layers can be replaced, or its lifted graph where more layers are ordinary ones there.

    Raises:
        UsageError: it is neither.
    """
    module = copied(module)
    if is_lifted(module):
        return module
    own = usable(module)[0] if _only_called(module, inputs) else {}
    try:
        view = lift(module, inputs)
    except UsageError:
        if own:
            return module
        raise
    return view if set(usable(view)[0]) - set(own) else module


def _only_called(module: nn.Module, inputs: tuple[Tensor, ...]) -> bool:
    """Whether the forward does with its layers nothing but call them."""
    trial = copied(module)
    for path in usable(trial)[0]:
        trial.set_submodule(path, nn.Sequential(trial.get_submodule(path)))
    try:
        with torch.no_grad(), without_fast_path():
            trial(*inputs)
    except Exception:
        return False
    return True


def observed(module: nn.Module, batches: Iterable[Tensor]) -> dict[str, Layer]:
    """What runs of `usable`, with the moments of its outputs (or inputs) and, of kernels, of patches."""
    layers = {path: Layer(layer) for path, layer in usable(module)[0].items()}
    samples = 0
    first = True

    def watch(seen: Layer, inputs: Tensor, output: Tensor) -> None:
        channels = -1 if isinstance(seen.layer, nn.Linear) else 1
        outputs = output.movedim(channels, -1).reshape(-1, output.shape[channels])
        if first:
            seen.outer += len(outputs) // samples
            if seen.separable:
                seen.between += len(inputs) * output.shape[2] * inputs.shape[3] // samples
        rows_in = inputs.movedim(channels, -1).reshape(-1, inputs.shape[channels])
        taken = rows_in if _by_inputs(seen) else outputs
        seen.outputs = seen.outputs or Moments(taken.shape[1])
        seen.outputs.add(taken)
        if seen.separable:
            seen.patches = seen.patches or Moments(int(seen.weight.shape[1:].numel()))
            seen.patches.add(_patches(seen, inputs, output))
            seen.calls += 1

    handles = [
        one.layer.register_forward_hook(lambda _, given, output, one=one: watch(one, given[0], output))
        for one in layers.values()
    ]
    try:
        with torch.no_grad(), without_fast_path():
            for inputs in batches:
                samples = len(inputs)
                module(inputs)
                first = False
    finally:
        for handle in handles:
            handle.remove()
    return {path: layer for path, layer in layers.items() if layer.outputs is not None}


def _patches(seen: Layer, inputs: Tensor, output: Tensor) -> Tensor:
    """What the kernel covers at a grid of its positions `[n, I * h * w]`; the grid moves on from call to call."""
    conv = seen.layer
    assert isinstance(conv, nn.Conv2d)
    step = max(1, round((output.shape[2] * output.shape[3] / POSITIONS) ** 0.5))
    step = min(step, output.shape[2], output.shape[3])
    padded = F.pad(inputs, conv._reversed_padding_repeated_twice)
    down, right = seen.calls % step, seen.calls // step % step
    stride = conv.stride
    cut = padded[:, :, down * stride[0] :, right * stride[1] :]
    columns = F.unfold(cut, conv.kernel_size, conv.dilation, 0, (step * stride[0], step * stride[1]))
    return columns.movedim(1, 2).reshape(-1, columns.shape[1])


def fill(pair: nn.Module, factors: Factors) -> None:
    """Put the weights into a layer that was split, in place."""
    assert isinstance(pair, nn.Sequential)
    with torch.no_grad():
        pair[0].weight.copy_(factors.first)  # type: ignore[operator]
        pair[1].weight.copy_(factors.second)  # type: ignore[operator]
        pair[1].bias.copy_(factors.bias)  # type: ignore[operator]


def pair_of(layer: nn.Module, scheme: Scheme, rank: int) -> Factored:
    """Two layers of the right shapes in the place of `layer`, whose weights are trained where its weight is."""
    assert isinstance(layer.weight, Tensor)
    place: dict[str, Any] = {"dtype": layer.weight.dtype, "device": layer.weight.device}
    if isinstance(layer, nn.Linear):
        parts = (nn.Linear(layer.in_features, rank, bias=False, **place), nn.Linear(rank, layer.out_features, **place))
        made = Factored(*parts)
    else:
        assert isinstance(layer, CONVOLUTIONS)
        kind: Any = type(layer)
        first: dict[str, Any]
        second: dict[str, Any]
        whole = {name: getattr(layer, name) for name in ("kernel_size", "stride", "padding", "dilation")}
        if scheme == "channel":
            first, second = whole, {"kernel_size": 1}
        else:
            first, second = ({name: _only(name, value, axis) for name, value in whole.items()} for axis in (0, 1))
        made = Factored(
            kind(layer.in_channels, rank, bias=False, **first, **place),
            kind(rank, layer.out_channels, **second, **place),
        )
    return made.requires_grad_(layer.weight.requires_grad).train(layer.training)


def _only(name: str, value: Any, axis: int) -> Any:
    """A setting of a convolution along one of its two axes alone."""
    if isinstance(value, str):
        return value
    idle = 0 if name == "padding" else 1
    return tuple(v if at == axis else idle for at, v in enumerate(value))


def split(module: nn.Module, entries: Mapping[str, Sequence[Any]], *, lifted: bool) -> nn.Module:
    """A copy of `module` in which the layers of these entries are two, of the right shapes; others are left out.

    Raises:
        UsageError: there is no such layer.
    """
    module = copied(module)
    for path, (scheme, rank, then) in entries.items():
        try:
            layer = module.get_submodule(path)
        except AttributeError as error:
            raise UsageError(f"The saved weights are of another model: it has no {path}. Start anew.") from error
        if then is lifted and not isinstance(layer, Factored):
            pair = pair_of(layer, scheme, rank)
            module.set_submodule(path, pair)
            if is_lifted(module):
                assert isinstance(module, fx.GraphModule)
                for name, other in layer.named_children():  # whose weights lay below that of the layer in the source
                    pair.add_module(name, other)
                _call_both(module, path)
    if isinstance(module, fx.GraphModule):
        module.recompile()
    return module


def _call_both(view: fx.GraphModule, path: str) -> None:
    """A lifted graph calls each of its layers by itself."""
    for node in view.graph.nodes:
        if node.op == "call_module" and node.target == path:
            with view.graph.inserting_after(node):
                second = view.graph.call_module(f"{path}.1", (node,))
            node.replace_all_uses_with(second, delete_user_cb=lambda user, second=second: user is not second)
            node.target = f"{path}.0"
