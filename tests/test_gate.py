import numpy as np
import pytest

from edgekit import gate
from edgekit.clauses import Clause
from edgekit.compare import paired_ratio
from edgekit.errors import ExitCode, UsageError
from edgekit.observed import Evidence, Ratio
from edgekit.report.predictions import Predictions
from edgekit.report.report import Latency, Paired, Report, Result, SourceInfo, TargetInfo
from edgekit.report.values import Bounds, Interval, Metrics

N = 1000


def result(role="quantized", **more):
    base = {
        "target": "pc", "backend": "onnxruntime", "precision": "int8" if role == "quantized" else "fp32", "role": role,
        "status": "measured", "size_bytes": 1_000_000 if role == "quantized" else 4_000_000,
        "ships": role == "quantized",
        "predictions_file": role,
        "metrics": Metrics(accuracy=Interval(value=0.93, low=0.912, high=0.944, n=N), f1=0.92, loss=0.2,
                        intervals={"f1": (0.90, 0.94)}),
        "latency_s": Latency(p50=Bounds(value=0.010, low=0.009, high=0.011), n=200),
    }  # fmt: skip
    return Result(**{**base, **more})


def report(*results, device="local"):
    return Report(
        edgekit="0",
        created="now",
        source=SourceInfo(name="net", size_bytes=4_000_000),
        targets=(TargetInfo(target="pc", backends=("onnxruntime",), device=device),),
        results=results,
    )


def predictions(wrong, **more):
    """Predictions of zeros where the first `wrong` of `N` are wrong."""
    top = np.zeros((N, 1), np.int32)
    top[:wrong] = 1
    base = {"ids": tuple(map(str, range(N))), "labels": np.zeros(N, np.int64), "top": top, "loss": None,
                "data_sha256": "d", "split": "test"}  # fmt: skip
    return Predictions(**{**base, **more})


def one(clause, *results, load=None, **more):
    (found,) = gate.judge(report(*(results or (result(),)), **more), [clause], predictions=load)
    return found


@pytest.mark.parametrize(
    ("clause", "verdict", "code"),
    [
        (Clause(metric="accuracy", min=0.90), "pass", 0),
        (Clause(metric="accuracy", min=0.914), "inconclusive", 4),
        (Clause(metric="accuracy", min=0.93), "inconclusive", 4),
        (Clause(metric="accuracy", min="95%"), "fail", 1),
        (Clause(metric="f1", min=0.89), "pass", 0),
        (Clause(metric="f1", min=0.92), "inconclusive", 4),
        (Clause(metric="loss", max=0.3), "pass", 0),
        (Clause(metric="loss", max=0.1), "fail", 1),
        (Clause(metric="latency.p50", max="11 ms"), "pass", 0),
        (Clause(metric="latency.p50", max="10 ms"), "inconclusive", 4),
        (Clause(metric="latency.p50", max="8 ms"), "fail", 1),
        (Clause(metric="latency.p50", min="8 ms"), "pass", 0),
        (Clause(metric="latency.p90", max="10 ms"), "missing", 1),
        (Clause(metric="size", max="1 MB"), "pass", 0),
        (Clause(metric="size", max="999 kB"), "fail", 1),
        (Clause(metric="memory", max="100 MB"), "missing", 1),
        (Clause(metric="snr", min=20), "missing", 1),
        (Clause(metric="latency.p50", max="8 ms", severity="warn"), "warn", 0),
        (Clause(metric="latency.p50", max="10 ms", severity="warn"), "inconclusive", 0),
        (Clause(metric="latency.p50", max="10 ms", on_inconclusive="fail"), "inconclusive", 1),
        (Clause(metric="latency.p50", max="10 ms", on_inconclusive="pass"), "inconclusive", 0),
        (Clause(metric="memory", max="1 MB", on_missing="pass"), "missing", 0),
        (Clause(metric="memory", max="1 MB", on_missing="warn"), "missing", 0),
    ],
)
def test_absolute_limits(clause, verdict, code):
    found = one(clause)
    assert (found.verdict, found.exit_code) == (verdict, code), found.reason


