"""The state of a device around a measurement. What cannot be read is null, with the reason."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

WANTED_FEATURES = (
    *("sse4_2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8"),
    *("asimd", "fphp", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2"),
)


def read(root: str = "/") -> dict[str, Any]:
    """What moves: load, clocks, governor, temperature. `root` holds `proc` and `sys`."""
    base = Path(root)
    found: dict[str, Any] = {}
    reasons: dict[str, str] = {}
    for name, reader in (("load_average", _load), ("governor", _governor), ("cpu_mhz", _mhz), ("temperature_c", _heat)):
        try:
            found[name] = reader(base)
        except (OSError, ValueError) as error:
            found[name], reasons[name] = None, str(error)
    found["reasons"] = reasons
    return found


def machine(root: str = "/") -> dict[str, Any]:
    """What stays: processor, features that matter to int8, cores, memory, kernel and architecture."""
    base = Path(root)
    info = _cpuinfo(base)
    flags = set((info.get("flags") or info.get("Features") or "").split())
    model = (
        info.get("model name")
        or _device_tree(base)
        or "part {} of implementer {}".format(info.get("CPU part", "?"), info.get("CPU implementer", "?"))
    )
    return {
        "cpu": model,
        "features": [name for name in WANTED_FEATURES if name in flags],
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "memory_bytes": _memory(base),
        "arch": platform.machine(),
        "kernel": platform.release(),
        "system": platform.system(),
    }


def peak_rss() -> tuple[Any, str]:
    """The most memory that this process has held, in bytes, and the reason where that is unknown.

    From VmHWM, which starts anew with the program: `getrusage` also counts the process that started this one.
    """
    return _status_field("VmHWM")


def rss() -> tuple[Any, str]:
    """The memory that this process holds now, in bytes."""
    return _status_field("VmRSS")


def _status_field(name: str) -> tuple[Any, str]:
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(name + ":"):
                return int(line.split()[1]) * 1024, ""
    except OSError as error:
        return None, str(error)
    return None, f"/proc/self/status has no {name}"


def _load(base: Path) -> list[float]:
    return [float(value) for value in (base / "proc/loadavg").read_text().split()[:3]]


def _governor(base: Path) -> list[str]:
    paths = sorted((base / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_governor"))
    if not paths:
        raise ValueError("no cpufreq under sys/devices/system/cpu")
    return sorted({path.read_text().strip() for path in paths})


def _mhz(base: Path) -> list[float]:
    paths = sorted((base / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_cur_freq"))
    if paths:
        return [int(path.read_text()) / 1000 for path in paths]
    lines = (base / "proc/cpuinfo").read_text().splitlines()
    seen = [float(line.partition(":")[2]) for line in lines if line.startswith("cpu MHz")]
    if not seen:
        raise ValueError("neither cpufreq nor proc/cpuinfo tells a clock")
    return seen


def _heat(base: Path) -> dict[str, float]:
    zones = {}
    for zone in sorted((base / "sys/class/thermal").glob("thermal_zone*")):
        try:
            zones[(zone / "type").read_text().strip()] = int((zone / "temp").read_text()) / 1000
        except OSError:  # a zone that is switched off answers its temperature with an error
            continue
    if not zones:
        raise ValueError("no readable zone under sys/class/thermal")
    return zones


def _cpuinfo(base: Path) -> dict[str, str]:
    try:
        text = (base / "proc/cpuinfo").read_text()
    except OSError:
        return {}
    first = text.split("\n\n", 1)[0]
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}


def _device_tree(base: Path) -> str:
    try:
        return (base / "proc/device-tree/model").read_text().strip("\0\n ")
    except OSError:
        return ""


def _memory(base: Path) -> Any:
    try:
        for line in (base / "proc/meminfo").read_text().splitlines():
            if line.startswith("MemTotal:"):
                return int(line.split()[1]) * 1024
    except OSError:
        return None
    return None
