"""A board of another architecture on this machine: arm64's own sshd inside a Debian root, every program by qemu.

It takes no privilege: a user namespace has a binfmt_misc of its own (Linux 6.7), in which the kernel is told to run
arm64 programs by qemu; in its mount namespace /proc, /dev and the processor's files are put into the root, and sshd is
started there as a plain user. What sshd starts (the shell, Python, pip, the agent) is arm64 too. Nothing is registered
outside, and all of it ends with the namespace.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from boards import Board
from emulators import cache, emulated

from edgekit.devices._emulator import PACKAGES, make_root
from edgekit.devices.inventory import Entry
from edgekit.errors import EdgekitError

ELF = r"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00"
MASK = r"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff"
"""Header of a 64-bit little-endian ELF file for ARM (machine 183), executable or shared."""

ENTER = """set -e
mount --rbind /dev "$ROOT/dev"
mount -t proc proc "$ROOT/proc"
mount --bind "$ROOT/etc/cpuinfo" "$ROOT/proc/cpuinfo"
mount -t binfmt_misc none /proc/sys/fs/binfmt_misc
printf '%s' ":edgekit:M::$ELF:$MASK:$QEMU:F" > /proc/sys/fs/binfmt_misc/register
exec unshare --user --map-user=1000 --map-group=1000 --root="$ROOT" --wd=/ "$@"
"""
"""As root of the namespace; then, as its user 1000 in one more, the arm64 program."""


class EmulatedBoard(Board):
    """A `Board` whose account is `board` in the root; its processor is that of a Raspberry Pi 5."""

    def __init__(self, folder: Path, account: pwd.struct_passwd) -> None:
        super().__init__(folder, account)
        self.device = emulated("emulated-cortex-a76")
        self.root = folder / "root"

    def make(self) -> None:
        make_root(
            self.root, self.device.processor, cache() / "emulated/tools", print, (*PACKAGES, "openssh-server", "dash")
        )
        shutil.copy(self.root / "proc/cpuinfo", self.root / "etc/cpuinfo")
        for name in ("dev", "proc", "run/sshd", "home", "etc/board"):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        (self.root / "etc/passwd").write_text("board:x:1000:1000::/home/board:/bin/sh\n")
        (self.root / "etc/group").write_text("board:x:1000:\n")
        (self.root / "tmp").chmod(0o1777)
        self.prepare()
        for name in ("host_key", "authorized_keys"):
            shutil.move(self.folder / name, self.root / "etc/board" / name)
        self.home.rename(self.root / "home/board")
        self.home = self.root / "home/board"
        config = (self.folder / "sshd_config").read_text().replace(str(self.folder), "/etc/board")
        config = config.replace("SetEnv HOME=/etc/board/home", f"SetEnv QEMU_CPU={self.device.processor.qemu}")
        (self.root / "etc/board/sshd_config").write_text(config)
        for path in (self.home, self.root / "etc/board/host_key"):
            os.chown(path, self.account.pw_uid, self.account.pw_gid)

    def inside(self, *command: str) -> tuple[list[str], dict[str, Any]]:
        """What runs an arm64 program in the root, and the options of subprocess for it."""
        variables: Mapping[str, str] = {"ROOT": str(self.root), "ELF": ELF, "MASK": MASK,
                                        "QEMU": str(self.device._qemu()), "QEMU_CPU": self.device.processor.qemu,
                                        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}  # fmt: skip
        options: dict[str, Any] = {"env": variables, "start_new_session": True}
        if os.getuid() != self.account.pw_uid:
            options |= {"user": self.account.pw_uid, "group": self.account.pw_gid, "extra_groups": []}
        new = ["unshare", "--user", "--map-root-user", "--mount", "--pid", "--fork", "--kill-child"]
        return [*new, "sh", "-c", ENTER, "sh", *command], options

    def require(self) -> None:
        """Skip, with the reason, where this kernel does not let a plain user do that."""
        command, options = self.inside("/usr/bin/python3", "-c", "import os; print(os.uname().machine, os.getuid())")
        done = subprocess.run(command, capture_output=True, text=True, **options)
        if done.returncode or done.stdout.split() != ["aarch64", "1000"]:
            pytest.skip(f"no arm64 root can be entered here: {(done.stderr or done.stdout).strip()[-300:]}")

    def start(self) -> None:
        command, options = self.inside("/usr/sbin/sshd", "-D", "-e", "-f", "/etc/board/sshd_config")
        self.started(command, options)

    def stop(self) -> None:
        if self.process:
            os.killpg(self.process.pid, signal.SIGKILL)  # the namespace's first process among them: all of it ends
            self.process.wait()

    def entry(self, **changes: Any) -> Entry:
        return super().entry(**{"user": "board", "python": "python3", "emulated": True, **changes})


@contextmanager
def emulated_board() -> Iterator[EmulatedBoard]:
    """A running one; the account outside is EDGEKIT_TEST_BOARD_USER, or nobody for root."""
    pytest.importorskip("asyncssh", reason="no asyncssh here: pip install 'edgekit-toolchain[ssh]'")
    if sys.platform != "linux" or os.uname().machine == "aarch64":
        pytest.skip("arm64 is emulated on Linux of another architecture")
    if not shutil.which("unshare"):
        pytest.skip("no unshare here: install util-linux")
    chosen = os.environ.get("EDGEKIT_TEST_BOARD_USER") or ("nobody" if os.getuid() == 0 else None)
    account = pwd.getpwnam(chosen) if chosen else pwd.getpwuid(os.getuid())
    folder = Path(tempfile.mkdtemp(prefix="edgekit-arm64-"))
    folder.chmod(0o755)
    made = EmulatedBoard(folder, account)
    try:
        try:
            made.make()
        except EdgekitError as error:
            pytest.skip(f"no arm64 root: {error}")
        made.require()
        made.start()
        yield made
    finally:
        made.stop()
        shutil.rmtree(folder, ignore_errors=True)
