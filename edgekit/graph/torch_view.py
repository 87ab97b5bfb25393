"""An ONNX graph as a trainable, exportable `torch.fx.GraphModule`, one submodule a node, weights known by name.

The operators are in the table of `edgekit.graph.torch_ops`; their oracle is ONNX's own backend test suite.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, fx, nn

from edgekit.errors import BuildError
from edgekit.graph import torch_host, torch_ops
from edgekit.graph.tools import Array, attributes, initializers, opset_of, shapes, unique_name
from edgekit.graph.torch_step import Function, item
from edgekit.model import Dim


@dataclass(frozen=True)
class Place:
    """Where an initializer lives in the view: attribute path, and whether the module holds it transposed."""

    path: str
    transposed: bool = False


@dataclass(frozen=True)
class Names:
    """What links a view to its graph: `modules` node name -> submodule path, `initializers` name -> place.

    `tensors` maps every float tensor of the graph that an operator makes to the name of the fx node that makes it.
    """

    modules: dict[str, str] = field(default_factory=dict)
    initializers: dict[str, Place] = field(default_factory=dict)
    tensors: dict[str, str] = field(default_factory=dict)


def torch_view(proto: onnx.ModelProto) -> fx.GraphModule:
    """A module that computes what the (normalised) graph computes, in evaluation mode.

    It takes the graph's inputs in order and gives its output, or a tuple of them. Any batch size runs where the
    graph allows it. Convolutions, BatchNorm and dense layers are torch's own modules; float initializers of more
    than one element are parameters, single numbers and running statistics buffers, integers Python values.

    Raises:
        BuildError: an operator has no entry in the table, or an attribute that the entry does not know.
    """
    return _Builder(proto).build()


def names_of(view: fx.GraphModule) -> Names:
    """How the view's parts are called in the graph that it was made from; survives copy and deepcopy."""
    names = view.meta["edgekit"]
    assert isinstance(names, Names)
    return names


def parameters_by_initializer(view: fx.GraphModule) -> dict[str, Tensor]:
    """The live parameters and float buffers of the view by initializer name.

    Dense layers hold `[out, in]`, so a weight of MatMul or of Gemm without transB is transposed here:
    `names_of(view).initializers[name].transposed` says so.
    """
    return {name: _get(view, place.path) for name, place in names_of(view).initializers.items()}


def write_back(proto: onnx.ModelProto, view: fx.GraphModule) -> onnx.ModelProto:
    """A copy of the graph that `view` was made from, with the view's present values in its initializers.

    Raises:
        BuildError: a value has another shape than its initializer (channels were cut: export the view instead).
    """
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    values = parameters_by_initializer(view)
    for tensor in result.graph.initializer:
        if tensor.name not in values:
            continue
        value = values[tensor.name].detach().cpu()
        if names_of(view).initializers[tensor.name].transposed:
            value = value.t()
        if value.numel() != int(np.prod(tensor.dims)):
            raise BuildError(
                f"The trained value of {tensor.name!r} has shape {list(value.shape)}, its initializer "
                f"{list(tensor.dims)}. Export the trained module instead of writing it back."
            )
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        array = value.contiguous().numpy().reshape(tuple(tensor.dims)).astype(dtype)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return result


def _get(module: nn.Module, path: str) -> Tensor:
    owner, _, name = path.rpartition(".")
    value = getattr(module.get_submodule(owner), name)
    assert isinstance(value, Tensor)
    return value


