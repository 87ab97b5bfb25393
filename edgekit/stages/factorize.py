"""`factorize`: make two thin layers of one, until the network fits a budget."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, ClassVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from edgekit.context import RunContext
from edgekit.errors import UsageError
from edgekit.extras import require
from edgekit.model import Model, Step, TorchModel

if TYPE_CHECKING:
    from torch import Tensor, nn

    from edgekit.prune.factored import Layer
    from edgekit.prune.ranks import Choice, Cost, Option
    from edgekit.train.samples import Samples

BATCH = 64
BUDGETS = ("macs", "parameters")


class Factorize(BaseModel):
    """Low-rank factorisation of dense layers and convolutions by what they give on training samples, without labels.

    A dense layer becomes two; a convolution its kernel to fewer channels and a 1 x 1 convolution, or its columns and
    its rows, whichever keeps more at the same cost (`edgekit.prune.lowrank` has the papers). Which layers, and of which
    rank, is chosen over the whole network by the share of a layer's energy that is lost for what is freed. Accuracy
    comes back in `distill`.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        json_schema_extra={"oneOf": [{"required": [name]} for name in BUDGETS]},
    )
    kind: ClassVar[str] = "factorize"
    trains: ClassVar[bool] = True

    macs: float | None = Field(
        None,
        gt=0,
        le=1,
        description="share of the multiply-accumulates that remains, in (0, 1]",
        examples=["0.75 to keep three quarters of the multiply-accumulates"],
    )
    parameters: float | None = Field(None, gt=0, le=1, description="share of the weights that remains, instead of macs")
    round_to: int = Field(8, ge=1, description="ranks are a multiple of this: latency is a staircase")
    samples: int = Field(1024, ge=1, description="training samples that the layers are judged and fitted by")

    @model_validator(mode="after")
    def _one_budget(self) -> Factorize:
        given = [name for name in BUDGETS if getattr(self, name) is not None]
        if len(given) != 1:
            seen = " and ".join(given) or "none"
            raise ValueError(
                f"factorize needs one budget of {', '.join(BUDGETS)}, got {seen}. Use macs: 0.75 to keep three quarters"
            )
        return self

    @property
    def budget(self) -> tuple[str, float]:
        """Which of the budgets is given, and the share that remains."""
        return next((name, share) for name in BUDGETS if (share := getattr(self, name)) is not None)

    def apply(self, model: Model, ctx: RunContext) -> TorchModel:
        """A copy of `model` with some of its layers in two.

        Raises:
            UsageError: the model is a graph already, or no layer of it would cost less in two.
        """
        if not isinstance(model, TorchModel):
            raise UsageError("'factorize' changes a trainable module: put it before 'quantize' in the recipe.")
        require("torch", extra="torch", why="factorising layers")
        return _Run(self, model, ctx).result()


