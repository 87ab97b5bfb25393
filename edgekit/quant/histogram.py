"""Histograms that grow with what they see, and the ranges that calibrators read off them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

BINS = 4096
LEVELS = 255
"""Steps of an 8-bit grid."""

NARROWEST = 1e-36
"""No bin is narrower, so that one over its width is still a float32."""

PERCENTILE = 99.99

FAR = 8.0
"""A clipped value's distance to the range counts up to so many times the tensor's usual magnitude."""

Floats = npt.NDArray[np.float64]
Interval = tuple[float, float]


@dataclass
class Histogram:
    """Counts of a tensor's values over `[start, start + BINS * width]`, and its exact extremes `[low, high]`.

    The first batch sets the bins. A later one that reaches beyond them doubles their width, pair by pair, as often as
    it takes: no value is read twice, and memory stays the same. `zeros` counts values that are exactly zero, which
    every grid holds without error.
    """

    low: float = float("inf")
    high: float = float("-inf")
    start: float = 0.0
    width: float = 0.0
    zeros: float = 0.0
    counts: Floats = field(default_factory=lambda: np.zeros(BINS))

    def add(self, values: npt.NDArray[np.float32], low: float, high: float, share: float = 1.0) -> None:
        """Count `values`, which are `share` of a batch's, and the batch's exact extremes, each as that much of one."""
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._cover()
        self.zeros += float(values.size - np.count_nonzero(values))
        if self.width == 0.0:
            self.counts[0] += values.size
            return
        self.counts += np.bincount(self._places(values), minlength=BINS)
        if share < 1.0:
            for end in (low, high):
                self.counts[min(BINS - 1, max(0, int((end - self.start) / self.width)))] += share

    def _places(self, values: npt.NDArray[np.float32]) -> npt.NDArray[np.int32]:
        place = (values - np.float32(self.start)) * np.float32(1 / self.width)
        places: npt.NDArray[np.int32] = np.minimum(np.maximum(place, 0), BINS - 1).astype(np.int32)
        return places

    def _cover(self) -> None:
        if self.width == 0.0:
            seen = self.counts[0]
            span = self.high - self.low
            if span <= 0.0:
                self.start = self.low
                return
            before, self.start, self.width = self.start, self.low, max(span / BINS, NARROWEST)
            if seen:  # so far every value was the same
                self.counts[0] = 0.0
                self.counts[min(BINS - 1, max(0, int((before - self.start) / self.width)))] = seen
            return
        while self.high > self.start + BINS * self.width * (1 + 1e-9):
            self._widen(right=True)
        while self.low < self.start - BINS * self.width * 1e-9:
            self._widen(right=False)

    def _widen(self, *, right: bool) -> None:
        pairs = self.counts.reshape(-1, 2).sum(axis=1)
        empty = np.zeros(BINS // 2)
        self.counts = np.concatenate([pairs, empty] if right else [empty, pairs])
        if not right:
            self.start -= BINS * self.width
        self.width *= 2

    @property
    def total(self) -> float:
        """How many values were counted."""
        return float(self.counts.sum())

    @property
    def middles(self) -> Floats:
        """The value that stands for each bin: its middle, held inside the extremes."""
        middle = self.start + (np.arange(BINS) + 0.5) * self.width
        return np.clip(middle, self.low, self.high)


def minmax(histogram: Histogram) -> Interval:
    """Everything that was seen."""
    return histogram.low, histogram.high


def percentile(histogram: Histogram, share: float = PERCENTILE) -> Interval:
    """The interval that leaves out `100 - share` per cent of the values on either side, to a bin's width."""
    cumulated = np.cumsum(histogram.counts)
    if not cumulated[-1] or histogram.width == 0.0:
        return minmax(histogram)
    tail = cumulated[-1] * (100 - share) / 100
    first = int(np.searchsorted(cumulated, tail, side="right"))
    last = int(np.searchsorted(cumulated, cumulated[-1] - tail, side="left"))
    low, high = histogram.start + first * histogram.width, histogram.start + (last + 1) * histogram.width
    return max(low, histogram.low), min(high, histogram.high)


def mse(histogram: Histogram, candidates: int = 48) -> Interval:
    """The interval of least expected squared error (Nagel et al. 2021, arXiv:2106.08295, section 3.1).

    Both ends are searched over `candidates` shares of the extremes; a range always holds zero.
    """
    low, high = min(histogram.low, 0.0), max(histogram.high, 0.0)
    if histogram.width == 0.0 or not histogram.total:
        return minmax(histogram)
    shares = np.linspace(0.2, 1.0, candidates)
    lows = low * shares if low < 0 else np.zeros(1)
    highs = high * shares if high > 0 else np.zeros(1)
    error = squared_error(histogram, lows[:, None], highs[None, :])
    i, j = np.unravel_index(int(np.argmin(error)), error.shape)
    return float(lows[i]), float(highs[j])


