"""The report's tables in HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edgekit.report import words
from edgekit.report.markup import Content, Markup, el, join
from edgekit.report.quantities import NOTHING, show, show_count, show_interval, show_seconds
from edgekit.report.report import ClassMetrics, Report, Result
from edgekit.report.values import Bounds, Metrics, Observed, Score

RESULTS_NOTE = (
    "Highlighted rows ship. The change is in accuracy against the reference; P, R and F1 are macro averages of "
    "precision, recall and F1. "
    "Ratios below 1 are faster: this bundle's median time over the other's, from interleaved rounds."
)
CLASSES_NOTE = (
    "Each class against the rest: the reference bundle before, the bundle that ships after. The circle is F1 before, "
    "the diamond F1 after."
)
SCORES_NOTE = "Each with its 95 % interval, on the device or else on the host; an arrow says which way is better."
MOST_CLASSES = 40
_STATES = {"measured": "pass", "built": "plain", "emitted": "plain", "failed": "fail"}


def table(
    label: str, head: Sequence[Content], rows: Sequence[Markup], *, text: Sequence[int] = (0,), class_: str = ""
) -> Markup:
    """A table that scrolls sideways where it must; the columns in `text` stand left, `label` is read aloud."""
    cells = [el("th", name, scope="col", class_="t" if i in text else None) for i, name in enumerate(head)]
    inner = el("table", el("thead", el("tr", cells)), el("tbody", rows))
    return el("div", inner, class_=f"tablebox {class_}".strip(), tabindex="0", role="region", aria_label=label)


def chip(text: str, tone: str) -> Markup:
    """A short coloured word."""
    return el("span", text, class_=f"chip {tone}")


def gate(report: Report) -> Markup | None:
    """Every clause on every bundle."""
    rows = [
        el(
            "tr",
            el("td", chip(entry.verdict, words.tone(entry.verdict)), class_="t"),
            el("th", entry.clause, scope="row"),
            el("td", _where(entry.target, entry.backend), class_="t"),
            el("td", entry.reason, class_="t wrap"),
        )
        for entry in report.gate
    ]
    return (
        table("Gate", ("Verdict", "Clause", "Where", "What was seen"), rows, text=range(4), class_="stack")
        if rows
        else None
    )


def _where(target: str | None, backend: str | None) -> str:
    return ", ".join(part for part in (target, words.backend(backend) if backend else None) if part) or NOTHING


def results(report: Report) -> Markup | None:
    """Every bundle, grouped by target and backend."""
    head: tuple[str, ...] = (
        "Bundle", "Status", "Size", "Accuracy", "Change", "P / R / F1, %", "Loss", "p50", "p90",
        "Time / reference", "Time / float", "Memory",
    )  # fmt: skip
    if any(r.energy_j is not None for r in report.results):
        head = (*head, "Energy")
    rows: list[Markup] = []
    for target, backend in dict.fromkeys((r.target, r.backend) for r in report.results):
        same = [r for r in report.results if (r.target, r.backend) == (target, backend)]
        rows.append(
            el(
                "tr",
                el("th", f"{words.backend(backend)} on {target}", colspan=len(head), scope="rowgroup"),
                class_="group",
            )
        )
        rows += [_result(report, r, len(head)) for r in same]
    return table("Every bundle", head, rows, text=(0, 1), class_="sticky") if rows else None


def _result(report: Report, result: Result, columns: int) -> Markup:
    ships = el("small", chip("ships", "pass")) if result.ships else None
    state = [chip(words.status(result), _STATES[result.status])]
    if result.status == "failed":
        return el(
            "tr",
            el("th", f"{result.role} {result.precision}", scope="row"),
            el("td", state, class_="t"),
            el("td", result.reason, colspan=columns - 2, class_="t wrap"),
        )
    times = words.smaller(report, result) or 1.0
    below = [f"{times:.1f}x smaller"] if times >= 1.05 else [f"{1 / times:.2f}x larger"] if times <= 0.95 else []
    cells: list[Content] = [
        [show(result.size_bytes, "bytes"), [el("small", line) for line in below]],
        _with_interval(result.accuracy, "share"),
        words.signed_points(words.points(report, result)),
        _averages(result.metrics),
        show(result.metrics.loss if result.metrics else None, "nats"),
        _percentile(result, "p50"),
        _percentile(result, "p90"),
        _ratio(result, "reference"),
        _ratio(result, "float"),
        show(result.peak_rss_bytes, "bytes"),
        _energy(result),
    ][: columns - 2]
    name = el("th", f"{result.role} {result.precision}", ships, scope="row")
    where = el("small", f"{'' if result.status == 'measured' else 'scored '}on {result.measured_on}")
    where = where if result.measured_on else Markup("")
    invalid = el("small", f"timing invalid: {result.invalid}") if result.invalid else None
    busy = f"absolute times don't count: {result.absolute_invalid}" if result.absolute_invalid else ""
    status = el("td", state, where, invalid, el("small", busy) if busy else None, class_="t")
    return el("tr", name, status, [el("td", cell) for cell in cells], class_="ships" if result.ships else None)


def scores(report: Report) -> Markup | None:
    """The metrics of the task, and the user's own, of the model as it came and of every bundle."""
    seen: list[tuple[str, Mapping[str, Score], Mapping[str, Observed]]] = []
    seen.append(("as it came", report.source.metrics.scores if report.source.metrics else {}, {}))
    for result in (r for r in report.results if r.metrics or r.user):
        name = f"{result.role} {result.precision}, {words.backend(result.backend)} on {result.target}"
        seen.append((name, result.metrics.scores if result.metrics else {}, result.user))
    kinds = {name: score for _, found, _ in seen for name, score in found.items()}
    own = list(dict.fromkeys(name for _, _, user in seen for name in user))
    if not kinds and not own:
        return None
    head = ("Model", *(f"{name.replace('_', ' ')} {'↓' if s.lower else '↑'}" for name, s in kinds.items()), *own)
    rows = [
        el(
            "tr",
            el("th", name, scope="row"),
            [el("td", _with_interval(found.get(kind), score.unit)) for kind, score in kinds.items()],
            [el("td", _with_interval(user.get(one), user[one].unit if one in user else "")) for one in own],
        )
        for name, found, user in seen
    ]
    return table("Metrics of the task", head, rows, class_="sticky")


