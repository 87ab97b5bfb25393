"""Accepted baselines: what ships is kept, with its numbers, and later bundles are held against it."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from edgekit.bundle import open_bundle, unlike
from edgekit.errors import IntegrityError, UsageError
from edgekit.plain import printable
from edgekit.report.baselines import (
    LONGEST_HISTORY,
    PERCENTILES,
    Baseline,
    Entry,
    entry_of,
    file_name,
    ratio,
    read_baseline,
    result_of,
    write_baseline,
)
from edgekit.report.predictions import Predictions, read_predictions
from edgekit.report.report import Report, Result
from edgekit.report.values import Bounds, Interval
from edgekit.rivals import AbsentError, Rival, Rivals, incomparable
from edgekit.stored import Stored
from edgekit.stores import MissingObjectError, Store, fetch, keep, open_store, settled, shown
from edgekit.turns import as_seen, seen

STORE = "store"
"""The store where none is named: a folder beside the baselines."""


@dataclass(frozen=True)
class Accepted:
    """What `accept` did for one backend: `what` is "new", "changed" or "unchanged"."""

    path: Path
    backend: str
    what: str
    entry: Entry


@dataclass(frozen=True)
class Change:
    """One quantity of the baseline and of a report; None where it was not measured. `unit` as in `quantities`."""

    name: str
    unit: str
    was: Bounds | None
    now: Bounds | None


@dataclass(frozen=True)
class Difference:
    """What accepting a result would change. `stale` says why times and scores do not compare; "" where they do."""

    target: str
    backend: str
    same_bundle: bool
    stale: str
    changes: tuple[Change, ...]


def accept(
    report: Path,
    baselines: Path,
    *,
    store: str | None = None,
    target: str | None = None,
    reason: str = "",
    force: bool = False,
) -> tuple[Accepted, ...]:
    """Make what ships the baseline: bundles and predictions go into the store and are read back, the YAML comes last.

    Args:
        report: a report.json or the folder of a run, with the bundles that it names.
        baselines: folder of the YAML files.
        store: address of the store; else that of the entry that is replaced, else the folder `store` beside the YAML.
        target: only this one.
        reason: why, for whoever reads the diff.
        force: accept although a clause of the report failed, or a measurement does not count.

    Raises:
        UsageError: nothing ships, the gate failed, or a folder cannot be written.
        IntegrityError: a bundle is damaged or is not the one that was measured, or the store gives back something else.
        DeviceError: the store cannot be reached, or is full.
    """
    stored = Stored.read(report)
    results = _shipping(stored, target)
    if not force:
        _check_passed(stored, results)
    for result in results:
        _bundle(stored, result)  # all of them, before anything is written
    done: list[Accepted] = []
    for name in dict.fromkeys(r.target for r in results):
        path = baselines / file_name(stored.report.source.name, name)
        done += _accept_target(stored, path, [r for r in results if r.target == name], store, reason)
    return tuple(done)


def _shipping(stored: Stored, target: str | None) -> list[Result]:
    results = [r for r in stored.report.results if r.ships and target in (None, r.target)]
    if not results:
        where = f" for target {target!r}" if target else ""
        raise UsageError(f"{stored.path}: nothing ships{where}, so there is nothing to accept.")
    return results


def _check_passed(stored: Stored, results: Sequence[Result]) -> None:
    """A failed clause of the run or of the `gate.json` beside it, and a measurement that does not count."""
    from edgekit.report.verdicts import read_gate

    judged = list(stored.report.gate)
    beside = stored.path.with_name("gate.json")
    if beside.exists():
        gate = read_gate(beside)
        if gate.report.sha256 == stored.sha256:
            judged += gate.judgements
    failed = [f"{j.clause} ({j.target}/{j.backend})" for j in judged if j.verdict == "fail" and j.exit_code]
    failed += [f"{r.key}: {r.invalid}" for r in results if r.invalid]
    if failed:
        raise UsageError(
            f"{stored.path}: the gate failed or a measurement does not count: {printable(failed[0])}"
            f"{f' and {len(failed) - 1} more' if len(failed) > 1 else ''}. Accept it all the same with --force."
        )


def _bundle(stored: Stored, result: Result) -> Path:
    try:
        return stored.bundle(result)
    except AbsentError as absent:
        raise UsageError(f"{stored.path}: {absent.reason}. Give the folder of the run, with its bundles.") from None


def _accept_target(
    stored: Stored, path: Path, results: Sequence[Result], address: str | None, reason: str
) -> list[Accepted]:
    model, target = stored.report.source.name, results[0].target
    was = seen(path)
    old = read_baseline(path) if was else Baseline(model=model, target=target, backends={})
    if (old.model, old.target) != (model, target):
        raise UsageError(f"{path}: it is of {old.model!r} on {old.target!r}. Choose another folder with --baselines.")
    with settled(str(path.parent)):
        path.parent.mkdir(parents=True, exist_ok=True)
    entries, done = dict(old.backends), []
    for result in results:
        before = entries.get(result.backend)
        entry = _entry(stored, result, path.parent, address or (before.store if before else STORE), reason)
        if before is not None and result.bundle_sha256 is not None:
            entry = _after(before, entry, result_of(old, result.backend), result)
        what = "new" if before is None else "unchanged" if entry == before else "changed"
        entries[result.backend] = entry
        done.append(Accepted(path, result.backend, what, entry))
    with settled(str(path)), as_seen(path, was):
        write_baseline(old.model_copy(update={"backends": entries}), path)
    return done


def _entry(stored: Stored, result: Result, folder: Path, address: str, reason: str) -> Entry:
    store = open_store(address, folder)
    bundle = keep(store, _bundle(stored, result))
    predictions = None
    if result.predictions_file and (file := stored.file(result.predictions_file)).exists():
        read_predictions(file)
        predictions = keep(store, file)
    try:
        return entry_of(
            stored.report, result, store=shown(address), bundle=bundle, predictions=predictions, reason=reason
        )
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise UsageError(f"{stored.path}: {result.key}: {where}: {first['msg']}. Run the recipe again.") from error


def _after(before: Entry, entry: Entry, then: Result, now: Result) -> Entry:
    """The entry with those before it; the same report once more changes nothing but a reason that is given."""
    same = {"p50_ratio": before.p50_ratio, "accuracy_change": before.accuracy_change, "history": before.history}
    again = entry.model_copy(update={"reason": entry.reason or before.reason, **same})
    if again == before.model_copy(update={"reason": again.reason}):
        return again
    compares = not (entry.invalid or before.invalid or incomparable(now, then))
    scored = (entry.accuracy, before.accuracy)
    change = None
    if entry.data == before.data and scored[0] and scored[1]:
        change = scored[0].value - scored[1].value
    return entry.model_copy(
        update={
            "p50_ratio": ratio(entry.p50_s, before.p50_s) if compares else None,
            "accuracy_change": change,
            "history": list(before.line()[:LONGEST_HISTORY]),
        }
    )


def recorded_address(store: str, baselines: Path) -> str:
    """`--store` of a command line, relative to the working folder, as a baseline keeps it: relative to its own folder.

    >>> recorded_address("baselines/store", Path("baselines")), recorded_address("s3://a/b", Path("x"))
    ('store', 's3://a/b')
    """
    kind, separator, rest = store.rpartition("oci-layout:")
    if "://" in store or Path(rest).is_absolute():
        return store
    return f"{kind}{separator}{os.path.relpath(rest, baselines)}"


def files_of(baselines: Path) -> list[Path]:
    """The YAML files of a folder, or the one that is named.

    Raises:
        UsageError: there is none.
    """
    if not baselines.is_dir():
        return [baselines]
    files = sorted(baselines.glob("*.yaml"))
    if not files:
        raise UsageError(f"{baselines}: no baseline is there. `edgekit baseline accept REPORT` makes one.")
    return files


def check_stored(baseline: Baseline, folder: Path) -> int:
    """Fetch and verify everything that a baseline names, and count it.

    Raises:
        IntegrityError: an object is missing or damaged.
        DeviceError: a store cannot be reached.
    """
    count = 0
    for entry in baseline.backends.values():
        _fetched_bundle(entry, folder)
        if entry.predictions_object:
            read_predictions(_fetched(entry, folder, entry.predictions_object, "predictions.npz"))
        count += 1 + bool(entry.predictions_object)
    return count


@cache
def _fetched_files() -> Path:
    """What was fetched, until this process ends."""
    folder = tempfile.mkdtemp(prefix="edgekit-baseline-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def _fetched(entry: Entry, folder: Path, sha256: str, name: str) -> Path:
    store: Store = open_store(entry.store, folder)
    return fetch(store, sha256, _fetched_files() / sha256 / name)


def _fetched_bundle(entry: Entry, folder: Path) -> Path:
    path = _fetched(entry, folder, entry.bundle_object, "bundle.edge")
    if reason := unlike(open_bundle(path), entry.bundle_sha256):
        raise IntegrityError(f"{shown(entry.store)}: {entry.bundle}: {reason}")
    return path


def baseline_rivals(baselines: Path, report: Report) -> Rivals:
    """What `vs: baseline` means for a report.

    The predictions and the bundle are fetched from the store when they are asked for; one that is gone is absent, one
    that is damaged an `IntegrityError`, and a store that cannot be reached a `DeviceError`.

    Raises:
        UsageError: the folder or file is missing or cannot be read.
    """
    found = {path: read_baseline(path) for path in files_of(baselines)}

    def rival(vs: str, shipped: Result) -> Rival:
        model, target, backend = report.source.name, shipped.target, shipped.backend
        for path, baseline in found.items():
            if (baseline.model, baseline.target) == (model, target) and backend in baseline.backends:
                return _rival(vs, path.parent, baseline, report, shipped)
        raise AbsentError(
            f"no comparable {vs}: {baselines} has no entry for {model} on {target} with {backend}; "
            "`edgekit baseline accept` makes one"
        )

    return rival


def entries_for(baselines: Path, report: Report) -> list[tuple[tuple[str, str], Entry]]:
    """The accepted entry of each (target, backend) of what ships in a report, where there is one."""
    found = [read_baseline(path) for path in files_of(baselines)]
    shipped = [(result.target, result.backend) for result in report.results if result.ships]
    return [
        ((target, backend), baseline.backends[backend])
        for target, backend in shipped
        for baseline in found
        if (baseline.model, baseline.target) == (report.source.name, target) and backend in baseline.backends
    ]


def _rival(vs: str, folder: Path, baseline: Baseline, report: Report, shipped: Result) -> Rival:
    entry, then = baseline.backends[shipped.backend], result_of(baseline, shipped.backend)
    return Rival(
        name=vs,
        result=then,
        load=partial(_load, entry, folder),
        bundle=partial(_or_absent, vs, partial(_fetched_bundle, entry, folder)),
        stale=incomparable(shipped, then) or _unlike_data(report, entry),
    )


def _load(entry: Entry, folder: Path, sha256: str) -> Predictions:
    read = partial(_fetched, entry, folder, sha256, "predictions.npz")
    return read_predictions(_or_absent("baseline", read))


def _or_absent(vs: str, get: Callable[[], Path]) -> Path:
    try:
        return get()
    except MissingObjectError as error:
        raise AbsentError(f"no comparable {vs}: {error}") from error


def _unlike_data(report: Report, entry: Entry) -> str:
    data, was = report.data, entry.data
    if data is None or was is None or (data.sha256, data.split) == (was.sha256, was.split):
        return ""
    return f"it was scored on data {was.sha256[:12]} ({was.split}), now on {data.sha256[:12]} ({data.split})"


def diff(baselines: Path, report: Path) -> tuple[Difference, ...]:
    """What accepting a report would change, for every bundle that ships; nothing is written.

    Raises:
        UsageError: a file cannot be read, or nothing ships.
    """
    stored = Stored.read(report)
    found = [read_baseline(path) for path in files_of(baselines)]
    differences = []
    for result in _shipping(stored, None):
        key = (stored.report.source.name, result.target)
        baseline = next((b for b in found if (b.model, b.target) == key and result.backend in b.backends), None)
        then = result_of(baseline, result.backend) if baseline else None
        stale = (
            incomparable(result, then) or _unlike_data(stored.report, baseline.backends[result.backend])
            if then and baseline
            else ""
        )
        was, now = (_quantities(r) for r in (then, result))
        names = dict.fromkeys((*was, *now))
        pairs = {name: (was.get(name), now.get(name)) for name in names}
        changes = tuple(
            Change(n, (b or a or ("", None))[0], a and a[1], b and b[1]) for n, (a, b) in pairs.items() if a != b
        )
        same = then is not None and then.bundle_sha256 == result.bundle_sha256
        differences.append(Difference(result.target, result.backend, same, stale, changes))
    return tuple(differences)


def _quantities(result: Result | None) -> dict[str, tuple[str, Bounds]]:
    """Everything that a table of differences shows, by name, with its unit."""
    if result is None:
        return {}
    found: dict[str, tuple[str, Bounds | None]] = {}
    for name in PERCENTILES:
        found[f"latency.{name}"] = ("s", getattr(result.latency_s, name, None))
    plain = {
        "size": ("bytes", result.size_bytes),
        "bundle_size": ("bytes", result.bundle_bytes),
        "memory": ("bytes", result.peak_rss_bytes),
        "load": ("s", result.load_s),
        "first_inference": ("s", result.first_inference_s),
        "energy": ("J", result.energy_j),
        "agreement": ("share", result.agreement),
        "snr": ("dB", result.snr_db),
    }
    found |= {name: (unit, _exactly(value)) for name, (unit, value) in plain.items()}
    found["accuracy"] = ("share", _plain(result.accuracy))
    metrics: dict[str, Any] = result.metrics.model_dump() if result.metrics else {}
    for name in ("precision", "recall", "f1", "loss"):
        if (value := metrics.get(name)) is not None:
            low, high = metrics["intervals"].get(name, (value, value))
            found[name] = ("nats" if name == "loss" else "share", Bounds(value=value, low=low, high=high))
    found |= {f"user.{name}": (seen.unit, _plain(seen)) for name, seen in result.user.items()}
    return {name: (unit, value) for name, (unit, value) in found.items() if value is not None}


def _exactly(value: float | None) -> Bounds | None:
    return None if value is None else Bounds(value=value, low=value, high=value)


def _plain(seen: Interval | None) -> Bounds | None:
    return None if seen is None else Bounds(value=seen.value, low=seen.low, high=seen.high)
