"""A module as one flat graph: what `torch.export` sees, with layers that can be trained and whose weights can be cut.

`torch.export` fixes evaluation mode and hands weights in as arguments. Here convolutions, dense layers, normalisations,
embeddings and dropout are torch's own modules again, under the names that they have in the source, so that `train()`
works and weights keep their names. What depends on weights alone (weight norm, weight standardisation, position
tables that are resized) is computed once and becomes a weight itself.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from edgekit.errors import UsageError
from edgekit.graph.einsum import contract, pairwise
from edgekit.graph.exporting import copied, exporting, reason
from edgekit.graph.lifted_layers import LAYERS, Given

aten = torch.ops.aten
_LIFTED = "edgekit_lifted"
MODULE = "edgekit_module"
"""In the meta data of an operation of a lifted graph: the path of the module that calls it."""


def lift(module: nn.Module, inputs: tuple[Tensor, ...]) -> fx.GraphModule:
    """The flat graph of `module`, which is not changed; it shares no tensor with it. `inputs`: two samples.

    One that is lifted already is copied.

    It takes the module's inputs in order and gives its output, or a tuple of them; any batch runs where the module's
    forward does not depend on it. The same module always gives the same names.

    Raises:
        UsageError: the module cannot be exported, with the exporter's reason: data-dependent control flow, as a rule.
    """
    source = copied(module)
    if is_lifted(source):
        assert isinstance(source, fx.GraphModule)
        return source
    needs_grad = {name: p.requires_grad for name, p in source.named_parameters()}
    dynamic = tuple({0: torch.export.Dim.AUTO} if x.ndim else None for x in inputs)
    try:
        with exporting(), torch.enable_grad():  # without, attention takes a path that nothing else knows
            program = torch.export.export(source, inputs, dynamic_shapes=dynamic, strict=False)
    except Exception as error:
        raise UsageError(f"The model cannot be followed: {reason(error)}.") from error
    lifted = Lifting(program, needs_grad).result()
    _try_another_batch(lifted, inputs)
    return lifted


def _try_another_batch(lifted: fx.GraphModule, inputs: tuple[Tensor, ...]) -> None:
    three = tuple(torch.cat([x, x[:1]]) if x.ndim else x for x in inputs)
    try:
        with torch.no_grad():
            lifted(*three)
    except (RuntimeError, IndexError, ValueError) as error:
        seen = str(error).strip().partition("\n")[0][:200]
        raise UsageError(
            f"The model cannot be followed: its graph takes {len(inputs[0])} samples at once and no other number "
            f"({seen}). In its forward, take the number of samples from x.shape[0], not from len(x) or a constant."
        ) from error


def is_lifted(module: nn.Module) -> bool:
    """Whether the module came out of `lift`."""
    return isinstance(module, fx.GraphModule) and bool(module.meta.get(_LIFTED))


class Lifting:
    """One exported program on its way to a flat graph: node by node."""

    def __init__(self, program: torch.export.ExportedProgram, needs_grad: dict[str, bool]) -> None:
        self.program, self.needs_grad = program, needs_grad
        self.root, self.graph = nn.Module(), fx.Graph()
        self.env: dict[fx.Node, Any] = {}
        self.known: dict[fx.Node, Tensor] = {}
        """What depends on weights alone, by node; parameters are themselves."""
        self.names: dict[fx.Node, str] = {}
        self.placed: dict[int, str] = {}
        """Tensors that lie in the root for themselves, by identity: their path."""
        self.layers: dict[str, tuple[Any, ...]] = {}
        self.inner: dict[fx.Node, fx.GraphModule] = {}
        self.results: dict[fx.Node, Sequence[fx.Node]] = {}
        """What regions with a graph of their own give."""
        self.alive: list[Tensor] = []  # so that no identity is given twice

    def result(self) -> fx.GraphModule:
        """The flat graph."""
        signature = self.program.graph_signature
        user_outputs = set(signature.user_outputs)
        for node in self.program.graph.nodes:
            if node.op == "placeholder":
                self.placeholder(node)
            elif node.op == "get_attr":
                self.constant_attribute(node, self.program.graph_module)
            elif node.op == "call_function":
                self.call(node)
        output = next(n for n in reversed(self.program.graph.nodes) if n.op == "output")
        wanted = [a for a in output.args[0] if not isinstance(a, fx.Node) or a.name in user_outputs]
        values = [self.value(a) for a in wanted]
        single = self.program.call_spec.out_spec is not None and self.program.call_spec.out_spec.is_leaf()
        self.graph.output(values[0] if single else tuple(values))
        self.graph.eliminate_dead_code(is_impure_node=_impure)
        made = fx.GraphModule(self.root, self.graph, class_name="Lifted")
        made.meta[_LIFTED] = True
        return made.eval()

    def place_of(self, node: fx.Node) -> str:
        """The module whose forward calls the operation."""
        stack = list(node.meta.get("nn_module_stack", {}).values())
        return str(stack[-1][0]) if stack else ""

    def placeholder(self, node: fx.Node) -> None:
        """An input, or a weight that the program is handed."""
        signature = self.program.graph_signature
        name = node.name
        if name in signature.inputs_to_parameters:
            path = signature.inputs_to_parameters[name]
            value = self.program.state_dict[path]
            self.known[node] = nn.Parameter(value.detach(), requires_grad=self.needs_grad.get(path, True))
        elif name in signature.inputs_to_buffers:
            path = signature.inputs_to_buffers[name]
            stored = self.program.state_dict if path in self.program.state_dict else self.program.constants
            self.known[node] = stored[path].detach().clone()
        elif name in signature.inputs_to_lifted_tensor_constants:
            path = signature.inputs_to_lifted_tensor_constants[name]
            self.known[node] = self.program.constants[path].detach().clone()
        else:
            self.env[node] = self.graph.placeholder(name)
            return
        self.names[node] = path

    def constant_attribute(self, node: fx.Node, owner: nn.Module) -> None:
        """A constant, or the graph of a region."""
        value = operator.attrgetter(str(node.target))(owner)
        if isinstance(value, Tensor):
            self.known[node] = value.detach().clone()
            self.names[node] = str(node.target)
        elif isinstance(value, fx.GraphModule) and all(user.target in _REGIONS for user in node.users):
            self.inner[node] = value
        else:
            raise UsageError(
                f"The model cannot be followed: its forward branches inside (at {_where(node)}). "
                "Take the branch out of the forward."
            )

    def region(self, node: fx.Node) -> None:
        """What runs without gradients, or without autocast, runs here as anything else: its weights are frozen.

        Raises:
            UsageError: the region is one in another precision.
        """
        at = next(i for i, argument in enumerate(node.args) if argument in self.inner)
        graph, given = self.inner[node.args[at]], node.args[at + 1 :]  # type: ignore[index]
        settings = node.args[:at]
        if node.target is _AUTOCAST and settings[2] and settings[0] == "cpu":
            raise UsageError(
                f"The model cannot be followed: a part of its forward runs in {settings[1]} (torch.autocast). "
                "Take autocast out of the forward."
            )
        inputs = [inside for inside in graph.graph.nodes if inside.op == "placeholder"]
        for inside, argument in zip(inputs, given, strict=True):
            self.same_as(inside, argument)
            frozen = node.target is not _AUTOCAST and not settings[0]
            if frozen and isinstance(argument, fx.Node) and argument in self.known and len(argument.users) == 1:
                self.known[argument].requires_grad_(False)
        for inside in graph.graph.nodes:
            if inside.op == "get_attr":
                self.constant_attribute(inside, graph)
            elif inside.op == "call_function":
                self.call(inside)
            elif inside.op == "output":
                self.results[node] = inside.args[0]

    def same_as(self, node: fx.Node, other: Any) -> None:
        """One node stands for another."""
        if other in self.known:
            self.known[node], self.names[node] = self.known[other], self.names[other]
        else:
            self.env[node] = self.value(other)

    def call(self, node: fx.Node) -> None:
        """An operation: computed now, a layer, or the operation again."""
        if _asserts(node):
            return
        if node.target in _REGIONS:
            self.region(node)
            return
        if node.target is operator.getitem and node.args[0] in self.results:
            self.same_as(node, self.results[node.args[0]][node.args[1]])  # type: ignore[index]
            return
        if self.depends_on_weights_alone(node):
            self.evaluate(node)
            return
        build = LAYERS.get(getattr(node.target, "overloadpacket", None))
        made = build(Given(self, node)) if build else None
        if made is not None:
            layer, source, key = made
            path, reads = self.place(node, layer, key), (self.value(source),)
            self.env[node] = self.graph.create_node("call_module", path, reads, name=node.name)
            return
        args: Any
        args, kwargs = fx.node.map_aggregate((node.args, node.kwargs), lambda a: self.value(a))
        if getattr(node.target, "overloadpacket", None) is aten.einsum and (pairs := pairwise(args[0], args[1])):
            for equation, several in pairs:
                given = tuple(self.env[node] if one is None else one for one in several)
                self.env[node] = self.graph.call_function(contract, (equation, *given))
            return
        target, args, kwargs = _explicit(node, args, dict(kwargs))
        self.env[node] = self.graph.create_node("call_function", target, args, kwargs, name=node.name)
        self.env[node].meta[MODULE] = self.place_of(node)

    def depends_on_weights_alone(self, node: fx.Node) -> bool:
        """Whether the operation gives the same for every input."""
        target = node.target
        if isinstance(target, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded in target.tags:
            return False
        if target is operator.getitem or isinstance(target, torch._ops.OpOverload):
            return all(n in self.known for n in node.all_input_nodes)
        return False

    def evaluate(self, node: fx.Node) -> None:
        """Compute what depends on weights alone."""
        args, kwargs = fx.node.map_aggregate(
            (node.args, node.kwargs), lambda a: self.known[a] if isinstance(a, fx.Node) else a
        )
        with torch.no_grad():
            value = node.target(*args, **kwargs)  # type: ignore[operator]
        sources = [self.known[n] for n in node.all_input_nodes]
        same = next((n for n in node.all_input_nodes if _is_the_same(value, self.known[n])), None)
        if same is not None:
            self.known[node], self.names[node] = self.known[same], self.names[same]
            return
        trained = [s for s in sources if isinstance(s, nn.Parameter)]
        lists = [source for source in sources if isinstance(source, list | tuple)]  # what split and chunk gave
        trained += [s for some in lists for s in some if isinstance(s, nn.Parameter)]
        several = value if isinstance(value, list | tuple) else [value]
        weights = [_weight(one, trained) for one in several]
        self.known[node] = weights if several is value else weights[0]  # type: ignore[assignment]
        self.names[node] = node.name

    def value(self, given: Any) -> Any:
        """A node's counterpart; one that is known becomes an attribute of the root."""
        if not isinstance(given, fx.Node):
            return given
        if given in self.env:
            return self.env[given]
        value = self.known[given]
        if not isinstance(value, Tensor):
            return value
        path = self.placed.get(id(value))
        if path is None:
            path = self.put(self.names[given], value)
        self.env[given] = self.graph.get_attr(path)
        return self.env[given]

    def put(self, name: str, value: Tensor) -> str:
        """Register a tensor of its own at `name`, or near it; its path."""
        owner, attribute, path = self.free(name)
        if isinstance(value, nn.Parameter):
            owner.register_parameter(attribute, value)
        else:
            owner.register_buffer(attribute, value)
        self.placed[id(value)] = path
        self.alive.append(value)
        return path

    def place(self, node: fx.Node, layer: nn.Module, key: tuple[Any, ...]) -> str:
        """Where a layer lies: under its weight's owner; the same layer that runs twice lies there once."""
        homes = [self.names.get(n, "").rpartition(".")[0] for n in key if isinstance(n, fx.Node)]
        base = next(filter(None, [*homes, self.place_of(node)]), node.name)
        same = (type(layer), *key)
        for path, other in self.layers.items():
            if other == same:
                return path
        owner, attribute, path = self.free(base)
        owner.add_module(attribute, layer)
        self.layers[path] = same
        for name, tensor in [*layer.named_parameters(), *layer.named_buffers()]:
            self.placed.setdefault(id(tensor), f"{path}.{name}")
            self.alive.append(tensor)
        return path

    def free(self, name: str) -> tuple[nn.Module, str, str]:
        """The module that holds `name` (made where it is not there), a free attribute in it, and the path."""
        *parents, attribute = name.split(".")
        owner, number = self.root, 2
        for part in parents:
            child = owner._modules.get(part)
            if child is None:
                child = nn.Module()
                owner.add_module(part, child)
            owner = child
        chosen = attribute
        while hasattr(owner, chosen) or (owner is self.root and hasattr(fx.GraphModule, chosen)):
            chosen, number = f"{attribute}_{number}", number + 1
        return owner, chosen, ".".join([*parents, chosen])


