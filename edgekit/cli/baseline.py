"""`edgekit baseline accept|show|diff|history`: what later bundles are held against."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgekit.cli.verb import Json, say, verb
from edgekit.plain import printable

if TYPE_CHECKING:
    from edgekit.baseline import Difference
    from edgekit.report.baselines import Baseline, Entry

VERSION = 1

app = typer.Typer(help="Keep what ships as the baseline that later bundles are held against.", no_args_is_help=True)
Report = Annotated[Path, typer.Argument(help="A report.json, or the folder of a run.", show_default=False)]
Place = Annotated[Path, typer.Argument(help="A baseline, or the folder of them.")]
DEFAULT = Path("baselines")


@app.command()
@verb
def accept(
    report: Report,
    baselines: Annotated[Path, typer.Option(help="Folder of the baselines, to be committed.")] = DEFAULT,
    store: Annotated[
        str | None,
        typer.Option(help="Where bundles go: a folder, oci-layout:PATH, oci://HOST/REPOSITORY, or a URL of fsspec.",
                     show_default="as before, or the folder `store` in it"),
    ] = None,
    target: Annotated[str | None, typer.Option(help="Only this target.", show_default="all that ship")] = None,
    reason: Annotated[str, typer.Option(help="Why, for whoever reads the diff.", show_default=False)] = "",
    force: Annotated[bool, typer.Option("--force", help="Even if a clause of the report failed.")] = False,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Make what ships in a report the baseline: bundles go into the store, numbers into a YAML to commit."""
    from edgekit.baseline import accept as accept_report
    from edgekit.baseline import recorded_address
    from edgekit.report.drift import drift

    address = recorded_address(store, baselines) if store else None
    done = accept_report(report, baselines, store=address, target=target, reason=reason, force=force)
    if as_json:
        rows = [
            {
                "file": str(a.path),
                "backend": a.backend,
                "what": a.what,
                **_told(a.entry),
                "drift": drift(a.entry.line()),
            }
            for a in done
        ]
        say(json.dumps({"version": VERSION, "accepted": rows}, indent=2))
        return
    for a in done:
        say(printable(f"{a.path}: {a.backend}: {a.what}: {a.entry.bundle}, sha256 {a.entry.bundle_sha256}"))
        for warning in drift(a.entry.line()):
            say(f"  warning: {warning}")


@app.command()
@verb
def show(
    baselines: Place = DEFAULT,
    check: Annotated[bool, typer.Option("--check", help="Fetch and verify what the stores hold.")] = False,
    as_json: Json = False,
) -> None:
    """Show what is accepted."""
    from edgekit.baseline import check_stored, files_of
    from edgekit.report.baselines import read_baseline

    found = {path: read_baseline(path) for path in files_of(baselines)}
    checked = sum(check_stored(b, path.parent) for path, b in found.items()) if check else None
    if as_json:
        files = [{"file": str(path), **_value(baseline)} for path, baseline in found.items()]
        say(json.dumps({"version": VERSION, "baselines": files, "objects_checked": checked}, indent=2))
        return
    for path, baseline in found.items():
        say(printable(f"{path}: {baseline.model} on {baseline.target}"))
        for backend, entry in sorted(baseline.backends.items()):
            say("\n".join(printable(line) for line in _lines(backend, entry)))
    if checked is not None:
        say(f"{checked} objects of the stores are intact")


@app.command()
@verb
def diff(
    baselines: Annotated[Path, typer.Argument(help="A baseline, or the folder of them.", show_default=False)],
    report: Report,
    as_json: Json = False,
) -> None:
    """Show what accepting a report would change. It judges nothing: that is `edgekit gate`."""
    from edgekit.baseline import diff as differences

    found = differences(baselines, report)
    if as_json:
        say(json.dumps({"version": VERSION, "differences": [_difference(d) for d in found]}, indent=2))
        return
    for d in found:
        say("\n".join(printable(line) for line in _difference_lines(d)))


