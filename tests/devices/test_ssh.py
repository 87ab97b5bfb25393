"""A registered board, against a real sshd: what it measures, and every way in which it can fail."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import agent_bundles as small
import numpy as np
import pytest
from boards import Board, Wire, agents, board, large, running, until
from pythons import interpreter

from edgekit.agent.stats import least_samples
from edgekit.bundle import Bundle, write_bundle
from edgekit.devices import _line, _session, _wheels
from edgekit.devices._board import CHUNK
from edgekit.devices.local import Local
from edgekit.devices.ssh import Ssh
from edgekit.errors import DeviceError, IntegrityError, MeasurementInvalidError, UsageError
from edgekit.testing import DeviceContract


@pytest.fixture(scope="module")
def pi() -> Iterator[Board]:
    with board() as running:
        running.trust()
        yield running


@pytest.fixture(autouse=True)
def host(pi: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Our side: keys and known hosts of the test alone. The board runs bundles by the Python that runs the tests."""
    pi.reached_from(tmp_path, monkeypatch)
    monkeypatch.setattr(_wheels, "PACKAGES", {})
    known = pi.host_home / ".ssh" / "known_hosts"
    before = known.read_text()
    yield
    known.write_text(before)
    subprocess.run(["chmod", "-R", "u+rwX", str(pi.home)], check=True)
    subprocess.run(["rm", "-rf", str(pi.home / ".cache")], check=True)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return small.bundle(tmp_path_factory.mktemp("ssh"))


def ssh(pi: Board, lock: Path | None = None, boot_id: Path | None = None, **changes: object) -> Ssh:
    options = {name: changes.pop(name) for name in ("wait", "kill_on_interrupt") if name in changes}
    paths = {"board_lock": str(lock or pi.folder / "lock")} | ({"boot_id": str(boot_id)} if boot_id else {})
    return Ssh("pi", pi.entry(**changes), **options, **paths)


class TestContract(DeviceContract):
    @pytest.fixture(autouse=True)
    def _device(self, pi: Board) -> None:
        self.device = ssh(pi)


class TestWhatItMeasures:
    def test_the_same_outputs_as_here(self, pi: Board, bundle: Bundle, tmp_path: Path) -> None:
        np.save(tmp_path / "in.npy", small.samples(200))
        told: list[int] = []
        ran = ssh(pi).run(bundle, tmp_path / "in.npy", tmp_path / "out.npz", on_done=told.append)
        Local().run(bundle, tmp_path / "in.npy", tmp_path / "here.npz")
        assert told[-1] == 200 and ran.info["samples"] == 200
        with np.load(tmp_path / "out.npz") as there, np.load(tmp_path / "here.npz") as here:
            np.testing.assert_array_equal(there["logits"], here["logits"])

    def test_bench_and_pairs(self, pi: Board, bundle: Bundle) -> None:
        seen = ssh(pi).bench(bundle, min_seconds=0.1, max_seconds=1)
        assert len(seen.samples_s) >= least_samples(90) and "samples_s" not in seen.info
        pairs = ssh(pi).pairs(bundle, bundle, rounds=2)
        assert len(pairs.rounds) == 2
        for medians, told in zip(pairs.rounds, pairs.info, strict=True):
            assert medians in [tuple(float(np.median(block)) for block in blocks) for blocks in told["samples_s"]]
            assert told["a"]["load_s"] and told["b"]["state"]

    def test_describes_the_machine_as_local_does(self, pi: Board) -> None:
        here, there = Local().describe(), ssh(pi).describe()
        same = ("cpu", "features", "cores", "memory_bytes", "arch", "kernel", "system")
        assert {key: there[key] for key in same} == {key: here[key] for key in same}

    def test_probing_leaves_no_trace(self, pi: Board) -> None:
        assert ssh(pi).probe()["python"] and not list(pi.home.iterdir())

    def test_cleaning_leaves_no_trace(self, pi: Board, bundle: Bundle) -> None:
        device = ssh(pi)
        assert device.selftest(bundle)["passed"] and list(pi.kept.iterdir())
        assert device.clean() > 0 and not pi.kept.exists()
        assert not [path for path in pi.home.rglob("*") if path.is_file()]

    def test_jobs_are_gone_when_their_results_are_here(self, pi: Board, bundle: Bundle, tmp_path: Path) -> None:
        ssh(pi).selftest(bundle)
        assert not list((pi.kept / "jobs").iterdir()) and not list((tmp_path / "cache" / "boards").iterdir())

    def test_an_emulated_board_is_never_timed(self, pi: Board, bundle: Bundle) -> None:
        device = ssh(pi, emulated=True)
        assert device.describe()["emulated"] and device.selftest(bundle)["passed"]
        for call in (lambda: device.bench(bundle), lambda: device.pairs(bundle, bundle, rounds=1)):
            with pytest.raises(MeasurementInvalidError, match="emulated"):
                call()

    @pytest.mark.slow
    def test_nothing_passes_the_line_while_it_measures(self, pi: Board, bundle: Bundle) -> None:
        """From when the first block began until the last ended, not one byte in either direction."""
        with Wire(pi.port) as wire:
            pi.trust(wire.port)
            device = ssh(pi, port=wire.port)
            device.selftest(bundle)
            seen: list[tuple[int, int]] = []

            def watch() -> None:
                folder = until(lambda: running(pi), "the agent")[0]
                until(lambda: len(agents(folder)) == 3, "driver and both bundles")
                while len(agents(folder)) == 3:
                    seen.append((wire.sent, wire.received))
                    time.sleep(0.02)

            watcher = threading.Thread(target=watch)
            watcher.start()
            device.pairs(bundle, bundle, rounds=4)
            watcher.join()
        assert len(seen) > 8 and len(set(seen[2:-2])) == 1


