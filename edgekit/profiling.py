"""Bundles on devices: time, memory, energy, layers, with the state of the board; several devices at once."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from edgekit.building import Outcome
from edgekit.bundle import Bundle, open_bundle
from edgekit.context import Progress, Silent
from edgekit.devices import Device, Devices, is_emulated
from edgekit.errors import (
    DeviceError,
    EdgekitError,
    ExitCode,
    MeasurementInvalidError,
    MissingDependencyError,
    UsageError,
)
from edgekit.extras import DISTRIBUTION
from edgekit.profile import doubts, energy_fields, latency
from edgekit.report.profiled import LayerTime, Profiled, Profiles
from edgekit.report.report import DeviceInfo
from edgekit.target import Target, load_target
from edgekit.validity import judge_state
from edgekit.wrapping import is_model, said_of_inputs, target_of, wrap

_Todo = tuple[Bundle | Profiled, str]
"""A bundle to be measured, with a note on its inputs; or what is known already to have failed."""

LEAVING_S = 30.0
"""How long an interrupted device is waited for: it may have a job to end first."""


def profile_bundles(
    bundles: Sequence[Path],
    devices: Sequence[str] = ("local",),
    *,
    target: str | None = None,
    backends: Sequence[str] | None = None,
    threads: int = 1,
    inputs: Path | None = None,
    percentile: float = 99.0,
    layers: bool = True,
    wait: bool = False,
    kill_on_interrupt: bool = False,
    progress: Progress | None = None,
) -> Profiles:
    """Every bundle on every device: devices at the same time, the bundles on one device one after the other.

    Args:
        bundles: `.edge` files, or plain models (`.onnx`, `.pt2`), of which float bundles are made for each device.
        devices: `local`, or boards of the inventory.
        target: what plain models are built for; by default what the device is registered as, or its architecture's.
        backends: what they are built with; by default all of the target's that can be compiled here.
        threads: of the runtime.
        inputs: samples, .npy or .npz, raw or preprocessed; without them each bundle's golden samples are taken.
        percentile: there are samples enough for this one, as far as a minute allows.
        layers: ask for time layer by layer too, in processes of their own.
        wait: queue behind whoever measures on a board.
        kill_on_interrupt: end what runs on a board when this process is interrupted; else it goes on there.
        progress: is told what is measured.

    Raises:
        UsageError: an unknown device, or no bundle.
        IntegrityError: a file is no intact bundle.
    """
    if not bundles or not devices:
        raise UsageError("Name at least one bundle and one device to profile.")
    opened = {path: open_bundle(path) for path in bundles if not is_model(path)}
    told = progress or Silent()
    known = Devices(wait=wait, kill_on_interrupt=kill_on_interrupt, progress=told)
    names = list(dict.fromkeys(devices))
    for name in names:
        known.open(name)

    def one_by_one(name: str) -> list[Profiled]:
        found = []
        for item, note in todo[name]:
            if isinstance(item, Profiled):
                found.append(item)
                continue
            with told.task(f"{item.path.stem} on {name}"):
                seen = _guarded(known.open(name), name, item, threads, inputs, percentile, layers)
            found.append(seen.model_copy(update={"notes": (*seen.notes, note)}) if note else seen)
        return found

    with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
        wrapper = _Wrapper(Path(folder), target, backends, inputs, told)
        todo = {name: wrapper.todo(bundles, opened, name, known.open(name)) for name in names}
        if len(names) == 1:  # in this thread, where Ctrl-C arrives
            results = one_by_one(names[0])
        else:
            results = [one for done in _at_once(one_by_one, names, known.interrupt) for one in done]
    created = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    return Profiles(edgekit=metadata.version(DISTRIBUTION), created=created, results=tuple(results))


@dataclass
class _Wrapper:
    """Makes bundles of plain models, once for each target."""

    folder: Path
    target: str | None
    backends: Sequence[str] | None
    inputs: Path | None
    progress: Progress
    made: dict[tuple[Path, str], list[Outcome]] = field(default_factory=dict)

    def todo(self, paths: Sequence[Path], opened: Mapping[Path, Bundle], name: str, device: Device) -> list[_Todo]:
        """What is measured on a device, in order; what could not be built says so itself."""
        found: list[_Todo] = []
        for path in paths:
            if path in opened:
                found.append((opened[path], ""))
                continue
            try:
                target = load_target(self.target) if self.target else target_of(device)
            except (DeviceError, MissingDependencyError) as error:  # it was asked what it is; the other devices go on
                found.append((_unknown(path, name, error), ""))
                continue
            for outcome in self._wrapped(path, target):
                if outcome.bundle is None:
                    found.append((_failed(outcome, path, name), ""))
                else:
                    found.append((outcome.bundle, said_of_inputs(outcome.bundle, self.inputs)))
        return found

    def _wrapped(self, path: Path, target: Target) -> list[Outcome]:
        key = (path, target.name)
        if key not in self.made:
            place = self.folder / str(len(self.made))
            with self.progress.task(f"build {path.name} for {target.name}"):
                self.made[key] = wrap(path, target, place, backends=self.backends, inputs=self.inputs)
        return self.made[key]


def _failed(outcome: Outcome, path: Path, device: str) -> Profiled:
    facts = {key: getattr(outcome.result, key) for key in ("target", "backend", "role", "precision")}
    return Profiled(
        **facts, model=path.stem, bundle=path.name, sha256="", size_bytes=0, device_name=device, threads=0,
        error=outcome.result.reason, exit_code=outcome.code,
    )  # fmt: skip


def _unknown(path: Path, device: str, error: EdgekitError) -> Profiled:
    """What is told of a plain model on a device that does not say what it is."""
    return Profiled(
        model=path.stem, target="", backend="", role="float", precision="fp32", bundle=path.name, sha256="",
        size_bytes=0, device_name=device, threads=0, error=str(error), exit_code=int(error.exit_code),
    )  # fmt: skip


def _at_once(work: Callable[[str], list[Profiled]], names: Sequence[str], stop: Callable[[], None]) -> list[Any]:
    """`work` of every name, each in a thread of its own; Ctrl-C has `stop` end them, and waits for that alone."""
    done: dict[str, Any] = {}
    ended: SimpleQueue[str] = SimpleQueue()  # Ctrl-C in Thread.join() would take a thread that runs for one that ended

    def one(name: str) -> None:
        try:
            done[name] = work(name)
        except BaseException as error:
            done[name] = error
        ended.put(name)

    for name in names:
        threading.Thread(target=one, args=(name,), daemon=True).start()
    try:
        for _ in names:
            ended.get()
    except KeyboardInterrupt as error:
        stop()
        deadline = time.monotonic() + LEAVING_S
        while len(done) < len(names) and time.monotonic() < deadline:
            with suppress(Empty):
                ended.get(timeout=0.2)
        for note in (n for failed in list(done.values()) for n in getattr(failed, "__notes__", ())):
            error.add_note(note)
        raise
    if failed := next((one for one in done.values() if isinstance(one, BaseException)), None):
        raise failed
    return [done[name] for name in names]


def _guarded(
    device: Device, name: str, bundle: Bundle, threads: int, inputs: Path | None, percentile: float, layers: bool
) -> Profiled:
    """What fails on one device or for one bundle stays with it."""
    manifest = bundle.manifest
    facts = {key: getattr(manifest, key) for key in ("model", "target", "backend", "role", "precision")}
    start = Profiled(
        **facts, bundle=bundle.path.name, sha256=bundle.sha256, size_bytes=bundle.model_bytes, device_name=name,
        threads=threads, emulated=is_emulated(device),
    )  # fmt: skip
    try:
        return _measured(device, bundle, start, inputs, percentile, layers)
    except MeasurementInvalidError as error:
        return start.model_copy(update={"invalid": str(error), "exit_code": int(error.exit_code)})
    except EdgekitError as error:
        return start.model_copy(update={"error": str(error), "exit_code": int(error.exit_code)})


def _measured(
    device: Device, bundle: Bundle, start: Profiled, inputs: Path | None, percentile: float, layers: bool
) -> Profiled:
    bench = device.bench(bundle, threads=start.threads, inputs=inputs, percentile=percentile)
    info = bench.info
    state = info.get("state") or {}
    validity = judge_state(state, _limit(bundle.manifest.target))
    described = {**device.describe(), "threads": start.threads}
    found: dict[str, Any] = {"device": DeviceInfo.of(described, state=state, versions=info.get("versions") or {})}
    if validity.reasons:
        found |= {"invalid": "; ".join(validity.reasons), "exit_code": int(ExitCode.MEASUREMENT_INVALID)}
        return start.model_copy(update=found)
    return start.model_copy(
        update={
            **found,
            "latency_s": latency(bench.samples_s),
            "samples_s": bench.samples_s,
            **{name: info.get(name) for name in ("load_s", "first_inference_s", "peak_rss_bytes")},
            "to_first_answer_s": info.get("cold", {}).get("to_first_answer_s", {}).get("median"),
            **energy_fields(info.get("energy")),
            **(_layers(device, bundle, start.threads, inputs) if layers else {}),
            "absolute_invalid": "; ".join(validity.absolute_reasons),
            "notes": tuple(doubts(info)),
        }
    )


def _limit(target: str) -> float | None:
    """The target's temperature limit; a bundle for a target that is not known here has none."""
    try:
        return load_target(target).max_temperature_c
    except EdgekitError:
        return None


def _layers(device: Device, bundle: Bundle, threads: int, inputs: Path | None) -> dict[str, Any]:
    ask = getattr(device, "layers", None)
    if ask is None:
        return {"layers_reason": "this device does not tell times of layers"}
    told: Mapping[str, Any] = ask(bundle, threads=threads, inputs=inputs)
    if told.get("layers") is None:
        return {"layers_reason": str(told.get("reason", "the runtime tells none"))}
    return {"layers": tuple(LayerTime(**layer) for layer in told["layers"])}
