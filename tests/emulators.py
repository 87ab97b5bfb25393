"""Other processors by qemu's user mode, for what must be right on them: correctness only, never a time.

What is needed is set up once under a cache folder (`EDGEKIT_TEST_CACHE`, or `edgekit-tests` in the user's): qemu and
mmdebstrap from this machine or as Debian packages unpacked there, and a Debian root for arm64 with the wheels of
the runtimes that are installed here. What cannot be set up raises `NoEmulatorError` with the reason.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

SUITE, PYTHON = "bookworm", "3.11"
PACKAGES = "python3,libstdc++6,zlib1g,libssl3,libffi8,libexpat1"
WHEELS = ("numpy", "onnxruntime", "ai-edge-litert")

CORTEX_A72 = """processor\t: {index}
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: 0xd08
CPU revision\t: 3

"""
"""/proc/cpuinfo must be that of the processor that qemu plays: runtimes choose their kernels by it."""


class NoEmulatorError(Exception):
    """An emulator that cannot be had here, and why."""


def cache() -> Path:
    """Where what was set up stays."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = Path(os.environ.get("EDGEKIT_TEST_CACHE") or home / "edgekit-tests")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@functools.cache
def without_vnni() -> tuple[str, ...]:
    """This Python on an x86 processor that has AVX2 and no 8-bit dot products.

    Raises:
        NoEmulatorError: this is no x86-64 Linux, or qemu cannot be had.
    """
    if sys.platform != "linux" or os.uname().machine != "x86_64":
        raise NoEmulatorError("the packages installed here are not those of x86-64 Linux")
    return (tool("qemu-x86_64-static", "qemu-user-static"), "-cpu", "Haswell", sys.executable)


@functools.cache
def arm64() -> tuple[str, ...]:
    """Python on a Cortex-A72, the processor of a Raspberry Pi 4, with the runtimes' wheels.

    Raises:
        NoEmulatorError: qemu, a Debian root or the wheels cannot be had.
    """
    versions = {name: metadata.version(name) for name in WHEELS}
    root = cache() / f"arm64-{SUITE}-{'-'.join(versions.values())}"
    qemu = tool("qemu-aarch64-static", "qemu-user-static")
    if not root.exists():
        part = root.with_name(f"{root.name}.part{os.getpid()}")
        try:
            _make_root(part, versions)
            part.rename(root)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return (qemu, "-cpu", "cortex-a72", "-L", str(root), str(root / "usr/bin" / f"python{PYTHON}"))


def _make_root(root: Path, versions: dict[str, str]) -> None:
    mmdebstrap = [tool("mmdebstrap", "mmdebstrap"), "--variant=extract", "--architectures=arm64"]
    made = _run([*mmdebstrap, f"--include={PACKAGES}", SUITE, str(root)])
    if made:
        raise NoEmulatorError(f"no Debian root for arm64: {made}")
    platforms = [f"--platform=manylinux_2_{minor}_aarch64" for minor in (17, 24, 26, 27, 28)]
    wanted = [f"{name}=={version}" for name, version in versions.items()]
    site = root / "usr/lib/python3/dist-packages"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--only-binary=:all:", "--implementation=cp"]
    failed = _run([*pip, f"--python-version={PYTHON}", *platforms, f"--target={site}", *wanted])
    if failed:
        raise NoEmulatorError(f"no wheels for arm64: {failed}")
    (root / "proc").mkdir(exist_ok=True)
    (root / "proc/cpuinfo").write_text("".join(CORTEX_A72.format(index=index) for index in range(4)))


@functools.cache
def tool(name: str, package: str) -> str:
    """The path of a program: one that is installed, or one from a Debian package unpacked in the cache.

    Raises:
        NoEmulatorError: there is none, and apt gets no package.
    """
    present = shutil.which(name) or shutil.which(name.removesuffix("-static"))
    if present:
        return present
    folder = cache() / package
    found = folder / "usr/bin" / name
    if not found.exists():
        if not shutil.which("apt-get"):
            raise NoEmulatorError(f"{name} is not installed, and there is no apt-get to fetch it with")
        folder.mkdir(exist_ok=True)
        failed = _run(["apt-get", "download", package], folder)
        if failed and os.getuid() == 0:
            failed = _run(["apt-get", "update"], folder) or _run(["apt-get", "download", package], folder)
        for archive in folder.glob("*.deb"):
            failed = failed or _run(["dpkg-deb", "-x", archive.name, "."], folder)
        if failed or not found.exists():
            raise NoEmulatorError(f"{name} is not installed, and apt-get gets none: {failed}")
    return str(found)


def _run(command: list[str], folder: Path | None = None) -> str:
    """What went wrong, in one line; empty if nothing did."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
    return (lines[-1] if lines else f"{command[0]} ended with {done.returncode}") if done.returncode else ""
