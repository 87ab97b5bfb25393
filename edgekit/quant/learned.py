"""Learned rounding, layer by layer: AdaRound (Nagel et al. 2020, arXiv:2004.10568).

Every weight is rounded down or up, and which is learned: a rectified sigmoid of one variable a weight lies between the
two, a regulariser drives it to either end. The error at the operator's output, over what calibration saw, is a
quadratic form in the moments of its input, so that learning needs no samples and minutes on a CPU at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgekit.context import Progress, Silent
from edgekit.extras import require
from edgekit.quant.layers import Layer
from edgekit.quant.rounding import Moments, better, by_layer, compensate
from edgekit.quant.spec import QuantSpec, Variant

if TYPE_CHECKING:
    import torch

Floats = npt.NDArray[np.float32]

STEPS = 1000
RATE = 0.02
WARM_UP = 0.2
"""The share of the steps before the regulariser sets in."""

WEIGHT = 1.0
"""Of the regulariser, against an error that is 1 at nearest rounding."""

SHARPNESS = (20.0, 2.0)
"""The regulariser's exponent at first and at last."""

UNSURE = 0.3
"""How far from its end a weight's sigmoid begins."""

STRETCH = (-0.1, 1.1)
"""The sigmoid is stretched to these ends and clipped, so that it reaches 0 and 1."""


def learned(
    chosen: Sequence[Layer],
    spec: QuantSpec,
    variant: Variant,
    moments: Moments,
    *,
    steps: int = STEPS,
    progress: Progress | None = None,
) -> dict[str, Floats]:
    """Weights on the grid of `variant`, by initializer: at no output worse than nearest or compensated rounding.

    Raises:
        MissingDependencyError: torch is not installed.
    """
    require("torch", extra="torch", why="learned rounding")
    with (progress or Silent()).task("learning to round", len(chosen)) as task:

        def rounded(weight: Floats, moment: Floats, limit: int) -> Floats:
            task.advance()
            return best(weight, moment, limit, steps)

        return by_layer(chosen, spec, variant, moments, rounded)


def best(weight: Floats, moment: Floats, limit: int, steps: int = STEPS) -> Floats:
    """Whichever errs least at each output: nearest, compensated, or learned rounding."""
    start = compensate(weight, moment, limit)
    return better(weight, start, np.where(weight == 0, 0, learn(weight, moment, limit, start, steps)), moment)


def learn(weight: Floats, moment: Floats, limit: int, start: Floats, steps: int = STEPS) -> Floats:
    """Integers near `weight` `[groups, outputs, k]`, which is in steps; `moment` is `[groups, k, k]`.

    Learning begins at `start`, near integers of which some may lie more than a step away: those may move by one.
    """
    import torch

    exact, gram = torch.from_numpy(np.ascontiguousarray(weight)), torch.from_numpy(np.ascontiguousarray(moment))
    first = torch.from_numpy(np.ascontiguousarray(start))
    floor = torch.where(first > exact, first - 1, first)
    nearest = torch.clamp(exact.round(), -limit, limit)
    worst = _error(nearest - exact, gram).clamp_min(1e-12)
    low, high = STRETCH
    part = torch.where(first > floor, 1 - UNSURE, UNSURE)
    variable = torch.logit((part - low) / (high - low)).requires_grad_()
    optimizer = torch.optim.Adam([variable], RATE)
    warm = int(WARM_UP * steps)
    for step in range(steps):
        up = _rectified(variable)
        loss = (_error(torch.clamp(floor + up, -limit, limit) - exact, gram) / worst).mean()
        if step >= warm:
            done = (step - warm) / max(steps - warm, 1)
            power = SHARPNESS[1] + (SHARPNESS[0] - SHARPNESS[1]) * 0.5 * (1 + np.cos(np.pi * done))
            loss = loss + WEIGHT * (1 - (2 * up - 1).abs().pow(power)).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.no_grad():
        result: Any = torch.clamp(floor + (_rectified(variable) >= 0.5), -limit, limit).numpy()
    return np.asarray(result, np.float32)


def _rectified(variable: torch.Tensor) -> torch.Tensor:
    low, high = STRETCH
    return (variable.sigmoid() * (high - low) + low).clamp(0, 1)


def _error(change: torch.Tensor, gram: torch.Tensor) -> torch.Tensor:
    return ((change @ gram) * change).sum(dim=2)
