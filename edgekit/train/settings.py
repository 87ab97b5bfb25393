"""How to train: the blocks that a recipe writes, and everything that a training needs in one value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from edgekit.robust.settings import AdversarialSettings

Augment = Literal["none", "shift", "flip_shift"]
"""`shift`: each image moves by up to 1/14 of its extent (2 of 28 pixels), its border repeated; safe for most images.
`flip_shift` also mirrors half of them: right for photographs and clothes, wrong for digits and letters."""
Precision = Literal["fp32", "bf16", "fp16"]
Objective = Literal["classes", "outputs"]


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Matching(_Value):
    """What the student takes from the teacher: how logits are compared, and weights of what is compared beside them.

    A weight of 0 leaves a term out. See `edgekit.train.losses` and `edgekit.train.taps`.
    """

    logits: Literal["kl", "dkd"] = "kl"
    dkd_target: float = Field(default=1.0, ge=0)
    dkd_others: float = Field(default=8.0, ge=0)
    features: float = Field(default=0.0, ge=0)
    attention: float = Field(default=0.0, ge=0)
    relations: float = Field(default=0.0, ge=0)

    @property
    def inside(self) -> bool:
        """Whether anything but the outputs is compared."""
        return bool(self.features or self.attention)


class Regularizing(_Value):
    """What keeps a network from learning its samples by heart; 0 leaves each out."""

    bootstrap: float = Field(default=0.0, ge=0, lt=1)
    mixup: float = Field(default=0.0, ge=0)
    cutmix: float = Field(default=0.0, ge=0)
    dropout: float | None = Field(default=None, ge=0, lt=1)
    l1: float = Field(default=0.0, ge=0)
    clip: float = Field(default=5.0, gt=0)
    ema: float = Field(default=0.0, ge=0, lt=1)


class AdversarialTraining(AdversarialSettings):
    """Samples that are changed against the student while it learns: see `edgekit.train.adversarial`."""

    steps: int = Field(default=3, ge=1, le=100)
    share: float = Field(default=0.5, gt=0, le=1)


MATCHING, REGULARIZING = Matching(), Regularizing()


@dataclass(frozen=True)
class Settings:
    """How to train. `learning_rate` is the peak of a linear warm-up and a cosine down to zero.

    A `batch_size` or `learning_rate` of 0 is to be found. `time_budget_s` takes the place of `epochs` and `patience`.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    temperature: float
    alpha: float
    label_smoothing: float
    augment: Augment
    patience: int
    precision: Precision
    seed: int
    objective: Objective = "classes"
    """What the network gives: the logits of classes, or outputs of any kind."""
    match: Matching = MATCHING
    regularize: Regularizing = REGULARIZING
    adversarial: AdversarialTraining | None = None
    accumulate: int = 1
    """Every batch goes through in so many parts, of which each has BatchNorm statistics of its own."""
    save_every_s: float = 300.0
    time_budget_s: float | None = None
    device: Literal["cpu", "cuda"] = "cpu"
    keep_zeros: bool = False
    """Weights that are zero at the start stay so: the student is sparse."""
    highest_rate: float = 1.0
    """The highest learning rate that is tried where one is to be found."""

    @property
    def score(self) -> str:
        """What judges an epoch beside its loss: a share of hits, or a signal-to-noise ratio in dB."""
        return "accuracy" if self.objective == "classes" else "snr_db"