class TestGettingThere:
    def test_an_unknown_host_key_comes_with_the_line_to_add(self, pi: Board) -> None:
        known = pi.host_home / ".ssh" / "known_hosts"
        known.write_text("")
        with pytest.raises(DeviceError, match="is unknown") as caught:
            ssh(pi).probe()
        assert not list(pi.home.iterdir())
        known.write_text(str(caught.value).splitlines()[-1] + "\n")
        assert ssh(pi).probe()["arch"]

    def test_a_changed_host_key_is_refused(self, pi: Board) -> None:
        import asyncssh

        other = asyncssh.generate_private_key("ssh-ed25519").export_public_key("openssh").decode()
        (pi.host_home / ".ssh" / "known_hosts").write_text(f"[127.0.0.1]:{pi.port} {other}")
        with pytest.raises(DeviceError, match=r"CHANGED.*ssh-keygen -R '\[127"):
            ssh(pi).probe()

    def test_a_host_key_of_another_kind_is_refused(self, pi: Board) -> None:
        import asyncssh

        other = asyncssh.generate_private_key("ecdsa-sha2-nistp256").export_public_key("openssh").decode()
        (pi.host_home / ".ssh" / "known_hosts").write_text(f"[127.0.0.1]:{pi.port} {other}")
        with pytest.raises(DeviceError, match=r"CHANGED"):
            ssh(pi).probe()

    def test_a_key_that_the_board_does_not_know(self, pi: Board, tmp_path: Path, monkeypatch) -> None:
        import asyncssh

        (tmp_path / ".ssh").mkdir()
        asyncssh.generate_private_key("ssh-ed25519").write_private_key(tmp_path / ".ssh" / "id_ed25519")
        (tmp_path / ".ssh" / "known_hosts").write_text((pi.host_home / ".ssh" / "known_hosts").read_text())
        monkeypatch.setenv("HOME", str(tmp_path))
        with pytest.raises(DeviceError, match=r"took none of your keys.*ssh-copy-id"):
            ssh(pi).probe()

    def test_nobody_listens(self, pi: Board) -> None:
        with pytest.raises(DeviceError, match="cannot be reached"):
            ssh(pi, port=1).probe()

    def test_an_alias_and_a_jump_of_the_ssh_configuration(self, pi: Board) -> None:
        """One entry names host, user and port; another goes through it."""
        config = pi.host_home / ".ssh" / "config"
        config.write_text(
            f"Host first\n  HostName 127.0.0.1\n  Port {pi.port}\n  User {pi.account.pw_name}\n"
            f"Host second\n  HostName 127.0.0.1\n  Port {pi.port}\n  User {pi.account.pw_name}\n  ProxyJump first\n"
        )
        try:
            for alias in ("first", "second"):
                entry = pi.entry().model_copy(update={"host": alias, "user": None, "port": None})
                assert Ssh(alias, entry).probe()["cores"] >= 1
        finally:
            config.unlink()

    def test_no_python(self, pi: Board) -> None:
        with pytest.raises(DeviceError, match=r"no Python there: '/no/python3' was not found"):
            ssh(pi, python="/no/python3").probe()

    def test_too_old_a_python(self, pi: Board) -> None:
        if (old := interpreter("3.8")) is None:
            pytest.skip("no Python 3.8 here")
        with pytest.raises(DeviceError, match=r"is Python 3\.8, 3\.9 or later is needed"):
            ssh(pi, python=old).probe()

    def test_a_login_script_that_talks(self, pi: Board, bundle: Bundle) -> None:
        talker = pi.folder / "talker"
        talker.write_text(f"#!/bin/sh\necho 'Welcome to pi!'\necho\nexec {sys.executable} \"$@\"\n")
        talker.chmod(0o755)
        assert ssh(pi, python=str(talker)).probe()["arch"]


