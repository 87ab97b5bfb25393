"""The line cut in each phase of a job: the same result as of an uncut one, and one chunk at most sent twice."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import agent_bundles as small
import numpy as np
import pytest
from boards import Board, Wire, agents, bare_python, fresh_board, large, running, until

from edgekit.bundle import Bundle
from edgekit.devices._board import CHUNK
from edgekit.devices.ssh import Ssh
from edgekit.errors import DeviceError

pytestmark = pytest.mark.slow
SAMPLES = 20_000
REQUESTS = 1 << 15
"""Bytes that requests asked again may take beside a chunk."""


@dataclass
class Line:
    """A board that is reached through a wire, and what an uncut job sends over it."""

    pi: Board
    wire: Wire
    device: Ssh
    bundle: Bundle
    inputs: Path
    connecting: int
    uncut: int
    expected: bytes

    def job(self, folder: Path) -> bytes:
        """From a board without anything: upload, installation, run and result. The outputs' bytes."""
        self.device.run(self.bundle, self.inputs, folder / "outputs.npz", batch=1, threads=1)
        return (folder / "outputs.npz").read_bytes()


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Line]:
    folder = tmp_path_factory.mktemp("cuts")
    with fresh_board() as pi, Wire(pi.port) as wire, pytest.MonkeyPatch.context() as patch:
        for port in (pi.port, wire.port):
            pi.trust(port)
        patch.setenv("HOME", str(pi.host_home))
        patch.setenv("EDGEKIT_CACHE", str(folder / "cache"))
        patch.delenv("SSH_AUTH_SOCK", raising=False)
        entry = pi.entry(python=bare_python(), port=wire.port)
        device = Ssh("pi", entry, wait=True, board_lock=str(pi.folder / "lock"))
        device.probe()
        connecting = wire.sent
        np.save(folder / "in.npy", small.samples(SAMPLES))
        made = Line(pi, wire, device, large(folder, 8), folder / "in.npy", connecting, 0, b"")
        try:
            made.expected = made.job(folder)
        except DeviceError as error:
            if "package index cannot be reached" in str(error):
                pytest.skip("no package index here")
            raise
        made.uncut = wire.sent - connecting
        yield made


def in_the_upload(line: Line) -> None:
    line.wire.cut_after = 5 * CHUNK + CHUNK // 2


def in_the_installation(line: Line) -> None:
    until(lambda: list(line.pi.kept.glob("envs/*/venv")), "the installation", 120)
    assert not list(line.pi.kept.glob("envs/*/ready.json"))
    line.wire.cut()


def in_the_run(line: Line) -> None:
    until(lambda: any(agents(job) for job in running(line.pi)), "the agent", 120)
    line.wire.cut()
    assert not list(line.pi.kept.glob("jobs/*/done.json"))


def after_the_run(line: Line) -> None:
    until(lambda: any(agents(job) for job in running(line.pi)), "the agent", 120)
    line.wire.down = True
    line.wire.cut()
    until(lambda: list(line.pi.kept.glob("jobs/*/done.json")), "the end of the job", 120)
    line.wire.down = False


@pytest.mark.parametrize("cut", [in_the_upload, in_the_installation, in_the_run, after_the_run])
def test_a_line_cut(line: Line, cut: Callable[[Line], None], tmp_path: Path) -> None:
    line.device.clean()
    wire = line.wire
    wire.sent = wire.connections = 0
    failed: list[BaseException] = []

    def cutting() -> None:
        try:
            cut(line)
        except BaseException as error:
            failed.append(error)

    cutter = threading.Thread(target=cutting)
    cutter.start()
    outputs = line.job(tmp_path)
    cutter.join()
    assert not failed, failed[0]
    assert wire.connections == 2 and wire.cut_after is None
    again = wire.sent - line.uncut - line.connecting
    print(f"{cut.__name__}: {wire.sent:,} bytes sent, {line.uncut:,} uncut, {line.connecting:,} to connect: {again:+,}")
    assert outputs == line.expected
    assert again <= REQUESTS + (CHUNK if cut is in_the_upload else 0)
