"""The state of each kind of board, read from files as the vendors document them (see boards/README.md)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from board_trees import BOARDS, Tree, jetson_orin_nano, raspberry_pi_4, raspberry_pi_5, virtual_machine, x86

from edgekit.agent import state, system


def read(tree: Tree) -> dict[str, Any]:
    return state.read(tree.root, tree.run)


def test_a_raspberry_pi(tmp_path: Path) -> None:
    tree = raspberry_pi_5(tmp_path)
    seen = read(tree)
    assert seen["load_average"] == [0.52, 0.31, 0.11]
    assert seen["governor"] == ["ondemand"] and seen["clocks_locked"] is False
    assert seen["cpu_mhz"] == seen["cpu_max_mhz"] == [2400.0] * 4 and seen["cpu_min_mhz"] == [600.0] * 4
    assert seen["temperature_c"] == {"cpu-thermal": 53.1} and seen["cooling"] == {"cpufreq-cpu0": 0}
    assert seen["throttled"] == {"value": "0x0", "now": [], "since_boot": []} and seen["under_voltage"] is False
    assert seen["boot_id"] == "3d1c1d0a-9f6b-4a55-8c7e-0d5f8f3f6a11"
    assert seen["memory_available_bytes"] == 4122584 * 1024 and seen["swap_used_bytes"] == 512 * 1024
    machine = state.machine(tree.root)
    assert machine["board"] == {"kind": "raspberry-pi-5", "model": "Raspberry Pi 5 Model B Rev 1.0"}
    assert machine["cpu"] == "Raspberry Pi 5 Model B Rev 1.0" and machine["memory_bytes"] == 8245168 * 1024
    assert machine["features"] == ["asimd", "fphp", "asimdhp", "asimddp"]


@pytest.mark.parametrize(
    ("value", "now", "since_boot"),
    [
        ("50005", ["under-voltage", "throttled"], ["under-voltage", "throttled"]),
        ("e0008", ["soft temperature limit"], ["frequency capped", "throttled", "soft temperature limit"]),
        ("2", ["frequency capped"], []),
    ],
)
def test_throttling_bits_of_the_firmware(tmp_path: Path, value: str, now: list[str], since_boot: list[str]) -> None:
    tree = raspberry_pi_4(tmp_path)
    tree.set("sys/devices/platform/soc/soc:firmware/get_throttled", value + "\n")
    assert read(tree)["throttled"] == {"value": "0x" + value, "now": now, "since_boot": since_boot}


def test_without_the_file_the_firmware_is_asked(tmp_path: Path) -> None:
    tree = raspberry_pi_4(tmp_path)
    (tmp_path / "sys/devices/platform/soc/soc:firmware/get_throttled").unlink()
    tree.commands["vcgencmd get_throttled"] = "throttled=0x50000\n"
    assert read(tree)["throttled"]["since_boot"] == ["under-voltage", "throttled"]
    tree.commands["vcgencmd get_throttled"] = "VCHI initialization failed\n"
    assert "VCHI initialization failed" in read(tree)["reasons"]["throttled"]
    tree.commands.clear()
    assert read(tree)["reasons"]["throttled"] == "vcgencmd is not installed"


def test_a_jetson(tmp_path: Path) -> None:
    tree = jetson_orin_nano(tmp_path)
    seen = read(tree)
    assert seen["power_mode"] == "15W" and seen["clocks_locked"] is True and seen["gpu_mhz"] == 624.75
    assert seen["over_current_events"] == {
        "under-voltage": 0,
        "average over-current": 2,
        "instantaneous over-current": 5,
    }
    assert seen["rails_w"]["VDD_IN"] == pytest.approx(4.984 * 1.856)
    assert set(seen["rails_w"]) == {"VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC"}
    assert seen["cooling"] == {"thermal-cpufreq-0": 0}  # a fan that turns slows nothing down
    assert seen["libraries"]["jetson_linux"].startswith("R36 (release), REVISION: 4.3")
    assert state.machine(tree.root)["board"]["kind"] == "jetson-orin-nano"


def test_the_power_mode_comes_from_files_where_nvpmodel_does_not_answer(tmp_path: Path) -> None:
    tree = jetson_orin_nano(tmp_path)
    tree.commands.clear()
    assert read(tree)["power_mode"] == "7W"
    (tmp_path / "etc/nvpmodel.conf").unlink()
    seen = read(tree)
    assert seen["power_mode"] is None and "nvpmodel is not installed" in seen["reasons"]["power_mode"]


def test_a_pc(tmp_path: Path) -> None:
    tree = x86(tmp_path)
    seen = read(tree)
    assert seen["throttle_events"] == 4 * (2 + 3) and seen["temperature_c"] == {"acpitz": 27.8, "x86_pkg_temp": 61.0}
    machine = state.machine(tree.root)
    assert machine["board"] == {"kind": "pc", "model": "NUC11TNHi5"} and machine["cpu"] == "Intel Core i5"
    assert machine["features"] == ["sse4_2", "avx", "avx2", "fma", "f16c", "avx_vnni"]


def test_a_virtual_machine(tmp_path: Path) -> None:
    seen = read(virtual_machine(tmp_path))
    assert seen["cpu_mhz"] == [2596.148] and seen["governor"] is None and seen["temperature_c"] is None
    assert seen["boot_id"] and seen["memory_available_bytes"] == 6000000 * 1024


@pytest.mark.parametrize("kind", BOARDS)
def test_every_field_has_a_value_or_a_reason(kind: str, tmp_path: Path) -> None:
    for seen in (read(BOARDS[kind](tmp_path)), state.glance(str(tmp_path))):
        reasons = seen.pop("reasons")
        assert {name for name, value in seen.items() if value is None} == set(reasons)
        assert all(reasons.values())


def test_what_is_absent_is_null_with_a_reason(tmp_path: Path) -> None:
    seen = state.read(str(tmp_path))
    reasons = seen.pop("reasons")
    assert {name for name in seen if name not in reasons} == {"libraries"}
    assert state.machine(str(tmp_path))["memory_bytes"] is None
    assert state.machine(str(tmp_path))["board"] == {"kind": "other", "model": None}


@pytest.mark.parametrize("kind", BOARDS)
def test_files_that_hold_nonsense_are_a_reason_not_an_error(kind: str, tmp_path: Path) -> None:
    tree = BOARDS[kind](tmp_path)
    for path in [
        p for p in tmp_path.rglob("*") if p.is_file() and p.name not in ("type", "name", "model", "in1_label")
    ]:
        path.write_bytes(b"\xff\x00nonsense\n")
    seen = read(tree)
    assert seen["load_average"] is None and "nonsense" in seen["reasons"]["load_average"]


def test_the_real_commands_say_why_they_do_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(system.UnknownError, match="no-such-command is not installed"):
        system.command(["no-such-command"])
    with pytest.raises(system.UnknownError, match=r"sh -c .* ended with 3: no video group"):
        system.command(["sh", "-c", "echo no video group >&2; exit 3"])
    monkeypatch.setattr(system, "COMMAND_S", 0.1)
    with pytest.raises(system.UnknownError, match=r"sleep did not answer within 0\.1 s"):
        system.command(["sleep", "5"])
    with pytest.raises(system.UnknownError, match="another machine"):
        system.System(str(tmp_path)).run(["echo"])


def test_this_machine_tells_its_boot_and_its_libraries() -> None:
    seen = state.read()
    assert seen["boot_id"] == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert seen["libraries"]["numpy"] == np.__version__


def test_peak_memory_is_that_of_this_program_not_of_its_parent() -> None:
    held = np.ones(40_000_000)  # 320 MB in this process
    code = "from edgekit.agent import state; print(state.peak_rss()[0])"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert held.nbytes < state.peak_rss()[0]
    assert int(told) < held.nbytes / 2