def test_interval_follows_the_confidence():
    wide = one(Clause(metric="latency.p50", max="11.2 ms", confidence=0.99))
    assert wide.verdict == "inconclusive"
    assert wide.observed.low < 0.009 < 0.011 < wide.observed.high
    narrow = one(Clause(metric="accuracy", min=0.913, confidence=0.8))
    assert narrow.verdict == "pass"


@pytest.mark.parametrize(
    ("low", "high", "limit", "verdict"),
    [
        (0.5, 0.9, 1.0, "pass"),
        (0.5, 1.0, 1.0, "pass"),
        (0.5, 1.1, 1.0, "inconclusive"),
        (1.0, 1.1, 1.0, "inconclusive"),
        (1.01, 1.1, 1.0, "fail"),
    ],
)
def test_latency_ratio_uses_the_pairs_of_its_own_statistic(low, high, limit, verdict):
    pairs = [
        Paired(vs="reference", statistic="p50", ratio=(low + high) / 2, low=low, high=high, rounds=20),
        Paired(vs="reference", statistic="p90", ratio=9, low=9, high=9, rounds=20),
        Paired(vs="float", statistic="p50", ratio=9, low=9, high=9, rounds=20),
    ]
    found = one(
        Clause(metric="latency.p50", vs="reference", max_ratio=limit), result(paired=pairs), result("reference")
    )
    assert found.verdict == verdict
    assert (found.observed.low, found.observed.high, found.observed.n) == (low, high, 20)
    assert found.observed.unit == "ratio"


def test_latency_ratio_without_interleaved_rounds_is_missing():
    found = one(Clause(metric="latency.p90", vs="float", max_ratio=1.0), result(), result("float"))
    assert (found.verdict, found.exit_code) == ("missing", 1)
    assert "was not compared in interleaved rounds" in found.reason


def test_latency_regression_is_a_ratio():
    pair = Paired(vs="reference", statistic="p50", ratio=1.03, low=1.02, high=1.04, rounds=9)
    clause = Clause(metric="latency.p50", vs="reference", max_regression="5%")
    found = one(clause, result(paired=[pair]), result("reference"))
    assert (found.verdict, found.limit) == ("pass", 1.05)


def test_a_shipped_float_bundle_against_float_is_itself():
    shipped = result("float", ships=True)
    others = (result(ships=False), result("reference"))
    ratio = one(Clause(metric="latency.p90", vs="float", max_ratio=1.0), shipped, *others)
    assert (ratio.verdict, ratio.observed.value) == ("pass", 1.0)
    lost = one(Clause(metric="accuracy", vs="float", max_regression="0pp"), shipped, *others)
    assert (lost.verdict, lost.observed.value) == ("pass", 0.0)


@pytest.mark.parametrize("statistic", ["p50", "p90"])
def test_the_same_compiled_model_has_a_ratio_of_one_at_every_percentile(statistic):
    same = Paired(vs="reference", statistic="p50", ratio=1.0, low=1.0, high=1.0, rounds=0)
    clause = Clause(metric=f"latency.{statistic}", vs="reference", max_ratio=1.0)
    found = one(clause, result("float", ships=True, paired=[same]), result("reference"))
    assert (found.verdict, found.observed.value) == ("pass", 1.0)


def test_few_rounds_at_a_high_confidence_have_the_interval_of_student_s_t():
    logs = np.random.default_rng(1).normal(0, 0.02, (6, 4))
    rounds = [tuple(one) for one in np.exp(logs)]
    ratio, low, high = paired_ratio(rounds)
    pair = Paired(vs="reference", statistic="p50", ratio=ratio, low=low, high=high, rounds=6)
    clause = Clause(metric="latency.p50", vs="reference", max_ratio=1.0, confidence=0.99)
    seen = one(clause, result(paired=[pair]), result("reference")).observed
    assert (seen.value, seen.low, seen.high) == pytest.approx(paired_ratio(rounds, confidence=0.99), rel=1e-9)


def test_one_round_has_no_interval():
    pair = Paired(vs="reference", statistic="p50", ratio=0.5, low=0.5, high=0.5, rounds=1)
    found = one(Clause(metric="latency.p50", vs="reference", max_ratio=1.0), result(paired=[pair]), result("reference"))
    assert (found.verdict, found.exit_code) == ("missing", 1)