class _Run:
    """One application: the settings, the model, and the samples drawn for it."""

    def __init__(self, stage: Factorize, model: TorchModel, ctx: RunContext) -> None:
        from edgekit.train.samples import single_input, some, training_split

        single_input(model.inputs)
        self.stage, self.model, self.ctx = stage, model, ctx
        self.samples: Samples = some(training_split(ctx.data), stage.samples, ctx.seed)
        self.probe = (next(self.batches())[:1],)

    def result(self) -> TorchModel:
        from dataclasses import replace

        from edgekit.prune.cost import count_macs
        from edgekit.prune.factored import observed, splittable, usable
        from edgekit.prune.ranks import Macs, Parameters, choose, options_of
        from edgekit.prune.shapes import parameters

        started, stage, dense = time.monotonic(), self.stage, self.model.module
        with self.ctx.progress.task("factorize", total=4) as task:
            before, weights = count_macs(dense, self.probe), parameters(dense)
            ready = splittable(dense, (next(self.batches())[:2],))
            task.advance(note="looking at layers")
            layers = observed(ready, self.batches())
            task.advance(note="decomposing")
            cost: Cost = Macs() if stage.macs else Parameters()
            total = before if stage.macs else weights
            options = {path: options_of(layer, cost, stage.round_to) for path, layer in layers.items()}
            refused = usable(ready)[1]
            self.check(options, refused)
            choice = choose(options, total - int(total * stage.budget[1]))
            task.advance(note="fitting")
            module, lines = self.fitted(ready, layers, choice)
            task.advance()
        macs, left = count_macs(module, self.probe), parameters(module)
        notes = (
            f"{before / 1e6:.1f} M -> {macs / 1e6:.1f} M multiply-accumulates ({macs / before:.1%}), "
            f"{weights:,} -> {left:,} parameters",
            *self.told(choice, options, cost, total),
            *left_whole(options, refused, stage.round_to),
            *lines,
        )
        step = Step(
            name=stage.kind,
            config=stage.model_dump(),
            seconds=time.monotonic() - started,
            notes=notes,
            macs=macs,
            parameters=left,
        )
        return replace(self.model, module=module).after(step)

    def batches(self) -> Iterator[Tensor]:
        """All samples, as the model takes them."""
        import torch

        for inputs, _ in self.samples.batches(BATCH):
            yield inputs.to(getattr(torch, self.model.inputs[0].dtype))

    def some_inputs(self) -> Tensor:
        """As many as go through at once without much memory."""
        import torch

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
            seen = "; ".join(left_whole(options, refused, self.stage.round_to)) or "it has no such layer"
            raise UsageError(
                f"No layer of the model can be factorised: {seen}. Use a smaller factorize.round_to, or 'prune'."
            )

    def fitted(self, ready: nn.Module, layers: Mapping[str, Layer], choice: Choice) -> tuple[nn.Module, list[str]]:
        """The module with its layers in two and its statistics put right, and lines about how."""
        from edgekit.graph.lifted import is_lifted
        from edgekit.prune.correct import channel_moments, correct_biases, reestimate_batchnorm
        from edgekit.prune.factored import fill, split
        from edgekit.prune.rebuild import describe_factors
        from edgekit.prune.shapes import has_batchnorm

        lifted = is_lifted(ready)
        entries = {path: [option.scheme, option.rank, lifted] for path, option in choice.options.items()}
        module = split(ready, entries, lifted=lifted)
        describe_factors(self.model.module, module, entries)
        module.eval()
        if not entries:
            return module, ["nothing was factorised"]
        for path, option in choice.options.items():
            fill(module.get_submodule(path), layers[path].factors(option.scheme, option.rank))
        if has_batchnorm(module):
            reestimate_batchnorm(module, self.batches())
            return module, [f"BatchNorm statistics measured anew on {len(self.samples)} samples"]
        inputs = self.some_inputs()
        wanted = channel_moments(ready, inputs)
        wanted = {f"{path}.1" if path in entries else path: moments for path, moments in wanted.items()}
        shifted = correct_biases(module, inputs, wanted)
        return module, [
            f"biases and scales of {shifted} layers corrected on {len(inputs)} samples (there is no BatchNorm)"
        ]

    def told(self, choice: Choice, options: Mapping[str, list[Option]], cost: Cost, total: int) -> Iterator[str]:
        """Lines about what was chosen."""
        if not choice.reached:
            most = ", ".join(choice.binding[:4]) + (
                f" and {len(choice.binding) - 4} more" if len(choice.binding) > 4 else ""
            )
            yield (
                f"asked for {self.stage.budget[1]:.0%} of the {cost.unit}, reached {1 - choice.freed / total:.1%}: "
                f"ranks are a multiple of {self.stage.round_to}; {most} can give no more"
            )
        for scheme, how in (("channel", "to fewer channels and back"), ("spatial", "columns, then rows")):
            some = [
                f"{path} (rank {option.rank}, {option.lost:.1%} of its energy lost)"
                for path, option in choice.options.items()
                if option.scheme == scheme
            ]
            if some:
                yield f"{how}: {', '.join(some)}"
        others = [path for path, some in options.items() if some and path not in choice.options]
        if others:
            yield f"left whole, since others lose less: {', '.join(others)}"


def left_whole(options: Mapping[str, list[Option]], refused: Mapping[str, str], round_to: int) -> list[str]:
    """Lines about layers that can't be factorised, by reason."""
    reasons: dict[str, list[str]] = {}
    for path, some in options.items():
        if not some:
            reasons.setdefault(f"two layers of rank {round_to} cost no less", []).append(path)
    for path, why in refused.items():
        reasons.setdefault(why, []).append(path)
    return [f"left whole: {', '.join(paths)} ({why})" for why, paths in reasons.items()]
