"""The learning rate over a training, and how long that is."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field

WARM_UP = 0.1
"""Share of all steps during which the learning rate rises."""
SPARE = 0.97
"""So much of a time budget is planned for; the rest is for what goes slower than before."""
WINDOW = 32
"""So many losses tell what is usual."""
FAR = 10.0
"""A loss of so many times the usual one is far off, where it is also above the largest loss of the first steps."""
PATIENCE = 3
"""So many losses far off in a row are a divergence."""


@dataclass
class Schedule:
    """A linear warm-up, then a cosine to zero (Loshchilov & Hutter 2016, arXiv:1608.03983), over `total` steps.

    A plan that is made anew goes on from where the course stands: at `since` steps it had come to `reached`.
    """

    peak: float
    total: int
    since: int = 0
    reached: float = 0.0

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        if self.since:
            return self.peak * _course(self.share(step))
        warm = max(int(self.total * WARM_UP), 1)
        if step < warm:
            return self.peak * ((step + 1) / warm)
        return self.peak * ((1 + math.cos(math.pi * (step - warm) / max(self.total - warm, 1))) / 2)

    def share(self, step: int) -> float:
        """How far the course has come before a step, 0 to 1."""
        return self.reached + (1 - self.reached) * (step - self.since) / max(self.total - self.since, 1)

    def replan(self, step: int, total: int) -> None:
        """Reach the end at `total` steps instead, without a jump at `step`."""
        if step:
            self.reached, self.since = self.share(step), step
        self.total = max(total, step)


def _course(share: float) -> float:
    if share < WARM_UP:
        return share / WARM_UP
    return (1 + math.cos(math.pi * (share - WARM_UP) / (1 - WARM_UP))) / 2


def steps_within(seconds: float, step_s: float, epoch_steps: int, evaluation_s: float) -> int:
    """How many steps fit, with an evaluation after every `epoch_steps` of them and one at the end."""
    left = seconds * SPARE - evaluation_s
    return max(int(left / (step_s + evaluation_s / epoch_steps)), 0)


@dataclass
class Watch:
    """Tells a training that runs away from one that only has a hard batch."""

    recent: list[float] = field(default_factory=list)
    first: float = -math.inf
    far: int = 0

    def diverged(self, loss: float) -> bool:
        """Whether this loss, the next one, is no number, or the last of several far above the median of the recent."""
        if not math.isfinite(loss):
            return True
        if len(self.recent) < WINDOW:
            self.first = max(self.first, loss)
        elif loss > FAR * statistics.median(self.recent) and loss > self.first:
            self.far += 1
            return self.far >= PATIENCE
        self.far = 0
        self.recent = [*self.recent[-WINDOW + 1 :], loss]
        return False