def test_what_is_measured_again_counts_though_the_run_s_own_did_not():
    shipped, other = result(invalid="throttled", paired=()), result("reference")
    clause = Clause(metric="latency.p50", vs="reference", max_ratio=1.0)
    again = Evidence(report(shipped, other), remeasure=lambda *_: Ratio(0.5, 0.45, 0.55, 12))
    (found,) = gate.judge(again.report, [clause], evidence=again)
    assert (found.verdict, found.observed.n) == ("pass", 12)
    (found,) = gate.judge(again.report, [clause], evidence=Evidence(again.report))
    assert (found.verdict, found.exit_code) == ("invalid", 3)


def test_an_averaged_metric_whose_bootstrap_misses_it_is_judged_by_both():
    odd = result(metrics=Metrics(f1=0.92, intervals={"f1": (0.93, 0.95)}))
    found = one(Clause(metric="f1", min=0.925), odd)
    assert (found.verdict, found.observed.low, found.observed.high) == ("inconclusive", 0.92, 0.95)


def test_size_against_another_bundle_is_exact():
    clause = Clause(metric="size", vs="reference", max_ratio=0.25)
    found = one(clause, result(), result("reference"))
    assert (found.verdict, found.observed.value, found.observed.n) == ("pass", 0.25, 1)
    assert one(clause.model_copy(update={"max_ratio": 0.2}), result(), result("reference")).verdict == "fail"


@pytest.mark.parametrize(
    ("wrong", "verdict"), [(50, "pass"), (51, "pass"), (60, "inconclusive"), (90, "fail"), (20, "pass")]
)
def test_accuracy_lost_is_judged_on_the_same_samples(wrong, verdict):
    files = {"quantized": predictions(wrong), "reference": predictions(50)}
    clause = Clause(metric="accuracy", vs="reference", max_regression="1.0pp")
    found = one(clause, result(), result("reference"), load=files.__getitem__)
    assert found.verdict == verdict
    assert found.observed.value == pytest.approx((wrong - 50) / N)
    assert (found.observed.n, found.observed.unit, found.limit) == (N, "points", 0.01)


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (predictions(50, split="train"), "not scored on the same samples"),
        (predictions(50, data_sha256="e"), "not scored on the same samples"),
    ],
)
def test_unlike_samples_are_missing(other, reason):
    files = {"quantized": predictions(50), "reference": other}
    clause = Clause(metric="accuracy", vs="reference", max_regression="1.0pp")
    found = one(clause, result(), result("reference"), load=files.__getitem__)
    assert (found.verdict, found.exit_code) == ("missing", 1)
    assert reason in found.reason


def test_a_broken_predictions_file_is_missing_with_its_message():
    def load(name):
        raise UsageError(f"{name}: not a predictions file")

    clause = Clause(metric="accuracy", vs="reference", max_regression="1pp")
    found = one(clause, result(), result("reference"), load=load)
    assert (found.verdict, found.reason) == ("missing", "quantized: not a predictions file")


@pytest.mark.parametrize("vs", ["baseline", "previous"])
def test_no_comparable_baseline_is_missing(vs):
    found = one(Clause(metric="size", vs=vs, max_ratio=1.0))
    assert (found.verdict, found.exit_code) == ("missing", 1)
    assert f"no comparable {vs}: none was given" in found.reason


def test_throttled_timings_are_invalid_and_other_metrics_stand():
    hot = result(invalid="throttled to 1.2 GHz")
    time = one(Clause(metric="latency.p50", max="20 ms"), hot)
    assert (time.verdict, time.exit_code) == ("invalid", 3)
    assert "throttled to 1.2 GHz" in time.reason
    assert one(Clause(metric="size", max="2 MB"), hot).verdict == "pass"


def test_beside_other_load_absolute_times_are_invalid_and_ratios_stand():
    pair = Paired(vs="reference", statistic="p50", ratio=0.5, low=0.4, high=0.6, rounds=40)
    busy = result(absolute_invalid="other processes used 0.90 processors meanwhile", paired=(pair,))
    time = one(Clause(metric="latency.p50", max="20 ms"), busy)
    assert (time.verdict, time.exit_code) == ("invalid", 3) and "0.90 processors" in time.reason
    ratio = Clause(metric="latency.p50", vs="reference", max_ratio=1.0)
    (judged,) = gate.judge(report(busy, result("reference")), [ratio])
    assert judged.verdict == "pass"


