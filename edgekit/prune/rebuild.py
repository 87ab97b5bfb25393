"""A cut network as the module that the user knows, where that can be, and rebuilt without pickled code.

A removal is made on the lifted graph. Most modules compute the same once their own layers are cut, and stay what they
were; where a forward repeats an extent as a number, the lifted graph itself is the module from there on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, fx, nn

from edgekit.errors import UsageError
from edgekit.graph.exporting import copied
from edgekit.graph.lifted import is_lifted, lift
from edgekit.prune.apply import Cut, Removed, cut_weights, difference, fit, fit_layers
from edgekit.prune.factored import Entries, split
from edgekit.prune.shapes import restore

Description = dict[str, Any]
"""Fit for JSON: whether the module is a lifted graph, and what was changed in it beside its tensors.

`factors` are the layers that became two, in order; see `edgekit.prune.factored.Entries`.
"""
_KEY = "edgekit_cut"


def as_source(source: nn.Module, result: Removed, inputs: tuple[Tensor, ...]) -> nn.Module:
    """`source` with the same channels gone, if it then computes what the lifted graph does, or else that graph."""
    earlier = description_of(source)
    cut = result.cut if earlier is None else result.cut.onto(Cut(earlier["calls"], earlier["layers"]))
    own = None if is_lifted(source) else _cut(source, result, inputs)
    module = result.view if own is None else own
    factors = {} if earlier is None else earlier.get("factors", {})
    _describe(module, {"lifted": own is None, "calls": cut.calls, "layers": cut.layers, "factors": factors})
    return module.eval()


def describe_factors(source: nn.Module, module: nn.Module, entries: Entries) -> None:
    """Write about `module` that these layers of `source` became two in it, beside what is written about `source`."""
    earlier = description_of(source) or {"calls": {}, "layers": {}}
    factors = {**earlier.get("factors", {}), **entries}
    _describe(module, {**earlier, "lifted": is_lifted(module), "factors": factors})


def _cut(source: nn.Module, result: Removed, inputs: tuple[Tensor, ...]) -> nn.Module | None:
    module = copied(source)
    own = set(module.state_dict())
    if not {path for path, _ in result.kept} <= own:
        return None
    try:
        cut_weights(module, result.kept)
    except (RuntimeError, IndexError):
        return None
    fit_layers(module, result.cut)
    return None if difference(module, result.view, inputs) is None else module


def description_of(module: nn.Module) -> Description | None:
    """What `as_source` wrote about the module; None where it was never cut."""
    found = module.meta.get(_KEY) if isinstance(module, fx.GraphModule) else getattr(module, _KEY, None)
    return found if isinstance(found, dict) else None


def _describe(module: nn.Module, description: Description) -> None:
    if isinstance(module, fx.GraphModule):
        module.meta[_KEY] = description
    else:
        module.__dict__[_KEY] = description


def rebuilt(
    fresh: nn.Module, tensors: Mapping[str, Tensor], description: Description | None, inputs: tuple[Tensor, ...]
) -> nn.Module:
    """The module that has these tensors and this description, from the source that it came from.

    Raises:
        UsageError: they are of another model.
    """
    if description is None:
        return restore(fresh, tensors).eval()
    factors = description.get("factors", {})
    base = fresh if is_lifted(fresh) else split(fresh, factors, lifted=False)
    base = lift(base, inputs) if description["lifted"] and not is_lifted(base) else base
    module = restore(split(base, factors, lifted=True), tensors)
    cut = Cut(description["calls"], description["layers"])
    try:
        (fit if description["lifted"] else fit_layers)(module, cut)
    except (KeyError, ValueError, IndexError, TypeError) as error:
        raise UsageError(f"The saved weights are of another model or version ({error}). Start anew.") from error
    _describe(module, description)
    return module.eval()
