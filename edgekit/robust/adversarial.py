"""Adversarial inputs, made once against the reference's torch view by the Adversarial Robustness Toolbox.

`fgsm` is the fast gradient sign method (Goodfellow et al. 2015, arXiv:1412.6572); `pgd` projected gradient steps in
the infinity norm (Madry et al. 2018, arXiv:1706.06083) that start at the sample itself, so that every run makes the
same inputs. They are made for the reference and given to all bundles: a bundle that is fooled by them where the
reference is not has lost robustness, and one that is fooled less is not thereby robust.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgekit.errors import BuildError, UsageError
from edgekit.extras import require
from edgekit.robust.settings import AdversarialSettings, read_epsilon

if TYPE_CHECKING:
    from edgekit.data import Preprocess
    from edgekit.model import OnnxModel

Floats = npt.NDArray[np.float32]
Maker = Callable[[Floats, npt.NDArray[np.int64]], Floats]
BATCH = 32
STRIDE = 2.5
"""Steps of PGD are this share of epsilon over their number, as in the code of Madry et al.: they reach the border."""


@dataclass(frozen=True)
class Attack:
    """An attack on one network. `low` and `high` bound the stored values, `preprocess` leads from them to its input."""

    model: OnnxModel
    settings: AdversarialSettings
    preprocess: Preprocess
    low: float
    high: float
    probabilities: bool = False

    def check(self) -> None:
        """Refuse what cannot be attacked, before anything long starts.

        Raises:
            UsageError: the network has not one input of floats, or cannot be differentiated.
            MissingDependencyError: the toolbox is not installed.
        """
        require("art", extra="robustness", why="making adversarial inputs")
        inputs = self.model.inputs
        if len(inputs) != 1 or inputs[0].dtype != "float32":
            seen = ", ".join(f"{spec.name!r} ({spec.dtype})" for spec in inputs)
            raise UsageError(
                f"robustness.adversarial: needs a network with one input of float32, this one takes {seen}. "
                "Leave `adversarial` out."
            )
        if not self.low < self.high:
            raise UsageError(f"robustness.adversarial: all samples are {self.low:g} throughout. Check the data.")
        self._view()

    def _view(self) -> Any:
        from edgekit.graph.normalise import normalise
        from edgekit.graph.torch_view import torch_view

        try:
            return torch_view(normalise(self.model.proto)).eval()
        except BuildError as error:
            raise UsageError(
                f"robustness.adversarial: the network cannot be differentiated: {error} Leave `adversarial` out."
            ) from error

    @property
    def batch(self) -> int:
        """How many samples are attacked at once: as many as the network is fixed to."""
        first = self.model.inputs[0].shape[0]
        return first if isinstance(first, int) else BATCH

    def maker(self, shape: Sequence[int], classes: int) -> Maker:
        """What makes adversarial forms of up to `batch` prepared samples `[n, *shape]` with labels `[n]`."""
        attack, size, fixed = (
            self._attack(tuple(shape), classes),
            self.batch,
            isinstance(self.model.inputs[0].shape[0], int),
        )

        def make(x: Floats, y: npt.NDArray[np.int64]) -> Floats:
            count = len(x)
            if fixed and count < size:  # such a network takes whole batches alone
                x = np.concatenate([x, np.repeat(x[-1:], size - count, axis=0)])
                y = np.concatenate([y, np.repeat(y[-1:], size - count)])
            return np.asarray(attack.generate(x, y), np.float32)[:count]

        return make

    def _attack(self, shape: tuple[int, ...], classes: int) -> Any:
        estimators = require("art.estimators.classification", extra="robustness", why="making adversarial inputs")
        evasion = require("art.attacks.evasion", extra="robustness", why="making adversarial inputs")
        import torch

        estimator = estimators.PyTorchClassifier(
            model=_logits(self._view(), self.probabilities),
            loss=torch.nn.CrossEntropyLoss(),
            input_shape=shape,
            nb_classes=classes,
            clip_values=self.bounds(),
            device_type="cpu",
        )
        epsilon = self.epsilon()
        common = {"norm": np.inf, "eps": epsilon, "batch_size": self.batch}
        if self.settings.attack == "fgsm":
            return evasion.FastGradientMethod(estimator, eps_step=epsilon, **common)
        steps = {"eps_step": epsilon * STRIDE / self.settings.steps, "max_iter": self.settings.steps}
        return evasion.ProjectedGradientDescent(estimator, **common, **steps, verbose=False)

    def epsilon(self) -> Floats:
        """The largest change of the network's input: one number, or one a channel as `preprocess` scales them."""
        share = read_epsilon(self.settings.epsilon) * (self.high - self.low)
        return np.abs(self._spread(np.asarray(self.preprocess.scale, np.float32))) * np.float32(share)

    def bounds(self) -> tuple[Floats, Floats]:
        """The least and the greatest input that a stored value leads to."""
        given = self.preprocess.scale, self.preprocess.offset
        scale, offset = (self._spread(np.asarray(values, np.float32)) for values in given)
        ends = self.low * scale + offset, self.high * scale + offset
        return np.minimum(*ends).astype(np.float32), np.maximum(*ends).astype(np.float32)

    def _spread(self, values: Floats) -> Floats:
        """Values of channels along the channel axis of one input."""
        axes = (self.preprocess.to or self.preprocess.layout).removeprefix("N")
        shape = [1] * (len(self.model.inputs[0].shape) - 1)
        if len(values) > 1:
            shape[axes.index("C")] = len(values)
        return values.reshape(shape)


def _logits(view: Any, probabilities: bool) -> Any:
    """The view with `[N, classes]` logits; the log of probabilities serves as these."""
    import torch

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.view = view

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found = self.view(x)
            first: torch.Tensor = (found[0] if isinstance(found, tuple | list) else found).flatten(1)
            return first.clamp_min(torch.finfo(first.dtype).tiny).log() if probabilities else first

    return Logits()