class _Builder:
    """Builds one view: fx nodes for tensors, submodules for operators."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self.proto = proto
        self.constants = initializers(proto.graph)
        self.shapes = shapes(proto.graph)
        self.root = nn.Module()
        self.graph = fx.Graph()
        self.values: dict[str, fx.Node] = {}
        self.host: set[str] = set()
        self.names = Names()
        self.taken: set[str] = set()
        self.parameters: dict[str, Tensor] = {}
        self.uses: dict[str, int] = {}
        for node in proto.graph.node:
            for name in node.input:
                self.uses[name] = self.uses.get(name, 0) + 1

    def build(self) -> fx.GraphModule:
        outputs = [output.name for output in self.proto.graph.output]
        for value in self.proto.graph.input:
            self.values[value.name] = self.graph.placeholder(self.identifier(value.name))
        for node in self.proto.graph.node:
            self.add(node)
        results = tuple(self.tensor(name) for name in outputs)
        self.graph.output(results[0] if len(results) == 1 else results)
        view = fx.GraphModule(self.root, self.graph, class_name="TorchView")
        view.meta["edgekit"] = self.names
        return view.eval()

    def identifier(self, name: str) -> str:
        """A free Python name for an attribute of the view."""
        base = re.sub(r"\W", "_", name, flags=re.ASCII) or "value"
        if base[0].isdigit():
            base = f"_{base}"
        if re.fullmatch(r"val_\d+", base):
            base = f"{base}_"  # torch's exporter gives such names to values of its own, and fails where one is taken
        if keyword.iskeyword(base) or hasattr(fx.GraphModule, base) or hasattr(nn.Module(), base):
            base = f"{base}_"
        return unique_name(base, self.taken)

    def add(self, node: onnx.NodeProto) -> None:
        """Append one operator."""
        op = Op(node, self)
        on_host = self._runs_on_host(node)
        table = torch_host.OPERATORS if on_host else torch_ops.OPERATORS
        if node.domain not in ("", "ai.onnx") or node.op_type not in table:
            domain = f" of domain {node.domain!r}" if node.domain else ""
            raise BuildError(
                f"Node {node.name!r}: the torch view has no operator {node.op_type!r}{domain}. "
                "Replace it in the source model, or leave out the stages and backends that need the view.",
                [node.name],
            )
        step = table[node.op_type](op)
        takes = torch_ops.TAKES_HOST.get(node.op_type, frozenset())
        result: Any = tuple(
            self._number(node.input[i]) if on_host else self._argument(node.input[i], as_it_is=i in takes)
            for i in step.inputs
        )
        path = self.identifier(node.name)
        for index, module in enumerate(step.modules):
            last = index == len(step.modules) - 1
            name = path if last else self.identifier(f"{node.name}_{index}")
            self.root.add_module(name, module)
            result = self.graph.call_module(name, result if index == 0 else (result,))
        self.names.modules[node.name] = path
        for initializer, place in step.weights.items():
            self.names.initializers.setdefault(initializer, Place(f"{path}.{place}", initializer in step.transposed))
        self._bind(node, result, on_host or node.op_type in torch_host.SOURCES)

    def _bind(self, node: onnx.NodeProto, result: fx.Node, on_host: bool) -> None:
        several = len(node.output) > 1 and any(node.output[1:])
        for index, name in enumerate(node.output):
            if name:
                made = self.graph.call_function(item, (result, index)) if several else result
                self.values[name] = made
                self.names.tensors[name] = made.name
                if on_host:
                    self.host.add(name)

    def _runs_on_host(self, node: onnx.NodeProto) -> bool:
        """Shape arithmetic stays Python integers, so that a dynamic batch stays dynamic in an export."""
        if node.op_type not in torch_host.OPERATORS:
            return False
        given = [name for name in node.input if name]
        constant = all(name in self.host or name in self.constants for name in given)
        return constant and any(name in self.host for name in given)

    def _argument(self, name: str, *, as_it_is: bool) -> fx.Node | None:
        """The fx node of an input: a tensor, or with `as_it_is` perhaps numbers of shape arithmetic."""
        if not name:
            return None
        return self.values[name] if as_it_is and name in self.host else self.tensor(name)

    def _number(self, name: str) -> Any:
        """An input of shape arithmetic: constants as plain Python numbers, for a tensor would end a dynamic extent."""
        return self.values[name] if name in self.host else self.constants[name].tolist()

    def tensor(self, name: str) -> fx.Node:
        """The fx node of a value as a tensor."""
        if name in self.host:
            path = self.identifier(f"{name}_tensor")
            self.root.add_module(path, Function(torch_host.to_tensor))
            return self.graph.call_module(path, (self.values[name],))
        if name not in self.values:
            if name not in self.constants:
                raise BuildError(f"Tensor {name!r} is read but never made. Export the model again.", [name])
            path = self.identifier(name)
            value = self.parameter(name)
            if isinstance(value, nn.Parameter):
                self.root.register_parameter(path, value)
            else:
                self.root.register_buffer(path, value)
            self.names.initializers.setdefault(name, Place(path))
            self.values[name] = self.graph.get_attr(path)
        return self.values[name]

    def parameter(self, name: str) -> Tensor:
        """The one tensor of an initializer: a parameter if it is float and more than one number, else a buffer."""
        if name not in self.parameters:
            array = self.constants[name]
            value = as_tensor(array)
            trained = value.is_floating_point() and value.numel() > 1
            self.parameters[name] = nn.Parameter(value) if trained else value
        return self.parameters[name]


def as_tensor(array: Array) -> Tensor:
    """A torch tensor of its own memory."""
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.astype(np.float32)).to(torch.bfloat16)
    return torch.from_numpy(np.array(array, order="C", copy=True))


class Op:
    """One ONNX node as the table's entries see it."""

    def __init__(self, node: onnx.NodeProto, builder: _Builder) -> None:
        self.node = node
        self.type = node.op_type
        self.attributes = attributes(node)
        self.opset = opset_of(builder.proto)
        self._builder = builder

    def __len__(self) -> int:
        return len(self.node.input)

    def given(self, index: int) -> bool:
        """Whether the node has an `index`-th input."""
        return index < len(self.node.input) and bool(self.node.input[index])

    def constant(self, index: int) -> Array | None:
        """The value of an input that is an initializer, else None."""
        return self._builder.constants.get(self.node.input[index]) if self.given(index) else None

    def static(self, index: int, default: Sequence[int] | None = None) -> list[int] | None:
        """The integers of an input that must be constant; `default` where the node has no such input."""
        if not self.given(index):
            return None if default is None else list(default)
        value = self.constant(index)
        if value is None:
            raise self.refused(f"input {index} ({self.node.input[index]!r}) must be constant")
        return [int(v) for v in value.flat]

    def shape(self, index: int) -> tuple[Dim | None, ...] | None:
        """The inferred shape of an input, or None."""
        return self._builder.shapes.get(self.node.input[index]) if self.given(index) else None

    def rank(self, index: int) -> int | None:
        """The number of axes of an input, or None."""
        shape = self.shape(index)
        return None if shape is None else len(shape)

    def parameter(self, index: int) -> Tensor | None:
        """The tensor of an input that is an initializer (shared by all its users), else None."""
        name = self.node.input[index] if self.given(index) else ""
        return self._builder.parameter(name) if name in self._builder.constants else None

    def alone(self, index: int) -> bool:
        """Whether no other node reads this input."""
        return self._builder.uses[self.node.input[index]] == 1

    def refused(self, why: str) -> BuildError:
        """The error for an attribute or input that the view cannot express."""
        name = self.node.name
        subject = f"Node {name!r}: the torch view cannot express this {self.type}"
        return BuildError(f"{subject}: {why}. Export the model without it.", [name])
