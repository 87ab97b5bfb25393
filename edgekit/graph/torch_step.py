"""What an entry of the operator tables is given (`Operator`) and gives (`Step`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import onnx
from torch import Tensor, nn

from edgekit.errors import BuildError
from edgekit.graph.tools import Array
from edgekit.model import Dim


class Operator(Protocol):
    """One ONNX node: see `edgekit.graph.torch_view.Op`."""

    node: onnx.NodeProto
    type: str
    attributes: dict[str, Any]
    opset: int

    def __len__(self) -> int: ...
    def given(self, index: int) -> bool: ...
    def constant(self, index: int) -> Array | None: ...
    def static(self, index: int, default: Sequence[int] | None = None) -> list[int] | None: ...
    def shape(self, index: int) -> tuple[Dim | None, ...] | None: ...
    def rank(self, index: int) -> int | None: ...
    def parameter(self, index: int) -> Tensor | None: ...
    def alone(self, index: int) -> bool: ...
    def refused(self, why: str) -> BuildError: ...


class Step:
    """One operator as modules called in a row, the first on the node's `inputs`.

    `weights` maps initializer names to attribute paths inside the last module; `transposed` those that it holds
    transposed.
    """

    def __init__(
        self,
        module: nn.Module | Sequence[nn.Module],
        inputs: Sequence[int],
        weights: Mapping[str, str] | None = None,
        transposed: frozenset[str] = frozenset(),
    ) -> None:
        self.modules = (module,) if isinstance(module, nn.Module) else tuple(module)
        self.inputs = tuple(inputs)
        self.weights = dict(weights or {})
        self.transposed = transposed


class Function(nn.Module):
    """A function of tensors with fixed settings, as a module: so that every operator has a name of its own."""

    def __init__(self, function: Callable[..., Any], /, **settings: Any) -> None:
        super().__init__()
        self.function = function
        self.settings = settings

    def forward(self, *tensors: Any) -> Any:
        """The function's result."""
        return self.function(*tensors, **self.settings)

    def extra_repr(self) -> str:
        """The function and its settings."""
        name = getattr(self.function, "__name__", str(self.function))
        return ", ".join([name, *(f"{key}={value}" for key, value in self.settings.items())])