_AUTOCAST = torch.ops.higher_order.wrap_with_autocast
_REGIONS = (torch.ops.higher_order.wrap_with_set_grad_enabled, _AUTOCAST)


def _impure(node: fx.Node) -> bool:
    """What must stay though nothing reads it: inputs, outputs, and what changes a tensor in place."""
    if node.op in ("placeholder", "output"):
        return True
    schema = getattr(node.target, "_schema", None)
    return bool(schema is not None and schema.is_mutable)


def _weight(value: Any, sources: Sequence[nn.Parameter]) -> Any:
    """What was computed from these parameters, as a weight of its own: trained if one of them is."""
    if not isinstance(value, Tensor) or isinstance(value, nn.Parameter):
        return value
    own = value.detach().clone()
    if not sources or not own.is_floating_point():
        return own
    return nn.Parameter(own, requires_grad=any(one.requires_grad for one in sources))


def _is_the_same(value: Any, source: Any) -> bool:
    """Whether an operation gave a weight as it is: a view of all of it."""
    if not (isinstance(value, Tensor) and isinstance(source, Tensor)) or value.dtype != source.dtype:
        return False
    return value.data_ptr() == source.data_ptr() and value.shape == source.shape and value.stride() == source.stride()


def _asserts(node: fx.Node) -> bool:
    return "assert" in str(node.target) or "sym_constrain" in str(node.target)


