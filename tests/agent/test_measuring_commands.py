"""`bench`, `cold`, `memory` and `layers` of a bundle, with a runtime and with a runner whose pace is known."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import agent_bundles as small
import numpy as np
import pytest

from edgekit.agent.bench import EXTENSION, StopRule, spread
from edgekit.agent.infer import Samples
from edgekit.bundle import Bundle, write_bundle


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    os.environ["EDGEKIT_CACHE"] = str(folder)
    yield folder
    del os.environ["EDGEKIT_CACHE"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return small.bundle(tmp_path_factory.mktemp("measuring"))


def agent(bundle: Bundle, *options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(bundle.path), *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True)


def done(bundle: Bundle, *options: object) -> dict:
    ended = agent(bundle, *options)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])


PACED = """
import os, time
import numpy as np

class Runner:
    versions = {"paced": "1"}

    def __init__(self, folder, manifest, threads, batch):
        self.ballast = np.ones(BALLAST)
        self.calls = 0

    def infer(self, arrays):
        self.calls += 1
        if self.calls == FAILS_AT:
            raise MemoryError("as asked for")
        time.sleep(0.001 * (1 + SLOWING * self.calls))
        with open(os.environ["EDGEKIT_CACHE"] + "/seen", "a") as log:
            log.write(str(float(arrays[0].ravel()[0])) + "\\n")
        return [np.zeros((len(arrays[0]), 3), np.float32)]
