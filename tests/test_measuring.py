"""What is measured against what, and what happens when a device fails."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from edgekit.agent import state
from edgekit.building import Outcome
from edgekit.devices.emulated import Haswell
from edgekit.devices.local import Local, StandIn
from edgekit.errors import DeviceError, ExitCode, MeasurementInvalidError
from edgekit.measuring import Measuring, saturated_here
from edgekit.recipe import PlannedTarget
from edgekit.report.report import Result
from edgekit.target import load_target

PLANNED = PlannedTarget(load_target("x86-64"), ("onnxruntime", "litert"), "local", 1)


class Recorder:
    """Stands where a `Profiler` does: notes who is compared with whom; its timing may fail."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.failure, self.compared, self.device = failure, [], Local()
        self.limits: list[float | None] = []

    def untimed(self, result: Result) -> Result:
        return result.model_copy(update={"reason": "never timed"})

    def timing(self, bundle: Any, result: Result, max_temperature_c: float | None) -> Result:
        self.limits.append(max_temperature_c)
        if self.failure:
            raise self.failure
        return result.model_copy(update={"status": "measured"})

    def against(self, bundle: Any, other: Any, vs: str, result: Result, max_temperature_c: float | None) -> Result:
        self.limits.append(max_temperature_c)
        self.compared.append((result.role, vs))
        return result


def outcome(role: str, backend: str = "onnxruntime", status: str = "built") -> Outcome:
    precision = "int8" if role == "quantized" else "fp32"
    result = Result(target="x86-64", backend=backend, precision=precision, role=role, status=status)
    return Outcome(result, bundle=object())


def measuring(profiler: Recorder) -> Measuring:
    several = Measuring(None, None, None, 10, 90.0, [])
    several.profilers[several.devices.open("local"), 1] = profiler
    return several


def test_every_role_is_compared_with_its_rivals_of_the_same_backend():
    all_ = [outcome(role, backend) for backend in PLANNED.backends for role in ("reference", "float", "quantized")]
    recorder = Recorder()
    for each in all_[:3]:
        measuring(recorder).timed(PLANNED, each, all_)
    assert recorder.compared == [("float", "reference"), ("quantized", "reference"), ("quantized", "float")]


def test_the_targets_limit_of_temperature_goes_with_every_measurement():
    recorder = Recorder()
    hot = PlannedTarget(PLANNED.target.model_copy(update={"max_temperature_c": 80.0}), PLANNED.backends, "local", 1)
    measuring(recorder).timed(hot, outcome("quantized"), [outcome("float")])
    assert recorder.limits == [80.0, 80.0]


def test_what_is_known_of_a_device_in_a_bad_state_is_reported_too():
    several = measuring(Recorder(MeasurementInvalidError("too hot", {"measured_on": "my-board"})))
    result = several.timed(PLANNED, outcome("quantized"))
    assert (result.invalid, result.measured_on, result.status) == ("too hot", "my-board", "built")


def test_a_rival_that_failed_is_left_out():
    recorder = Recorder()
    measuring(recorder).timed(PLANNED, outcome("quantized"), [outcome("reference", status="failed"), outcome("float")])
    assert recorder.compared == [("quantized", "float")]


def test_an_emulated_device_is_never_timed_and_that_is_no_failure():
    recorder = Recorder(AssertionError("it was timed"))
    recorder.device = Haswell()
    several = measuring(recorder)
    result = several.timed(PLANNED, outcome("quantized"), [outcome("float")])
    assert (result.reason, result.status, several.codes, recorder.compared) == ("never timed", "built", [], [])


@pytest.mark.parametrize(
    ("failure", "field", "code"),
    [
        (DeviceError("the board is gone"), "reason", ExitCode.DEVICE),
        (MeasurementInvalidError("too hot"), "invalid", ExitCode.MEASUREMENT_INVALID),
    ],
)
def test_nothing_is_compared_after_a_timing_that_failed(failure, field, code):
    recorder = Recorder(failure)
    several = measuring(recorder)
    result = several.timed(PLANNED, outcome("quantized"), [outcome("reference"), outcome("float")])
    assert getattr(result, field) == str(failure)
    assert several.codes == [code]
    assert recorder.compared == []


@pytest.mark.parametrize(
    ("features", "device", "changed", "said"),
    [
        (["avx2", "fma"], None, {}, True),
        (["avx2", "fma"], None, {"backend": "onnxruntime"}, False),  # which adds them up in float
        (["avx2", "fma"], None, {"backend": "onnxruntime", "precision": "int8_dynamic"}, True),
        (["avx2", "fma"], None, {"backend": "litert"}, False),
        (["avx2", "fma"], None, {"precision": "int8_weights"}, False),
        (["avx2", "fma"], None, {"measured_on": None}, False),
        (["avx2", "fma"], "local", {}, False),  # such a device is told of before anything is built
        (["avx2", "fma", "avx_vnni"], None, {}, False),
        ([], None, {}, False),
    ],
)
def test_int8_that_saturates_here_and_not_on_its_target_is_said(monkeypatch, features, device, changed, said):
    monkeypatch.setattr(state, "machine", lambda: {"arch": "x86_64", "features": features})
    scored = outcome("quantized", "openvino").result.model_copy(update={"measured_on": "local", **changed})
    lines = saturated_here([(replace(PLANNED, device=device), scored)])
    assert bool(lines) is said
    backend = changed.get("backend", "openvino")
    assert all(line.startswith(f"x86-64: its int8 for {backend} was scored on this machine") for line in lines)


def test_weights_of_7_bits_do_not_saturate_here(monkeypatch):
    monkeypatch.setattr(state, "machine", lambda: {"arch": "x86_64", "features": ["avx2", "fma"]})
    result = outcome("quantized", "openvino").result.model_copy(update={"measured_on": "local"})
    assert not saturated_here([(PlannedTarget(load_target("x86-64-no-vnni"), ("openvino",), None, 1), result)])


@pytest.mark.parametrize(
    ("target", "device", "features", "stands_in"),
    [
        ("x86-64", None, ["avx2", "fma"], True),
        ("raspberry-pi-5", None, ["avx2", "fma"], True),
        ("x86-64", None, ["avx2", "fma", "avx512_vnni"], False),
        ("x86-64", "local", ["avx2", "fma"], False),
        ("x86-64-no-vnni", None, ["avx2", "fma"], False),
    ],
)
def test_who_stands_in_for_a_target(tmp_path, monkeypatch, target, device, features, stands_in):
    """Sums that overflow here and not on the target are added up exactly; what overflows on the target does so here."""
    monkeypatch.setattr(state, "machine", lambda: {"arch": "x86_64", "features": features})
    profiler = measuring(Recorder())._profiler(PlannedTarget(load_target(target), ("onnxruntime",), device, 2))
    assert isinstance(profiler.device, StandIn) is stands_in
    assert profiler.device.name == "local"
