"""Processors that this machine is not, played by qemu's user mode: what they compute counts, never a time.

A bundle is run by its own agent, in a Python of the processor's architecture, with the runtime that a board would get.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NoReturn

from edgekit.agent import state
from edgekit.agent.unpack import cache_folder
from edgekit.bundle import Bundle
from edgekit.context import Progress, Silent
from edgekit.devices import Bench, Pairs, refuse_times
from edgekit.devices import _emulator as emulator
from edgekit.devices._emulator import Cache, Processor
from edgekit.devices.local import Local
from edgekit.errors import MissingDependencyError

log = logging.getLogger(__name__)

UNWANTED = ("LD_", "QEMU_")
"""What in the environment would reach into the emulated program."""


class Emulated(Local):
    """A processor by qemu. Subclasses say which; `bench`, `pairs` and `layers` are refused."""

    emulated: ClassVar[bool] = True
    run_batch: ClassVar[int] = 16  # an emulated one is slow, and progress is told by the batch
    processor: ClassVar[Processor]
    description: ClassVar[str]

    def __init__(self, folder: Path | None = None, progress: Progress | None = None) -> None:
        """`folder` keeps what is set up (by default `emulated` in edgekit's cache); `progress` is told of downloads."""
        super().__init__()
        base = folder or cache_folder() / "emulated"
        self.folder, self.tools = base / self.name, base / "tools"
        self.root = self.folder / "root"
        self.progress = progress or Silent()

    @property
    def ready(self) -> bool:
        """Whether all is there that `setup` makes."""
        return self._qemu() is not None and (self.root.exists() or not emulator.foreign(self.processor))

    def setup(self) -> None:
        """Fetch what is missing: qemu and mmdebstrap where they are not installed, and a Debian root with Python.

        Raises:
            MissingDependencyError: this is no Linux, or a tool is missing and cannot be fetched.
            DeviceError: Debian's packages cannot be fetched.
        """
        if sys.platform != "linux":
            raise MissingDependencyError(f"{self.name}: qemu's user mode, which it needs, exists for Linux alone.")
        with self.progress.task(f"set up {self.name}"):
            emulator.fetch_tool(self._program, "qemu-user-static", self.tools, self.progress.say)
            if emulator.foreign(self.processor) and not self.root.exists():
                emulator.make_root(self.root, self.processor, self.tools, self.progress.say)

    def clean(self) -> int:
        """Remove what `setup` made and the runtimes; with the last device the programs too. Bytes that were freed."""
        freed = _size(self.folder)
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.tools.exists() and [*self.tools.parent.iterdir()] == [self.tools]:
            freed += _size(self.tools)
            shutil.rmtree(self.tools, ignore_errors=True)
        return freed

    def describe(self) -> Mapping[str, Any]:
        """The processor that is played; `emulated` is true."""
        here, played = state.machine(), self.processor
        facts = {
            "cpu": played.cpu,
            "features": [name for name in state.WANTED_FEATURES if name in played.features.split()],
            "cores": here["cores"],
            "memory_bytes": here["memory_bytes"],
            "arch": played.arch,
            "kernel": platform.release(),
            "system": "Linux",
            "emulated": True,
        }
        text = json.dumps([self.name, facts], sort_keys=True).encode()
        return {"name": self.name, "fingerprint": hashlib.sha256(text).hexdigest()[:16], **facts}

    def bench(self, bundle: Bundle, **_: Any) -> Bench:
        """Refused: MeasurementInvalidError."""
        self._refuse()

    def pairs(self, a: Bundle, b: Bundle, **_: Any) -> Pairs:
        """Refused: MeasurementInvalidError."""
        self._refuse()

    def layers(self, bundle: Bundle, **_: Any) -> Mapping[str, Any]:
        """Refused: MeasurementInvalidError."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        refuse_times(self.name)

    @property
    def _program(self) -> str:
        return f"qemu-{self.processor.arch}-static"

    def _qemu(self) -> str | None:
        return emulator.find_tool(self._program, "qemu-user-static", self.tools)

    def _launch(self, bundle: Bundle) -> tuple[list[str], dict[str, str]]:
        """qemu, and a Python that may keep what it compiled: where it is emulated, that takes most of a start."""
        qemu = self._qemu()
        if qemu is None or not self.ready:
            raise MissingDependencyError(
                f"{self.name} is not set up here: {'a Debian root' if qemu else self._program} is missing. "
                f"Set it up: edgekit devices setup {self.name}"
            )
        environment = {key: value for key, value in self._environment().items() if not key.startswith(UNWANTED)}
        command = [qemu, "-cpu", self.processor.qemu]
        if not emulator.foreign(self.processor):
            return [*command, self.python, "-B"], environment
        manifest = bundle.manifest
        site = emulator.site_for(
            self.folder / "runtimes", manifest.backend, manifest.versions, self.processor.arch, self._told
        )
        environment["PYTHONPATH"] = str(site)
        return [*command, "-L", str(self.root), str(self.root / "usr/bin" / f"python{emulator.PYTHON}")], environment

    def _told(self, line: str) -> None:
        log.info("%s: %s", self.name, line)
        self.progress.say(f"{self.name}: {line}")


class CortexA72(Emulated):
    """The processor of a Raspberry Pi 4 (r0p3): no 8-bit dot products."""

    name = "emulated-cortex-a72"
    description = "Raspberry Pi 4: Armv8.0, no 8-bit dot products"
    processor = Processor(
        "cortex-a72",
        "aarch64",
        "Cortex-A72",
        "fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid",
        0x410FD083,
        1800,
        (Cache(1, "Data", 32), Cache(1, "Instruction", 48), Cache(2, "Unified", 1024, shared=True)),
    )


class CortexA76(Emulated):
    """The processor of a Raspberry Pi 5 (r4p1): 8-bit dot products and half precision."""

    name = "emulated-cortex-a76"
    description = "Raspberry Pi 5: Armv8.2 with 8-bit dot products"
    processor = Processor(
        "cortex-a76",
        "aarch64",
        "Cortex-A76",
        "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp",
        0x414FD0B1,
        2400,
        (Cache(1, "Data", 64), Cache(1, "Instruction", 64), Cache(2, "Unified", 512),
         Cache(3, "Unified", 2048, shared=True)),
    )  # fmt: skip


class Haswell(Emulated):
    """An x86-64 processor with AVX2 and without VNNI: partial sums of u8 x s8 saturate."""

    name = "emulated-haswell"
    description = "x86-64 with AVX2, without VNNI"
    processor = Processor("Haswell", "x86_64", "Haswell", "sse4_2 avx avx2 fma f16c")


def _size(folder: Path) -> int:
    """Bytes on the disk."""
    return sum((Path(root) / name).lstat().st_blocks * 512 for root, _, names in os.walk(folder) for name in names)


ALL: Mapping[str, type[Emulated]] = {one.name: one for one in (CortexA72, CortexA76, Haswell)}

__all__: Sequence[str] = ("ALL", "CortexA72", "CortexA76", "Emulated", "Haswell")
