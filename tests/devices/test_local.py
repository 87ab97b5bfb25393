from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import agent_bundles as small
import numpy as np
import pytest

from edgekit.agent.infer import in_float
from edgekit.agent.stats import least_samples
from edgekit.bundle import Bundle, TensorEntry, write_bundle
from edgekit.devices.local import Local, StandIn
from edgekit.errors import DeviceError, EdgekitError, IntegrityError, MissingDependencyError, UsageError


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return small.bundle(tmp_path_factory.mktemp("local"))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))


def test_run_brings_all_outputs_back_and_tells_how_far_it_is(bundle: Bundle, tmp_path: Path) -> None:
    inputs = small.samples(200)
    np.save(tmp_path / "in.npy", inputs)
    told: list[int] = []
    ran = Local().run(bundle, tmp_path / "in.npy", tmp_path / "out.npz", on_done=told.append)
    assert told == sorted(told) and told[-1] == 200 and ran.info["samples"] == 200
    with np.load(ran.outputs) as outputs:
        expected = small.expected(bundle.path.with_name("small.edge.onnx"), inputs)
        np.testing.assert_allclose(outputs["logits"], expected, atol=1e-5)


def test_a_stand_in_adds_up_8_bit_products_without_overflow(tmp_path: Path) -> None:
    np.save(tmp_path / "in.npy", small.FULL)
    ran = StandIn().run(small.overflowing_bundle(tmp_path), tmp_path / "in.npy", tmp_path / "out.npz")
    with np.load(ran.outputs) as outputs:
        np.testing.assert_array_equal(outputs["y"], small.SUMS)
    told = in_float({"backend": "onnxruntime", "runner": {"session": {"own": "1"}}})
    assert told["runner"]["session"] == {"own": "1", "session.disable_quant_qdq": "1"}


def test_bench_gives_raw_samples_and_what_belongs_to_them(bundle: Bundle) -> None:
    seen = Local().bench(bundle, threads=2, min_seconds=0.1)
    assert len(seen.samples_s) >= least_samples(90) and min(seen.samples_s) > 0
    assert seen.info["threads"] == 2 and "samples_s" not in seen.info


def test_pairs_are_medians_of_the_blocks_of_the_middle_turns(bundle: Bundle) -> None:
    pairs = Local().pairs(bundle, bundle, rounds=2)
    assert len(pairs.rounds) == len(pairs.info) == 2
    for (a1, b1, b2, a2), told in zip(pairs.rounds, pairs.info, strict=True):
        turns = [tuple(float(np.median(block)) for block in blocks) for blocks in told["samples_s"]]
        assert (a1, b1, b2, a2) in turns and len(turns) % 2 == 1
        ratios = [x[0] * x[3] / x[1] / x[2] for x in turns]
        assert a1 * a2 / b1 / b2 == pytest.approx(np.median(ratios))
        assert told["a"]["peak_rss_bytes"] and told["b"]["load_s"] and told["a"]["threads"] == 1


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one processor")
def test_pairs_keep_to_the_same_processor(bundle: Bundle) -> None:
    (told,) = Local().pairs(bundle, bundle, rounds=1).info
    assert told["a"]["affinity"] == told["b"]["affinity"] and len(told["a"]["affinity"]) == 1
    everywhere = len(os.sched_getaffinity(0))
    (told,) = Local().pairs(bundle, bundle, rounds=1, threads=everywhere).info
    assert len(told["a"]["affinity"]) == len(told["b"]["affinity"]) == everywhere


def test_selftest_tells_pass_and_fail(bundle: Bundle, tmp_path: Path) -> None:
    assert Local().selftest(bundle)["passed"]
    file = small.model(tmp_path / "m.onnx")
    golden = [small.samples(1)], [np.zeros((1, 3), np.float32)]
    other = write_bundle(tmp_path / "x.edge", small.manifest(), {"model.onnx": file}, *golden)
    assert not Local().selftest(other)["passed"]


def test_fingerprint_is_that_of_the_machine() -> None:
    seen = Local().describe()
    assert seen["name"] == "local" and seen["fingerprint"] == Local().describe()["fingerprint"]
    assert seen["cores"] >= 1 and seen["arch"] == os.uname().machine


def test_the_environment_does_not_leak_in(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "onnxruntime.py").write_text("raise RuntimeError('the wrong one')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PYTHONSTARTUP", "nowhere")
    assert Local().selftest(bundle)["passed"]


def damaged(bundle: Bundle, tmp_path: Path) -> Bundle:
    copy = tmp_path / "damaged.edge"
    copy.write_bytes(small.damaged(bundle))
    return Bundle(copy, bundle.manifest, bundle.sha256, bundle.model_bytes)


