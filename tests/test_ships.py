import numpy as np
import pytest

from edgekit import ships
from edgekit.report.predictions import Predictions
from edgekit.report.report import Paired, Result
from edgekit.report.values import Interval, Metrics, Score

MAX_DROP = 0.005


def result(role, accuracy=0.93, ratio=None, **more):
    pairs = ratio and [Paired(vs="float", statistic="p50", ratio=ratio, low=ratio - 0.05, high=ratio + 0.05, rounds=20)]
    scored = accuracy and Metrics(accuracy=Interval(value=accuracy, low=accuracy - 0.01, high=accuracy + 0.01, n=1000))
    base = {
        "target": "pc", "backend": "openvino", "precision": "int8" if role == "quantized" else "fp32", "role": role,
        "status": "measured", "paired": pairs or (), "metrics": scored,
    }  # fmt: skip
    return Result(**{**base, **more})


def choose(*results, **more):
    return ships.choose_ships(results, MAX_DROP, **more)


@pytest.mark.parametrize(
    ("ratio", "accuracy", "role"),
    [(0.5, 0.93, "quantized"), (0.94, 0.926, "quantized"), (0.96, 0.93, "float"), (1.2, 0.93, "float"),
     (0.5, 0.92, "float"), (0.5, 0.925, "quantized"), (None, 0.93, "float")],
)  # fmt: skip
def test_quantized_ships_if_shown_faster_and_near(ratio, accuracy, role):
    found = choose(result("reference"), result("float"), result("quantized", accuracy, ratio))
    assert found.result.role == role
    assert found.helped == (role == "quantized")
    assert found.verified


@pytest.mark.parametrize(("ratio", "role"), [(0.9, "quantized"), (1.02, "quantized"), (1.1, "float")])
@pytest.mark.parametrize("precision", sorted(ships.SMALLER))
def test_what_is_wanted_for_its_size_ships_unless_shown_slower(precision, ratio, role):
    small = result("quantized", ratio=ratio, precision=precision, size_bytes=300)
    found = choose(result("float", size_bytes=1000), small)
    assert found.result.role == role
    if ratio == 1.02:
        assert "has 0.300x the bytes of float and is not shown slower (1.020x [0.970, 1.070] the time)" in found.reason
    large = small.model_copy(update={"size_bytes": 1000})
    assert choose(result("float", size_bytes=1000), large).result.role == ("quantized" if ratio == 0.9 else "float")


def test_every_reason_against_is_named():
    found = choose(result("float"), result("quantized", 0.91, 1.1))
    assert "not shown faster than float (1.100x [1.050, 1.150] the time" in found.reason
    assert "loses 2.00 pp of accuracy against float (max_drop is 0.50 pp)" in found.reason


def test_a_drop_is_told_with_its_interval_where_predictions_are_kept():
    def load(name):
        top = np.zeros((1000, 1), np.int32)
        top[: int(name)] = 1
        ids = tuple(map(str, range(1000)))
        return Predictions(ids, np.zeros(1000, np.int64), top, None, "d", "test")

    pair = [result("float", 0.93, predictions_file="70"), result("quantized", 0.92, 0.5, predictions_file="80")]
    assert "loses 1.00 pp [0." in choose(*pair, predictions=load).reason
    turned = [result("float", 0.92, predictions_file="80"), result("quantized", 0.93, 0.5, predictions_file="70")]
    assert "gains 1.00 pp [0." in choose(*turned, predictions=load).reason


def test_a_gain_is_not_called_a_negative_loss():
    assert "gains 0.10 pp of accuracy" in choose(result("float", 0.93), result("quantized", 0.931, 0.5)).reason


@pytest.mark.parametrize("status", ["built", "emitted"])
def test_untimed_quantized_ships_and_says_that_it_is_unverified(status):
    found = choose(result("float", None, status=status), result("quantized", None, status=status))
    assert (found.result.role, found.verified, found.helped) == ("quantized", False, True)
    assert "(unverified)" in found.reason


@pytest.mark.parametrize(("snr", "role"), [(19.9, "float"), (20.1, "quantized"), (None, "quantized")])
def test_without_labels_the_outputs_decide(snr, role):
    found = choose(result("float", None, snr_db=300.0), result("quantized", None, 0.5, snr_db=snr))
    assert (found.result.role, found.helped) == (role, role == "quantized")
    said = {
        19.9: "float fp32 ships: int8 gives outputs only 19.9 dB from float's (min_snr is 20.0 dB)",
        20.1: "its outputs are 20.1 dB from float's (min_snr is 20.0 dB), and its accuracy was not measured",
        None: "neither its accuracy nor its outputs were measured (unverified)",
    }
    assert said[snr] in found.reason


