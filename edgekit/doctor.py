"""What this machine can do: packages, backends, and what of its processor matters to int8."""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from edgekit.agent.state import saturates
from edgekit.backends import BACKENDS, Availability
from edgekit.extras import DISTRIBUTION, pip_command
from edgekit.registry import places, resolve

INT8_FEATURES: Mapping[str, Mapping[str, str]] = {
    "x86_64": {
        "avx2": "256-bit integer arithmetic; alone, u8 x s8 sums saturate",
        "avx512bw": "512-bit integer arithmetic",
        "avx_vnni": "8-bit dot products (VNNI), 256 bit",
        "avx512_vnni": "8-bit dot products (VNNI), 512 bit",
        "amx_int8": "8-bit matrix tiles",
    },
    "aarch64": {
        "asimd": "128-bit vectors (NEON)",
        "asimdhp": "half-precision arithmetic",
        "asimddp": "8-bit dot products",
        "i8mm": "8-bit matrix multiplication",
    },
}
"""Feature in the kernel's words -> what it means for int8, by architecture."""

FLAVOURS = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml", "onnxruntime-qnn")


@dataclass(frozen=True)
class BackendState:
    """One backend here: what it can do, and what to type if something is missing."""

    name: str
    availability: Availability
    command: str


@dataclass(frozen=True)
class Extra:
    """One optional set of packages: package -> installed version, or None."""

    name: str
    packages: Mapping[str, str | None]

    @property
    def complete(self) -> bool:
        """Whether every package is there."""
        return all(self.packages.values())

    @property
    def command(self) -> str:
        """What installs it."""
        return pip_command(self.name)


@dataclass(frozen=True)
class Diagnosis:
    """Everything that `edgekit doctor` shows. `features` says of each one that matters whether it is there."""

    edgekit: str
    python: str
    system: str
    processor: str
    cores: int
    memory_bytes: int | None
    features: Mapping[str, bool]
    backends: tuple[BackendState, ...]
    extras: tuple[Extra, ...]
    notes: tuple[str, ...]


def diagnose() -> Diagnosis:
    """Look at this machine; nothing heavy is imported.

    >>> diagnose().cores >= 1
    True
    """
    arch = platform.machine()
    cpuinfo = _read(Path("/proc/cpuinfo"))
    flags = cpu_flags(cpuinfo)
    features = {name: name in flags for name in INT8_FEATURES.get(arch, {})}
    return Diagnosis(
        edgekit=metadata.version(DISTRIBUTION),
        python=platform.python_version(),
        system=f"{platform.system()} {platform.release()} {arch}, {' '.join(platform.libc_ver()) or 'unknown libc'}",
        processor=_cpu_model(cpuinfo) or platform.processor() or arch,
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_bytes=memory_bytes(_read(Path("/proc/meminfo"))),
        features=features,
        backends=tuple(_backend(name) for name in sorted(places(BACKENDS, "edgekit.backends"))),
        extras=extras(metadata.requires(DISTRIBUTION) or []),
        notes=_notes(arch, features),
    )


def _backend(name: str) -> BackendState:
    try:
        found: Availability = resolve("backend", name, BACKENDS, "edgekit.backends")().availability()
    except ImportError as error:
        found = Availability(False, False, reason=f"its module cannot be imported: {error}")
    whole = found.compiles and found.runs
    return BackendState(name, found, "" if whole or name not in BACKENDS else pip_command(name))


def extras(requirements: list[str]) -> tuple[Extra, ...]:
    """The optional sets of packages that a distribution's metadata lists, with what is installed.

    >>> [e.name for e in extras(["numpy>=1", "onnx>=1.20; extra == 'onnx'"])]
    ['onnx']
    """
    sets: dict[str, dict[str, str | None]] = {}
    for requirement in requirements:
        package = re.match(r"[A-Za-z0-9][A-Za-z0-9._-]*", requirement)
        extra = re.search(r"""extra\s*==\s*["']([^"']+)["']""", requirement)
        if package and extra and package[0].replace("_", "-").lower() != DISTRIBUTION:
            sets.setdefault(extra[1], {})[package[0]] = installed(package[0])
    return tuple(Extra(name, packages) for name, packages in sets.items())


def installed(package: str) -> str | None:
    """The version of an installed distribution, or None; for onnxruntime any of its flavours counts."""
    for name in FLAVOURS if package == "onnxruntime" else (package,):
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        return version if name == package else f"{version} ({name})"
    return None


def cpu_flags(cpuinfo: str) -> frozenset[str]:
    """The processor's features in the words of the kernel: `flags` on x86, `Features` on ARM."""
    match = re.search(r"^(?:flags|Features)\s*:(.*)$", cpuinfo, re.MULTILINE)
    return frozenset(match[1].split()) if match else frozenset()


def memory_bytes(meminfo: str) -> int | None:
    """The machine's memory from `/proc/meminfo`."""
    match = re.search(r"^MemTotal:\s*(\d+) kB", meminfo, re.MULTILINE)
    return int(match[1]) * 1024 if match else None


def _cpu_model(cpuinfo: str) -> str:
    match = re.search(r"^(?:model name|Model)\s*:\s*(.*)$", cpuinfo, re.MULTILINE)
    return match[1].strip() if match else ""


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:  # not Linux: what it would have told stays unknown
        return ""


def _notes(arch: str, features: Mapping[str, bool]) -> tuple[str, ...]:
    notes = []
    if saturates(arch, [name for name, there in features.items() if there]):
        notes.append("No VNNI: use the target x86-64-no-vnni here; its int8 weights keep to 7 bits against saturation.")
    if arch == "aarch64" and features and not features["asimddp"]:
        notes.append("No 8-bit dot products (asimddp): int8 gains less speed here than on newer ARM processors.")
    if sys.version_info >= (3, 14):
        notes.append("Python 3.14 or later: some runtimes have no wheels for it yet; 3.11 to 3.13 have all.")
    return tuple(notes)
