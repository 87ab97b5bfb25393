"""The bundle's command line, run as a user on a board would run it."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import agent_bundles as small
import numpy as np
import pytest

from edgekit.agent.arrays import write_npz
from edgekit.agent.stats import least_samples
from edgekit.bundle import Bundle, TensorEntry, write_bundle


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    os.environ["EDGEKIT_CACHE"] = str(folder)
    yield folder
    del os.environ["EDGEKIT_CACHE"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return small.bundle(tmp_path_factory.mktemp("commands"))


def agent(bundle: Bundle, *options: object, **more: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(bundle.path), *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, **more)


def done(bundle: Bundle, *options: object) -> dict:
    ended = agent(bundle, *options)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])


def model_of(bundle: Bundle) -> Path:
    return bundle.path.with_name(bundle.path.name + ".onnx")


def test_selftest_says_one_line(bundle: Bundle) -> None:
    ended = agent(bundle, "selftest")
    assert ended.returncode == 0 and ended.stdout.startswith("selftest passed: 8 samples; logits: difference")
    assert len(ended.stdout.splitlines()) == 1


def test_selftest_fails_with_1_where_the_outputs_differ(tmp_path: Path) -> None:
    file = small.model(tmp_path / "m.onnx")
    inputs = small.samples(2)
    golden = small.expected(file, inputs) + 0.01
    other = write_bundle(tmp_path / "x.edge", small.manifest(), {"model.onnx": file}, [inputs], [golden])
    ended = agent(other, "selftest", "--json")
    assert ended.returncode == 1
    (output,) = json.loads(ended.stdout)["outputs"]
    assert output["difference"] == pytest.approx(0.01, rel=1e-3) and not output["passed"]


@pytest.mark.parametrize(("off", "passes"), [(0.9, True), (1.0, True), (1.1, False)])
def test_selftest_allows_a_quantized_output_its_step(tmp_path: Path, off: float, passes: bool) -> None:
    file = small.model(tmp_path / "m.onnx")
    inputs = small.samples(2)
    golden = small.expected(file, inputs)
    golden[0, 0] += off * 0.25
    outputs = (TensorEntry(name="logits", dtype="float32", shape=("batch", 3), step=0.25),)
    manifest = small.manifest(outputs=outputs, tolerance={"steps": 1, "absolute": 1e-4})
    other = write_bundle(tmp_path / "x.edge", manifest, {"model.onnx": file}, [inputs], [golden])
    assert agent(other, "selftest").returncode == (0 if passes else 1)


@pytest.mark.parametrize("batch", [1, 4, 64])
def test_run_takes_model_inputs_as_they_are(bundle: Bundle, tmp_path: Path, batch: int) -> None:
    inputs = small.samples(11, seed=5)
    np.save(tmp_path / "in.npy", inputs)
    info = done(bundle, "run", "--inputs", tmp_path / "in.npy", "--outputs", tmp_path / "out.npy", "--batch", batch)
    assert info["samples"] == 11 and info["batch"] == min(batch, 11)
    actual = np.load(tmp_path / "out.npy")
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, small.expected(model_of(bundle), inputs), atol=1e-5)


def test_run_preprocesses_raw_samples(bundle: Bundle, tmp_path: Path) -> None:
    raw = np.random.default_rng(0).integers(0, 256, (9, 8, 8), dtype=np.uint8)
    np.save(tmp_path / "in.npy", raw)
    done(bundle, "run", "--inputs", tmp_path / "in.npy", "--outputs", tmp_path / "out.npz", "--batch", 4)
    ready = (raw.astype(np.float32) / 255 - 0.5)[:, None]
    with np.load(tmp_path / "out.npz") as outputs:
        assert outputs.files == ["logits"]
        np.testing.assert_allclose(outputs["logits"], small.expected(model_of(bundle), ready), atol=1e-5)


def test_run_keeps_to_a_fixed_batch_and_fills_it_up(tmp_path: Path) -> None:
    fixed = small.bundle(tmp_path, batch=2)
    inputs = small.samples(5)
    np.save(tmp_path / "in.npy", inputs)
    info = done(fixed, "run", "--inputs", tmp_path / "in.npy", "--outputs", tmp_path / "out.npy", "--batch", 64)
    assert info["batch"] == 2
    alike = small.model(tmp_path / "dynamic.onnx")
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), small.expected(alike, inputs), atol=1e-5)


def test_run_reads_npz_and_fortran_order(bundle: Bundle, tmp_path: Path) -> None:
    inputs = small.samples(3)
    np.savez(tmp_path / "in.npz", image=inputs)
    np.save(tmp_path / "fortran.npy", np.asfortranarray(inputs))
    for name in ("in.npz", "fortran.npy"):
        done(bundle, "run", "--inputs", tmp_path / name, "--outputs", tmp_path / f"{name}.out.npy")
    first, second = (np.load(tmp_path / f"{name}.out.npy") for name in ("in.npz", "fortran.npy"))
    np.testing.assert_array_equal(first, second)


def test_run_tells_progress_in_json_lines(bundle: Bundle, tmp_path: Path) -> None:
    np.save(tmp_path / "in.npy", small.samples(20))
    options = ("run", "--inputs", tmp_path / "in.npy", "--outputs", tmp_path / "o.npy", "--progress")
    ended = agent(bundle, *options)
    lines = [json.loads(line) for line in ended.stderr.splitlines()]
    assert lines and all(line["of"] == 20 for line in lines)


@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_run_leaves_memory_flat_and_no_file_behind(bundle: Bundle, tmp_path: Path, suffix: str) -> None:
    """What a larger input may cost is far below what it holds: the file's 100 MB are never in memory together."""
    peaks = []
    for count in (1_000, 400_000):
        if suffix == "npy":
            np.lib.format.open_memmap(tmp_path / "in.npy", "w+", np.float32, (count, 1, 8, 8)).flush()
        else:
            write_npz(tmp_path / "in.npz", {"image": np.broadcast_to(np.float32(1), (count, 1, 8, 8))})
        options = ("--inputs", tmp_path / f"in.{suffix}", "--outputs", tmp_path / "o.npz", "--batch", 64)
        peaks.append(done(bundle, "run", *options)["peak_rss_bytes"])
    assert peaks[1] - peaks[0] < 10e6
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"in.{suffix}", "o.npz"]
    with np.load(tmp_path / "o.npz") as outputs:
        assert outputs["logits"].shape == (400_000, 3)


