"""The gate's whole job: read a report and its clauses, measure again where asked, judge, and say so in one value."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from pathlib import Path

from edgekit.clauses import Placed, load_clauses, placed_clauses
from edgekit.context import Progress, Silent
from edgekit.errors import IntegrityError, UsageError
from edgekit.extras import DISTRIBUTION
from edgekit.gate import exit_code, judge
from edgekit.observed import Evidence
from edgekit.report.report import Result
from edgekit.report.verdicts import GateFile
from edgekit.rivals import AbsentError, Rival, Rivals, incomparable
from edgekit.stored import Stored
from edgekit.yamlfile import parse_yaml

RETRY_AFTER_S = 10.0
"""What a device gets to cool down before what it measured in a bad state is measured again."""


def run_gate(
    report: Path,
    *,
    clauses: Path | None = None,
    device: str | None = None,
    baselines: Path | None = None,
    previous: Path | None = None,
    keys: Sequence[Path] = (),
    retry_invalid: int = 0,
    wait: bool = False,
    kill_on_interrupt: bool = False,
    progress: Progress | None = None,
) -> GateFile:
    """Judge a report.

    Args:
        report: a `report.json` or its folder.
        clauses: a `gate.yaml` or a recipe; by default the clauses of the recipe that the report is of.
        device: where relative latencies are measured again; without it the rounds that the run took are judged.
        baselines: the file or folder of accepted baselines, for `vs: baseline`.
        previous: an earlier report, for `vs: previous`.
        keys: public keys; every bundle that ships must have been signed with one of them.
        retry_invalid: how often to measure again what a device measured in a bad state.
        wait: queue behind whoever measures on the device.
        kill_on_interrupt: end what runs on the device when this process is interrupted.
        progress: where to say how far it is; by default nowhere.

    Returns:
        What is to be written as `gate.json`. A failed gate is no exception: `exit_code` says it.

    Raises:
        UsageError: a file is missing or cannot be read, or there is no clause.
        IntegrityError: a bundle is damaged, unsigned, or not the one that was measured.
        DeviceError: the device cannot be reached.
    """
    started, shown = time.monotonic(), progress or Silent()
    stored = Stored.read(report)
    placed = _clauses(stored, clauses)
    older = Stored.read(previous) if previous else None
    _check_bundles(stored, keys)
    again = None
    if device is not None:
        from edgekit.remeasure import Again, opened

        there = opened(device, wait=wait, kill_on_interrupt=kill_on_interrupt, progress=shown)
        again = Again(stored, there, placed, shown)
    rivals = _rivals(stored, older, baselines)
    evidence = Evidence(stored.report, stored.predictions, stored.samples, rivals, stored.bundle, again)
    attempts = 0
    while True:
        attempts += 1
        judged = judge(stored.report, placed, evidence=evidence)
        if again is None or attempts > retry_invalid or not again.spoiled:  # what the run stored stays what it is
            break
        shown.say(f"measured in a bad state; once more in {RETRY_AFTER_S:g} s")
        time.sleep(RETRY_AFTER_S)
        again.retry()
    return GateFile(
        edgekit=metadata.version(DISTRIBUTION),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=time.monotonic() - started,
        model=stored.report.source.name,
        report=stored.named(),
        clauses=str(clauses or (stored.report.recipe and stored.report.recipe.path) or ""),
        baseline=str(baselines) if baselines else None,
        previous=older.named() if older else None,
        device=device,
        attempts=attempts,
        exit_code=int(exit_code(judged)),
        judgements=judged,
        warnings=(*_warnings(stored, retry_invalid, device), *_drifted(stored, baselines)),
    )


def _clauses(stored: Stored, clauses: Path | None) -> tuple[Placed, ...]:
    if clauses is not None:
        found = load_clauses(clauses)
    elif stored.report.recipe is not None and stored.report.recipe.text:
        recipe = stored.report.recipe
        found = placed_clauses(parse_yaml(recipe.text, Path(recipe.path or "recipe.yaml"), "recipe"))
    else:
        raise UsageError(f"{stored.path}: the report holds no recipe, and so no clauses. Give --clauses gate.yaml.")
    if not found:
        raise UsageError(f"{clauses or stored.path}: there is no clause under `gate`: nothing to judge. Add one.")
    return found


def _check_bundles(stored: Stored, keys: Sequence[Path]) -> None:
    """Every bundle that ships is the one that was measured; and, with keys, signed by one who is trusted."""
    for result in (r for r in stored.report.results if r.ships):
        try:
            path = stored.bundle(result)
        except AbsentError as absent:
            if keys:
                raise IntegrityError(f"a signature is demanded, but {absent.reason}") from None
            continue
        if keys:
            from edgekit.signing import check_signature

            check_signature(path, keys)


def _rivals(stored: Stored, older: Stored | None, baselines: Path | None) -> Rivals:
    """What `vs: baseline` and `vs: previous` mean here."""

    def rival(vs: str, shipped: Result) -> Rival:
        if vs == "previous" and older is not None:
            return _earlier(older, stored, shipped)
        if vs == "baseline" and baselines is not None:
            from edgekit.baseline import baseline_rivals

            return baseline_rivals(baselines, stored.report)(vs, shipped)
        option = "--baselines" if vs == "baseline" else "--previous"
        raise AbsentError(f"no comparable {vs}: none was given ({option} of `edgekit gate` names it)")

    return rival


def _earlier(older: Stored, stored: Stored, shipped: Result) -> Rival:
    """What shipped for the same target and backend in the earlier report."""
    if older.report.source.name != stored.report.source.name:
        was = older.report.source.name
        raise AbsentError(f"no comparable previous: that report is of {was!r}, not of {stored.report.source.name!r}")
    other = older.report.shipped(shipped.target, shipped.backend)
    if other is None:
        raise AbsentError(f"no comparable previous: nothing shipped for {shipped.target} with {shipped.backend}")
    return Rival("previous", other, older.predictions, partial(older.bundle, other), stale=incomparable(shipped, other))


def _warnings(stored: Stored, retry_invalid: int, device: str | None) -> tuple[str, ...]:
    report, found = stored.report, []
    absent = [r.key for r in report.results if r.ships and (r.bundle is None or not stored.file(r.bundle).exists())]
    if absent:
        found.append(f"not checked, for their bundles do not lie beside the report: {', '.join(absent)}")
    if retry_invalid and device is None:
        found.append("--retry-invalid measures nothing again without --device")
    return tuple(found)


def _drifted(stored: Stored, baselines: Path | None) -> list[str]:
    """What got worse in small steps over the baselines that were accepted for what ships here."""
    if baselines is None or not baselines.exists():  # before the first is accepted; a clause on it says missing
        return []
    from edgekit.baseline import entries_for
    from edgekit.report.drift import drift

    found = entries_for(baselines, stored.report)
    return [f"{target}, {backend}: {line}" for (target, backend), entry in found for line in drift(entry.line())]