def _energy(result: Result) -> Content:
    """Joules of one inference: all that the meter saw, and below it that less the device at rest."""
    net = f"{show(result.energy_net_j, 'J')} net" if result.energy_net_j is not None else ""
    return [show(result.energy_j, "J"), el("small", net) if net else None]


def _with_interval(seen: Bounds | None, unit: str) -> Content:
    if seen is None:
        return NOTHING
    value, _, rest = show_interval(seen, unit).partition(" [")
    return [value, el("small", f"[{rest.partition(',  n')[0].partition(', n')[0]}") if rest else None]


def _averages(metrics: Metrics | None) -> str:
    if metrics is None or metrics.f1 is None:
        return NOTHING
    values = (metrics.precision, metrics.recall, metrics.f1)
    return " / ".join(_share(value) if value is not None else NOTHING for value in values)


def _percentile(result: Result, statistic: str) -> Content:
    return _with_interval(getattr(result.latency_s, statistic) if result.latency_s else None, "s")


def _ratio(result: Result, vs: str) -> Content:
    pair = result.paired_with(vs)
    if pair is None:
        return NOTHING
    return [f"{pair.ratio:.3f}", el("small", f"[{pair.low:.3f}, {pair.high:.3f}]")]


def stages(report: Report) -> Markup:
    """The source and what every stage made of it, measured on the host."""
    source = report.source
    rows = [_stage_row("source", None, source.macs, source.parameters, None, None, _plain(source.metrics), ())]
    rows += [
        _stage_row(s.name, s.seconds, s.macs, s.parameters, s.snr_db, s.agreement, s.metrics, s.notes)
        for s in report.stages
    ]
    head = ("Stage", "Time", "MACs", "Parameters", "Output SNR", "Agreement", "Accuracy", "Loss")
    total = sum(s.seconds for s in report.stages)
    training = sum(s.seconds for s in report.stages if s.curve)
    part = f", training {show_seconds(training)} of that" if training else ""
    note = f"Stages took {show_seconds(total)}{part}. SNR and agreement are against the reference."
    return join([el("p", note, class_="quiet"), table("Stages", head, rows)])


def _plain(metrics: Metrics | None) -> dict[str, float]:
    if metrics is None:
        return {}
    found = {"accuracy": metrics.accuracy.value if metrics.accuracy else None, "loss": metrics.loss}
    return {name: value for name, value in found.items() if value is not None}


def _stage_row(
    name: str, seconds: float | None, macs: int | None, parameters: int | None, snr: float | None,
    agrees: float | None, metrics: dict[str, float], notes: Sequence[str],
) -> Markup:  # fmt: skip
    """The numbers of one stage, and below them its notes across the whole table."""
    cells = (
        show_seconds(seconds), show_count(macs), show_count(parameters), show(snr, "dB"), show(agrees, "share"),
        show(metrics.get("accuracy"), "share"), show(metrics.get("loss"), "nats"),
    )  # fmt: skip
    numbers = el(
        "tr", el("th", name, scope="row"), [el("td", cell) for cell in cells], class_="noted" if notes else None
    )
    said = el("td", [el("div", note) for note in notes], colspan=8, class_="t wrap quiet")
    return join([numbers, el("tr", said) if notes else None])


def classes(report: Report) -> Markup | None:
    """For every model that ships a table of its classes before and after; the first one is open."""
    found: list[Markup] = []
    shipped = [r for r in report.results if r.ships and r.per_class]
    same: dict[str, list[Result]] = {}
    for result in shipped:  # the same model built for two targets is scored once
        same.setdefault(result.predictions_file or result.key, []).append(result)
    for result, *others in same.values():
        reference = words.reference_of(report, result)
        scored = reference if reference and reference.per_class else report.source
        targets = ", ".join(r.target for r in (result, *others))
        head = f"{words.backend(result.backend)} {result.role} {result.precision} on {targets}"
        whole = el("p", _before_after(scored.metrics, result.metrics), class_="quiet")
        table_ = _class_table(scored.per_class, result.per_class)
        found.append(el("details", el("summary", head), whole, table_, open=not found))
    return el("div", found) if found else None


