"""Energy: each meter on files as the vendors document them, windows, and the counter that begins again."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path
from typing import Any

import agent_bundles as small
import pytest
from board_trees import BOARDS, Tree, jetson_orin_nano, raspberry_pi_4, raspberry_pi_5, virtual_machine, x86

from edgekit.agent import power, watch
from edgekit.agent.system import System, UnknownError
from edgekit.agent.unpack import Archive


def system(tree: Tree) -> System:
    return System(tree.root, tree.run)


def test_a_jetson_is_measured_at_its_input_rail(tmp_path: Path) -> None:
    meter = power.meter(system(jetson_orin_nano(tmp_path)))
    assert (meter.name, meter.rails, meter.estimate) == ("INA3221", ["VDD_IN"], False)
    assert meter.watts() == pytest.approx(4.984 * 1.856)


def test_the_rails_of_an_agx_orin_are_summed(tmp_path: Path) -> None:
    tree = jetson_orin_nano(tmp_path)
    for channel, label in enumerate(("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"), 1):
        tree.set(f"sys/class/hwmon/hwmon1/in{channel}_label", label)
    assert power.meter(system(tree)).watts() == pytest.approx(4.984 * (1.856 + 0.6 + 0.504))


def test_a_raspberry_pi_5_is_estimated_from_the_rails_that_have_a_current(tmp_path: Path) -> None:
    meter = power.meter(system(raspberry_pi_5(tmp_path)))
    assert (meter.name, meter.estimate) == ("PMIC", True)
    assert meter.rails == ["1V8_SYS", "3V3_SYS", "3V7_WL_SW", "VDD_CORE"]
    expected = 0.00097585 * 3.7215 + 0.0683102 * 3.31 + 0.169803 * 1.8 + 1.5 * 0.8
    assert meter.watts() == pytest.approx(expected)


def test_rapl_sums_packages_and_memory_and_no_part_twice(tmp_path: Path) -> None:
    tree = x86(tmp_path)
    meter = power.meter(system(tree))
    assert (meter.name, meter.rails) == ("RAPL", ["dram", "package-0"])
    start = meter.look()
    for zone, value in (("0", 3_000_000), ("0:0", 2_900_000), ("0:2", 1_500_000)):
        tree.set(f"sys/class/powercap/intel-rapl:{zone}/energy_uj", f"{value}\n")
    assert meter.joules(start, meter.look()) == pytest.approx(2.5)


def test_a_counter_of_rapl_that_began_again(tmp_path: Path) -> None:
    tree = x86(tmp_path)
    tree.set("sys/class/powercap/intel-rapl:0/energy_uj", "262143000000\n")
    meter = power.meter(system(tree))
    start = meter.look()
    tree.set("sys/class/powercap/intel-rapl:0/energy_uj", "671150\n")
    assert meter.joules(start, meter.look()) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (raspberry_pi_4, "PMIC: only a Raspberry Pi 5 senses currents"),
        (virtual_machine, "RAPL: no package under /sys/class/powercap"),
    ],
)
def test_without_a_meter_every_reason_is_told(tmp_path: Path, make: Any, reason: str) -> None:
    with pytest.raises(UnknownError, match=r"no meter of energy .*INA3221: no hwmon named ina3221") as caught:
        power.meter(system(make(tmp_path)))
    assert reason in str(caught.value)


def test_a_counter_that_only_root_may_read_is_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = x86(tmp_path)
    read = Path.read_bytes

    def refuse(path: Path) -> bytes:
        if path.name == "energy_uj":
            raise PermissionError(13, "Permission denied")
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(UnknownError, match=r"RAPL: /sys/class/powercap/intel-rapl:0\S*/energy_uj: Permission denied"):
        power.meter(system(tree))


def test_energy_of_samples_is_mean_power_times_the_window() -> None:
    samples = [(float(i), 2.0 + i) for i in range(10)]  # a line: the mean over any window is that of its ends
    assert power.integral(samples, 2.0, 6.0) == pytest.approx(4 * (4.0 + 8.0) / 2)
    assert power.integral([(0.0, 5.0), (0.25, 5.0), (0.9, 5.0)], 0.0, 1.0) == pytest.approx(5.0)
    with pytest.raises(UnknownError, match=r"1 samples in a window of 0\.50 s"):
        power.integral(samples, 0.8, 1.3)


def test_medians_gross_and_net_of_idle() -> None:
    windows = [(30.0, 10.0, 100), (20.0, 10.0, 100), (90.0, 10.0, 100)]
    seen = power.summary(windows, idle_w=1.5)
    assert (seen["gross_j"], seen["net_j"], seen["idle_w"]) == pytest.approx((0.3, 0.15, 1.5))
    assert seen["windows"][2] == {"joules": 90.0, "seconds": 10.0, "inferences": 100}


OPTIONS = argparse.Namespace(inputs="", threads=1, windows=2, window_seconds=0.1, idle_seconds=0.1)


@pytest.mark.parametrize("kind", ["x86", "virtual-machine"])
def test_the_command_on_a_board(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a real model: counters that stand still give 0 J; no meter is told without a model being loaded."""
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    tree = BOARDS[kind](tmp_path / "board")
    monkeypatch.setattr(power, "System", lambda: system(tree))
    seen = power.energy(Archive(str(small.bundle(tmp_path).path)), OPTIONS)
    if kind == "x86":
        assert seen["gross_j"] == seen["net_j"] == seen["idle_w"] == 0.0 and seen["meter"] == "RAPL"
        assert [window["inferences"] >= power.LEAST_INFERENCES for window in seen["windows"]] == [True, True]
    else:
        assert seen["gross_j"] is None and "no meter of energy" in seen["reason"]


def test_the_watching_process_samples_the_meter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = raspberry_pi_5(tmp_path)
    monkeypatch.setattr(watch, "System", lambda: system(tree))
    look = watch._meter()
    first, second = look(), look()
    assert first["watts"] == pytest.approx(power.pmic(system(tree)).watts()) and first["time_s"] <= second["time_s"]
    tree.commands["vcgencmd pmic_read_adc"] = "VCHI initialization failed"
    assert set(look()) == {"time_s"}


def test_a_board_with_rails_from_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The watching process is asked for power; here it finds no meter, and the result says that it got no samples."""
    with contextlib.suppress(UnknownError):
        pytest.skip(f"this machine has a meter: {power.meter(System()).name}")
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    tree = jetson_orin_nano(tmp_path / "board")
    monkeypatch.setattr(power, "System", lambda: system(tree))
    seen = power.energy(Archive(str(small.bundle(tmp_path).path)), OPTIONS)
    assert seen["gross_j"] is None and "the meter gave 0 samples" in seen["reason"]
