"""The `robustness` block of a recipe: which changed forms of the samples every bundle is scored on."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from edgekit.errors import UsageError
from edgekit.units import parse_percent

Corruption = Literal[
    "gaussian_noise", "blur", "brightness", "contrast", "jpeg", "noise", "gain", "dropout", "shift", "missing"
]
Modality = Literal["image", "signal", "features"]
OF: dict[Modality, tuple[Corruption, ...]] = {
    "image": ("gaussian_noise", "blur", "brightness", "contrast", "jpeg"),
    "signal": ("noise", "gain", "dropout", "shift"),
    "features": ("noise", "missing"),
}
"""The corruptions of each kind of sample, mildest first name to last as they are reported."""


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def read_epsilon(written: float | str) -> float:
    """The largest change of a value, as a share of the range of values: `2/255`, `1%` or a number.

    >>> read_epsilon("2/255") == 2 / 255
    True

    Raises:
        UsageError: it is none of these, or not above 0 and at most 0.5.
    """
    fraction = re.fullmatch(r"\s*(\d{1,9}(?:\.\d{1,9})?)\s*/\s*(\d{1,9})\s*", str(written))
    above, below = (float(fraction[1]), int(fraction[2])) if fraction else (parse_percent(written), 1)
    share = above / below if below else 0.0
    if not 0 < share <= 0.5:
        raise UsageError(f"must be above 0 and at most 0.5 of the range of values, got {written!r}. Use 2/255.")
    return share


def _epsilon(written: float | str) -> float | str:
    try:
        read_epsilon(written)
    except UsageError as error:
        raise ValueError(str(error)) from None
    return written


def _distinct(values: tuple[object, ...]) -> tuple[object, ...]:
    if len(set(values)) != len(values):
        raise ValueError(f"names something twice: {', '.join(map(str, values))}. Once is enough.")
    return values


class AdversarialSettings(_Value):
    """Inputs that are made against the reference: see `edgekit.robust.adversarial`."""

    attack: Literal["pgd", "fgsm"] = "pgd"
    epsilon: Annotated[float | str, AfterValidator(_epsilon)] = "2/255"
    steps: int = Field(default=5, ge=1, le=100)


class RobustnessSettings(_Value):
    """What is measured beside the plain accuracy. `corruptions` of the samples' modality, each at every severity."""

    corruptions: Literal["all"] | Annotated[tuple[Corruption, ...], AfterValidator(_distinct)] = "all"
    severities: Annotated[
        tuple[Annotated[int, Field(ge=1, le=5)], ...], Field(min_length=1), AfterValidator(_distinct)
    ] = (1, 3, 5)
    adversarial: AdversarialSettings | None = None
    samples: int = Field(default=1000, ge=1, le=1_000_000)
    modality: Literal["auto", "image", "signal", "features"] = "auto"

    @model_validator(mode="after")
    def _asks_for_something(self) -> Self:
        if not self.corruptions and self.adversarial is None:
            raise ValueError("names no corruption and no adversarial attack. Use `corruptions: all`, or leave it out.")
        return self
