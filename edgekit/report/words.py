"""How a report is put into words, for the terminal, Markdown and HTML alike."""

from __future__ import annotations

from collections.abc import Sequence

from edgekit.errors import ExitCode
from edgekit.report.quantities import NOTHING, show, show_interval, show_seconds
from edgekit.report.report import Paired, Report, Result
from edgekit.report.values import Interval, Metrics
from edgekit.report.verdicts import Judgement, Verdict

BACKENDS = {
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "litert": "LiteRT",
    "tensorrt": "TensorRT",
}
_STAGES = {
    "prune": "pruned",
    "factorize": "factorised",
    "sparsify": "made sparse",
    "distill": "distilled",
    "quantize": "quantized",
    "qat": "trained with fake quantization",
}
_OUTCOMES = {
    ExitCode.PASS: "Pass",
    ExitCode.GATE_FAILED: "Gate failed",
    ExitCode.USAGE: "Unusable input",
    ExitCode.MEASUREMENT_INVALID: "Measurement invalid",
    ExitCode.INCONCLUSIVE: "Inconclusive",
    ExitCode.DEVICE: "Device trouble",
    ExitCode.MISSING_DEPENDENCY: "Package missing",
    ExitCode.BUILD_FAILED: "Build failed",
    ExitCode.INTEGRITY: "Integrity",
    ExitCode.INTERNAL: "Internal error",
    ExitCode.INTERRUPTED: "Interrupted",
}


def backend(name: str) -> str:
    """The name that a runtime gives itself."""
    return BACKENDS.get(name, name)


def status(result: Result) -> str:
    """measured, built, emitted or failed; what was measured in an emulator alone is called so."""
    emulated = result.device is not None and result.device.emulated
    return "emulated" if emulated and result.status == "built" else result.status


def outcome(report: Report) -> str:
    """What the exit code says, in a word or two; "Done" where nothing was asked of the run."""
    return "Done" if report.exit_code == ExitCode.PASS and not report.gate else ending(report.exit_code)


def ending(code: int) -> str:
    """What an exit code says, in a word or two.

    >>> ending(4), ending(99)
    ('Inconclusive', 'Exit code 99')
    """
    return _OUTCOMES[ExitCode(code)] if code in set(ExitCode) else f"Exit code {code}"


def tone(verdict: Verdict) -> str:
    """pass, fail or unsure: how a verdict is coloured."""
    return {"pass": "pass", "fail": "fail", "missing": "fail"}.get(verdict, "unsure")


def done(report: Report) -> str:
    """One sentence on what the run did."""
    acts = [_STAGES.get(stage.name, stage.name) for stage in report.stages]
    listed = f"{', '.join(acts[:-1])} and {acts[-1]}" if len(acts) > 1 else (acts[0] if acts else "built unchanged")
    usable = [r for r in report.results if r.status != "failed"]
    runtimes, targets = len({r.backend for r in usable}), len({r.target for r in usable})
    took = f" in {show_seconds(report.seconds)}" if report.seconds else ""
    where = f"{plural(runtimes, 'runtime')} on {plural(targets, 'target')}"
    return f"{report.source.name} was {listed}, and built for {where}{took}."


