"""Measuring bundles on a device: answers, latency, and interleaved comparisons, as fields of a `Result`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.agent import stats
from edgekit.agent.arrays import write_npz
from edgekit.assess import Oracle
from edgekit.building import model_digest
from edgekit.bundle import Bundle
from edgekit.compare import LOOKS, Comparison, at_percentile, compare
from edgekit.context import Progress
from edgekit.devices import Device
from edgekit.episodes import episode_returns
from edgekit.metrics import score
from edgekit.percentiles import Floats, interval
from edgekit.report.predictions import Predictions, write_predictions, write_samples
from edgekit.report.report import DeviceInfo, Latency, Paired, Result
from edgekit.report.values import Bounds, Metrics
from edgekit.validity import judge_pairs, judge_state
from edgekit.workspace import Workspace, digest, writing_to

if TYPE_CHECKING:
    from edgekit.data import Split
    from edgekit.model import Role, TensorSpec

PERCENTILES = (50, 90, 95, 99)
COMPARED = (50, 90)


def latency(samples: Sequence[float], samples_file: str | None = None) -> Latency:
    """Percentiles of raw latencies with their intervals; those that need more samples are left out."""
    values = np.asarray(samples, np.float64)
    found = {f"p{p}": _percentile(values, p) if len(samples) >= stats.least_samples(p) else None for p in PERCENTILES}
    return Latency(n=len(samples), samples_file=samples_file, **found)


def _percentile(samples: Floats, percent: int) -> Bounds:
    low, high = interval(samples, percent)
    return Bounds(value=stats.percentile(samples, percent), low=low, high=high)


@dataclass(frozen=True)
class Profiler:
    """Measures bundles of one run on one device, always through the agent in a fresh process."""

    device: Device
    space: Workspace
    oracle: Oracle
    progress: Progress
    threads: int = 1
    rounds: tuple[int, ...] = LOOKS
    percentile: float = 90.0
    """The highest percentile that is wanted: a latency is sampled until it has enough for that."""
    known: dict[tuple[Device, str], dict[str, Any]] = field(default_factory=dict)
    """Answers by device and model digest: the same model for two targets of one device is asked once."""

    @property
    def inputs(self) -> Path:
        """The evaluation split for the agent, which does the preprocessing: a .npy, an .npz for several inputs."""
        specs = self.oracle.model.inputs
        suffix = ".npy" if len(specs) == 1 else ".npz"
        path = self.space.work / f"inputs-{self.oracle.data.sha256[:16]}{suffix}"  # resuming may bring other data
        if not path.exists():
            arrays = fed(self.oracle.split, specs, lambda: self.oracle.inputs)
            with writing_to(self.space.root):
                write_inputs(path, arrays, specs)
        return path

    def answers(self, bundle: Bundle, result: Result) -> Result:
        """The task's metrics, agreement and signal-to-noise ratio, from the bundle's own outputs."""
        key = self.device, model_digest(bundle)
        if key not in self.known:
            self.known[key] = self._answers(bundle)
        known = self.known[key]
        notes = (*result.notes, *known.get("notes", ()))
        return result.model_copy(update={**known, "notes": notes, "measured_on": self.device.name})

    def outputs(self, bundle: Bundle, inputs: Path, on_done: Callable[[int], None]) -> list[Any]:
        """What a bundle answers on the device, an array an output; `on_done` gets how many samples more are done."""
        outputs, done = self.space.work / f"{bundle.path.stem}.npz", 0

        def tell(count: int) -> None:
            nonlocal done
            on_done(count - done)
            done = count

        ran = self.device.run(bundle, inputs, outputs, on_done=tell)
        with np.load(ran.outputs, allow_pickle=False) as file:
            answered = [file[entry.name] for entry in bundle.manifest.outputs]
        outputs.unlink(missing_ok=True)
        return answered

    def _answers(self, bundle: Bundle) -> dict[str, Any]:
        split, name = self.oracle.split, bundle.path.stem
        with self.progress.task(f"evaluate {name}", len(split)) as task:
            answered = self.outputs(bundle, self.inputs, task.advance)
        found: dict[str, Any] = {
            "snr_db": self.oracle.snr_db(answered),
            "agreement": self.oracle.agreement(answered),
            "agreement_n": len(split) if self.oracle.classification else None,
        }
        if self.oracle.data.environment is not None:
            return found | self._played(bundle)
        seen = self.oracle.evaluate(answered)
        if seen is not None:
            path = self.space.predictions / f"{name}.npz"
            write_predictions(
                seen.predictions(
                    split.ids, split.labels,
                    data_sha256=self.oracle.data.sha256, split=split.name, slices=split.slices,
                ),
                path,
            )  # fmt: skip
            found |= {
                "metrics": seen.metrics if self.oracle.scored else None,
                "per_class": seen.per_class,
                "user": dict(seen.user),
                "notes": seen.notes,
                "predictions_file": self.space.relative(path),
            }
        return found

    def _played(self, bundle: Bundle) -> dict[str, Any]:
        """What a policy's episodes pay; they are played on this machine, and for no other."""
        environment = self.oracle.data.environment
        assert environment is not None
        if self.device.name != "local":
            return {"notes": (f"episodes of {environment.name} are played on this machine, not on {self.device.name}",)}
        with self.progress.task(f"play {environment.name}, {bundle.path.stem}"):
            returns = episode_returns(bundle.path, environment, exact=getattr(self.device, "exact", False))
        evidence, n = {"episode_return": returns}, len(returns)
        seen = score("episode_return", evidence, n)
        path = self.space.predictions / f"{bundle.path.stem}.npz"
        ids, played = (
            tuple(f"episode/{i}" for i in range(n)),
            digest(environment.name, f"{environment.episodes} {environment.seed}"),
        )
        write_predictions(
            Predictions(ids, None, np.empty((n, 0), np.int32), None, played, environment.name, evidence=evidence), path
        )
        scores = {} if seen is None else {"episode_return": seen}
        return {"metrics": Metrics(scores=scores), "predictions_file": self.space.relative(path)}

    def timing(self, bundle: Bundle, result: Result, max_temperature_c: float | None = None) -> Result:
        """Latency of single inferences, load, first inference and memory: the result is `measured` after it.

        Raises:
            MeasurementInvalidError: the device was throttled, short of power, hotter than `max_temperature_c`, or
                another one after than before.
        """
        with self.progress.task(f"time {bundle.path.stem}"):
            bench = self.device.bench(bundle, threads=self.threads, inputs=self.inputs, percentile=self.percentile)
        path = self.space.samples / f"{bundle.path.stem}.npy"
        write_samples(bench.samples_s, path)
        info = bench.info
        device = self._device_info(info)
        validity = judge_state(device.state, max_temperature_c)
        validity.require({"measured_on": self.device.name, "device": device})
        return result.model_copy(
            update={
                "status": "measured",
                "measured_on": self.device.name,
                "device": device,
                "absolute_invalid": "; ".join(validity.absolute_reasons),
                "latency_s": latency(bench.samples_s, self.space.relative(path)),
                "load_s": info.get("load_s"),
                "first_inference_s": info.get("first_inference_s"),
                "peak_rss_bytes": info.get("peak_rss_bytes"),
                **energy_fields(info.get("energy")),
                "notes": (*result.notes, *doubts(info)),
            }
        )

    def untimed(self, result: Result) -> Result:
        """The result of an emulated device: which one it was, and why there is no time."""
        reason = f"{self.device.name} is emulated: it is never timed"
        return result.model_copy(update={"device": self._device_info({}), "reason": reason})

    def _device_info(self, info: Any) -> DeviceInfo:
        described = {**self.device.describe(), "threads": self.threads}
        return DeviceInfo.of(described, state=info.get("state") or {}, versions=info.get("versions") or {})

    def against(
        self, bundle: Bundle, other: Bundle, vs: Role, result: Result, max_temperature_c: float | None = None
    ) -> Result:
        """The result with an interleaved comparison with another role's bundle: p50, and p90 where blocks allow it.

        Raises:
            MeasurementInvalidError: as for `timing`, in any of the rounds.
        """
        if model_digest(bundle) == model_digest(other):
            same = tuple(_paired(vs, f"p{p}", Comparison(1.0, 1.0, 1.0, ())) for p in COMPARED)
            notes = (*result.notes, f"the same model as its {vs}")
            return result.model_copy(update={"paired": (*result.paired, *same), "notes": notes})
        with self.progress.task(f"{bundle.path.stem} against its {vs}"):
            seen = compare(self.device, bundle, other, threads=self.threads, rounds=self.rounds, inputs=self.inputs)
        judge_pairs(seen.info, max_temperature_c).require()
        found = []
        for percent in COMPARED:
            ratio = seen if percent == 50 else at_percentile(seen, percent)
            if ratio is not None:
                path = self.space.samples / f"{bundle.path.stem}-vs-{vs}-p{percent}.npy"
                write_samples(np.asarray(ratio.rounds), path)
                found.append(_paired(vs, f"p{percent}", ratio, self.space.relative(path)))
        return result.model_copy(update={"paired": (*result.paired, *found)})