@pytest.mark.slow
class TestRoom:
    def test_a_quota(self, pi: Board, tmp_path: Path) -> None:
        with pytest.raises(DeviceError, match=r"quota of 50 MB.*quota_mb.*devices clean"):
            ssh(pi, quota_mb=50).selftest(large(tmp_path, 60))
        assert not list(pi.kept.rglob("*.part"))

    def test_the_oldest_files_give_way_to_the_quota(self, pi: Board, bundle: Bundle, tmp_path: Path) -> None:
        device = ssh(pi, quota_mb=50)
        for number in range(3):
            (tmp_path / str(number)).mkdir()
            assert device.selftest(large(tmp_path / str(number), 20 + number))["passed"]
        assert len(list((pi.kept / "blobs").iterdir())) == 2

    def test_a_full_disk(self, pi: Board, tmp_path: Path) -> None:
        disk = pi.folder / "disk"
        disk.mkdir(exist_ok=True)
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=55m,mode=1777", "none", disk], capture_output=True
        )
        if mounted.returncode:
            pytest.skip("no right to mount a small file system here")
        try:
            with pytest.raises(DeviceError, match=r"no space: .* MB are free"):
                ssh(pi, folder=str(disk / "edgekit")).selftest(large(tmp_path, 8))
        finally:
            subprocess.run(["umount", disk], check=True)

    def test_a_folder_that_cannot_be_written(self, pi: Board, bundle: Bundle) -> None:
        folder = "/proc/edgekit"
        if pi.account.pw_uid != 0:
            pi.home.chmod(0o555)
            folder = "~/.cache/edgekit-board"
            assert not ssh(pi, folder=folder).probe()["writable"]
        with pytest.raises(DeviceError, match="cannot write there"):
            ssh(pi, folder=folder).selftest(bundle)


