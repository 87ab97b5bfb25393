"""How finely a board can tell two models apart: a model against itself."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from edgekit.bundle import open_bundle
from edgekit.compare import Round, paired_ratio
from edgekit.context import Progress, Silent
from edgekit.devices import open_device
from edgekit.devices.inventory import Noise, find, store_noise

ROUNDS, AT_ONCE = 40, 10
"""Interleaved rounds, and how many of them are one job on the board."""


def calibrate(
    name: str,
    bundle: Path,
    *,
    threads: int = 1,
    wait: bool = False,
    kill_on_interrupt: bool = False,
    progress: Progress | None = None,
) -> Noise:
    """Measure the noise of the registered board `name` with `bundle` against itself, and store it in the inventory.

    The noise is the half-width of the 95 % interval of the paired ratio after 40 rounds. Differences below twice of
    it cannot be told from none, so comparisons with a finer tolerance are refused afterwards.

    Raises:
        UsageError: no board is called that, or there is no such bundle.
        DeviceError: the board cannot be reached or is busy.
        MeasurementInvalidError: the board is emulated.
    """
    find(name)
    opened = open_bundle(bundle)
    device = open_device(name, wait=wait, kill_on_interrupt=kill_on_interrupt)
    taken: list[Round] = []
    with (progress or Silent()).task(f"{opened.path.stem} against itself on {name}", ROUNDS) as task:
        for _ in range(0, ROUNDS, AT_ONCE):
            taken += device.pairs(opened, opened, rounds=AT_ONCE, threads=threads).rounds
            task.advance(AT_ONCE)
    _, low, high = paired_ratio(taken)
    noise = Noise(
        half_width=(high - low) / 2,
        rounds=ROUNDS,
        bundle=opened.sha256,
        measured=datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
    )
    store_noise(name, noise)
    return noise
