"""What is put on a network for the time of training, beside its loss: an average of weights, dropout, frozen parts."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from edgekit.errors import UsageError

DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


class Average:
    """The exponential moving average of a module's state (Polyak & Juditsky 1992, SIAM J. Control Optim. 30(4)).

    Statistics of BatchNorm are averaged like weights; whole numbers are taken as they are. The decay rises to `decay`
    with the number of updates `n` as `(1 + n) / (10 + n)`, so that a short training has an average of its end too.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.values = {name: value.detach().clone() for name, value in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Take in the module's present state."""
        self.updates += 1
        keep = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, value in module.state_dict().items():
            if value.is_floating_point():
                self.values[name].lerp_(value, 1 - keep)
            else:
                self.values[name].copy_(value)

    def state(self) -> dict[str, object]:
        """What `load` takes: a copy."""
        return {"updates": self.updates, "values": {name: value.clone() for name, value in self.values.items()}}

    def load(self, state: dict[str, object]) -> None:
        """The average as it was."""
        self.updates = int(state["updates"])  # type: ignore[call-overload]
        values: dict[str, Tensor] = state["values"]  # type: ignore[assignment]
        self.values = {name: value.clone() for name, value in values.items()}


def with_dropout(module: nn.Module, share: float | None) -> Callable[[], None]:
    """Set every dropout layer of `module` to `share`, or, where it has none, drop inputs of its last dense layer.

    None leaves everything as it is. The answer undoes it.

    Raises:
        UsageError: there is neither.
    """
    if share is None:
        return lambda: None
    found = [(layer, layer.p) for layer in module.modules() if isinstance(layer, DROPOUT)]
    for layer, _ in found:
        layer.p = share
    dense = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    if not found and not dense:
        raise UsageError(
            "regularize.dropout has no place: the network has no dropout and no dense layer. Leave it out."
        )

    def drop(layer: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (nn.functional.dropout(args[0], share, layer.training), *args[1:])

    handle = None if found else dense[-1].register_forward_pre_hook(drop)

    def undo() -> None:
        for layer, before in found:
            layer.p = before
        if handle is not None:
            handle.remove()

    return undo


def thawed(module: nn.Module) -> int:
    """How many numbers stay frozen; a module of which every parameter is frozen is set free as a whole.

    What its author froze in part (`requires_grad = False`) is not learned; a network that is frozen throughout was
    prepared for inference.
    """
    parameters = list(module.parameters())
    if not any(parameter.requires_grad for parameter in parameters):
        module.requires_grad_(True)
        return 0
    return sum(parameter.numel() for parameter in parameters if not parameter.requires_grad)


def train_mode(module: nn.Module) -> None:
    """Training mode for all but BatchNorm whose weights are frozen: its statistics are frozen too."""
    module.train()
    for layer in module.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.weight is not None:
            layer.train(layer.training and layer.weight.requires_grad)
