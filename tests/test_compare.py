from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.bundle import Bundle
from edgekit.compare import compare, paired_ratio, t_quantile
from edgekit.devices import Pairs


def drawn(rng: np.random.Generator, n: int, ratio: float, noise: float = 0.03, drift: float = 0.0) -> list[tuple]:
    """ABBA rounds of a machine that slows down by `drift` from block to block and jitters by `noise`."""
    speed = np.exp(drift * np.arange(4 * n) + noise * rng.standard_t(4, size=4 * n)).reshape(n, 4)
    return [tuple(row) for row in speed * np.array([ratio, 1, 1, ratio])]


@pytest.mark.parametrize(
    ("freedom", "expected"), [(1, 12.7062), (2, 4.30265), (3, 3.18245), (9, 2.26216), (10, 2.22814), (39, 2.02269)]
)
def test_t_quantile_is_the_published_one(freedom: int, expected: float) -> None:
    assert t_quantile(0.975, freedom) == pytest.approx(expected, rel=1e-5)


def test_exact_rounds_give_the_exact_ratio() -> None:
    assert paired_ratio([(2.0, 4.0, 4.0, 2.0)] * 5) == pytest.approx((0.5, 0.5, 0.5))


def test_a_linear_drift_cancels() -> None:
    ratio, low, high = paired_ratio(drawn(np.random.default_rng(0), 10, 1.0, noise=0.0, drift=0.05))
    assert ratio == pytest.approx(1.0) and high - low < 1e-9


def test_a_round_that_was_disturbed_moves_neither_ratio_nor_interval_by_much() -> None:
    """The interval is that of Tukey and McLaughlin, here computed from its published formula."""
    logs = np.array([0.0, 0.01, -0.01, 0.02, -0.02, 0.5])
    ratio, low, high = paired_ratio([(math.exp(x), 1.0, 1.0, math.exp(x)) for x in logs])
    winsorized = np.clip(logs, -0.01, 0.02)
    reach = 3.182446 * math.sqrt(((winsorized - winsorized.mean()) ** 2).sum() / (4 * 3))
    assert math.log(ratio) == pytest.approx(0.005)
    assert (math.log(low), math.log(high)) == pytest.approx((0.005 - reach, 0.005 + reach), rel=1e-5)


def test_b_against_a_is_the_inverse() -> None:
    rounds = drawn(np.random.default_rng(1), 12, 1.1)
    ratio, low, high = paired_ratio(rounds)
    turned = paired_ratio([(b1, a1, a2, b2) for a1, b1, b2, a2 in rounds])
    assert turned == pytest.approx((1 / ratio, 1 / high, 1 / low))


def test_one_round_is_no_interval() -> None:
    with pytest.raises(ValueError, match="at least 2 rounds, got 1"):
        paired_ratio([(1.0, 1.0, 1.0, 1.0)])


@pytest.mark.parametrize("truth", [1.0, 0.4])
@pytest.mark.parametrize("n", [4, 6, 12, 24, 40])
def test_the_interval_covers_the_truth(n: int, truth: float) -> None:
    """Noise with heavy tails (t, 4 degrees): 95 % within what 1,000 draws can tell (three standard errors)."""
    rng = np.random.default_rng(7)
    covered = 0
    for _ in range(1000):
        _, low, high = paired_ratio(drawn(rng, n, truth))
        covered += low <= truth <= high
    assert 930 <= covered <= 980


class Simulated:
    """A device whose blocks are drawn."""

    name = "simulated"

    def __init__(self, ratio: float, seed: int = 0) -> None:
        self.rng, self.ratio, self.asked = np.random.default_rng(seed), ratio, []

    def pairs(self, a: Bundle, b: Bundle, *, rounds: int, threads: int = 1, inputs: Path | None = None) -> Pairs:
        self.asked.append(rounds)
        return Pairs(tuple(drawn(self.rng, rounds, self.ratio)), ())


def compared(device: Any, limits: Sequence[float] = (1.0,)) -> Any:
    bundle: Any = None
    return compare(device, bundle, bundle, limits=limits)


def test_a_clear_difference_ends_at_the_first_look() -> None:
    device = Simulated(0.5)
    seen = compared(device)
    assert device.asked == [6] and seen.high < 1.0 and len(seen.rounds) == 6
    assert seen.ratio == pytest.approx(0.5, rel=0.05)


def test_no_difference_takes_every_look() -> None:
    device = Simulated(1.0)
    seen = compared(device)
    assert device.asked == [6, 6, 12] and seen.low < 1.0 < seen.high


def test_a_higher_confidence_is_corrected_for_every_look_too() -> None:
    bundle: Any = None
    seen = compare(Simulated(1.0), bundle, bundle, confidence=0.99)
    assert seen.confidence == pytest.approx(1 - 0.01 / 3)
    assert (seen.ratio, seen.low, seen.high) == pytest.approx(paired_ratio(seen.rounds, confidence=1 - 0.01 / 3))


def test_looking_three_times_keeps_the_promise() -> None:
    """A against A: at most 5 % of 400 comparisons may see a difference (plus three standard errors)."""
    wrong = sum(not (s.low <= 1.0 <= s.high) for s in (compared(Simulated(1.0, seed)) for seed in range(400)))
    assert wrong / 400 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400)