@pytest.mark.slow
class TestTheLine:
    @pytest.fixture
    def wire(self, pi: Board) -> Iterator[Wire]:
        with Wire(pi.port) as wire:
            pi.trust(wire.port)
            yield wire

    def test_cut_while_uploading_sends_at_most_one_chunk_again(self, pi: Board, wire: Wire, tmp_path: Path) -> None:
        bundle, device = large(tmp_path, 8), ssh(pi, port=wire.port)
        whole = device.selftest(bundle)
        uncut = wire.sent
        device.clean()
        wire.sent, wire.connections, wire.cut_after = 0, 0, 5 * CHUNK + CHUNK // 2
        assert device.selftest(bundle) == whole
        assert wire.connections == 2 and wire.cut_after is None
        connecting = 2 * len(_line.HELPER.read_bytes()) + (1 << 16)
        assert wire.sent <= uncut + CHUNK + connecting, f"{wire.sent} bytes, uncut {uncut}"

    def test_cut_while_measuring(self, pi: Board, wire: Wire, bundle: Bundle) -> None:
        device, jobs = ssh(pi, port=wire.port), set()

        def cut() -> None:
            until(lambda: running(pi), "the agent")
            jobs.update(running(pi))
            time.sleep(0.5)
            wire.cut()
            until(lambda: wire.connections > connections, "another connection")
            jobs.update(running(pi))

        device.selftest(bundle)
        connections = wire.connections + 1
        cutter = threading.Thread(target=cut)
        cutter.start()
        pairs = device.pairs(bundle, bundle, rounds=6)
        cutter.join()
        assert len(pairs.rounds) == 6 and len(jobs) == 1

    def test_cut_after_the_end_of_the_job(self, pi: Board, wire: Wire, bundle: Bundle, tmp_path: Path) -> None:
        np.save(tmp_path / "in.npy", small.samples(200))
        device = ssh(pi, port=wire.port)
        device.run(bundle, tmp_path / "in.npy", tmp_path / "uncut.npz")
        before = wire.connections

        def cut() -> None:
            until(lambda: running(pi), "the agent")
            wire.down = True
            wire.cut()
            until(lambda: list(pi.kept.glob("jobs/*/done.json")), "the end of the job")
            wire.down = False

        cutter = threading.Thread(target=cut)
        cutter.start()
        device.run(bundle, tmp_path / "in.npy", tmp_path / "cut.npz")
        cutter.join()
        assert wire.connections == before + 2
        assert (tmp_path / "cut.npz").read_bytes() == (tmp_path / "uncut.npz").read_bytes()

    def test_a_line_that_stalls_is_given_up_for_another(
        self, pi: Board, wire: Wire, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(_line, "KEEPALIVE_S", 0.3)
        monkeypatch.setattr(_line, "KEEPALIVE_COUNT", 2)
        bundle, device = large(tmp_path, 8), ssh(pi, port=wire.port)
        device.probe()

        def stall() -> None:
            until(lambda: wire.sent > 2 * CHUNK, "the upload")
            wire.stalled = True
            time.sleep(2)
            wire.cut()
            wire.stalled = False

        staller = threading.Thread(target=stall)
        staller.start()
        assert device.selftest(bundle)["passed"]
        staller.join()
        assert wire.connections >= 3

    def test_a_line_that_does_not_come_back(
        self, pi: Board, wire: Wire, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        """The same call takes up the job that went on."""
        monkeypatch.setattr(_session.Session, "patience_s", 0.5)
        device, jobs = ssh(pi, port=wire.port), set()
        device.selftest(bundle)

        def cut() -> None:
            until(lambda: running(pi), "the agent")
            jobs.update(running(pi))
            wire.down = True
            wire.cut()

        cutter = threading.Thread(target=cut)
        cutter.start()
        with pytest.raises(DeviceError, match=r"did not come back.*goes on; the same command"):
            device.pairs(bundle, bundle, rounds=4)
        cutter.join()
        wire.down = False
        jobs.update(running(pi))
        assert len(device.pairs(bundle, bundle, rounds=4).rounds) == 4 and len(jobs) == 1
        assert not running(pi) and not list((tmp_path / "cache" / "boards").iterdir())


@pytest.mark.slow
class TestTheJob:
    def test_a_reboot_in_the_middle(self, pi: Board, bundle: Bundle, tmp_path: Path) -> None:
        boot = pi.folder / "boot_id"
        boot.write_text("one\n")

        def reboot() -> None:
            job = until(lambda: running(pi), "the agent")[0]
            until(lambda: agents(job), "the bundle")
            boot.write_text("two\n")
            os.killpg(int(re.search(r'"pid": (\d+)', (job / "job.json").read_text())[1]), signal.SIGKILL)

        rebooter = threading.Thread(target=reboot)
        rebooter.start()
        with pytest.raises(DeviceError, match="started anew while the job ran"):
            ssh(pi, boot_id=boot).pairs(bundle, bundle, rounds=50)
        rebooter.join()
        assert not running(pi)

    def test_a_job_that_somebody_ended(self, pi: Board, bundle: Bundle) -> None:
        def end() -> None:
            job = until(lambda: running(pi), "the agent")[0]
            os.killpg(int(re.search(r'"pid": (\d+)', (job / "job.json").read_text())[1]), signal.SIGKILL)

        ender = threading.Thread(target=end)
        ender.start()
        with pytest.raises(DeviceError, match="ended from outside"):
            ssh(pi).pairs(bundle, bundle, rounds=50)
        ender.join()

    @pytest.mark.parametrize("how", ["os.kill(os.getpid(), 9)", "raise MemoryError('of the test')"])
    def test_out_of_memory_is_told_with_the_peak(self, pi: Board, tmp_path: Path, how: str) -> None:
        runner = tmp_path / "runner.py"
        runner.write_text(
            "import os\nclass Runner:\n    def __init__(self, *_):\n"
            f"        held = bytearray(b'x') * 300_000_000\n        {how}\n"
        )
        file = small.model(tmp_path / "m.onnx")
        manifest = small.manifest(backend="hungry", runner={"module": "runner.py"})
        golden = [small.samples(1)], [np.zeros((1, 3), np.float32)]
        hungry = write_bundle(tmp_path / "h.edge", manifest, {"model.onnx": file, "runner.py": runner}, *golden)
        with pytest.raises(DeviceError, match=r"out of memory.*It had held (3\d\d) MB at its peak") as caught:
            ssh(pi).selftest(hungry)
        assert caught.value.exit_code == 5

    def test_two_at_once_are_refused_or_take_turns(self, pi: Board, bundle: Bundle, tmp_path: Path) -> None:
        lock = pi.folder / "busy"
        with lock.open("w") as held:
            held.write("somebody@elsewhere since 12:00:00\n")
            held.flush()
            lock.chmod(0o666)
            fcntl.flock(held, fcntl.LOCK_EX)
            with pytest.raises(DeviceError, match=r"another measurement.*somebody@elsewhere since 12:00:00.*--wait"):
                ssh(pi, lock=lock).selftest(bundle)
            threading.Timer(1.0, lambda: fcntl.flock(held, fcntl.LOCK_UN)).start()
            assert ssh(pi, lock=lock, wait=True).selftest(bundle)["passed"]
        assert re.fullmatch(r"\S+@\S+ since \d\d:\d\d:\d\d\n", lock.read_text())

    def test_two_clients_of_ours_never_measure_at_once(self, pi: Board, bundle: Bundle) -> None:
        most, stop = [0], threading.Event()

        def watch() -> None:
            while not stop.is_set():
                most[0] = max(most[0], sum(1 for job in running(pi) if agents(job)))

        watcher = threading.Thread(target=watch)
        watcher.start()
        found: list[bool] = []
        clients = [
            threading.Thread(target=lambda: found.append(bool(ssh(pi, wait=True).selftest(bundle)["passed"])))
            for _ in range(3)
        ]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        stop.set()
        watcher.join()
        assert found == [True] * 3 and most[0] == 1

    def test_a_damaged_upload_is_sent_again(self, pi: Board, tmp_path: Path) -> None:
        bundle, device = large(tmp_path, 3), ssh(pi)
        device.selftest(bundle)
        blob = max((pi.kept / "blobs").iterdir(), key=lambda path: path.stat().st_size)
        content = blob.read_bytes()
        blob.unlink()
        (blob.with_name(blob.name + ".part")).write_bytes(b"?" + content[1 : 2 * CHUNK])
        assert device.selftest(bundle)["passed"] and blob.read_bytes() == content
        blob.chmod(0o600)
        blob.write_bytes(content[:-1] + b"?")
        assert device.selftest(bundle)["passed"] and blob.read_bytes() == content

    def test_the_agents_own_messages_keep_their_codes(self, pi: Board, bundle: Bundle, tmp_path: Path) -> None:
        np.save(tmp_path / "in.npy", np.zeros((2, 5, 5), np.uint8))
        with pytest.raises(UsageError, match=r"pi: small\.edge: input image expects float32"):
            ssh(pi).run(bundle, tmp_path / "in.npy", tmp_path / "out.npz")


HOST = """
import sys
from pathlib import Path
from edgekit.bundle import open_bundle
from edgekit.devices import _wheels
from edgekit.devices.inventory import Entry
from edgekit.devices.ssh import Ssh
_wheels.PACKAGES = {}
bundle, entry = open_bundle(Path(sys.argv[1])), Entry.model_validate_json(sys.argv[2])
try:
    print(len(Ssh("pi", entry, kill_on_interrupt=sys.argv[3] == "kill", board_lock=sys.argv[4])
              .pairs(bundle, bundle, rounds=8).rounds), flush=True)
except KeyboardInterrupt as error:
    print(*error.__notes__, flush=True)
    raise SystemExit(130)
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["leave", "kill"])
def test_an_interrupt_leaves_the_job_or_ends_it(pi: Board, bundle: Bundle, how: str) -> None:
    command = [sys.executable, "-c", HOST, str(bundle.path), pi.entry().model_dump_json(), how, str(pi.folder / "lock")]
    ssh(pi).selftest(bundle)
    client = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    job = until(lambda: running(pi), "the agent")[0]
    until(lambda: len(agents(job)) == 3, "driver and both bundles")
    client.send_signal(signal.SIGINT)
    out, err = client.communicate(timeout=30)
    assert client.returncode == 130, err
    if how == "kill":
        assert out == "What ran on pi was ended.\n" and not agents(job) and not job.exists()
        return
    assert "goes on; asking for the same again takes up its result" in out and agents(job)
    second = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert second.stdout == "8\n", second.stderr
    assert not running(pi)


HOSTILE = """#!{python}
import json, os, sys
if "-c" not in sys.argv:
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
source = sys.stdin.buffer.read(int(sys.stdin.buffer.readline())).decode()
g = {{"__name__": "edgekit_board"}}
exec(compile(source, "edgekit_board", "exec"), g)
g["SOURCE"] = source
class Store(g["Store"]):
    pass
g["Store"] = Store
{how}
g["serve"]()
"""
HOW = {
    "garbage": "g['answer'] = lambda value, data=b'': (sys.stdout.write('!%s\\n' * 3), sys.stdout.flush())",
    "endless": "g['MARK'] = b''\nwhile True: sys.stdout.write('x' * 65536)",
    "endless answer": "def answer(*_):\n    while True: sys.stdout.write('x' * 65536)\ng['answer'] = answer",
    "a list": "g['answer'] = lambda value, data=b'': (sys.stdout.write('[]\\n'), sys.stdout.flush())",
    "a nest": "g['answer'] = lambda value, data=b'': (sys.stdout.write('[' * 200000 + '\\n'), sys.stdout.flush())",
    "a strange probe": "g['probe'] = lambda request: {'python': '3.11; rm -rf /', 'cores': 'many'}",
    "10 GB": "true = Store.wait\n"
    "def wait(s, r):\n    d = true(s, r)\n    d['sizes']['outputs.npz'] = 10**10\n    return d\nStore.wait = wait",
    "10 GB of text": "true = Store.wait\nStore.wait = lambda s, r: {**true(s, r), 'sizes': {'stdout': 10**10}}",
    "negative": "true = Store.wait\nStore.wait = lambda s, r: {**true(s, r), 'sizes': {'stdout': -5}}",
    "another file": "true = Store.read\ndef read(s, r):\n    d = b'PK' + b'x' * (r['n'] - 2)\n"
    "    return {'n': len(d), 'digest': g['hashlib'].sha256(d).hexdigest()}, d\nStore.read = read",
    "more than asked": "true = Store.read\ndef read(s, r):\n    d = b'x' * 900000\n"
    "    return {'n': len(d), 'digest': g['hashlib'].sha256(d).hexdigest()}, d\nStore.read = read",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("how", HOW)
def test_a_hostile_board_is_refused(pi: Board, bundle: Bundle, tmp_path: Path, how: str) -> None:
    fake = pi.folder / f"hostile-{how.replace(' ', '-')}"
    fake.write_text(HOSTILE.format(python=sys.executable, how=HOW[how]))
    fake.chmod(0o755)
    np.save(tmp_path / "in.npy", small.samples(20))
    with pytest.raises(DeviceError, match=r"garbage|without end|bytes, at most|not one of edgekit's agent"):
        ssh(pi, python=str(fake)).run(bundle, tmp_path / "in.npy", tmp_path / "out.npz", threads=1)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("out")] == []


def test_a_board_that_damages_what_it_gets(pi: Board, bundle: Bundle) -> None:
    fake = pi.folder / "damaging"
    how = """
true = Store.chunk
def chunk(s, r, d):
    return true(s, {**r, "digest": g["hashlib"].sha256(b"?" + d[1:]).hexdigest()}, b"?" + d[1:])
Store.chunk = chunk
"""
    fake.write_text(HOSTILE.format(python=sys.executable, how=how))
    fake.chmod(0o755)
    with pytest.raises(IntegrityError, match="arrives damaged, twice") as caught:
        ssh(pi, python=str(fake)).selftest(bundle)
    assert caught.value.exit_code == 8


ODD = ["it's a \"model\".edge", "$(touch pwned).edge", "`touch pwned`;touch pwned&.edge", "two\nlines.edge", "-rf.edge",
       "ünïcode ☃.edge", "a\\b.edge", "%s{}*?[x].edge", " .edge", "~root.edge"]  # fmt: skip


@pytest.mark.slow
def test_odd_names_reach_no_shell(pi: Board, bundle: Bundle, tmp_path: Path) -> None:
    device = ssh(pi, folder=str(pi.home / ".cache" / 'it\'s; $(touch pwned) "here"'))
    np.save(tmp_path / "in.npy", small.samples(2))
    for name in ODD:
        copy = tmp_path / name
        copy.write_bytes(bundle.path.read_bytes())
        named = Bundle(copy, bundle.manifest, bundle.sha256, bundle.model_bytes)
        device.run(named, tmp_path / "in.npy", tmp_path / "out.npz")
        with pytest.raises(DeviceError, match=r"not found|does not start"):
            ssh(pi, python=f"/x/{name}".replace("\n", "")).probe()
    found = [path for root in (pi.home, Path(pi.account.pw_dir)) for path in root.glob("**/pwned")]
    assert not found and not Path("pwned").exists()
