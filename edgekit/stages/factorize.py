"""`factorize`: make two thin layers of one, until the network fits a budget."""

from __future__ import annotations

from typing import ClassVar

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from edgekit.context import RunContext
from edgekit.errors import UsageError
from edgekit.extras import require
from edgekit.model import Model, TorchModel
from edgekit.prune.budget import Budget, read_budget

Amount = float | str
BUDGETS = ("macs", "parameters", "bytes", "latency")


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

    macs: Amount | None = Field(
        None,
        description="multiply-accumulates that remain: a share in (0, 1], or their number",
        examples=["0.75 to keep three quarters of the multiply-accumulates"],
    )
    parameters: Amount | None = Field(None, description="weights that remain, instead: a share, or their number")
    bytes: Amount | None = Field(
        None, description="bytes of a float32 file that remain, instead: a share, or a size such as 500 kB"
    )
    latency: Amount | None = Field(
        None, description="time on a target's device that remains, instead: a share, or a time such as 5 ms"
    )
    target: str | None = Field(None, description="of latency: on which target of the recipe; the first with a device")
    backend: str | None = Field(None, description="of latency: with which of its backends; the first")
    round_to: int = Field(8, ge=1, description="ranks are a multiple of this: latency is a staircase")
    samples: int = Field(1024, ge=1, description="training samples that the layers are judged and fitted by")

    @field_validator(*BUDGETS)
    @classmethod
    def _readable(cls, value: Amount | None, info: ValidationInfo) -> Amount | None:
        if value is not None:
            read_budget(str(info.field_name), value)
        return value

    @model_validator(mode="after")
    def _one_budget(self) -> Factorize:
        given = [name for name in BUDGETS if getattr(self, name) is not None]
        if len(given) != 1:
            seen = " and ".join(given) or "none"
            raise ValueError(
                f"factorize needs one budget of {', '.join(BUDGETS)}, got {seen}. Use macs: 0.75 to keep three quarters"
            )
        if given != ["latency"] and (self.target or self.backend):
            raise ValueError("target and backend belong to the budget 'latency'")
        return self

    @property
    def budget(self) -> Budget:
        """The one that is given."""
        return next(read_budget(name, value) for name in BUDGETS if (value := getattr(self, name)) is not None)

    def apply(self, model: Model, ctx: RunContext) -> TorchModel:
        """A copy of `model` with some of its layers in two.

        Raises:
            UsageError: the model is a graph already, no layer of it would cost less in two, or latency is asked for and
                there is no device.
        """
        if not isinstance(model, TorchModel):
            raise UsageError("'factorize' changes a trainable module: put it before 'quantize' in the recipe.")
        require("torch", extra="torch", why="factorising layers")
        from edgekit.prune.factorizing import Factorizing, Settings

        settings = Settings(
            budget=self.budget,
            round_to=self.round_to,
            samples=self.samples,
            target=self.target,
            backend=self.backend,
            written=self.model_dump(),
        )
        return Factorizing(settings, model, ctx).result()