def _where(node: fx.Node) -> str:
    trace = str(node.meta.get("stack_trace", "")).strip().splitlines()
    return trace[-2].strip() if len(trace) > 1 else node.name


def _explicit(node: fx.Node, args: Any, kwargs: dict[str, Any]) -> tuple[Any, Any, dict[str, Any]]:
    """Target and arguments with what torch would take from extents written down, for extents change."""
    packet = getattr(node.target, "overloadpacket", None)
    if packet is aten.scaled_dot_product_attention and kwargs.get("scale") is None:
        query = node.args[0]
        assert isinstance(query, fx.Node)
        kwargs["scale"] = float(query.meta["val"].shape[-1]) ** -0.5
    elif packet in _SPLITS:
        dim = kwargs.get("dim", args[2] if len(args) > 2 else 0)
        sizes = [part.shape[dim] for part in node.meta["val"]]
        if all(isinstance(size, int) for size in sizes):
            return aten.split_with_sizes.default, (args[0], sizes, dim), {}
    elif packet in _RESHAPES and len(args) == 2 and isinstance(args[1], list | tuple):
        unknown = [isinstance(size, fx.Node) or size == -1 for size in args[1]]
        if sum(unknown) == 1:  # the arithmetic behind it holds extents too
            args = (args[0], [-1 if free else size for free, size in zip(unknown, args[1], strict=True)])
    return node.target, args, kwargs


_SPLITS = (aten.split, aten.chunk)
_RESHAPES = (aten.view, aten.reshape, aten._unsafe_view)
