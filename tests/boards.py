"""A board on this machine: a real sshd on loopback, started by a plain user where there is one, with an empty home."""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import agent_bundles as small
import numpy as np
import pytest

from edgekit.bundle import Bundle, write_bundle
from edgekit.devices._board import CHUNK
from edgekit.devices.inventory import Entry

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


class Board:
    """`home` is the board's, `host_home` is ours: its `.ssh` holds the key, and known_hosts once `trust` was called."""

    def __init__(self, folder: Path, account: pwd.struct_passwd) -> None:
        self.folder, self.account = folder, account
        self.home, self.host_home = folder / "home", folder / "host"
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    def prepare(self) -> None:
        import asyncssh

        self.home.mkdir(exist_ok=True)
        (self.host_home / ".ssh").mkdir(parents=True, mode=0o700)
        self.new_host_key()
        key = asyncssh.generate_private_key("ssh-ed25519")
        key.write_private_key(self.host_home / ".ssh" / "id_ed25519")
        (self.host_home / ".ssh" / "id_ed25519").chmod(0o600)
        key.write_public_key(self.folder / "authorized_keys")
        (self.folder / "sshd_config").write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {self.folder}/host_key\nUsePAM no\nStrictModes no\n"
            f"AuthorizedKeysFile {self.folder}/authorized_keys\nPidFile none\nPasswordAuthentication no\n"
            f"SetEnv HOME={self.home}\nMaxStartups 100\n"
        )
        for path in (self.home, self.folder / "host_key"):
            os.chown(path, self.account.pw_uid, self.account.pw_gid)

    def new_host_key(self) -> None:
        import asyncssh

        self.key = asyncssh.generate_private_key("ssh-ed25519")
        self.key.write_private_key(self.folder / "host_key")
        (self.folder / "host_key").chmod(0o600)

    def trust(self, port: int | None = None) -> None:
        """Add the line that edgekit asks for."""
        public = self.key.export_public_key("openssh").decode().strip()
        with (self.host_home / ".ssh" / "known_hosts").open("a") as file:
            file.write(f"[127.0.0.1]:{port or self.port} {public}\n")

    def start(self, *, as_root: bool = False) -> None:
        """`as_root` has sshd change to the account at login, as on every real board; else it is the account's own."""
        own = {"user": self.account.pw_uid, "group": self.account.pw_gid}
        options = {} if as_root or os.getuid() == self.account.pw_uid else own
        if as_root or self.account.pw_uid == 0:
            Path("/run/sshd").mkdir(exist_ok=True)  # sshd wants it where it has privileges to separate
        self.started([str(SSHD), "-D", "-e", "-f", str(self.folder / "sshd_config")], options)

    def started(self, command: list[str], options: dict[str, Any]) -> None:
        """Start sshd by `command`, and return when it listens."""
        with (self.folder / "sshd.log").open("ab") as log:
            self.process = subprocess.Popen(command, stderr=log, stdin=subprocess.DEVNULL, **options)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        pytest.fail(f"sshd did not start: {(self.folder / 'sshd.log').read_text()}")

    def stop(self) -> None:
        if self.process:
            self.process.terminate()
            self.process.wait()

    def entry(self, **changes: Any) -> Entry:
        values = {"host": "127.0.0.1", "port": self.port, "user": self.account.pw_name, "python": sys.executable}
        return Entry.model_validate({**values, **changes})

    def reached_from(self, ours: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Our home, cache and list of boards are a test's own, and no agent of ours offers keys."""
        monkeypatch.setenv("HOME", str(self.host_home))
        monkeypatch.setenv("EDGEKIT_CACHE", str(ours / "cache"))
        monkeypatch.setenv("EDGEKIT_DEVICES", str(ours / "devices.yaml"))
        monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)

    @property
    def kept(self) -> Path:
        """edgekit's folder on the board."""
        return self.home / ".cache" / "edgekit-board"