def test_the_floor_is_the_recipes():
    pair = [result("float", None, snr_db=300.0), result("quantized", None, 0.5, snr_db=25.0)]
    assert choose(*pair).result.role == "quantized"
    assert choose(*pair, min_snr=30.0).result.role == "float"


def test_what_pruning_lost_is_not_held_against_quantizing():
    """Noises of independent origin add up: 10 dB by pruning and 25 dB by quantizing are 9.86 dB together."""
    together = -10 * np.log10(10**-1.0 + 10**-2.5)
    found = choose(result("float", None, snr_db=10.0), result("quantized", None, 0.5, snr_db=together))
    assert "its outputs are 25.0 dB from float's" in found.reason


def test_labels_go_before_the_outputs():
    found = choose(result("float", snr_db=300.0), result("quantized", 0.93, 0.5, snr_db=12.0))
    assert found.result.role == "quantized"
    assert "of accuracy against float" in found.reason


def test_where_nothing_was_measured_the_stage_may_refuse():
    pair = [result("float", None, status="emitted"), result("quantized", None, status="emitted")]
    assert choose(*pair).result.role == "quantized"
    found = choose(*pair, refused="gives only 4.0 dB on 64 samples of calibration")
    assert (found.result.role, found.helped) == ("float", False)
    assert "float fp32 ships: int8 gives only 4.0 dB" in found.reason
    measured = [result("float", None, snr_db=300.0), result("quantized", None, 0.5, snr_db=25.0)]
    assert choose(*measured, refused="gives only 4.0 dB").result.role == "quantized"  # the bundle itself says more
    _, warnings = ships.mark_ships(pair, MAX_DROP, refused={"openvino": "gives only 4.0 dB"})
    assert len(warnings) == 1


@pytest.mark.parametrize("status", ["measured", "built"])
def test_invalid_timings_do_not_show_anything(status):
    found = choose(result("float"), result("quantized", 0.93, 0.5, status=status, invalid="throttled"))
    assert found.result.role == "float"
    assert "throttled" in found.reason


def test_a_failed_quantized_build_leaves_float_and_a_failed_float_the_reference():
    failed = result("quantized", status="failed", reason="no operator Foo")
    found = choose(result("reference"), result("float"), failed)
    assert (found.result.role, found.helped) == ("float", False)
    assert "no operator Foo" in found.reason
    found = choose(result("reference"), result("float", status="failed"), failed)
    assert found.result.role == "reference"
    assert choose(failed).result is None


def test_without_a_quantize_stage_float_ships_without_a_warning():
    results, warnings = ships.mark_ships([result("reference"), result("float")], MAX_DROP)
    assert [r.ships for r in results] == [False, True]
    assert warnings == ()


def test_one_bundle_ships_for_each_target_and_backend():
    pairs = [("pc", "openvino", 0.5), ("pc", "litert", 1.5), ("board", "litert", 0.5)]
    results = [
        result(role, ratio=ratio if role == "quantized" else None, target=target, backend=backend)
        for target, backend, ratio in pairs
        for role in ("reference", "float", "quantized")
    ]
    marked, warnings = ships.mark_ships(results, MAX_DROP)
    shipped = [(r.target, r.backend, r.role) for r in marked if r.ships]
    assert shipped == [("pc", "openvino", "quantized"), ("pc", "litert", "float"), ("board", "litert", "quantized")]
    assert len(warnings) == 1
    assert warnings[0].startswith("pc, litert: float fp32 ships: int8 is not shown faster than float")


def scored(role, value, n=100, ratio=None, name="map"):
    seen = Score(value=value, low=value - 0.01, high=value + 0.01, n=n, unit="share")
    more = {"metrics": Metrics(scores={name: seen}), "snr_db": 12.0 if role == "quantized" else 60.0}
    return result(role, None, ratio, **more)


@pytest.mark.parametrize(("value", "role"), [(0.4, "quantized"), (0.396, "quantized"), (0.39, "float")])
def test_a_task_that_is_told_by_a_share_ships_by_it(value, role):
    found = choose(scored("float", 0.4), scored("quantized", value, ratio=0.5))
    assert found.result.role == role
    assert found.verified
    if value == 0.39:
        assert "loses 1.00 pp of map against float (max_drop is 0.50 pp)" in found.reason


def test_of_few_samples_the_outputs_decide():
    found = choose(scored("float", 0.4, n=20), scored("quantized", 0.4, n=20, ratio=0.5))
    assert found.result.role == "float"
    assert "gives outputs only" in found.reason
