"""`prune`: remove whole channels until the network fits a budget."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from edgekit.context import RunContext
from edgekit.errors import UsageError
from edgekit.extras import require
from edgekit.model import Model, TorchModel
from edgekit.prune.budget import UNITS, Budget, read_budget

if TYPE_CHECKING:
    from edgekit.prune.planned import Planned
    from edgekit.prune.pruning import Pruning

Importance = Literal["outputs", "taylor", "fisher", "activation", "l1", "l2", "geometric_median", "bn_scale", "random"]
Amount = float | str
ROUND_TO = 8


class Prune(BaseModel):
    """Remove whole channels until the network fits a budget: time on a target, work, weights, or memory.

    Groups of channels that must go together are found on the graph that `torch.export` sees, by following what every
    axis is made of (the idea of groups is that of Fang et al. 2023, arXiv:2301.12900), and proven on the model before
    it is cut: heads of attention, what a head holds, widths of MLPs, groups of grouped convolutions and the channels
    of residual streams are groups like any other. What cannot be followed stays whole, with the reason. Afterwards
    BatchNorm statistics are measured anew, or biases corrected where the model has no BatchNorm. Accuracy comes back in
    `distill`.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        json_schema_extra={"oneOf": [{"required": [name]} for name in UNITS]},
    )
    kind: ClassVar[str] = "prune"
    trains: ClassVar[bool] = True

    macs: Amount | None = Field(
        None,
        description="multiply-accumulates that remain: a share in (0, 1], or their number",
        examples=["0.5 to keep half of the multiply-accumulates"],
    )
    parameters: Amount | None = Field(None, description="weights that remain, instead: a share, or their number")
    bytes: Amount | None = Field(
        None, description="bytes of a float32 file that remain, instead: a share, or a size such as 500 kB"
    )
    memory: Amount | None = Field(
        None, description="peak memory of activations that remains, instead: a share, or a size such as 200 kB"
    )
    latency: Amount | None = Field(
        None, description="time on a target's device that remains, instead: a share, or a time such as 5 ms"
    )
    target: str | None = Field(None, description="of latency: on which target of the recipe; the first with a device")
    backend: str | None = Field(None, description="of latency: with which of its backends; the first")
    importance: Importance = Field(
        "outputs",
        description="how channels are ranked; without labels taylor and fisher go by the network's own choices",
    )
    scope: Literal["global", "local"] = Field(
        "global", description="channels of all groups compete, or every group gives the same share"
    )
    iterations: int = Field(1, ge=1, le=100, description="in so many steps, ranking what is left anew each time")
    round_to: int | None = Field(
        None,
        ge=1,
        description=f"kept channels are a multiple of this: {ROUND_TO}, and with latency the step that is found",
    )
    keep_at_least: float = Field(0.125, ge=0, le=1, description="share of its channels that every group keeps")
    samples: int = Field(1024, ge=1, description="training samples that rank channels and measure statistics")

    @field_validator(*UNITS)
    @classmethod
    def _readable(cls, value: Amount | None, info: ValidationInfo) -> Amount | None:
        if value is not None:
            read_budget(str(info.field_name), value)
        return value

    @model_validator(mode="after")
    def _one_budget(self) -> Prune:
        given = [name for name in UNITS if getattr(self, name) is not None]
        if len(given) != 1:
            seen = " and ".join(given) or "none"
            raise ValueError(f"prune needs one budget of {', '.join(UNITS)}, got {seen}. Use macs: 0.5 to keep half")
        if given != ["latency"] and (self.target or self.backend):
            raise ValueError("target and backend belong to the budget 'latency'")
        return self

    @property
    def budget(self) -> Budget:
        """The one that is given."""
        return next(read_budget(name, value) for name in UNITS if (value := getattr(self, name)) is not None)

    def apply(self, model: Model, ctx: RunContext) -> TorchModel:
        """A smaller copy of `model`.

        Raises:
            UsageError: the model is a graph already, no channel of it can be removed, or latency is asked for and there
                is no device.
        """
        return self._run(model, ctx).result()

    def plan(self, model: Model, ctx: RunContext) -> Planned:
        """What would go, and what that gives and costs. Errors as for `apply`."""
        return self._run(model, ctx).planned()

    def _run(self, model: Model, ctx: RunContext) -> Pruning:
        if not isinstance(model, TorchModel):
            raise UsageError("'prune' cuts a trainable module: put it before 'quantize' in the recipe.")
        require("torch", extra="torch", why="pruning")
        from edgekit.prune.pruning import Pruning, Settings

        settings = Settings(
            budget=self.budget,
            importance=self.importance,
            scope=self.scope,
            iterations=self.iterations,
            round_to=self.round_to,
            keep_at_least=self.keep_at_least,
            samples=self.samples,
            target=self.target,
            backend=self.backend,
            written=self.model_dump(),
        )
        return Pruning(settings, model, ctx)