def fed(split: Split, specs: Sequence[TensorSpec], prepared: Callable[[], Sequence[Any]]) -> list[Any]:
    """As stored where the agent can tell by the type that preprocessing is due, else as the model takes it."""
    raw = split.stored(specs)
    due = [np.dtype(spec.dtype).kind == "f" and x.dtype != spec.dtype for spec, x in zip(specs, raw, strict=True)]
    if all(due):
        return raw
    return [x if wait else ready for x, ready, wait in zip(raw, prepared(), due, strict=True)]


def write_inputs(path: Path, arrays: Sequence[Any], specs: Sequence[TensorSpec]) -> None:
    """Inputs for the agent: one array as `.npy`, several as an `.npz` by the names of the model's inputs."""
    temporary = path.with_suffix(".part")
    with temporary.open("wb") as file:
        if len(arrays) == 1:
            np.save(file, arrays[0], allow_pickle=False)
        else:
            write_npz(file, dict(zip((spec.name for spec in specs), arrays, strict=True)))
    temporary.replace(path)


def energy_fields(seen: Any) -> dict[str, Any]:
    """The fields of a result for what the agent's `energy` told."""
    if not isinstance(seen, Mapping):
        return {"energy_reason": "this device does not measure energy"}
    if seen.get("gross_j") is None:
        return {"energy_reason": str(seen.get("reason", "the device gave no reason"))}
    meter = f"{seen.get('meter')}{' (estimate)' if seen.get('estimate') else ''}: {', '.join(seen.get('rails', ()))}"
    return {"energy_j": seen["gross_j"], "energy_net_j": seen.get("net_j"), "energy_meter": meter}


def doubts(info: Any) -> list[str]:
    """What keeps a latency from being taken at its word, in plain lines."""
    if info.get("steady") is not False:
        return []
    seen = info["steadiness"]
    return [
        f"its latency was not steady while it was measured: medians of four blocks differ by {seen['spread']:.1%} "
        f"(bound {seen['bounds']['spread']:.0%}), trend {seen['trend']:+.1%} (bound {seen['bounds']['trend']:.0%})"
    ]


def _paired(vs: Role, statistic: str, seen: Comparison, samples_file: str | None = None) -> Paired:
    return Paired(
        vs=vs,
        statistic=statistic,
        ratio=seen.ratio,
        low=seen.low,
        high=seen.high,
        rounds=len(seen.rounds),
        samples_file=samples_file,
    )
