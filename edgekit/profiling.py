"""Bundles on devices: time, memory, energy, layers, with the state of the board; several devices at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from edgekit.bundle import Bundle, open_bundle
from edgekit.context import Progress, Silent
from edgekit.devices import Device, is_emulated, open_device
from edgekit.errors import EdgekitError, ExitCode, MeasurementInvalidError, UsageError
from edgekit.extras import DISTRIBUTION
from edgekit.profile import doubts, energy_fields, latency
from edgekit.report.profiled import LayerTime, Profiled, Profiles
from edgekit.report.report import DeviceInfo
from edgekit.target import load_target
from edgekit.validity import judge_state


def profile_bundles(
    bundles: Sequence[Path],
    devices: Sequence[str] = ("local",),
    *,
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
        bundles: `.edge` files.
        devices: `local`, or boards of the inventory.
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
    opened = [open_bundle(path) for path in bundles]
    known = {name: open_device(name, wait=wait, kill_on_interrupt=kill_on_interrupt) for name in dict.fromkeys(devices)}
    told = progress or Silent()

    def one_by_one(name: str) -> list[Profiled]:
        found = []
        for bundle in opened:
            with told.task(f"{bundle.path.stem} on {name}"):
                found.append(_guarded(known[name], name, bundle, threads, inputs, percentile, layers))
        return found

    if len(known) == 1:  # in this thread, where Ctrl-C arrives
        results = one_by_one(next(iter(known)))
    else:
        with ThreadPoolExecutor(len(known)) as pool:
            results = [one for done in pool.map(one_by_one, known) for one in done]
    created = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    return Profiles(edgekit=metadata.version(DISTRIBUTION), created=created, results=tuple(results))


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
