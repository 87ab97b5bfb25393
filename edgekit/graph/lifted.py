"""A module as one flat graph: what `torch.export` sees, with layers that can be trained and whose weights can be cut.

`torch.export` fixes evaluation mode and hands weights in as arguments. Here convolutions, dense layers, normalisations,
embeddings and dropout are torch's own modules again, under the names that they have in the source, so that `train()`
works and weights keep their names. What depends on weights alone (weight norm, weight standardisation, position
tables that are resized) is computed once and becomes a weight itself.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from edgekit.errors import UsageError

aten = torch.ops.aten
_LIFTED = "edgekit_lifted"


def lift(module: nn.Module, inputs: tuple[Tensor, ...]) -> fx.GraphModule:
    """The flat graph of `module`, which is not changed; it shares no tensor with it. `inputs`: two samples.

    One that is lifted already is copied.

    It takes the module's inputs in order and gives its output, or a tuple of them; any batch runs where the module's
    forward does not depend on it. The same module always gives the same names.

    Raises:
        UsageError: the module cannot be exported, with the exporter's reason: data-dependent control flow, as a rule.
    """
    source = copy.deepcopy(module).eval()
    if is_lifted(source):
        assert isinstance(source, fx.GraphModule)
        return source
    needs_grad = {name: p.requires_grad for name, p in source.named_parameters()}
    dynamic = tuple({0: torch.export.Dim.AUTO} if x.ndim else None for x in inputs)
    try:
        with torch.enable_grad():  # without, attention takes a path of its own that nothing else knows
            program = torch.export.export(source, inputs, dynamic_shapes=dynamic, strict=False)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise UsageError(f"The model cannot be followed ({type(error).__name__}: {reason}).") from error
    lifted = _Lifting(program, needs_grad).result()
    _try_another_batch(lifted, inputs)
    return lifted


def _try_another_batch(lifted: fx.GraphModule, inputs: tuple[Tensor, ...]) -> None:
    three = tuple(torch.cat([x, x[:1]]) if x.ndim else x for x in inputs)
    try:
        with torch.no_grad():
            lifted(*three)
    except (RuntimeError, IndexError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0][:200]
        raise UsageError(
            f"The model cannot be followed: its graph takes {len(inputs[0])} samples at once and no other number "
            f"({reason}). In its forward, take the number of samples from x.shape[0], not from len(x) or a constant."
        ) from error


def is_lifted(module: nn.Module) -> bool:
    """Whether the module came out of `lift`."""
    return isinstance(module, fx.GraphModule) and bool(module.meta.get(_LIFTED))


class _Lifting:
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
        self.alive: list[Tensor] = []  # so that no identity is given twice

    def result(self) -> fx.GraphModule:
        signature = self.program.graph_signature
        user_outputs = set(signature.user_outputs)
        for node in self.program.graph.nodes:
            if node.op == "placeholder":
                self.placeholder(node)
            elif node.op == "get_attr":
                self.constant_attribute(node)
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

    def placeholder(self, node: fx.Node) -> None:
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

    def constant_attribute(self, node: fx.Node) -> None:
        value = operator.attrgetter(str(node.target))(self.program.graph_module)
        if isinstance(value, Tensor):
            self.known[node] = value.detach().clone()
            self.names[node] = str(node.target)
            return
        raise UsageError(
            f"The model cannot be followed: its forward branches or changes mode inside (at {_where(node)}). "
            "Take the branch out of the forward."
        )

    def call(self, node: fx.Node) -> None:
        if _asserts(node):
            return
        if self.depends_on_weights_alone(node):
            self.evaluate(node)
            return
        build = LAYERS.get(getattr(node.target, "overloadpacket", None))
        made = build(_Given(self, node)) if build else None
        if made is not None:
            layer, source, key = made
            path, reads = self.place(node, layer, key), (self.value(source),)
            self.env[node] = self.graph.create_node("call_module", path, reads, name=node.name)
            return
        args, kwargs = fx.node.map_aggregate((node.args, node.kwargs), lambda a: self.value(a))
        target, args, kwargs = _explicit(node, args, dict(kwargs))
        self.env[node] = self.graph.create_node("call_function", target, args, kwargs, name=node.name)

    def depends_on_weights_alone(self, node: fx.Node) -> bool:
        target = node.target
        if isinstance(target, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded in target.tags:
            return False
        if target is operator.getitem or isinstance(target, torch._ops.OpOverload):
            return all(n in self.known for n in node.all_input_nodes)
        return False

    def evaluate(self, node: fx.Node) -> None:
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
        if isinstance(value, Tensor) and trained and value.is_floating_point() and not isinstance(value, nn.Parameter):
            value = nn.Parameter(value.detach().clone(), requires_grad=any(t.requires_grad for t in trained))
        elif isinstance(value, Tensor):
            value = value.detach().clone()
        self.known[node] = value
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
        stack = list(node.meta.get("nn_module_stack", {}).values())
        base = next(filter(None, [*homes, str(stack[-1][0]) if stack else ""]), node.name)
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


def _impure(node: fx.Node) -> bool:
    """What must stay though nothing reads it: inputs, outputs, and what changes a tensor in place."""
    if node.op in ("placeholder", "output"):
        return True
    schema = getattr(node.target, "_schema", None)
    return bool(schema is not None and schema.is_mutable)


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


class _Given:
    """A call's arguments by name, with the operator's defaults."""

    def __init__(self, lifting: _Lifting, node: fx.Node) -> None:
        self.lifting, self.node = lifting, node
        schema = node.target._schema  # type: ignore[union-attr]
        self.values = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}
        self.values |= dict(zip((a.name for a in schema.arguments), node.args, strict=False))
        self.values |= dict(node.kwargs)

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def tensor(self, name: str) -> Tensor | None:
        """The weight given as `name`, or None where none is given."""
        node = self.values.get(name)
        return None if node is None else self.lifting.known[node]

    def fixed(self, *names: str) -> bool:
        """Whether these are weights (or absent), and everything else is numbers."""
        tensors = [self.values.get(name) for name in names]
        return all(t is None or t in self.lifting.known for t in tensors)

    def key(self, *names: str) -> tuple[Any, ...]:
        """What makes two calls the same layer."""
        return tuple(_hashable(self.values.get(name)) for name in names)


Made = tuple[nn.Module, fx.Node, tuple[Any, ...]]


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else value


def hold(layer: nn.Module, **tensors: Tensor | None) -> nn.Module:
    """Put tensors into a layer that was made on the meta device."""
    for name, value in tensors.items():
        if name in layer._buffers:
            layer._buffers[name] = None if value is None else value.detach()
        elif value is None:
            layer.register_parameter(name, None)
        else:
            kept = value if isinstance(value, nn.Parameter) else nn.Parameter(value, requires_grad=False)
            layer.register_parameter(name, kept)
    return layer.eval()


_CONVS: dict[Any, tuple[Any, int]] = {
    aten.conv1d: (nn.Conv1d, 1), aten.conv2d: (nn.Conv2d, 2), aten.conv3d: (nn.Conv3d, 3),
}  # fmt: skip
_TRANSPOSED: dict[Any, tuple[Any, int]] = {
    aten.conv_transpose1d: (nn.ConvTranspose1d, 1), aten.conv_transpose2d: (nn.ConvTranspose2d, 2),
    aten.conv_transpose3d: (nn.ConvTranspose3d, 3),
}  # fmt: skip


def _spread(value: Any, axes: int) -> Any:
    """One number an axis."""
    if isinstance(value, str):
        return value
    values = list(value) if isinstance(value, list | tuple) else [value]
    return tuple(values * axes if len(values) == 1 else values)


def _conv(given: _Given) -> Made | None:
    kind, axes = _CONVS[given.node.target.overloadpacket]  # type: ignore[union-attr]
    if not given.fixed("weight", "bias"):
        return None
    weight, bias = given.tensor("weight"), given.tensor("bias")
    assert weight is not None
    groups = given["groups"]
    layer = kind(
        weight.shape[1] * groups, weight.shape[0], tuple(weight.shape[2:]), stride=_spread(given["stride"], axes),
        padding=_spread(given["padding"], axes), dilation=_spread(given["dilation"], axes), groups=groups,
        bias=bias is not None, device="meta",
    )  # fmt: skip
    return (
        hold(layer, weight=weight, bias=bias),
        given["input"],
        given.key("weight", "bias", "stride", "padding", "dilation", "groups"),
    )


def _transposed(given: _Given) -> Made | None:
    kind, axes = _TRANSPOSED[given.node.target.overloadpacket]  # type: ignore[union-attr]
    if not given.fixed("weight", "bias"):
        return None
    weight, bias = given.tensor("weight"), given.tensor("bias")
    assert weight is not None
    groups = given["groups"]
    layer = kind(
        weight.shape[0], weight.shape[1] * groups, tuple(weight.shape[2:]), stride=_spread(given["stride"], axes),
        padding=_spread(given["padding"], axes), output_padding=_spread(given["output_padding"], axes), groups=groups,
        bias=bias is not None, dilation=_spread(given["dilation"], axes), device="meta",
    )  # fmt: skip
    return (
        hold(layer, weight=weight, bias=bias),
        given["input"],
        given.key("weight", "bias", "stride", "padding", "output_padding", "groups", "dilation"),
    )


def _linear(given: _Given) -> Made | None:
    if not given.fixed("weight", "bias"):
        return None
    weight, bias = given.tensor("weight"), given.tensor("bias")
    assert weight is not None
    if weight.ndim != 2:
        return None
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    return hold(layer, weight=weight, bias=bias), given["input"], given.key("weight", "bias")


def _batch_norm(given: _Given) -> Made | None:
    names = ("weight", "bias", "running_mean", "running_var")
    if not given.fixed(*names) or given.tensor("running_mean") is None:
        return None
    kinds = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
    mean, weight = given.tensor("running_mean"), given.tensor("weight")
    assert mean is not None
    source = given["input"]
    layer = kinds[source.meta["val"].ndim](
        len(mean), eps=given["eps"], momentum=given["momentum"], affine=weight is not None, device="meta"
    )
    if weight is None:
        hold(layer, running_mean=mean, running_var=given.tensor("running_var"))
    else:
        hold(layer, **{name: given.tensor(name) for name in names})
    layer.num_batches_tracked = torch.zeros((), dtype=torch.long)
    return layer, source, given.key(*names, "eps")


def _layer_norm(given: _Given) -> Made | None:
    weight = given.tensor("weight") if given.fixed("weight", "bias") else None
    extents = list(given["normalized_shape"])
    if weight is None or any(not isinstance(n, int) for n in extents) or list(weight.shape) != extents:
        return None
    bias = given.tensor("bias")
    layer = nn.LayerNorm(extents, eps=given["eps"], bias=bias is not None, device="meta")
    return hold(layer, weight=weight, bias=bias), given["input"], given.key("weight", "bias", "eps")


def _group_norm(given: _Given) -> Made | None:
    weight = given.tensor("weight") if given.fixed("weight", "bias") else None
    if weight is None or given.tensor("bias") is None:
        return None
    layer = nn.GroupNorm(given["num_groups"], len(weight), eps=given["eps"], device="meta")
    return hold(layer, weight=weight, bias=given.tensor("bias")), given["input"], given.key("weight", "bias", "eps")


def _embedding(given: _Given) -> Made | None:
    if not given.fixed("weight") or given["scale_grad_by_freq"] or given["sparse"]:
        return None
    weight = given.tensor("weight")
    assert weight is not None
    layer = nn.Embedding(weight.shape[0], weight.shape[1], device="meta")
    return hold(layer, weight=weight), given["indices"], given.key("weight")


def _prelu(given: _Given) -> Made | None:
    if not given.fixed("weight"):
        return None
    weight = given.tensor("weight")
    assert weight is not None
    return hold(nn.PReLU(weight.numel(), device="meta"), weight=weight), given["self"], given.key("weight")


def _dropout(given: _Given) -> Made | None:
    return nn.Dropout(given["p"]).eval(), given["input"], (given.node, given["p"])


LAYERS: dict[Any, Callable[[_Given], Made | None]] = {
    **dict.fromkeys(_CONVS, _conv),
    **dict.fromkeys(_TRANSPOSED, _transposed),
    aten.linear: _linear,
    aten.batch_norm: _batch_norm,
    aten.layer_norm: _layer_norm,
    aten.group_norm: _group_norm,
    aten.embedding: _embedding,
    aten.prelu: _prelu,
    aten.dropout: _dropout,
}
"""Operators that become layers where their weights are weights."""