def test_only_the_bundle_that_ships_is_judged():
    found = gate.judge(report(result(), result("float"), result("reference")), [Clause(metric="size", max="2 MB")])
    assert [(j.verdict, j.backend) for j in found] == [("pass", "onnxruntime")]


def test_without_target_only_targets_with_a_device_are_covered():
    board = [result(target="board", status="built", latency_s=None), result()]
    targets = (
        TargetInfo(target="pc", backends=("onnxruntime",), device="local"),
        TargetInfo(target="board", backends=("onnxruntime",)),
    )
    both = report(*board).model_copy(update={"targets": targets})
    assert [j.target for j in gate.judge(both, [Clause(metric="size", max="2 MB")])] == ["pc"]
    named = gate.judge(both, [Clause(metric="size", target="board", max="2 MB")])
    assert [(j.target, j.verdict) for j in named] == [("board", "pass")]


@pytest.mark.parametrize(
    ("clause", "reason"),
    [
        (Clause(metric="size", max=1, target="moon"), "the run has no target 'moon'"),
        (Clause(metric="size", max=1, backend="tensorrt"), "no target of the run has a device with backend 'tensorrt'"),
    ],
)
def test_a_clause_that_covers_nothing_is_missing(clause, reason):
    found = one(clause)
    assert (found.verdict, found.exit_code, found.target) == ("missing", 1, None)
    assert reason in found.reason


def test_a_failed_build_is_missing_with_its_reason():
    failed = result(status="failed", reason="no operator GridSample", ships=False)
    found = one(Clause(metric="size", max="2 MB"), failed)
    assert found.verdict == "missing"
    assert "quantized int8: no operator GridSample" in found.reason


def test_two_limits_in_one_clause_are_two_judgements():
    found = gate.judge(report(result()), [Clause(metric="latency.p50", min="1 ms", max="8 ms")])
    assert [(j.clause, j.verdict) for j in found] == [
        ("latency.p50: min 1 ms", "pass"),
        ("latency.p50: max 8 ms", "fail"),
    ]


@pytest.mark.parametrize(
    ("clause", "message"),
    [
        (Clause(metric="acuracy", min=0.9), "Unknown gate metric 'acuracy'. Did you mean 'accuracy'"),
        (Clause(metric="accuracy"), "needs min or max, got no limit"),
        (Clause(metric="accuracy", vs="float", min=0.9), "needs max_regression or max_ratio, got min"),
        (Clause(metric="size", max_ratio=1.0), "needs min or max, got max_ratio"),
        (Clause(metric="size", max="2 parsecs"), "'2 parsecs' is not a size"),
        (Clause(metric="accuracy", vs="float", max_regression=1.0), "cannot be a limit: that is 100 %"),
        (Clause(metric="accuracy", min=92), "cannot be a limit: that is 9200 %"),
    ],
)
def test_clauses_that_cannot_be_judged_are_refused(clause, message):
    with pytest.raises(UsageError, match=message):
        gate.judge(report(result()), [clause])


def test_reasons_carry_units():
    reason = one(Clause(metric="latency.p50", max="8 ms")).reason
    assert reason == "quantized int8: 10.0 ms [9.0, 11.0], n = 200; at most 8.00 ms"
    assert one(Clause(metric="size", max="2 MB")).reason == "quantized int8: 1.00 MB; at most 2.00 MB"


def test_reasons_say_where_a_bundle_without_a_device_was_scored():
    checked = result(status="built", measured_on="local")
    found = one(Clause(metric="accuracy", target="pc", min="90%"), checked)
    assert "n = 1,000 (on local, not on a device of the target); at least 90.00 %" in found.reason
    assert "not on a device" not in one(Clause(metric="size", max="2 MB"), checked).reason


def test_exit_code_is_the_worst_by_priority():
    judged = gate.judge(report(result()), [Clause(metric="size", max=1), Clause(metric="latency.p50", max="10 ms")])
    assert gate.exit_code(judged) == ExitCode.GATE_FAILED
    assert gate.exit_code(judged[1:]) == ExitCode.INCONCLUSIVE
    assert gate.exit_code(judged, [ExitCode.BUILD_FAILED]) == ExitCode.BUILD_FAILED
    assert gate.exit_code(()) == ExitCode.PASS
