"""Where a bundle is run and measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from edgekit.bundle import Bundle

DEVICES: dict[str, str] = {"local": "edgekit.devices.local:Local"}
"""Name in a recipe -> class. Third parties add theirs under the entry point group `edgekit.devices`."""


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
    """Interleaved ABBA rounds: for each round the block medians in seconds `(a, b, b, a)`."""

    rounds: tuple[tuple[float, float, float, float], ...]
    info: Mapping[str, Any]


class Device(Protocol):
    """Puts a bundle somewhere, runs the agent there in a fresh process, brings the result back."""

    name: ClassVar[str]

    def describe(self) -> Mapping[str, Any]:
        """`{"name", "fingerprint", ...}`: what must be equal for two measurements to be comparable."""

    def run(self, bundle: Bundle, inputs: Path, outputs: Path, *, on_done: Callable[[int], None] | None = None) -> Run:
        """All samples of `inputs` (.npy, raw or preprocessed) through the bundle; results to `outputs` (.npz).

        `on_done` is told how many samples are done, every now and then and at the end; from another thread, perhaps.
        """

    def bench(self, bundle: Bundle, *, threads: int = 1, inputs: Path | None = None, percentile: float = 90.0) -> Bench:
        """Latency of single inferences, with samples enough for `percentile`; load time and peak memory."""

    def pairs(self, a: Bundle, b: Bundle, *, rounds: int, threads: int = 1, inputs: Path | None = None) -> Pairs:
        """`a` and `b` in interleaved blocks, in two processes that never run at the same time."""


__all__: Sequence[str] = ("DEVICES", "Bench", "Device", "Pairs", "Run")
