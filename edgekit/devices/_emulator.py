"""What an emulated device stands on: qemu's user mode, a Debian root for its architecture, and runtimes in it.

Everything is made under a temporary name and renamed, by a plain user, in a folder of edgekit's own.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edgekit.devices import _wheels as wheels
from edgekit.errors import DeviceError, MissingDependencyError

SUITE, PYTHON, GLIBC = "bookworm", "3.11", "2.36"
"""Debian 12: the system of a Raspberry Pi, with its Python and C library."""
PACKAGES = ("python3", "libstdc++6", "zlib1g", "libssl3", "libffi8", "libexpat1")
DEBIAN = {"aarch64": "arm64", "x86_64": "amd64"}
NO_NETWORK = re.compile(r"resolve|connect|Connection|timed out|Network|Failed to fetch", re.IGNORECASE)
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Cache:
    """One level of cache; `shared` where all cores have it together."""

    level: int
    kind: str
    size_kb: int
    shared: bool = False


@dataclass(frozen=True)
class Processor:
    """A processor that qemu plays (`qemu` is its name there), with what the kernel tells of it.

    `midr` is ARM's main identification register (Arm ARM, MIDR_EL1). Runtimes choose kernels by what
    /proc/cpuinfo and /sys say, so that both must be this processor's and not this machine's.
    """

    qemu: str
    arch: str
    cpu: str
    features: str
    midr: int = 0
    max_mhz: int = 0
    caches: tuple[Cache, ...] = ()

    def files(self, cores: int) -> Iterator[tuple[str, str]]:
        """Path -> text of the kernel's files about `cores` such processors; none for x86, which has CPUID."""
        if not self.midr:
            return
        part = (self.midr >> 24, self.midr >> 20 & 15, self.midr >> 4 & 0xFFF, self.midr & 15)
        yield "proc/cpuinfo", "".join(CPUINFO.format(i, self.features, *part) for i in range(cores))
        base, every, span = "sys/devices/system", f"{(1 << cores) - 1:x}", f"0-{cores - 1}" if cores > 1 else "0"
        yield from ((f"{base}/cpu/{name}", span) for name in ("possible", "present", "online"))
        yield from ((f"{base}/node/{name}", text) for name, text in
                    (("online", "0"), ("node0/cpulist", span), ("node0/cpumap", every)))  # fmt: skip
        for core in range(cores):
            own, mask = f"{base}/cpu/cpu{core}", f"{1 << core:x}"
            yield f"{own}/regs/identification/midr_el1", f"0x{self.midr:016x}"
            yield f"{own}/cpufreq/cpuinfo_max_freq", str(self.max_mhz * 1000)
            yield f"{own}/topology/core_id", str(core)
            yield f"{own}/topology/physical_package_id", "0"
            for name, text in (("core_cpus", mask), ("thread_siblings", mask), ("package_cpus", every),
                               ("core_siblings", every)):  # fmt: skip
                yield f"{own}/topology/{name}", text
                yield f"{own}/topology/{name}_list", str(core) if text is mask else span
            for index, cache in enumerate(self.caches):
                facts = {"level": str(cache.level), "type": cache.kind, "size": f"{cache.size_kb}K",
                         "shared_cpu_map": every if cache.shared else mask,
                         "shared_cpu_list": span if cache.shared else str(core)}  # fmt: skip
                yield from ((f"{own}/cache/index{index}/{name}", text) for name, text in facts.items())


CPUINFO = """processor\t: {0}
BogoMIPS\t: 108.00
Features\t: {1}
CPU implementer\t: 0x{2:02x}
CPU architecture: 8
CPU variant\t: 0x{3:x}
CPU part\t: 0x{4:03x}
CPU revision\t: {5}

"""


def foreign(processor: Processor) -> bool:
    """Whether programs of that processor are not those of this machine, so that they need a root of their own."""
    return platform.machine() != processor.arch


def find_tool(name: str, package: str, tools: Path) -> str | None:
    """The path of a program: one that is installed, or one that `fetch_tool` unpacked; None where there is none."""
    for known in (name, name.removesuffix("-static")):
        if found := shutil.which(known):
            return found
    unpacked = tools / package / "usr/bin" / name
    return str(unpacked) if unpacked.exists() else None


def fetch_tool(name: str, package: str, tools: Path, tell: Tell) -> str:
    """`find_tool`, or Debian's package unpacked into `tools`: nothing is installed.

    Raises:
        MissingDependencyError: there is none, and apt gets none; with what to type.
    """
    if found := find_tool(name, package, tools):
        return found
    remedy = f"Install it: sudo apt-get install {package}"
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        raise MissingDependencyError(
            f"{name} is not installed, and there is no apt-get to fetch it with. Install the package {package}."
        )
    tell(f"fetching Debian's package {package}")
    with _fresh(tools / package) as fresh:
        said = run(["apt-get", "download", package], fresh)
        for archive in fresh.glob("*.deb"):
            said = said or run(["dpkg-deb", "-x", archive.name, "."], fresh)
            archive.unlink()
        if said or not (fresh / "usr/bin" / name).exists():
            said = said or f"there is no such program in {package}"
            raise MissingDependencyError(f"{name} is not installed, and apt-get fetches none: {said}. {remedy}")
    return str(tools / package / "usr/bin" / name)


