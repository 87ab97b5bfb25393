"""A graph while rules rewrite it: uses and constants looked up by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from edgekit.graph.normalise import normalise
from edgekit.graph.tools import (
    Array,
    consumers,
    initializers,
    output_names,
    producers,
    replace_nodes,
    set_initializer,
    shapes,
    tensor_names,
    unique_name,
)


class FoldGraph:
    """Mutable; `nodes` are in order, `alive` holds the names of those that no rule has removed."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self.proto = normalise(proto)
        self.graph = self.proto.graph
        self.shapes = shapes(self.graph)
        self.outputs = output_names(self.graph)
        self.taken = tensor_names(self.graph)
        self._look()

    def _look(self) -> None:
        self.nodes = list(self.graph.node)
        self.alive = {node.name for node in self.nodes}
        self.makers = producers(self.graph)
        self.readers = consumers(self.graph)
        self.constants = initializers(self.graph)

    def sweep(self) -> None:
        """Drop removed nodes and look everything up anew."""
        kept = [node for node in self.graph.node if node.name in self.alive]
        if len(kept) != len(self.graph.node):
            replace_nodes(self.graph, kept)
        self._look()

    def finished(self) -> onnx.ModelProto:
        """The rewritten model."""
        self.sweep()
        return self.proto

    def constant(self, node: onnx.NodeProto, index: int) -> Array | None:
        """The value of an input that is an initializer, else None."""
        return self.constants.get(node.input[index]) if index < len(node.input) else None

    def number(self, node: onnx.NodeProto, index: int) -> float | None:
        """The value of an input that is a constant of one element, else None."""
        value = self.constant(node, index)
        return float(value.reshape(-1)[0]) if value is not None and value.size == 1 else None

    def operands(self, node: onnx.NodeProto) -> tuple[int, int] | None:
        """The positions (variable, constant) of the inputs of a node that computes with one constant."""
        places = [i for i, name in enumerate(node.input) if name in self.constants]
        return (1 - places[0], places[0]) if len(node.input) == 2 and len(places) == 1 else None

    def before(self, name: str, *types: str) -> onnx.NodeProto | None:
        """The node of one of `types` that makes `name` for a single reader and no output of the graph, else None."""
        node = self.makers.get(name)
        if node is None or node.op_type not in types or node.name not in self.alive or node.domain:
            return None
        return node if self.single(name) else None

    def single(self, name: str) -> bool:
        """Whether one node alone reads the tensor, and it is no output."""
        readers = [node for node in self.readers.get(name, []) if node.name in self.alive]
        return len(readers) == 1 and name not in self.outputs

    def new_constant(self, base: str, value: Array) -> str:
        """Add an initializer; its name."""
        name = unique_name(base, self.taken)
        set_initializer(self.graph, name, value)
        self.constants[name] = value
        return name

    def set_constant(self, node: onnx.NodeProto, index: int, value: Array, base: str) -> None:
        """Give a node a new value for an input: in place where no one else reads it, else under a new name."""
        value = np.asarray(value, np.float32) if value.dtype == np.float64 else value
        while len(node.input) <= index:
            node.input.append("")
        old = node.input[index]
        if old and len(self.readers.get(old, [])) == 1:
            set_initializer(self.graph, old, value)
            self.constants[old] = value
        else:
            node.input[index] = self.new_constant(base, value)
            self.readers[node.input[index]] = [node]

    def absorb(self, into: onnx.NodeProto, gone: onnx.NodeProto) -> None:
        """`into` now makes what `gone`, right behind it, made."""
        into.output[0] = gone.output[0]
        self.makers[gone.output[0]] = into
        self.alive.discard(gone.name)

    def append_after(self, node: onnx.NodeProto, op_type: str, **given: Any) -> None:
        """Put an operator behind `node` that takes over its output."""
        between = unique_name(f"{node.output[0]}_{node.op_type}", self.taken)
        name = unique_name(f"{node.name}_{op_type}", set(self.alive))
        behind = onnx.helper.make_node(op_type, [between], [node.output[0]], name=name, **given)
        node.output[0] = between
        place = next(i for i, present in enumerate(self.graph.node) if present.name == node.name)
        self.graph.node.insert(place + 1, behind)
        self.alive.add(name)
        self.makers[between] = node
        self.readers[between] = [behind]

    def rank(self, name: str) -> int | None:
        """How many axes a tensor has, or None."""
        shape = self.shapes.get(name)
        return None if shape is None else len(shape)