def _before_after(before: Metrics | None, after: Metrics | None) -> str:
    """All classes together, before and after."""
    if before is None or after is None:
        return ""
    was, now = (m.accuracy.value if m.accuracy else None for m in (before, after))
    shown = [
        ("Accuracy", was, now, "share"),
        ("precision", before.precision, after.precision, "share"),
        ("recall", before.recall, after.recall, "share"),
        ("F1", before.f1, after.f1, "share"),
        ("loss", before.loss, after.loss, "nats"),
    ]
    return ", ".join(f"{name} {show(old, unit)} → {show(new, unit)}" for name, old, new, unit in shown) + "."


def _class_table(before: Sequence[ClassMetrics], after: Sequence[ClassMetrics]) -> list[Markup]:
    old = {c.name: c for c in before}
    kept = sorted(after, key=lambda c: -abs(c.f1 - old[c.name].f1) if c.name in old else 0)[:MOST_CLASSES]
    kept = [c for c in after if c in kept] if len(after) > MOST_CLASSES else list(after)
    lowest = min(c.f1 for c in (*kept, *(old[c.name] for c in kept if c.name in old)))
    floor = max(0.0, int(lowest * 10 - 0.5) / 10)
    rows = [_class_row(old.get(new.name), new, floor) for new in kept]
    axis = f"F1 from {100 * floor:.0f} to 100 %"
    head = ("Class", "Samples", "Accuracy, %", "Precision, %", "Recall, %", "F1, %", "F1 change", axis)
    note = f"The {len(kept)} of {len(after)} classes whose F1 changed most; report.json holds all."
    few = [el("p", note, class_="quiet")] if len(kept) < len(after) else []
    return [*few, table("Classes", head, rows, class_="sticky")]


def _class_row(was: ClassMetrics | None, new: ClassMetrics, floor: float) -> Markup:
    cells = [
        [_share(getattr(was, name)) if was else NOTHING, " → ", _share(getattr(new, name))]
        for name in ("accuracy", "precision", "recall", "f1")
    ]
    change = words.signed_points(new.f1 - was.f1) if was else NOTHING
    return el(
        "tr",
        el("th", new.name, scope="row"),
        el("td", f"{new.support:,}"),
        [el("td", cell) for cell in cells],
        el("td", change),
        el("td", _dumbbell(was.f1 if was else None, new.f1, floor)),
    )


def _share(value: float) -> str:
    return f"{100 * value:.1f}"


def _dumbbell(before: float | None, after: float, floor: float) -> Markup:
    """F1 before and after on one line; decoration, since the numbers stand in the row."""

    def at(value: float) -> float:
        return 100 * (value - floor) / (1 - floor)

    dots = [el("i", class_="after", style=f"left:{at(after):.2f}%")]
    if before is not None:
        left, wide = min(at(before), at(after)), abs(at(before) - at(after))
        link = el("em", style=f"left:{left:.2f}%;width:{wide:.2f}%")
        dots = [link, el("i", style=f"left:{at(before):.2f}%"), *dots]
    return el("span", dots, class_="pair", aria_hidden="true")


def environment(report: Report) -> Markup | None:
    """Devices, versions and hashes: what it takes to compare or repeat."""
    rows = [_fact(name, value) for name, value in report.environment.items()]
    if report.recipe and report.recipe.sha256:
        rows.append(_fact("recipe sha256", report.recipe.sha256))
    if report.data:
        rows.append(_fact("data", f"{report.data.name}, {report.data.split}, {report.data.n:,} samples"))
        rows += [_fact("data sha256", report.data.sha256)] if report.data.sha256 else []
    if report.source.sha256:
        rows.append(_fact("source sha256", report.source.sha256))
    for device in dict.fromkeys(
        (r.device.name, r.device.fingerprint, r.device.threads, r.device.emulated) for r in report.results if r.device
    ):
        name, fingerprint, threads, emulated = device
        used = words.plural(threads, "thread") if threads else "threads unknown"
        rows.append(_fact(f"device {name}", f"{fingerprint}, {used}{', emulated: not timed' if emulated else ''}"))
    meters = {
        r.measured_on: r.energy_meter if r.energy_j is not None else f"not known: {r.energy_reason}"
        for r in report.results
        if r.measured_on and (r.energy_j is not None or r.energy_reason)
    }
    rows += [_fact(f"energy on {name}", told) for name, told in meters.items()]
    versions = {k: v for r in report.results if r.device for k, v in r.device.versions.items()}
    rows += [_fact(f"{name} (device)", version) for name, version in versions.items()]
    return table("Environment", ("What", "Value"), rows, text=(0, 1), class_="stack") if rows else None


def _fact(name: str, value: str) -> Markup:
    return el("tr", el("th", name, scope="row"), el("td", value, class_="t wrap"))