def squared_error(histogram: Histogram, low: Floats | float, high: Floats | float) -> Floats:
    """The mean squared error of an 8-bit grid over `[low, high]` (arrays broadcast), by the histogram.

    A value inside costs `step^2 / 12` on average, one outside the square of its distance to the end. That distance
    counts at most `FAR` times as much as what is usual for the tensor: a few wild values of a few samples are lost
    with those samples, and must not cost all others their precision.
    """
    low, high = np.asarray(low, np.float64), np.asarray(high, np.float64)
    values = histogram.middles
    sums = [np.concatenate([[0.0], np.cumsum(histogram.counts * values**power)]) for power in range(3)]
    far = FAR * _usual(histogram)
    below, above = np.searchsorted(values, low, side="left"), np.searchsorted(values, high, side="right")
    lowest, highest = np.searchsorted(values, low - far, side="left"), np.searchsorted(values, high + far, side="right")
    left = [total[below] - total[lowest] for total in sums]
    right = [total[highest] - total[above] for total in sums]
    beyond = sums[0][lowest] + sums[0][-1] - sums[0][highest]
    clipped = left[2] - 2 * low * left[1] + low**2 * left[0] + right[2] - 2 * high * right[1] + high**2 * right[0]
    inside = np.maximum(sums[0][above] - sums[0][below] - histogram.zeros, 0.0)
    step = (np.maximum(high, 0.0) - np.minimum(low, 0.0)) / LEVELS
    error: Floats = (clipped + beyond * far**2 + inside * step**2 / 12) / max(sums[0][-1], 1e-9)
    return error


def _usual(histogram: Histogram) -> float:
    """The root mean square of the values but for a thousandth on either side."""
    low, high = percentile(histogram, 99.9)
    values = histogram.middles
    counts = np.where((values >= low) & (values <= high), histogram.counts, 0.0)
    square = float((counts * values**2).sum() / max(counts.sum(), 1e-9))
    return float(max(square**0.5, histogram.width))


def entropy(histogram: Histogram, candidates: int = 64) -> Interval:
    """The interval whose quantized distribution diverges least from what was seen (Migacz 2017, GTC, S7310).

    Neither end lies further from zero than the other may. What lies outside counts at the ends; within a step the mass
    spreads evenly over the bins that hold any. Exact zeros, and what a clamp has put at an extreme, are left out:
    every grid holds them.
    """
    counts = histogram.counts.copy()
    if histogram.width == 0.0 or not counts.any():
        return minmax(histogram)
    for value, spare in ((0.0, histogram.zeros), (histogram.low, None), (histogram.high, None)):
        place = int(np.clip((value - histogram.start) / histogram.width, 0, BINS - 1))
        near = counts[max(0, place - 2) : place + 3].sum() - counts[place]
        counts[place] = max(counts[place] - spare, 0.0) if spare is not None else min(counts[place], near)
    if not counts.any():
        return minmax(histogram)
    best, found = float("inf"), minmax(histogram)
    reach = max(-histogram.low, histogram.high)
    for share in np.geomspace(0.05, 1.0, candidates):
        low, high = max(histogram.low, -reach * share), min(histogram.high, reach * share)
        if low >= high:
            continue
        divergence = _divergence(counts, histogram, low, high)
        if divergence <= best:
            best, found = divergence, (float(low), float(high))
    return found


def _divergence(counts: Floats, histogram: Histogram, low: float, high: float) -> float:
    """Kullback-Leibler divergence of the quantized histogram from the seen one; infinite with nothing inside."""
    first = int(np.clip((low - histogram.start) / histogram.width, 0, BINS - 1))
    last = int(np.clip(np.ceil((high - histogram.start) / histogram.width), first + 1, BINS))
    inside = counts[first:last]
    if not inside.any():
        return float("inf")
    seen = inside.copy()
    seen[0] += counts[:first].sum()
    seen[-1] += counts[last:].sum()
    step = np.minimum(np.arange(len(inside)) * (LEVELS + 1) // len(inside), LEVELS)
    mass = np.bincount(step, weights=inside, minlength=LEVELS + 1)
    filled = np.bincount(step, weights=inside > 0, minlength=LEVELS + 1)
    quantized = np.where(inside > 0, (mass / np.maximum(filled, 1))[step], 0.0)
    seen, quantized = seen / seen.sum(), quantized / quantized.sum()
    held = seen > 0
    return float((seen[held] * np.log(seen[held] / np.maximum(quantized[held], 1e-9))).sum())


CALIBRATORS: Mapping[str, Callable[[Histogram], Interval]] = {
    "minmax": minmax,
    "percentile": percentile,
    "entropy": entropy,
    "mse": mse,
}


def choose(histogram: Histogram) -> tuple[str, Interval]:
    """The calibrator whose range has the least expected squared error on this tensor, and that range.

    Where they are within a hundredth of each other the wider range is taken: it cannot clip what was not seen.
    """
    ranges = {name: CALIBRATORS[name](histogram) for name in ("minmax", "percentile", "mse")}
    errors = {name: float(squared_error(histogram, *found)) for name, found in ranges.items()}
    least = min(errors.values())
    name = next(name for name in ranges if errors[name] <= least * 1.01)
    return name, ranges[name]


def snr_db(signal: float, noise: float) -> float:
    """Energies to decibels; 200 dB stands for no difference at all.

    >>> snr_db(100.0, 1.0)
    20.0
    """
    return float(min(200.0, 10 * np.log10(max(signal, 1e-30) / max(noise, 1e-30))))
