"""Where a bundle is run and measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from edgekit.bundle import Bundle
from edgekit.errors import MeasurementInvalidError, UsageError
from edgekit.extras import unknown
from edgekit.registry import places, resolve

if TYPE_CHECKING:
    from edgekit.context import Progress

DEVICES: dict[str, str] = {
    "local": "edgekit.devices.local:Local",
    "emulated-cortex-a72": "edgekit.devices.emulated:CortexA72",
    "emulated-cortex-a76": "edgekit.devices.emulated:CortexA76",
    "emulated-haswell": "edgekit.devices.emulated:Haswell",
}
"""Name in a recipe -> class. Registered boards are known by their own names (`open_device`).
Third parties add theirs under the entry point group `edgekit.devices`."""

GROUP = "edgekit.devices"


@dataclass(frozen=True)
class Run:
    """What `run` brought back: `outputs` is an .npz file with one array an output; `info` the agent's JSON."""

    outputs: Path
    info: Mapping[str, Any]


@dataclass(frozen=True)
class Bench:
    """Raw latencies of single inferences in seconds, in order, never trimmed, with the agent's JSON around them.

    `info` holds `load_s`, `first_inference_s`, `peak_rss_bytes` (of fresh processes where the device has them),
    `state` (before, after), `versions`, `threads`. `benching.gather` makes one from the agent's commands.
    """

    samples_s: tuple[float, ...]
    info: Mapping[str, Any]


@dataclass(frozen=True)
class Pairs:
    """Interleaved rounds, each of two fresh processes that take turns, a, b, b, a, again and again.

    For each round the block medians in seconds `(a, b, b, a)` of the turn that stands for it, and in `info` what its
    processes told: `a`, `b`, and `samples_s`, for each turn its four blocks, raw and in seconds.
    """

    rounds: tuple[tuple[float, float, float, float], ...]
    info: tuple[Mapping[str, Any], ...]


class Device(Protocol):
    """Puts a bundle somewhere, runs the agent there in a fresh process, brings the result back."""

    @property
    def name(self) -> str:
        """What a recipe and the command line call it."""

    def describe(self) -> Mapping[str, Any]:
        """`{"name", "fingerprint", ...}`: what must be equal for two measurements to be comparable."""

    def run(self, bundle: Bundle, inputs: Path, outputs: Path, *, on_done: Callable[[int], None] | None = None) -> Run:
        """All samples of `inputs` (.npy, raw or preprocessed) through the bundle; results to `outputs` (.npz).

        `on_done` is told how many samples are done, every now and then and at the end; from another thread, perhaps.
        """

    def bench(self, bundle: Bundle, *, threads: int = 1, inputs: Path | None = None, percentile: float = 90.0) -> Bench:
        """Latency of single inferences, with samples enough for `percentile`; load time and peak memory."""

    def pairs(self, a: Bundle, b: Bundle, *, rounds: int, threads: int = 1, inputs: Path | None = None) -> Pairs:
        """`a` and `b` in interleaved rounds, each in two fresh processes that never work at the same time."""


def is_emulated(device: Device) -> bool:
    """Whether what the device computes counts and its times do not: it is never asked for one."""
    return bool(getattr(device, "emulated", False))


def refuse_times(name: str) -> NoReturn:
    """Raise what an emulated device answers when it is asked for a time.

    Raises:
        MeasurementInvalidError: always.
    """
    raise MeasurementInvalidError(f"{name} is emulated: what it computes counts, its times mean nothing")


def device_names() -> tuple[str, ...]:
    """What a recipe may say as `device`: edgekit's own, those of entry points, and the registered boards."""
    from edgekit.devices.inventory import load_inventory

    return tuple(sorted({*places(DEVICES, GROUP), *load_inventory()}))


def open_device(
    name: str, *, wait: bool = False, kill_on_interrupt: bool = False, progress: Progress | None = None
) -> Device:
    """The device `name`: a part of edgekit, one of an entry point, or a registered board.

    `wait` queues behind another user of a board instead of refusing. `kill_on_interrupt` ends what runs on a board
    when this process is interrupted; otherwise it goes on there, and the same call takes up its result. `progress` is
    told what an emulated device fetches.

    Raises:
        UsageError: nothing is called that; the message guesses what was meant.

    >>> open_device("local").name
    'local'
    """
    from edgekit.devices.inventory import load_inventory

    if name in places(DEVICES, GROUP):
        found: Device = resolve("device", name, DEVICES, GROUP)()
        if progress is not None and hasattr(found, "progress"):
            found.progress = progress
        return found
    boards = load_inventory()
    if name not in boards:
        raise UsageError(unknown("device", name, device_names()) + " `edgekit devices add` registers a board.")
    from edgekit.devices.ssh import Ssh

    return Ssh(name, boards[name], wait=wait, kill_on_interrupt=kill_on_interrupt)


class Devices:
    """The devices of one run: each is opened once, and a board is asked once what it is."""

    def __init__(
        self, *, wait: bool = False, kill_on_interrupt: bool = False, progress: Progress | None = None
    ) -> None:
        """The arguments are those of `open_device`."""
        self._open = partial(open_device, wait=wait, kill_on_interrupt=kill_on_interrupt, progress=progress)
        self._opened: dict[str, Device] = {}

    def open(self, name: str) -> Device:
        """The device `name`.

        Raises:
            UsageError: nothing is called that.
        """
        if name not in self._opened:
            self._opened[name] = self._open(name)
        return self._opened[name]

    def interrupt(self) -> None:
        """End what other threads of this process have asked of these devices; returns at once."""
        for device in self._opened.values():
            if stop := getattr(device, "interrupt", None):
                stop()


__all__: Sequence[str] = (
    "DEVICES", "Bench", "Device", "Devices", "Pairs", "Run", "device_names", "is_emulated", "open_device",
    "refuse_times",
)  # fmt: skip
