"""The state of a device around a measurement. What cannot be read is null, with the reason."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from . import boards
from .system import System, UnknownError

WANTED_FEATURES = (
    *("sse4_2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8"),
    *("asimd", "fphp", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2"),
)

LIBRARIES = (
    *("numpy", "onnxruntime", "onnxruntime-gpu", "openvino", "ai-edge-litert", "tflite-runtime"),
    *("tensorrt", "tensorrt-rtx"),
)

CPUS = "sys/devices/system/cpu"


def read(root: str = "/", run: Callable[[Sequence[str]], str] | None = None) -> dict[str, Any]:
    """What moves, every field a value or null; `reasons` says why a field is null.

    `root` and `run` are those of `system.System`. Units are in the names; clocks have one entry a processor.
    """
    return _read(System(root, run), {**MOVING, **STANDING})


def glance(root: str = "/", run: Callable[[Sequence[str]], str] | None = None) -> dict[str, Any]:
    """What moves from second to second: cheap enough to read beside a timing."""
    return _read(System(root, run), MOVING)


def machine(root: str = "/") -> dict[str, Any]:
    """What stays: board, processor, features that matter to int8, cores, memory, kernel and architecture."""
    system = System(root)
    info = _cpuinfo(system)
    flags = set((info.get("flags") or info.get("Features") or "").split())
    board = boards.board(system)
    part = "part {} of implementer {}".format(info.get("CPU part", "?"), info.get("CPU implementer", "?"))
    tree = board["model"] if board["kind"] != "pc" else None
    return {
        "board": board,
        "cpu": info.get("model name") or tree or part,
        "features": [name for name in WANTED_FEATURES if name in flags],
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "memory_bytes": _memory(system).get("MemTotal"),
        "arch": platform.machine(),
        "kernel": platform.release(),
        "system": platform.system(),
    }


def saturates(arch: str, features: Sequence[str]) -> bool:
    """Whether runtimes add products of u8 and s8 in 16 bits, which large weights overflow: x86 without VNNI.

    >>> saturates("x86_64", ("avx2", "fma")), saturates("x86_64", ("avx2", "avx_vnni")), saturates("aarch64", ())
    (True, False, False)
    """
    return arch == "x86_64" and bool(features) and set(features).isdisjoint(("avx_vnni", "avx512_vnni"))


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


def _read(system: System, readers: dict[str, Callable[[System], Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    reasons: dict[str, str] = {}
    for name, reader in readers.items():
        try:
            found[name] = reader(system)
        except (OSError, ValueError, LookupError) as error:  # files of a driver may hold anything
            found[name], reasons[name] = None, str(error) or type(error).__name__
    found["reasons"] = reasons
    return found


def _load(system: System) -> list[float]:
    return [float(value) for value in system.text("proc/loadavg").split()[:3]]


def _governor(system: System) -> list[str]:
    return sorted(set(_of_cpus(system, "scaling_governor", system.text)))


def _mhz(system: System) -> list[float]:
    try:
        return _clocks(system, "scaling_cur_freq")
    except UnknownError:
        lines = system.text("proc/cpuinfo").splitlines()
    seen = [float(line.partition(":")[2]) for line in lines if line.startswith("cpu MHz")]
    if not seen:
        raise UnknownError("neither cpufreq nor /proc/cpuinfo tells a clock")
    return seen


def _clocks(system: System, file: str) -> list[float]:
    return [float(value) for value in _of_cpus(system, file, lambda path: system.number(path, 1e-3))]


def _of_cpus(system: System, file: str, reader: Callable[[str], Any]) -> list[Any]:
    paths = system.find(f"{CPUS}/cpu[0-9]*/cpufreq/{file}")
    if not paths:
        raise UnknownError(f"no cpufreq under /{CPUS}")
    return [reader(path) for path in paths]


def _locked(system: System) -> bool:
    """Whether no clock of a processor can move: its lowest and its highest are the same."""
    return _clocks(system, "scaling_min_freq") == _clocks(system, "scaling_max_freq")


def _heat(system: System) -> dict[str, float]:
    zones: dict[str, float] = {}
    for path in system.find("sys/class/thermal/thermal_zone*/type"):
        try:
            name, value = system.text(path), system.number(path[: -len("type")] + "temp", 1e-3)
        except UnknownError:  # a zone that is switched off answers its temperature with an error
            continue
        zones[name] = max(value, zones.get(name, value))
    if not zones:
        raise UnknownError("no readable zone under /sys/class/thermal")
    return zones


def _cooling(system: System) -> dict[str, int]:
    """What the kernel slows down to cool it, 0 where it does not (thermal sysfs API); fans are none of this."""
    found: dict[str, int] = {}
    for path in system.find("sys/class/thermal/cooling_device*/type"):
        name = system.text(path)
        if "cpufreq" in name or "devfreq" in name:
            state = int(system.number(path[: -len("type")] + "cur_state"))
            found[name] = max(state, found.get(name, 0))
    if not found:
        raise UnknownError("no cooling device that slows a clock under /sys/class/thermal")
    return found


def _throttle_events(system: System) -> int:
    """How often x86 processors and their packages were slowed down by heat since boot."""
    paths = system.find(f"{CPUS}/cpu[0-9]*/thermal_throttle/*_throttle_count")
    if not paths:
        raise UnknownError(f"no thermal_throttle under /{CPUS}")
    return int(sum(system.number(path) for path in paths))


def _memory(system: System) -> dict[str, int]:
    try:
        lines = [line.split() for line in system.text("proc/meminfo").splitlines()]
    except UnknownError:
        return {}
    return {line[0].rstrip(":"): int(line[1]) * 1024 for line in lines if len(line) > 1}


def _available(system: System) -> int:
    return _memory(system)["MemAvailable"]


def _swap(system: System) -> int:
    memory = _memory(system)
    return memory["SwapTotal"] - memory["SwapFree"]


def _boot(system: System) -> str:
    return system.text("proc/sys/kernel/random/boot_id")


def _libraries(system: System) -> dict[str, str]:
    """Versions of Python, of the C library, of what is installed of `LIBRARIES`, and of Jetson Linux."""
    found = {"python": platform.python_version(), "libc": " ".join(platform.libc_ver()).strip()}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    with contextlib.suppress(UnknownError, IndexError):
        found["jetson_linux"] = system.text("etc/nv_tegra_release").splitlines()[0].lstrip("# ")
    return found


def _cpuinfo(system: System) -> dict[str, str]:
    try:
        first = system.text("proc/cpuinfo").split("\n\n", 1)[0]
    except UnknownError:
        return {}
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}


MOVING: dict[str, Callable[[System], Any]] = {
    "load_average": _load,
    "cpu_mhz": _mhz,
    "cpu_max_mhz": lambda system: _clocks(system, "scaling_max_freq"),
    "gpu_mhz": boards.gpu_mhz,
    "temperature_c": _heat,
    "cooling": _cooling,
    "throttled": boards.throttled,
    "under_voltage": boards.under_voltage,
    "throttle_events": _throttle_events,
    "over_current_events": boards.over_current_events,
    "rails_w": boards.rails,
    "memory_available_bytes": _available,
}

STANDING: dict[str, Callable[[System], Any]] = {
    "cpu_min_mhz": lambda system: _clocks(system, "scaling_min_freq"),
    "clocks_locked": _locked,
    "governor": _governor,
    "power_mode": boards.power_mode,
    "swap_used_bytes": _swap,
    "boot_id": _boot,
    "libraries": _libraries,
}
