"""From states to verdicts: what makes a measurement invalid, and what only its absolute times."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.devices import Bench, Pairs
from edgekit.errors import ExitCode, MeasurementInvalidError
from edgekit.profile import Profiler, energy_fields
from edgekit.report.report import Result
from edgekit.validity import OTHER_LOAD_CPUS, judge_pairs, judge_state

GOOD: dict[str, Any] = {
    "boot_id": "a",
    "governor": ["ondemand"],
    "power_mode": "15W",
    "clocks_locked": True,
    "cpu_mhz": [1500.0, 1500.0],
    "cpu_max_mhz": [1500.0, 1500.0],
    "temperature_c": {"cpu-thermal": 60.0, "nvme": 90.0},
    "cooling": {"cpufreq-cpu0": 0},
    "throttled": {"value": "0x50000", "now": [], "since_boot": ["under-voltage", "throttled"]},
    "under_voltage": False,
    "throttle_events": 12,
    "over_current_events": {"under-voltage": 3, "average over-current": 7},
}


def state(before: Mapping[str, Any] = {}, during: Any = (), after: Mapping[str, Any] = {}, others: Any = 0.0) -> Any:
    return {
        "before": {**GOOD, **before},
        "during": [{**GOOD, **one} for one in during],
        "after": {**GOOD, **after},
        "other_load": {"others_cpus": others, "processes": [{"name": "cc1", "cpus": others}]},
    }


def test_a_good_state_counts_whatever_happened_since_the_boot() -> None:
    seen = judge_state(state(during=[{}]), max_temperature_c=80)
    assert seen.valid and seen.absolute_valid and seen.reasons == seen.absolute_reasons == ()


UNDER = {"value": "0x1", "now": ["under-voltage"], "since_boot": ["under-voltage", "throttled"]}
SINCE = {"value": "0xd0000", "now": [], "since_boot": ["under-voltage", "throttled", "soft temperature limit"]}


@pytest.mark.parametrize(
    ("seen", "reason"),
    [
        (state(before={"throttled": UNDER}), "the board reported: under-voltage"),
        (state(during=[{}, {"throttled": UNDER}]), "the board reported: under-voltage"),
        (state(after={"throttled": SINCE}), "the board reported: soft temperature limit"),
        (state(during=[{"under_voltage": True}]), "the board reported: under-voltage"),
        (state(during=[{"cooling": {"cpufreq-cpu0": 2}}]), r"lowered a clock to cool the device \(cpufreq-cpu0\)"),
        (state(after={"throttle_events": 15}), "slowed down by heat 3 times"),
        (state(after={"over_current_events": {"average over-current": 9}}), r"2 times \(average over-current\)"),
        (state(during=[{"temperature_c": {"cpu-thermal": 80.5}}]), "cpu-thermal reached 80.5 °C, above .* 80 °C"),
        (state(after={"boot_id": "b"}), "the boot .* changed"),
        (state(after={"governor": ["powersave"]}), "the governor changed from ondemand to powersave"),
        (state(after={"power_mode": "7W"}), "the power mode changed from 15W to 7W"),
        (state(during=[{"cpu_max_mhz": [1500.0, 1000.0]}]), "highest clock was lowered from 1500 to 1000 MHz"),
        (state(during=[{"cpu_mhz": [1500.0, 600.0]}]), "locked to 1500 MHz dropped to 600 MHz"),
    ],
)
def test_a_bad_state_makes_everything_invalid(seen: Any, reason: str) -> None:
    verdict = judge_state(seen, max_temperature_c=80)
    assert not verdict.valid and not verdict.absolute_valid
    with pytest.raises(MeasurementInvalidError, match=reason) as caught:
        verdict.require()
    assert caught.value.exit_code == ExitCode.MEASUREMENT_INVALID
    assert not judge_pairs([{"a": {"state": seen}, "b": {"state": state()}}], 80).valid
    assert not judge_pairs([{"a": {"state": state()}, "b": {"state": seen}}], 80).valid


def test_a_target_without_a_limit_knows_no_heat() -> None:
    assert judge_state(state(after={"temperature_c": {"cpu-thermal": 120.0}})).valid


def test_a_free_clock_may_move() -> None:
    assert judge_state(state(before={"clocks_locked": False}, during=[{"cpu_mhz": [600.0, 600.0]}])).valid


@pytest.mark.parametrize(("others", "counts"), [(OTHER_LOAD_CPUS, True), (0.9, False), (None, True), ("0.9", True)])
def test_other_load_spoils_absolute_times_alone(others: Any, counts: bool) -> None:
    seen = judge_state(state(others=others))
    assert seen.valid and seen.absolute_valid is counts
    if not counts:
        assert seen.absolute_reasons == ("other processes used 0.90 processors meanwhile (cc1)",)
    assert judge_pairs([{"a": {"state": state(others=others)}, "b": {}}]).absolute_valid


def test_a_boot_between_two_looks_of_a_comparison() -> None:
    first, second = state(), state(before={"boot_id": "b"}, after={"boot_id": "b"})
    assert judge_pairs([{"a": {"state": first}, "b": {"state": first}}] * 2).valid
    assert judge_pairs([{"a": {"state": first}}, {"a": {"state": second}}]).reasons == (
        "the device was started anew between two rounds",
    )


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.just(10**400) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*GOOD, "now", "x"]), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(before=ANYTHING, during=ANYTHING, after=ANYTHING, other=ANYTHING)
def test_whatever_a_device_says_is_judged_without_an_error(before: Any, during: Any, after: Any, other: Any) -> None:
    seen = {"before": before, "during": during, "after": after, "other_load": other}
    judge_state(seen, 80)
    judge_pairs([{"a": {"state": seen}, "b": seen}], 80)


class Board:
    """A device that measured in the state it is given."""

    name = "board"

    def __init__(self, state: Any) -> None:
        self.state = state

    def describe(self) -> Mapping[str, Any]:
        return {"name": "board", "fingerprint": "f"}

    def bench(self, bundle: Any, **options: Any) -> Bench:
        return Bench(tuple(0.001 + i * 1e-6 for i in range(80)), {"state": self.state})

    def pairs(self, a: Any, b: Any, *, rounds: int, **options: Any) -> Pairs:
        taken = tuple((1.0 + i / 1000, 2.0, 2.0, 1.0) for i in range(rounds))
        return Pairs(taken, ({"a": {"state": state()}, "b": {"state": self.state}},))


class Measured(Profiler):
    @property
    def inputs(self) -> Path:
        return Path("inputs.npy")


def profiler(folder: Path, state: Any) -> Profiler:
    space = SimpleNamespace(samples=folder, relative=lambda path: path.name)
    progress = SimpleNamespace(task=lambda *_: nullcontext())
    return Measured(Board(state), space, None, progress, rounds=(4,))


BUILT = Result(target="t", backend="onnxruntime", precision="int8", role="quantized", status="built")
BUNDLES = [SimpleNamespace(path=Path(f"{name}.edge"), manifest=None) for name in "ab"]


def test_a_latency_from_a_throttled_board_is_no_number(tmp_path: Path) -> None:
    with pytest.raises(MeasurementInvalidError, match="under-voltage") as caught:
        profiler(tmp_path, state(after={"throttled": UNDER})).timing(BUNDLES[0], BUILT)
    assert set(caught.value.found) == {"measured_on", "device"}
    assert caught.value.found["device"].state["after"]["throttled"] == UNDER


def test_a_latency_beside_other_load_is_marked(tmp_path: Path) -> None:
    result = profiler(tmp_path, state(others=0.9)).timing(BUNDLES[0], BUILT)
    assert result.status == "measured" and result.latency_s and not result.invalid
    assert result.absolute_invalid == "other processes used 0.90 processors meanwhile (cc1)"


@pytest.mark.parametrize(
    ("told", "field", "value"),
    [
        ({"gross_j": 0.5, "net_j": 0.2, "meter": "PMIC", "rails": ["A", "B"], "estimate": True}, "energy_j", 0.5),
        ({"gross_j": 0.5, "net_j": 0.2, "meter": "PMIC", "rails": ["A", "B"], "estimate": True}, "energy_net_j", 0.2),
        ({"gross_j": 0.5, "meter": "PMIC", "rails": ["A"], "estimate": True}, "energy_meter", "PMIC (estimate): A"),
        ({"gross_j": None, "reason": "no meter of energy"}, "energy_reason", "no meter of energy"),
        (None, "energy_reason", "this device does not measure energy"),
    ],
)
def test_energy_goes_to_the_report(told: Any, field: str, value: Any) -> None:
    assert energy_fields(told)[field] == value


def test_a_comparison_on_a_hot_board_is_no_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgekit.profile.model_digest", lambda bundle: bundle.path.name)
    hot = state(during=[{"temperature_c": {"cpu-thermal": 81.0}}])
    with pytest.raises(MeasurementInvalidError, match=r"81\.0 °C"):
        profiler(tmp_path, hot).against(*BUNDLES, "float", BUILT, 80.0)
    assert profiler(tmp_path, hot).against(*BUNDLES, "float", BUILT, 90.0).paired_with("float").ratio < 1
