from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgekit.agent import state


@pytest.fixture
def pi(tmp_path: Path) -> Path:
    """The files of a Raspberry Pi 5 that are read."""
    files = {
        "proc/loadavg": "0.52 0.31 0.11 1/203 4711\n",
        "proc/meminfo": "MemTotal:        8245168 kB\nMemFree:  1 kB\n",
        "proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0",
        "proc/cpuinfo": "processor\t: 0\nFeatures\t: fp asimd aes asimddp fphp\nCPU part\t: 0xd0b\n\nprocessor\t: 1\n",
        "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
        "sys/class/thermal/thermal_zone0/temp": "53100\n",
    }
    for core in range(2):
        files[f"sys/devices/system/cpu/cpu{core}/cpufreq/scaling_governor"] = "ondemand\n"
        files[f"sys/devices/system/cpu/cpu{core}/cpufreq/scaling_cur_freq"] = "2400000\n"
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_state_of_a_board(pi: Path) -> None:
    assert state.read(str(pi)) == {
        "load_average": [0.52, 0.31, 0.11],
        "governor": ["ondemand"],
        "cpu_mhz": [2400.0, 2400.0],
        "temperature_c": {"cpu-thermal": 53.1},
        "reasons": {},
    }


def test_machine_of_a_board(pi: Path) -> None:
    machine = state.machine(str(pi))
    assert machine["cpu"] == "Raspberry Pi 5 Model B Rev 1.0"
    assert machine["features"] == ["asimd", "fphp", "asimddp"]
    assert machine["memory_bytes"] == 8245168 * 1024


def test_what_is_absent_is_null_with_a_reason(tmp_path: Path) -> None:
    seen = state.read(str(tmp_path))
    for name in ("load_average", "governor", "cpu_mhz", "temperature_c"):
        assert seen[name] is None and seen["reasons"][name]
    assert state.machine(str(tmp_path))["memory_bytes"] is None


def test_peak_memory_is_that_of_this_program_not_of_its_parent() -> None:
    held = np.ones(40_000_000)  # 320 MB in this process
    code = "from edgekit.agent import state; print(state.peak_rss()[0])"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert held.nbytes < state.peak_rss()[0]
    assert int(told) < held.nbytes / 2