def test_a_bundle_damaged_after_it_was_opened_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    np.save(tmp_path / "in.npy", small.samples(1))
    bad = damaged(bundle, tmp_path)
    for call in (
        lambda: Local().run(bad, tmp_path / "in.npy", tmp_path / "out.npz"),
        lambda: Local().bench(bad),
        lambda: Local().pairs(bundle, bad, rounds=1),
        lambda: Local().selftest(bad),
    ):
        with pytest.raises(IntegrityError, match=r"damaged\.edge: .*do not match its digest"):
            call()
    assert not (tmp_path / "out.npz").exists()


def test_wrong_inputs_keep_the_agents_message(bundle: Bundle, tmp_path: Path) -> None:
    np.save(tmp_path / "in.npy", np.zeros((2, 5, 5), np.uint8))
    with pytest.raises(UsageError, match=r"small\.edge: input image expects float32"):
        Local().run(bundle, tmp_path / "in.npy", tmp_path / "out.npz")


def test_a_missing_runtime_keeps_the_line_to_type(tmp_path: Path) -> None:
    entry = (TensorEntry(name="image", dtype="float32", shape=("batch", 1, 8, 8)),)
    manifest = small.manifest(backend="tensorrt", inputs=entry, runner={"package": "tensorrt", "shapes": {}})
    file = small.model(tmp_path / "m.onnx")
    golden = [small.samples(1)], [np.zeros((1, 3), np.float32)]
    other = write_bundle(tmp_path / "x.edge", manifest, {"model.onnx": file}, *golden)
    with pytest.raises(MissingDependencyError, match=r"python3-libnvinfer.*pip install tensorrt"):
        Local().selftest(other)


def test_a_python_that_does_not_start_is_a_device_error(bundle: Bundle) -> None:
    with pytest.raises(DeviceError, match="cannot start /no/python"):
        Local(Path("/no/python")).bench(bundle)


def test_a_killed_agent_is_a_device_error(bundle: Bundle, tmp_path: Path) -> None:
    killer = tmp_path / "python"
    killer.write_text("#!/bin/sh\nkill -9 $$\n")
    killer.chmod(0o755)
    with pytest.raises(DeviceError, match=r"ended by SIGKILL \(out of memory\?\)"):
        Local(killer).bench(bundle)


def test_an_agents_bug_is_an_internal_error(bundle: Bundle, tmp_path: Path) -> None:
    buggy = tmp_path / "python"
    buggy.write_text("#!/bin/sh\necho 'edgekit: Traceback' >&2\nexit 70\n")
    buggy.chmod(0o755)
    with pytest.raises(EdgekitError, match="Traceback") as caught:
        Local(buggy).bench(bundle)
    assert caught.value.exit_code == 70


HOST = """
import sys
from pathlib import Path
from edgekit.bundle import open_bundle
from edgekit.devices.local import Local
bundle = open_bundle(Path(sys.argv[1]))
print("ready", flush=True)
try:
    Local().pairs(bundle, bundle, rounds=1000)
except KeyboardInterrupt:
    print("interrupted", flush=True)
    raise SystemExit(130)
"""


def children(process: int) -> list[int]:
    found = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [int(child) for child in found]


def started(host: int) -> list[int]:
    """What the driver of the rounds started."""
    return [agent for driver in children(host) for agent in children(driver)]


def test_an_interrupt_ends_the_agents_too(bundle: Bundle) -> None:
    """Sent to edgekit alone, as `kill -INT` does; a terminal sends it to all."""
    host = subprocess.Popen([sys.executable, "-c", HOST, str(bundle.path)], stdout=subprocess.PIPE, text=True)
    assert host.stdout and host.stdout.readline() == "ready\n"
    deadline = time.monotonic() + 20
    while len(agents := started(host.pid)) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    host.send_signal(signal.SIGINT)
    out, _ = host.communicate(timeout=20)
    assert host.returncode == 130 and out == "interrupted\n"
    assert len(agents) == 2 and not any(Path(f"/proc/{agent}").exists() for agent in agents)


def test_results_are_json(bundle: Bundle) -> None:
    assert json.dumps(dict(Local().bench(bundle, min_seconds=0).info))


def test_bench_takes_load_and_memory_from_fresh_processes(bundle: Bundle) -> None:
    there = sorted(os.sched_getaffinity(0))[-1:]
    info = Local().bench(bundle, min_seconds=0, affinity=there).info
    cold, memory = info["cold"], info["memory"]
    assert info["affinity"] == cold["affinity"] == memory["affinity"] == there
    assert 1 <= cold["repeats"] <= cold["wanted"] == 5
    loads = [a + b for a, b in zip(cold["import_s"]["samples"], cold["load_s"]["samples"], strict=True)]
    assert info["load_s"] == float(np.median(loads))
    assert info["first_inference_s"] == cold["first_inference_s"]["median"]
    assert info["peak_rss_bytes"] == memory["peak_rss_bytes"] >= memory["after_load_bytes"] > 1e7


def test_layers_are_brought_back(bundle: Bundle) -> None:
    seen = Local().layers(bundle)
    assert {"Conv", "Gemm"} <= {layer["type"] for layer in seen["layers"]} and seen["reason"] == ""
