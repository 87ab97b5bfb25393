"""One application of `factorize`: what the layers give, which of them become two, and what is said of it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from edgekit.context import RunContext
from edgekit.errors import UsageError
from edgekit.graph.lifted import is_lifted
from edgekit.model import Step, TorchModel
from edgekit.prune.budget import NANO, Budget
from edgekit.prune.correct import channel_moments, correct_biases, reestimate_batchnorm
from edgekit.prune.cost import count_macs
from edgekit.prune.factored import Entries, Layer, fill, observed, split, splittable, usable
from edgekit.prune.faster import within
from edgekit.prune.ranks import Bytes, Choice, Cost, Macs, Option, Parameters, choose, options_of
from edgekit.prune.rebuild import describe_factors
from edgekit.prune.shapes import float_bytes, has_batchnorm, parameters
from edgekit.prune.survey import Share
from edgekit.prune.timing import timed_target
from edgekit.train.samples import single_input, some, training_split

BATCH = 64


@dataclass(frozen=True)
class Settings:
    """Those of the stage; `written` is how they are kept."""

    budget: Budget
    round_to: int
    samples: int
    target: str | None
    backend: str | None
    written: dict[str, Any]


class Factorizing:
    """One application: the settings, the model, and the samples drawn for it."""

    def __init__(self, settings: Settings, model: TorchModel, ctx: RunContext) -> None:
        single_input(model.inputs)
        self.settings, self.model, self.ctx = settings, model, ctx
        self.samples = some(training_split(ctx.data), settings.samples, ctx.seed)
        self.probe = (next(self.batches())[:1],)

    def result(self) -> TorchModel:
        """The model with some of its layers in two.

        Raises:
            UsageError: no layer would cost less, or time is asked for where there is no device.
        """
        started, dense, budget = time.monotonic(), self.model.module, self.settings.budget
        with self.ctx.progress.task("factorize", total=4) as task:
            before, weights = count_macs(dense, self.probe), parameters(dense)
            ready = splittable(dense, (next(self.batches())[:2],))
            task.advance(note="looking at layers")
            layers = observed(ready, self.batches())
            task.advance(note="decomposing")
            cost, total = self.currency(before, weights)
            options = {path: options_of(layer, cost, self.settings.round_to) for path, layer in layers.items()}
            refused = usable(ready)[1]
            self.check(options, refused)
            task.advance(note="choosing")
            if budget.kind == "latency":
                choice, told = self.in_time(ready, options, total)
            else:
                share = budget.of(total)
                choice = choose(options, total - int(total * share))
                told = [] if choice.reached else [self.missed(share, cost.unit, 1 - choice.freed / total, choice)]
            module, lines = self.fitted(ready, layers, choice)
            task.advance()
        macs, left = count_macs(module, self.probe), parameters(module)
        notes = (
            f"{before / 1e6:.1f} M -> {macs / 1e6:.1f} M multiply-accumulates ({macs / before:.1%}), "
            f"{weights:,} -> {left:,} parameters",
            *([f"{float_bytes(module) / 1e3:,.1f} kB of float32 weights"] if budget.kind == "bytes" else []),
            *told,
            *chosen(choice, options),
            *left_whole(options, refused, self.settings.round_to),
            *lines,
        )
        step = Step(
            name="factorize",
            config=self.settings.written,
            seconds=time.monotonic() - started,
            notes=notes,
            macs=macs,
            parameters=left,
        )
        return replace(self.model, module=module).after(step)

    def currency(self, macs: int, weights: int) -> tuple[Cost, int]:
        """What the budget counts, and how much of it the whole network costs; time goes by work."""
        if self.settings.budget.kind == "bytes":
            return Bytes(), float_bytes(self.model.module)
        return (Parameters(), weights) if self.settings.budget.kind == "parameters" else (Macs(), macs)

    def in_time(self, ready: nn.Module, options: Mapping[str, list[Option]], total: int) -> tuple[Choice, list[str]]:
        """What a network has in two that is measured to take no more than the budget, and lines about its time."""
        settings = self.settings
        target, whole = timed_target("factorize", settings.target, settings.backend or "", self.model, self.ctx)
        seconds, precision = float(whole["latency_s"]), str(whole["precision"])
        wanted = self.settings.budget.of(seconds * NANO)

        def measured(choice: Choice) -> Share:
            smaller = replace(self.model, module=split(ready, entries(choice, ready), lifted=is_lifted(ready)))
            seen = self.ctx.measure(smaller, target, backend=self.settings.backend or "", against=self.model)
            return float(seen["ratio"]), float(seen["low"]), float(seen["high"])

        timed, reached = within(options, total, wanted, measured)
        lines = [
            f"measured on {target.name}, {precision}: {1e3 * seconds:.3g} ms -> {timed.ratio:.3f} [{timed.low:.3f}, "
            f"{timed.high:.3f}] of it"
        ]
        return timed.choice, lines + ([] if reached else [self.missed(wanted, "time", timed.ratio, timed.choice)])

    def missed(self, share: float, unit: str, reached: float, choice: Choice) -> str:
        """A line about a budget that is out of reach, and what binds."""
        more = f" and {len(choice.binding) - 4} more" if len(choice.binding) > 4 else ""
        binds = f"; {', '.join(choice.binding[:4])}{more} can give no more" if choice.binding else ""
        return (
            f"asked for {share:.0%} of the {unit}, reached {reached:.1%}: ranks are a multiple of "
            f"{self.settings.round_to}{binds}"
        )

    def batches(self) -> Iterator[Tensor]:
        """All samples, as the model takes them."""
        for inputs, _ in self.samples.batches(BATCH):
            yield inputs.to(getattr(torch, self.model.inputs[0].dtype))

    def some_inputs(self) -> Tensor:
        """As many as go through at once without much memory."""
        most = min(256, max(16, 8_000_000 // max(1, self.probe[0].numel())))
        found: list[Tensor] = []
        for inputs in self.batches():
            found.append(inputs)
            if sum(map(len, found)) >= most:
                break
        return torch.cat(found)[:most]

    def check(self, options: Mapping[str, list[Option]], refused: Mapping[str, str]) -> None:
        """Refuse a network none of whose layers would cost less.

        Raises:
            UsageError: that.
        """
        if not any(options.values()):
            seen = "; ".join(left_whole(options, refused, self.settings.round_to)) or "it has no such layer"
            raise UsageError(
                f"No layer of the model can be factorised: {seen}. Use a smaller factorize.round_to, or 'prune'."
            )

    def fitted(self, ready: nn.Module, layers: Mapping[str, Layer], choice: Choice) -> tuple[nn.Module, list[str]]:
        """The module with its layers in two and its statistics put right, and lines about how."""
        made = entries(choice, ready)
        module = split(ready, made, lifted=is_lifted(ready)).eval()
        describe_factors(self.model.module, module, made)
        if not made:
            return module, ["nothing was factorised"]
        for path, option in choice.options.items():
            fill(module.get_submodule(path), layers[path].factors(option.scheme, option.rank))
        if has_batchnorm(module):
            reestimate_batchnorm(module, self.batches())
            return module, [f"BatchNorm statistics measured anew on {len(self.samples)} samples"]
        inputs = self.some_inputs()
        wanted = channel_moments(ready, inputs)
        wanted = {f"{path}.1" if path in made else path: moments for path, moments in wanted.items()}
        shifted = correct_biases(module, inputs, wanted)
        return module, [
            f"biases and scales of {shifted} layers corrected on {len(inputs)} samples (there is no BatchNorm)"
        ]


def entries(choice: Choice, ready: nn.Module) -> Entries:
    """The layers that become two, as they are written down."""
    lifted = is_lifted(ready)
    return {path: [option.scheme, option.rank, lifted] for path, option in choice.options.items()}


def chosen(choice: Choice, options: Mapping[str, list[Option]]) -> Iterator[str]:
    """Lines about what became two, and what did not though it could."""
    for scheme, how in (("channel", "to fewer channels and back"), ("spatial", "columns, then rows")):
        pairs = [
            f"{path} (rank {option.rank}, {option.lost:.1%} of its energy lost)"
            for path, option in choice.options.items()
            if option.scheme == scheme
        ]
        if pairs:
            yield f"{how}: {', '.join(pairs)}"
    others = [path for path, ways in options.items() if ways and path not in choice.options]
    if others:
        yield f"left whole, since others lose less: {', '.join(others)}"


def left_whole(options: Mapping[str, list[Option]], refused: Mapping[str, str], round_to: int) -> list[str]:
    """Lines about layers that can't be factorised, by reason."""
    reasons: dict[str, list[str]] = {}
    for path, ways in options.items():
        if not ways:
            reasons.setdefault(f"two layers of rank {round_to} cost no less", []).append(path)
    for path, why in refused.items():
        reasons.setdefault(why, []).append(path)
    return [f"left whole: {', '.join(paths)} ({why})" for why, paths in reasons.items()]