def plural(count: int, noun: str) -> str:
    """`1 target`, `2 targets`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def counted(report: Report) -> str:
    """How the gate went, such as "3 of 4 clauses pass, 1 inconclusive"."""
    return tally(report.gate) if report.gate else "no gate clauses"


def tally(judgements: Sequence[Judgement]) -> str:
    """How many judgements have which verdict."""
    verdicts = [entry.verdict for entry in judgements]
    kinds = ("fail", "missing", "invalid", "inconclusive", "warn")
    others = [f"{verdicts.count(kind)} {kind}" for kind in kinds if kind in verdicts]
    passed = f"{verdicts.count('pass')} of {plural(len(verdicts), 'judgement')} pass"
    return ", ".join([passed, *others])


def sensitivity(report: Report) -> list[str]:
    """A line for every stage and grid whose layers were looked at one by one: the worst, and what stays float."""
    lines = []
    for stage in report.stages:
        for variant in dict.fromkeys(layer.variant for layer in stage.sensitivity):
            rows = [layer for layer in stage.sensitivity if layer.variant == variant]
            kept = [layer for layer in rows if layer.kept]
            told = sorted(kept or rows, key=lambda layer: -layer.share)[:3]
            named = ", ".join(f"{layer.layer} {show(layer.snr_db, 'dB')}" for layer in told)
            more = f" and {len(kept) - 3} more" if len(kept) > 3 else ""
            said = f"{len(kept)} of {len(rows)} layers kept float" if kept else f"none of {len(rows)} layers kept float"
            lines.append(f"{stage.name}, {variant} grid: {said} ({'' if kept else 'worst alone: '}{named}{more})")
    return lines


def reference_of(report: Report, result: Result) -> Result | None:
    """The reference bundle of the same target and backend."""
    return report.result(result.target, result.backend, "reference")


def accuracy(seen: Interval | None) -> str:
    """`93.12 % ± 0.50`: the value with half its interval."""
    if seen is None:
        return NOTHING
    return f"{100 * seen.value:.2f} % ± {50 * (seen.high - seen.low):.2f}"


def share(seen: Interval | None) -> str:
    """`93.12 %`: the value alone."""
    return show(seen.value, "share") if seen else NOTHING


def points(report: Report, result: Result) -> float | None:
    """Accuracy against the reference bundle, or against the source where that was not scored."""
    reference = reference_of(report, result)
    before = reference.accuracy if reference and reference.accuracy else source_accuracy(report)
    after = result.accuracy
    return after.value - before.value if before and after and result.role != "reference" else None


def source_accuracy(report: Report) -> Interval | None:
    """The accuracy of the model as it came."""
    return report.source.metrics.accuracy if report.source.metrics else None


def main_score(report: Report) -> str | None:
    """The metric that the task is told by: the first of `edgekit.tasks.TASKS` that was computed."""
    seen = (report.source.metrics, *(result.metrics for result in report.results))
    return next((name for metrics in seen if metrics for name in metrics.scores), None)


def score(metrics: Metrics | None, name: str) -> str:
    """`41.30 % ± 1.20`: a metric of the task with half its interval."""
    seen = metrics.scores.get(name) if metrics else None
    if seen is None:
        return NOTHING
    shown = show_interval(seen, seen.unit)
    scale = 100 if seen.unit == "share" else 1
    return f"{shown.partition(' [')[0]} ± {scale * (seen.high - seen.low) / 2:.3g}"


def signed_points(value: float | None) -> str:
    """`-0.21 pp`, `+0.05 pp`."""
    return NOTHING if value is None else f"{100 * value:+.2f} pp"


def ratio(pair: Paired | None) -> str:
    """`0.62 [0.60, 0.65]`."""
    return NOTHING if pair is None else f"{pair.ratio:.2f} [{pair.low:.2f}, {pair.high:.2f}]"


def smaller(report: Report, result: Result) -> float | None:
    """How many times smaller than the reference bundle, or than the source where there is none."""
    reference = reference_of(report, result)
    before = reference.size_bytes if reference and reference.size_bytes else report.source.size_bytes
    return before / result.size_bytes if before and result.size_bytes else None


def percentile(result: Result, statistic: str) -> str:
    """A latency percentile, without its interval."""
    seen = getattr(result.latency_s, statistic) if result.latency_s else None
    return NOTHING if seen is None else show(seen.value, "s")


def nodes(result: Result) -> str:
    """`42/45`: operators in int8 of all."""
    if result.int8_nodes is None or result.float_nodes is None:
        return NOTHING
    return f"{result.int8_nodes}/{result.int8_nodes + result.float_nodes}"