@contextmanager
def board() -> Iterator[Board]:
    """A running board. EDGEKIT_TEST_BOARD_USER names its account, for a test run by root."""
    if SSHD is None:
        pytest.skip("no sshd here: install openssh-server")
    pytest.importorskip("asyncssh", reason="no asyncssh here: pip install 'edgekit-toolchain[ssh]'")
    chosen = os.environ.get("EDGEKIT_TEST_BOARD_USER")
    account = pwd.getpwnam(chosen) if chosen else pwd.getpwuid(os.getuid())
    folder = Path(tempfile.mkdtemp(prefix="edgekit-board-"))
    folder.chmod(0o755)
    made = Board(folder, account)
    try:
        made.prepare()
        made.start()
        yield made
    finally:
        made.stop()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def fresh_board() -> Iterator[Board]:
    """A board whose one user was made this minute: an account of its own with an empty home.

    Only root can make an account; a test that a plain user runs has that user log in, to an empty home.
    """
    if os.getuid() != 0:
        with board() as made:
            yield made
        return
    if SSHD is None or shutil.which("useradd") is None:
        pytest.skip("no sshd or no useradd here: install openssh-server and passwd")
    pytest.importorskip("asyncssh", reason="no asyncssh here: pip install 'edgekit-toolchain[ssh]'")
    folder = Path(tempfile.mkdtemp(prefix="edgekit-board-"))
    folder.chmod(0o755)
    (folder / "skeleton").mkdir()
    (folder / "lock").touch()
    (folder / "lock").chmod(0o666)
    name = f"edgekit{os.getpid()}"
    command = ["useradd", "--create-home", "--home-dir", folder / "home", "--skel", folder / "skeleton"]
    try:  # a password that is "*" is none, yet leaves the account open to keys
        subprocess.run([*command, "--shell", "/bin/sh", "--password", "*", name], check=True, capture_output=True)
        made = Board(folder, pwd.getpwnam(name))
        made.prepare()
        try:
            made.start(as_root=True)
            yield made
        finally:
            made.stop()
    finally:
        subprocess.run(["userdel", "--force", name], capture_output=True)
        shutil.rmtree(folder, ignore_errors=True)


def bare_python() -> str:
    """A Python that every account may start and that has no packages."""
    code = "import sys, importlib.util as u; sys.exit(sys.version_info < (3, 9) or u.find_spec('numpy') is not None)"
    named = (shutil.which("python3", path="/usr/bin:/bin"), f"{sys.base_prefix}/bin/python3")
    for path in filter(None, named):
        reachable = all(part.stat().st_mode & 0o001 for part in Path(path).resolve().parents)
        if reachable and subprocess.run([path, "-I", "-c", code]).returncode == 0:
            return path
    pytest.skip("no Python without numpy that a plain user may start here")


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Wire:
    """A TCP proxy in front of a board that counts bytes, and cuts or stalls the line when told to."""

    def __init__(self, target: int) -> None:
        self.target, self.port = target, free_port()
        self.sent = self.received = self.connections = 0
        self.cut_after: int | None = None
        self.stalled = self.down = False
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._ready = threading.Event()

    def __enter__(self) -> Wire:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self.cut()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def cut(self) -> None:
        """Every connection ends at once, as when a cable is pulled and the other end resets."""
        self._loop.call_soon_threadsafe(self._cut)

    def _cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(asyncio.start_server(self._accept, "127.0.0.1", self.port))
        self._ready.set()
        self._loop.run_forever()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.down:
            writer.transport.abort()
            return
        self.connections += 1
        there, back = await asyncio.open_connection("127.0.0.1", self.target)
        self._writers |= {writer, back}
        await asyncio.gather(self._pass(reader, back, True), self._pass(there, writer, False), return_exceptions=True)
        for end in (writer, back):
            end.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, out: bool) -> None:
        while data := await reader.read(1 << 16):
            while self.stalled:
                await asyncio.sleep(0.05)
            if out:
                self.sent += len(data)
            else:
                self.received += len(data)
            writer.write(data)
            await writer.drain()
            if out and self.cut_after is not None and self.sent >= self.cut_after:
                self.cut_after = None
                self._cut()
        writer.close()


def large(folder: Path, chunks: int) -> Bundle:
    """A bundle of a little more than so many chunks."""
    file = small.model(folder / "m.onnx")
    golden = small.samples(2)
    extra = {"ballast": np.random.default_rng(0).bytes(chunks * CHUNK)}
    outputs = [small.expected(file, golden)]
    return write_bundle(folder / "large.edge", small.manifest(), {"model.onnx": file}, [golden], outputs, extra)


def until(seen: Callable[[], object], what: str, seconds: float = 30) -> object:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := seen():
            return found
        time.sleep(0.01)
    pytest.fail(f"waited for {what}")


def running(pi: Board) -> list[Path]:
    """Folders of jobs whose agent has begun."""
    return [path.parent for path in pi.kept.glob("jobs/*/stdout")]


def agents(job: Path) -> list[int]:
    """Processes that run a bundle in the folder of a job; those that watch the device are left out."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes()
            if (process / "cwd").readlink() == job and b".edge" in words and b"--watch" not in words:
                found.append(int(process.name))
        except OSError:
            continue
    return found