@app.command()
@verb
def history(baselines: Place = DEFAULT, as_json: Json = False) -> None:
    """Show what was accepted over time, and what drifted in small steps."""
    from edgekit.baseline import files_of
    from edgekit.report.baselines import read_baseline
    from edgekit.report.drift import drift

    found = [(path, read_baseline(path)) for path in files_of(baselines)]
    if as_json:
        rows = [
            {"file": str(path), "model": b.model, "target": b.target, "backend": name,
             "entries": [past.model_dump(mode="json") for past in entry.line()], "drift": drift(entry.line())}
            for path, b in found
            for name, entry in sorted(b.backends.items())
        ]  # fmt: skip
        say(json.dumps({"version": VERSION, "histories": rows}, indent=2))
        return
    for _, baseline in found:
        for name, entry in sorted(baseline.backends.items()):
            say("\n".join(printable(line) for line in _history_lines(baseline, name, entry)))


def _told(entry: Entry) -> dict[str, Any]:
    return {"bundle": entry.bundle, "bundle_sha256": entry.bundle_sha256, "store": _address(entry)}


def _address(entry: Entry) -> str:
    from edgekit.stores import shown

    return shown(entry.store)


def _value(baseline: Baseline) -> dict[str, Any]:
    value: dict[str, Any] = baseline.model_dump(mode="json", exclude={"version"})
    for name, entry in baseline.backends.items():
        value["backends"][name]["store"] = _address(entry)
    return value


def _lines(backend: str, entry: Entry) -> list[str]:
    from edgekit.report.quantities import show as number
    from edgekit.report.quantities import show_interval
    from edgekit.report.values import Bounds

    device, times = entry.device, entry.latency_s
    p50 = Bounds(value=times.p50.value, low=times.p50.low, high=times.p50.high) if times and times.p50 else None
    lines = [
        f"  {backend}: {entry.role} {entry.precision}, report of {entry.created}"
        f"{f': {entry.reason}' if entry.reason else ''}",
        f"    bundle    {entry.bundle}, sha256 {entry.bundle_sha256}, in {_address(entry)}",
        f"    size      {number(entry.size_bytes, 'bytes')} (bundle {number(entry.bundle_bytes, 'bytes')})",
    ]
    if entry.accuracy:
        seen = entry.accuracy
        lines.append(f"    accuracy  {number(seen.value, 'share')} [{seen.low:.2%}, {seen.high:.2%}], n = {seen.n:,}")
    if p50:
        lines.append(f"    p50       {show_interval(p50, 's')}")
    if device:
        versions = ", ".join(f"{name} {version}" for name, version in sorted(device.versions.items()))
        lines.append(f"    device    {device.name} ({device.fingerprint[:12]}), {device.threads} threads, {versions}")
    return lines


def _difference(d: Difference) -> dict[str, Any]:
    changes = [
        {"name": c.name, "unit": c.unit, "was": c.was and c.was.model_dump(), "now": c.now and c.now.model_dump()}
        for c in d.changes
    ]
    return {
        "target": d.target,
        "backend": d.backend,
        "same_bundle": d.same_bundle,
        "not_comparable": d.stale,
        "changes": changes,
    }


def _difference_lines(d: Difference) -> list[str]:
    from edgekit.report.quantities import NOTHING, show_interval

    bundle = "the same bundle" if d.same_bundle else "another bundle"
    lines = [f"{d.target} with {d.backend}: {bundle}{'' if d.changes else ', nothing changes'}"]
    if d.stale:
        lines.append(f"  times and scores do not compare: {d.stale}")
    for c in d.changes:
        was, now = (NOTHING if seen is None else show_interval(seen, c.unit) for seen in (c.was, c.now))
        lines.append(f"  {c.name:18} {was}  ->  {now}")
    return lines


def _history_lines(baseline: Baseline, backend: str, entry: Entry) -> list[str]:
    from edgekit.report.drift import drift
    from edgekit.report.quantities import show as number

    lines = [f"{baseline.model} on {baseline.target} with {backend}"]
    lines.append(f"  {'report of':27} {'bundle':12} {'size':>9} {'accuracy':>9} {'p50':>9} {'ratio':>7}")
    lines += [
        f"  {past.created:27} {past.bundle_sha256[:12]} {number(past.size_bytes, 'bytes'):>9} "
        f"{number(past.accuracy, 'share'):>9} {number(past.p50_s, 's'):>9} {number(past.p50_ratio, 'ratio'):>7}"
        for past in entry.line()
    ]
    return [*lines, *(f"  warning: {warning}" for warning in drift(entry.line()))]