"""


def paced(folder: Path, *, slowing: float = 0, fails_at: int = 0, ballast: int = 0) -> Bundle:
    """A bundle with a runner of its own that sleeps, longer each time by `slowing`, and holds `ballast` float64."""
    constants = {"SLOWING": slowing, "FAILS_AT": fails_at, "BALLAST": ballast}
    (folder / "own.py").write_text("".join(f"{k} = {v}\n" for k, v in constants.items()) + PACED)
    files = {"own.py": folder / "own.py", "model.onnx": small.model(folder / "m.onnx")}
    golden = small.samples(8)
    manifest = small.manifest(backend="own", runner={"module": "own.py"})
    return write_bundle(folder / "own.edge", manifest, files, [golden], [np.zeros((8, 3), np.float32)])


def test_a_device_that_slows_down_is_told_and_measured_for_longer(tmp_path: Path) -> None:
    slowing = paced(tmp_path, slowing=0.05)
    options = ("--min-seconds", 0, "--warm-up", 2, "--warm-up-seconds", 0)
    info = done(slowing, "bench", "--json", *options)
    assert info["steady"] is False and info["enough"]
    seen = info["steadiness"]
    assert seen["trend"] > seen["bounds"]["trend"] and len(seen["block_medians_s"]) == 4
    assert len(info["samples_s"]) > info["needed_samples"] and len(info["warm_up_s"]) == 2
    assert "not steady: medians of four blocks differ by" in agent(slowing, "bench", *options).stdout


def test_an_unsteady_run_ends_at_its_longest() -> None:
    rule, samples = StopRule(50, 1.0, 60.0), [1e-3] * 100 + [2e-3] * 100
    assert not rule.ends(samples, 0.99) and not rule.ends(samples, 1.0)
    assert not rule.ends(samples, EXTENSION - 0.01) and rule.ends(samples, float(EXTENSION))
    assert StopRule(50, 1.0, 60.0).ends([1e-3] * 200, 1.0)
    assert StopRule(50, 1.0, 60.0).ends([1e-3], 60.0)
    assert not StopRule(99, 1.0, 60.0).ends([1e-3] * 661, 5.0) and StopRule(99, 1.0, 60.0).ends([1e-3] * 662, 5.0)


def test_inputs_come_from_all_over_the_data_and_differ_from_one_inference_to_the_next(
    tmp_path: Path, cache: Path
) -> None:
    bundle = paced(tmp_path)
    values = np.arange(1000, dtype=np.float32)
    np.save(tmp_path / "in.npy", np.broadcast_to(values[:, None, None, None], (1000, 1, 8, 8)))
    (cache / "seen").unlink(missing_ok=True)
    info = done(bundle, "bench", "--json", "--inputs", tmp_path / "in.npy", "--min-seconds", 0.2)
    fed = [float(line) for line in (cache / "seen").read_text().split()]
    assert info["distinct_inputs"] == 64 and all(a != b for a, b in pairwise(fed))
    assert max(fed) > 900 and len(set(fed)) == 64


def test_large_inputs_are_held_within_bounds(tmp_path: Path) -> None:
    manifest = small.manifest(preprocess={}).model_dump(mode="json")
    manifest["inputs"][0]["shape"] = ["batch", 1, 2000, 2000]  # 16 MB each
    samples = Samples([np.broadcast_to(np.float32(0), (100, 1, 2000, 2000))], manifest)
    assert len(spread(samples, 1)) == 4


@pytest.mark.parametrize("command", ["bench", "cold", "memory", "layers"])
def test_affinity_is_set_and_recorded(bundle: Bundle, command: str) -> None:
    if len(there := sorted(os.sched_getaffinity(0))) < 2:
        pytest.skip("one processor leaves no choice")
    more = {"bench": ["--json", "--min-seconds=0"], "cold": ["--repeat=1"], "layers": ["--json"]}.get(command, [])
    info = done(bundle, command, f"--affinity={there[-1]}", "--threads=2", *more)
    assert info["affinity"] == [there[-1]] and info["threads"] == 2


@pytest.mark.parametrize(
    ("value", "told"),
    [("4096", "cannot run on 4096"), ("x", "invalid"), ("-1", "must be numbers of processors"), ("", "")],
)
def test_processors_that_are_not_there_are_2(bundle: Bundle, value: str, told: str) -> None:
    ended = agent(bundle, "bench", "--affinity", value)
    assert ended.returncode == 2 and told in ended.stderr and ended.stdout == ""


def test_cold_starts_are_fresh_processes(bundle: Bundle) -> None:
    info = done(bundle, "cold", "--repeat", 5)
    assert info["repeats"] == info["wanted"] == 5
    for part in ("import_s", "load_s", "first_inference_s", "to_first_answer_s"):
        raw = info[part]["samples"]
        assert len(raw) == 5 == len(set(raw)) and min(raw) > 0 and info[part]["median"] == sorted(raw)[2]
    parts = zip(*(info[part]["samples"] for part in ("import_s", "load_s", "first_inference_s")), strict=True)
    assert all(sum(own) < whole for own, whole in zip(parts, info["to_first_answer_s"]["samples"], strict=True))


def test_every_cold_start_infers_once(tmp_path: Path, cache: Path) -> None:
    bundle = paced(tmp_path)
    (cache / "seen").unlink(missing_ok=True)
    done(bundle, "cold", "--repeat", 3)
    assert len((cache / "seen").read_text().split()) == 3


def test_cold_starts_end_when_time_is_up(bundle: Bundle) -> None:
    info = done(bundle, "cold", "--repeat", 1000, "--max-seconds", 0)
    assert (info["repeats"], info["wanted"]) == (1, 1000)


def test_a_cold_start_that_fails_keeps_its_code_and_message(tmp_path: Path) -> None:
    ended = agent(paced(tmp_path, fails_at=1), "cold")
    assert ended.returncode == 5 and ended.stdout == ""
    assert ended.stderr == "edgekit: a fresh process ended with 5: out of memory: as asked for\n"


def test_peak_memory_grows_where_memory_is_taken(tmp_path: Path) -> None:
    info = done(paced(tmp_path, ballast=10_000_000), "memory", "--inferences", 3)
    assert info["inferences"] == 3
    assert 79e6 < info["after_load_bytes"] - info["after_import_bytes"] < 90e6
    assert info["before_import_bytes"] <= info["after_import_bytes"]
    assert info["after_load_bytes"] <= info["peak_rss_bytes"] < info["after_load_bytes"] + 5e6


def test_memory_ends_when_time_is_up(bundle: Bundle) -> None:
    assert done(bundle, "memory", "--max-seconds", 0)["inferences"] == 1


def test_layers_of_onnxruntime(bundle: Bundle) -> None:
    info = done(bundle, "layers", "--json", "--repeat", 5)
    assert info["inferences"] == 5 and info["reason"] == ""
    assert {"Conv", "GlobalAveragePool", "Gemm"} <= {layer["type"] for layer in info["layers"]}
    assert sum(layer["share"] for layer in info["layers"]) == pytest.approx(1)
    assert all(layer["name"] and layer["seconds"] >= 0 for layer in info["layers"])
    assert 0 < sum(layer["seconds"] for layer in info["layers"]) < info["inference_s"] * 2
    assert "Conv " in agent(bundle, "layers").stdout


def test_a_profile_leaves_no_file_behind(bundle: Bundle, tmp_path: Path) -> None:
    command = [sys.executable, str(bundle.path), "layers", "--repeat", "2"]
    subprocess.run(command, check=True, capture_output=True, cwd=tmp_path, env={**os.environ, "TMPDIR": str(tmp_path)})
    # ONNX Runtime 1.32 leaves ".ses" in the temporary folder when it is imported.
    assert not [path for path in tmp_path.iterdir() if path.name != ".ses"]


def test_layers_are_null_with_a_reason_where_the_runner_tells_none(tmp_path: Path) -> None:
    info = done(paced(tmp_path), "layers", "--json")
    assert info == {"layers": None, "reason": "the runner for 'own' tells no times of layers"}
    assert "no times of layers: the runner" in agent(paced(tmp_path), "layers").stdout
