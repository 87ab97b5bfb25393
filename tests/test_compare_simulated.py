"""How often a comparison says what is not so, and finds what is: on machines that are drawn, shared ones among them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.bundle import Bundle
from edgekit.compare import LOOKS, Comparison, band, compare, judge
from edgekit.devices import Pairs
from edgekit.devices.benching import interleaved

TOLERANCE, TURNS, TIMES = 0.05, 17, 300


@dataclass(frozen=True)
class Machine:
    """What the logarithm of a block's time is made of. Nothing of it is about `a` or `b` but `process`."""

    process: float = 0.004
    """Standard deviation of what a process keeps for its life: where its memory happens to lie."""
    jitter: float = 0.003
    """Scale of noise with heavy tails (Student's, 3 degrees), of each block alone."""
    wander: float = 0.0
    """Standard deviation of noise that is alike from block to block (autoregressive, 0.9)."""
    drift: float = 0.0
    """The machine becomes slower by this share from block to block."""
    steps: float = 0.0
    """Share of the time in which a neighbour makes it 1.5 times as slow, 20 blocks on average each time."""


MACHINES = {
    "quiet": Machine(),
    "heavy tails": Machine(jitter=0.02),
    "wandering": Machine(wander=0.05),
    "warming up": Machine(drift=0.003),
    "shared": Machine(wander=0.01, steps=0.3),
    "all of it": Machine(process=0.008, jitter=0.01, wander=0.02, drift=0.001, steps=0.2),
}


class Drawn:
    """A device whose `a` takes `ratio` times as long as `b`, on one of those machines."""

    name = "drawn"

    def __init__(self, machine: Machine, ratio: float, seed: int) -> None:
        self.machine, self.ratio, self.rng = machine, ratio, np.random.default_rng(seed)

    def pairs(self, a: Bundle, b: Bundle, *, rounds: int, threads: int = 1, inputs: Path | None = None) -> Pairs:
        return interleaved([{"samples_s": self.turns()} for _ in range(rounds)])

    def turns(self) -> list[list[list[float]]]:
        machine, rng, n = self.machine, self.rng, 4 * TURNS
        logs = machine.jitter * rng.standard_t(3, n) + machine.drift * np.arange(n)
        innovations = machine.wander * math.sqrt(1 - 0.81) * rng.standard_normal(n)
        state, slow = machine.wander * rng.standard_normal(), rng.random() < machine.steps
        for i in range(n):
            state = 0.9 * state + innovations[i]
            leaves = 0.05 if slow else 0.05 * machine.steps / (1 - machine.steps)
            slow ^= bool(rng.random() < leaves)
            logs[i] += state + (math.log(1.5) if slow else 0)
        turns = logs.reshape(TURNS, 4)
        turns[:, [0, 3]] += math.log(self.ratio) + machine.process * rng.standard_normal()
        turns[:, [1, 2]] += machine.process * rng.standard_normal()
        return [[[math.exp(value)] for value in turn] for turn in turns]


@cache
def compared(machine: Machine, ratio: float) -> tuple[Comparison, ...]:
    """`TIMES` comparisons at the tolerance, as `edgekit compare` makes them."""
    bundle: Any = None
    devices = [Drawn(machine, ratio, seed) for seed in range(TIMES)]
    return tuple(compare(device, bundle, bundle, limits=band(TOLERANCE)) for device in devices)


def share(machine: Machine, ratio: float, *verdicts: str) -> float:
    said = [judge(seen.low, seen.high, TOLERANCE) for seen in compared(machine, ratio)]
    return sum(one in verdicts for one in said) / TIMES


def errors(level: float) -> float:
    """`level` with what that many comparisons can tell: three standard errors."""
    return level + 3 * math.sqrt(level * (1 - level) / TIMES)


@pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES)
class TestOn:
    def test_the_same_is_no_difference(self, machine: Machine) -> None:
        assert share(machine, 1.0, "no difference") >= 0.9
        assert share(machine, 1.0, "a is faster", "b is faster") <= 0.01

    @pytest.mark.parametrize(("ratio", "verdict"), [(1.1, "b is faster"), (1 / 1.1, "a is faster")])
    def test_a_tenth_is_found(self, machine: Machine, ratio: float, verdict: str) -> None:
        assert share(machine, ratio, verdict) >= 0.96

    def test_at_the_end_of_the_tolerance_neither_is_said_too_often(self, machine: Machine) -> None:
        """Where `a` is exactly as much slower as is tolerated, either verdict is wrong: an error of one side each."""
        assert share(machine, 1 + TOLERANCE, "no difference") <= errors(0.025)
        assert share(machine, 1 + TOLERANCE, "a is faster", "b is faster") <= errors(0.025)

    @pytest.mark.parametrize("ratio", [1.0, 1 + TOLERANCE, 1.1])
    def test_the_interval_holds_the_truth(self, machine: Machine, ratio: float) -> None:
        missed = sum(not seen.low <= ratio <= seen.high for seen in compared(machine, ratio))
        assert missed / TIMES <= errors(0.05)


def test_a_quiet_machine_needs_one_look_and_a_close_call_all_of_them() -> None:
    assert {len(seen.rounds) for seen in compared(MACHINES["quiet"], 1.0)} == {LOOKS[0]}
    assert max(len(seen.rounds) for seen in compared(MACHINES["quiet"], 1 + TOLERANCE)) == LOOKS[-1]