def make_root(root: Path, processor: Processor, tools: Path, tell: Tell, packages: Sequence[str] = PACKAGES) -> None:
    """A Debian root with Python for the processor, by mmdebstrap, and the kernel's files about it.

    The packages are unpacked and not configured, so that nothing of it runs and no privilege is needed.

    Raises:
        MissingDependencyError: no mmdebstrap, and apt gets none.
        DeviceError: Debian's packages cannot be fetched.
    """
    mmdebstrap = fetch_tool("mmdebstrap", "mmdebstrap", tools, tell)
    architecture = DEBIAN[processor.arch]
    tell(f"fetching Debian's {architecture} packages (about 40 MB)")
    mode = "root" if os.getuid() == 0 else "chrootless"
    with _fresh(root) as fresh:
        options = [f"--mode={mode}", "--variant=extract", f"--architectures={architecture}"]
        if said := run([mmdebstrap, *options, f"--include={','.join(packages)}", SUITE, str(fresh)]):
            network = NO_NETWORK.search(said)
            why = "Is there a network? " if network else ""
            raise DeviceError(
                f"no Debian root for {architecture} could be made: {said}. {why}`mmdebstrap {SUITE}` must work here: "
                "it needs a mirror in /etc/apt and Debian's keys (the package debian-archive-keyring)."
            )
        for name, text in processor.files(os.cpu_count() or 1):
            path = fresh / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text if text.endswith("\n") else f"{text}\n")


def site_for(folder: Path, backend: str, wanted: Mapping[str, str], arch: str, tell: Tell) -> Path:
    """The folder with the runtime of `backend` for the root's Python, installed the first time that it is needed.

    `wanted` holds the versions that the bundle was built with.

    Raises:
        MissingDependencyError: there are no wheels of it.
        DeviceError: the package index cannot be reached.
    """
    known = {re.split("[<=>]", p)[0] for choice in wheels.PACKAGES.get(backend, ()) for p in choice}
    pins = {name: version for name, version in wanted.items() if name in known}
    about = json.dumps([SUITE, PYTHON, arch, backend, pins], sort_keys=True)
    site = folder / f"{backend}-{hashlib.sha256(about.encode()).hexdigest()[:16]}"
    if site.exists():
        return site
    tell(f"fetching the runtime of {backend} for {arch}")
    board = {"python": PYTHON, "libc": ["glibc", GLIBC], "arch": arch}
    found = wheels.resolve((backend,), pins, board)
    if found is None:
        raise MissingDependencyError(f"{backend} has no runtime that could be brought into an emulator")
    with _fresh(site) as fresh, tempfile.TemporaryDirectory() as work:
        requirements = Path(work) / "requirements.txt"
        requirements.write_text(wheels.requirements_text(found))
        tags = [f"--platform={tag}" for tag in wheels.platform_tags(board["libc"], arch)]
        abis = [f"--abi={abi}" for abi in (f"cp{PYTHON.replace('.', '')}", "abi3", "none")]
        said = run([sys.executable, "-m", "pip", "install", "--isolated", "--no-index", "--no-deps", "--no-compile",
                    "--quiet", "--disable-pip-version-check", "--only-binary=:all:", "--implementation=cp",
                    f"--python-version={PYTHON}", *tags, *abis, f"--find-links={found[0].path.parent}",
                    "--require-hashes", "-r", str(requirements), f"--target={fresh}"])  # fmt: skip
        if said:
            raise MissingDependencyError(f"the runtime of {backend} for {arch} cannot be installed: {said}")
    return site


@contextmanager
def _fresh(final: Path) -> Iterator[Path]:
    """A new folder that takes the place of `final` when the block is left without an error."""
    final.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".new-{final.name}-", dir=final.parent))
    made.chmod(0o755)
    try:
        yield made
        try:
            made.rename(final)
        except OSError:  # another process was first
            if not final.exists():
                raise
    finally:
        shutil.rmtree(made, ignore_errors=True)


def run(command: Sequence[str], folder: Path | None = None) -> str:
    """What went wrong, in one line; empty if nothing did."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env=environment)
    if not done.returncode:
        return ""
    lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith(("E:", "ERROR:"))][:1] or lines[
        -2:
    ]  # the first one is the cause
    return "; ".join(errors)[:1000].rstrip(".") or f"{command[0]} ended with {done.returncode}"