def test_compressed_arrays_are_read_too(bundle: Bundle, tmp_path: Path) -> None:
    inputs = small.samples(9)
    np.savez_compressed(tmp_path / "small.npz", image=inputs)
    np.savez(tmp_path / "plain.npz", other=np.zeros(3), image=inputs)
    for name in ("small", "plain"):
        done(bundle, "run", "--inputs", tmp_path / f"{name}.npz", "--outputs", tmp_path / f"{name}.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "small.npy"), np.load(tmp_path / "plain.npy"))
    np.testing.assert_allclose(np.load(tmp_path / "small.npy"), small.expected(model_of(bundle), inputs), atol=1e-5)


@pytest.mark.parametrize("shape", [(11, 1, 8, 8), (10**6, 1, 8, 8), (10**12, 1, 8, 8)])
def test_a_file_that_holds_less_than_it_says_is_refused(bundle: Bundle, tmp_path: Path, shape: tuple) -> None:
    """Before anything is taken for it: the size of the file bounds what is read."""
    for name in ("in.npy", "in.npz"):
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
        content = header.getvalue() + bytes(4 * 64 * 10)
        if name == "in.npy":
            (tmp_path / name).write_bytes(content)
        else:
            with zipfile.ZipFile(tmp_path / name, "w") as target:
                target.writestr("image.npy", content)
                target.writestr("more.npy", bytes(4 * 64 * 20))
        ended = agent(bundle, "run", "--inputs", tmp_path / name, "--outputs", tmp_path / "out.npy")
        assert ended.returncode == 2 and "cannot read" in ended.stderr, ended.stderr
        assert not (tmp_path / "out.npy").exists()


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 1, 9, 9), np.float32), r"expects float32 \['batch', 1, 8, 8\], got float32 \[2, 1, 9, 9\]"),
        (np.zeros((2, 9, 9), np.uint8), r"got uint8 \[2, 9, 9\], preprocessed to \[1, 1, 9, 9\]"),
        (np.zeros((0, 8, 8), np.uint8), "at least one"),
        (np.array(["a"]), "got <U1"),
        (np.float32(1), "at least one"),
    ],
)
def test_inputs_that_do_not_fit_are_usage_errors(bundle: Bundle, tmp_path: Path, array, message: str) -> None:
    np.save(tmp_path / "in.npy", array)
    ended = agent(bundle, "run", "--inputs", tmp_path / "in.npy", "--outputs", tmp_path / "out.npz")
    assert ended.returncode == 2 and ended.stdout == "" and not (tmp_path / "out.npz").exists()
    import re

    assert re.search(message, ended.stderr), ended.stderr


