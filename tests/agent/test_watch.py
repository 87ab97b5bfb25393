"""The state from a process of its own, and who else used the processors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import agent_bundles as small
import pytest
from board_trees import virtual_machine

from edgekit.agent import load, watch
from edgekit.agent.system import System
from edgekit.bundle import Bundle

BUSY = "import time\nend = time.monotonic() + 30\nwhile time.monotonic() < end: pass"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return small.bundle(tmp_path_factory.mktemp("watch"))


def test_samples_come_in_order_with_monotonic_times(bundle: Bundle) -> None:
    beside = watch.Watch(str(bundle.path), 0.05)
    started = time.monotonic()
    beside.ready()
    while os.fstat(beside.lines.fileno()).st_size < 2000:
        time.sleep(0.01)
    samples = beside.stop()
    times = [sample["time_s"] for sample in samples]
    assert len(samples) >= 2 and times == sorted(set(times)) and started < times[0] < time.monotonic()
    assert samples[-1]["memory_available_bytes"] > 0 and samples[-1]["watcher_cpu_s"] > 0
    assert all(value is not None for value in samples[0].values())
    assert beside.process.returncode is not None and beside.stop() == []


def test_it_steps_aside_for_the_measurement(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    everything = sorted(os.sched_getaffinity(0))
    if len(everything) < 2:
        pytest.skip("one processor: there is no aside")
    with watch.Watch(str(bundle.path), threads=len(everything) - 1) as beside:
        assert beside.info["affinity"] == everything[-1:] == sorted(os.sched_getaffinity(beside.process.pid))
    with watch.Watch(str(bundle.path), threads=len(everything)) as beside:
        assert beside.info["affinity"] == everything  # all are used: the kernel chooses, by priority
        assert os.getpriority(os.PRIO_PROCESS, beside.process.pid) >= watch.NICENESS
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {everything[-1]} if pid == 0 else {everything[0]})
    with watch.Watch(str(bundle.path)) as beside:
        assert beside.info["affinity"] == everything[:1]


def test_it_ends_with_the_process_that_started_it(bundle: Bundle) -> None:
    code = f"import os, sys; sys.path[:0] = {sys.path!r}; from edgekit.agent.watch import Watch\n"
    code += f"seen = Watch({str(bundle.path)!r}); seen.ready(); print(seen.process.pid, flush=True)\n"
    code += "os.kill(os.getpid(), 9)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert told.returncode == -9
    watcher = Path(f"/proc/{int(told.stdout)}/stat")
    deadline = time.monotonic() + 20
    while watcher.exists() and watcher.read_text().split(")")[-1].split()[0] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_watch_that_cannot_work_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with watch.Watch(str(tmp_path / "no.edge")) as beside:
        beside.ready()
        assert beside.stop() == [] and beside.info["reason"] == "the watching process told nothing"
    monkeypatch.setattr(sys, "executable", "/no/python")
    with watch.Watch("x.edge") as beside:
        beside.ready()
        assert beside.stop() == [] and "could be started" in beside.info["reason"]


def test_a_watcher_that_hangs_is_ended(bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hanging = tmp_path / "python"
    hanging.write_text("#!/bin/sh\necho '{\"time_s\": 1}'\nprintf '{half'\nexec sleep 60\n")
    hanging.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(hanging))
    beside = watch.Watch(str(bundle.path))
    beside.ready()
    assert beside.stop() == [{"time_s": 1}] and beside.process.returncode == -9


def test_other_processes_are_counted_and_own_ones_are_not() -> None:
    other = subprocess.Popen([sys.executable, "-c", BUSY])
    try:
        strange, known = load.Window(), load.Window([other.pid])
        time.sleep(1.0)
        seen, without = strange.told(), known.told()
    finally:
        other.kill()
        other.wait()
    assert any(process["name"].startswith("python") for process in seen["processes"])
    assert 0 < seen["others_cpus"] <= (os.cpu_count() or 1) * 1.1
    assert without["others_cpus"] < seen["others_cpus"]


def test_the_window_by_the_kernels_own_counters(tmp_path: Path) -> None:
    tree = virtual_machine(tmp_path)
    for pid, name in ((7, "python3"), (8, "a (strange) name")):
        tree.set(f"proc/{pid}/stat", f"{pid} ({name}) R 1 1 1 0 -1 0 0 0 0 0 100 20 0 0 20 0 1 0 5 0 0\n")
    window = load.Window([7], System(tree.root))
    tree.set("proc/stat", "cpu  4300 0 1050 95500 10 0 0 40 0 0\n")  # 300 user + 50 system + 40 stolen ticks
    tree.set("proc/7/stat", "7 (python3) R 1 1 1 0 -1 0 0 0 0 0 180 40 0 0 20 0 1 0 5 0 0\n")  # 100 of them own
    tree.set("proc/8/stat", "8 (a (strange) name) R 1 1 1 0 -1 0 0 0 0 0 200 30 0 0 20 0 1 0 5 0 0\n")  # 110
    window.started = (time.monotonic() - 2.0, *window.started[1:])
    seen = window.told()
    assert seen["others_cpus"] == pytest.approx(290 / load.TICKS / seen["seconds"])
    assert [one["name"] for one in seen["processes"]] == ["a (strange) name"]
    assert json.dumps(seen)


def test_what_cannot_be_counted_is_null_with_a_reason(tmp_path: Path) -> None:
    assert "too short" in load.Window().told()["reason"]
    seen = load.Window(system=System(str(tmp_path))).told()
    assert seen["others_cpus"] is None and "/proc/stat" in seen["reason"]