def test_pickles_and_rubbish_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    np.save(tmp_path / "pickle.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    (tmp_path / "rubbish.npy").write_bytes(b"rubbish")
    (tmp_path / "rubbish.npz").write_bytes(b"rubbish")
    for name in ("pickle.npy", "rubbish.npy", "rubbish.npz", "none.npy"):
        ended = agent(bundle, "run", "--inputs", tmp_path / name, "--outputs", tmp_path / "out.npz")
        assert ended.returncode == 2 and "cannot read" in ended.stderr, (name, ended.stderr)


def test_an_output_that_cannot_be_written_is_a_usage_error(bundle: Bundle, tmp_path: Path) -> None:
    np.save(tmp_path / "in.npy", small.samples(2))
    ended = agent(bundle, "run", "--inputs", tmp_path / "in.npy", "--outputs", tmp_path / "in.npy" / "out.npz")
    assert ended.returncode == 2 and "cannot write" in ended.stderr


def test_a_full_disk_is_5_and_leaves_nothing(bundle: Bundle, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("this user may not mount a small disk")
    try:
        np.save(tmp_path / "in.npy", np.zeros((5000, 8, 8), np.uint8))
        ended = agent(bundle, "run", "--inputs", tmp_path / "in.npy", "--outputs", disk / "out.npz", "--batch", 64)
        assert ended.returncode == 5 and "disk is full" in ended.stderr and ended.stdout == ""
        assert not list(disk.iterdir())
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("percent", [50, 90])
def test_bench_takes_the_samples_that_its_percentile_needs(bundle: Bundle, percent: int) -> None:
    info = done(bundle, "bench", "--json", "--percentile", percent, "--min-seconds", 0)
    assert info["needed_samples"] == least_samples(percent) <= len(info["samples_s"]) and info["enough"]
    assert info["highest_percentile"] >= percent
    assert all(sample > 0 for sample in info["samples_s"])
    assert info["load_s"] > 0 and info["first_inference_s"] > 0 and info["peak_rss_bytes"] > 1e7
    assert info["distinct_inputs"] == 8 and len(info["warm_up_s"]) >= 5
    assert set(info["versions"]) == {"onnxruntime", "numpy", "python"}
    seen = info["state"]
    assert set(seen) == {"before", "during", "after", "timed_s", "other_load", "watch"} and seen["during"]
    assert seen["before"]["boot_id"] == seen["after"]["boot_id"] and seen["timed_s"][0] <= seen["timed_s"][1]


def test_bench_lasts_its_least_time(bundle: Bundle) -> None:
    info = done(bundle, "bench", "--json", "--min-seconds", 0.4)
    assert sum(info["samples_s"]) <= 0.4 * 4 * 1.5 and len(info["samples_s"]) > 64


def test_bench_says_when_time_ran_out_first(bundle: Bundle) -> None:
    info = done(bundle, "bench", "--json", "--percentile", 99.9, "--max-seconds", 0)
    assert not info["enough"] and len(info["samples_s"]) == len(info["warm_up_s"]) == 1
    assert info["highest_percentile"] is info["steady"] is None
    ended = agent(bundle, "bench", "--percentile", 99.9, "--max-seconds", 0)
    told = "(1 inferences) time ran out: p99.9 needs 6636 inferences, they allow no percentile"
    assert ended.stdout.strip() == told


def test_blocks_are_measured_when_asked_for(bundle: Bundle) -> None:
    ended = agent(bundle, "bench", "--blocks", input="0.02\n0\n")
    ready, first, second, info = map(json.loads, ended.stdout.splitlines())
    assert ready == {"ready": True} and ended.returncode == 0
    assert sum(first["samples_s"]) > 0 and len(second["samples_s"]) == 3 and info["threads"] == 1


def test_info_and_state(bundle: Bundle) -> None:
    assert done(bundle, "info")["sha256"] == bundle.sha256
    assert done(bundle, "state")["machine"]["cores"] >= 1


def test_samples_that_are_not_finite_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    samples = small.samples(5).astype(np.float32)
    samples.reshape(5, -1)[3, 0] = np.nan
    np.save(tmp_path / "in.npy", samples)
    ended = agent(bundle, "run", "--inputs", tmp_path / "in.npy", "--outputs", tmp_path / "out.npy", "--batch", 2)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "holds NaN or infinity in sample 3" in ended.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["in.npy"]


def test_an_output_that_is_no_regular_file_is_never_replaced(bundle: Bundle, tmp_path: Path) -> None:
    np.save(tmp_path / "in.npy", small.samples(2))
    os.mkfifo(tmp_path / "device")
    ended = agent(bundle, "run", "--inputs", tmp_path / "in.npy", "--outputs", tmp_path / "device")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "it is no regular file" in ended.stderr
    assert (tmp_path / "device").is_fifo()


@pytest.mark.parametrize(
    "options",
    [
        [], ["fly"], ["run"], ["bench", "--threads", "0"], ["selftest", "--threads", "99999"],
        ["bench", "--percentile", "0"], ["bench", "--min-seconds", "nan"], ["bench", "--max-seconds", "-1"],
    ],
)  # fmt: skip
def test_wrong_options_are_2(bundle: Bundle, options: list[str]) -> None:
    ended = agent(bundle, *options)
    assert ended.returncode == 2 and ended.stdout == ""


def test_help_is_0(bundle: Bundle) -> None:
    ended = agent(bundle, "--help")
    assert ended.returncode == 0 and "selftest" in ended.stdout


def test_without_numpy_it_is_6_with_the_line_to_type(bundle: Bundle) -> None:
    command = [sys.executable, "-I", "-S", str(bundle.path), "selftest"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 6 and "pip install numpy" in ended.stderr


def test_a_model_that_the_runtime_refuses_is_2(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"not a model")
    golden = [small.samples(1)], [np.zeros((1, 3), np.float32)]
    other = write_bundle(tmp_path / "x.edge", small.manifest(), {"model.onnx": tmp_path / "m.onnx"}, *golden)
    ended = agent(other, "selftest")
    assert ended.returncode == 2 and "cannot load the model" in ended.stderr


def test_out_of_memory_is_5(bundle: Bundle, tmp_path: Path) -> None:
    np.save(tmp_path / "in.npy", np.zeros((2, 8, 8), np.uint8))
    wide = (TensorEntry(name="image", dtype="float32", shape=("batch", 1, "h", "w")),)
    file = small.model(tmp_path / "m.onnx")
    golden = [small.samples(1)], [np.zeros((1, 3), np.float32)]
    other = write_bundle(tmp_path / "x.edge", small.manifest(inputs=wide), {"model.onnx": file}, *golden)
    np.lib.format.open_memmap(tmp_path / "big.npy", "w+", np.uint8, (1, 100_000, 100_000)).flush()
    limited = f"ulimit -v 4000000; exec {sys.executable} {other.path} run --inputs {tmp_path}/big.npy --outputs o.npz"
    ended = subprocess.run(["bash", "-c", limited], capture_output=True, text=True, cwd=tmp_path)
    assert ended.returncode == 5 and "memory" in ended.stderr, ended.stderr


def test_an_interrupt_is_130_and_leaves_nothing(bundle: Bundle, tmp_path: Path) -> None:
    np.lib.format.open_memmap(tmp_path / "in.npy", "w+", np.float32, (2_000_000, 1, 8, 8)).flush()
    options = ["run", "--inputs", str(tmp_path / "in.npy"), "--outputs", str(tmp_path / "out.npz"), "--progress"]
    process = subprocess.Popen(
        [sys.executable, str(bundle.path), *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr and json.loads(process.stderr.readline())["done"] > 0
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 130 and out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["in.npy"]


def test_watching_needs_no_numpy(bundle: Bundle) -> None:
    """It starts while something is about to be measured: `-S` leaves out all that is installed."""
    command = [sys.executable, "-S", "-B", str(bundle.path), "state", "--watch"]
    ended = subprocess.run(command, input="", capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0 and "time_s" in json.loads(ended.stdout), ended.stderr
    assert subprocess.run([*command[:-1]], capture_output=True, timeout=60).returncode == 6
