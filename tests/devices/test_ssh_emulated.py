"""A registered board of another architecture: arm64's own sshd in an emulated root (see `emulated_boards`).

What its outputs are held against is what the same bundles give on this machine, for 500 images of Fashion-MNIST.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import agent_bundles as small
import numpy as np
import pytest
from boards import Wire
from emulated_boards import EmulatedBoard, emulated_board
from typer.testing import CliRunner

import edgekit
from edgekit.bundle import Bundle, open_bundle
from edgekit.cli.app import app
from edgekit.devices import open_device
from edgekit.devices.local import Local
from edgekit.devices.ssh import Ssh
from edgekit.errors import DeviceError
from edgekit.report.profiled import Profiles
from edgekit.report.report import Report

pytestmark = pytest.mark.slow
IMAGES = 500
ONE_STEP = 1.001
ROLES = {"onnxruntime": "quantized", "litert": "quantized", "openvino": "float"}
"""What the target raspberry-pi-5 has of each: OpenVINO computes in float on ARM."""


@pytest.fixture(scope="module")
def pi() -> Iterator[EmulatedBoard]:
    with emulated_board() as running:
        running.trust()
        yield running


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Our cache and list of boards, for all tests of this file: runtimes are fetched and installed once."""
    return tmp_path_factory.mktemp("ours")


@pytest.fixture(autouse=True)
def host(pi: EmulatedBoard, ours: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pi.reached_from(ours, monkeypatch)


@pytest.fixture(scope="module")
def demo(repo_root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, Path]:
    """The demo's recipe, with one epoch of training, for this machine and without a time."""
    out = tmp_path_factory.mktemp("demo")
    text = (repo_root / "examples/fashion_mnist/recipe.yaml").read_text()
    text = text.replace("epochs: 4", "epochs: 1").partition("targets:")[0]
    text = text.replace("model.py:build", str(repo_root / "examples/fashion_mnist/model.py:build"))
    text = text.replace("weights.safetensors", str(repo_root / "examples/fashion_mnist/weights.safetensors"))
    text = text.replace("../../calibration_data", str(repo_root / "calibration_data"))
    (out / "recipe.yaml").write_text(f"{text}targets:\n  - {{target: x86-64, backends: [{', '.join(ROLES)}]}}\n")
    return edgekit.run(out / "recipe.yaml", out=out / "out"), out / "out"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return small.bundle(tmp_path_factory.mktemp("small"))


def command(*words: object) -> Any:
    return CliRunner().invoke(app, [*map(str, words)])


def both(device: Any, bundle: Bundle, inputs: Path, work: Path) -> tuple[np.ndarray, np.ndarray]:
    """What the bundle gives there and here."""
    device.run(bundle, inputs, work / "there.npz")
    Local().run(bundle, inputs, work / "here.npz")
    (name,) = (entry.name for entry in bundle.manifest.outputs)
    with np.load(work / "there.npz") as there, np.load(work / "here.npz") as here:
        return there[name], here[name]


def test_add_check_and_never_a_time(pi: EmulatedBoard, bundle: Bundle) -> None:
    added = command("devices", "add", "pi", "board@127.0.0.1", "--port", pi.port, "--target", "raspberry-pi-5",
                    "--emulated")  # fmt: skip
    assert added.exit_code == 0, added.output
    checked = json.loads(command("devices", "check", "pi", "--json").stdout)
    facts = checked["facts"]
    assert checked["problems"] == [] and checked["entry"]["emulated"] is True
    assert facts["arch"] == "aarch64" and facts["python"].startswith("3.11") and "asimddp" in facts["features"]
    assert facts["runtimes"] == [] and not list(pi.home.iterdir())
    profiled = command("profile", bundle.path, "--device", "pi", "--json", "--quiet")
    (found,) = Profiles.model_validate_json(profiled.stdout).results
    assert profiled.exit_code == 3 and found.emulated and found.latency_s is None and not found.samples_s
    assert command("compare", bundle.path, bundle.path, "--device", "pi", "--quiet").exit_code == 3
    assert command("devices", "calibrate", "pi", bundle.path, "--quiet").exit_code == 3
    assert open_device("pi").describe()["emulated"] is True


@pytest.mark.parametrize("backend", list(ROLES))
def test_the_demos_bundles_compute_there_what_they_do_here(
    pi: EmulatedBoard, demo: tuple[Report, Path], backend: str, fashion_mnist: Any, tmp_path: Path
) -> None:
    report, out = demo
    result = report.result("x86-64", backend, ROLES[backend])
    assert result and result.bundle
    bundle = open_bundle(out / result.bundle)
    np.save(tmp_path / "images.npy", fashion_mnist.split("test").inputs[:IMAGES])
    there, here = both(Ssh("pi", pi.entry()), bundle, tmp_path / "images.npy", tmp_path)
    grid = report.result("x86-64", "onnxruntime", "quantized")  # the same for all; a float output has none of its own
    assert grid and grid.bundle
    step = open_bundle(out / grid.bundle).manifest.outputs[0].step
    assert step
    off = np.abs(there - here) / step
    top = int((there.argmax(1) == here.argmax(1)).sum())
    equal = f"{(there == here).mean():.2%} of the values equal bit for bit, top-1 equal on {top} of {IMAGES}"
    print(f"{backend} {result.precision}: largest difference {off.max():.2g} steps, {equal}")
    assert there.shape == (IMAGES, 10)
    assert off.max() <= ONE_STEP and top >= IMAGES - 1
    if backend == "litert":
        assert result.float_nodes == 0
        np.testing.assert_array_equal(there, here)


def test_int8_without_sums_is_bit_identical_on_onnx_runtime(
    pi: EmulatedBoard, fashion_mnist: Any, tmp_path: Path
) -> None:
    """Of ONNX Runtime's int8 operators Add and Mul compute in float between two roundings, with fused
    multiplication and addition on ARM: there a value in a thousand may be another by one step. The others agree.
    """
    split = fashion_mnist.split("test")
    images = split.inputs[:IMAGES].reshape(IMAGES, 28, 28)[:, 10:18, 10:18]
    np.savez(tmp_path / "data.npz", train_x=images, train_y=split.labels[:IMAGES] % 3, test_x=images,
             test_y=split.labels[:IMAGES] % 3)  # fmt: skip
    small.model(tmp_path / "net.onnx", channels=16)
    (tmp_path / "recipe.yaml").write_text(
        "version: 1\nmodel: {source: net.onnx}\nstages: [quantize: {samples: 64}]\n"
        "data: {source: data.npz, task: classification, preprocess: {scale: [0.00392157], layout: NHW, to: NCHW}}\n"
        "targets: [{target: x86-64, backends: [onnxruntime]}]\n"
    )
    report = edgekit.run(tmp_path / "recipe.yaml", out=tmp_path / "out")
    result = report.result("x86-64", "onnxruntime", "quantized")
    assert result and result.bundle and result.int8_nodes and result.float_nodes == 0
    bundle = open_bundle(tmp_path / "out" / result.bundle)
    np.save(tmp_path / "in.npy", images)
    there, here = both(Ssh("pi", pi.entry()), bundle, tmp_path / "in.npy", tmp_path)
    assert len(np.unique(here)) > 20
    np.testing.assert_array_equal(there, here)


class TestFaults:
    def test_a_host_that_is_not_known_or_changed(self, pi: EmulatedBoard) -> None:
        known = pi.host_home / ".ssh" / "known_hosts"
        before = known.read_text()
        try:
            known.write_text("")
            with pytest.raises(DeviceError, match=r"known_hosts"):
                Ssh("pi", pi.entry()).probe()
            words = before.split()
            known.write_text(f"{words[0]} {words[1]} {words[2][:-8]}AAAAAAAA\n")
            with pytest.raises(DeviceError):
                Ssh("pi", pi.entry()).probe()
        finally:
            known.write_text(before)

    def test_a_key_that_it_does_not_know(self, pi: EmulatedBoard) -> None:
        keys = pi.root / "etc/board/authorized_keys"
        before = keys.read_text()
        try:
            keys.write_text("")
            with pytest.raises(DeviceError, match="pi: "):
                Ssh("pi", pi.entry()).probe()
        finally:
            keys.write_text(before)

    def test_no_python_and_no_place_to_write(self, pi: EmulatedBoard, bundle: Bundle) -> None:
        with pytest.raises(DeviceError, match="no Python there: 'python9'"):
            Ssh("pi", pi.entry(python="python9")).probe()
        with pytest.raises(DeviceError, match=r"cannot write there|Permission|Read-only"):
            Ssh("pi", pi.entry(folder="/etc/edgekit")).selftest(bundle)

    def test_a_line_that_is_cut_while_it_computes(self, pi: EmulatedBoard, bundle: Bundle, tmp_path: Path) -> None:
        np.save(tmp_path / "in.npy", small.samples(64))
        with Wire(pi.port) as wire:
            pi.trust(wire.port)
            threading.Thread(target=_cut_when_running, args=(pi, wire), daemon=True).start()
            there, here = both(Ssh("pi", pi.entry(port=wire.port)), bundle, tmp_path / "in.npy", tmp_path)
            assert wire.connections >= 2
        np.testing.assert_allclose(there, here, atol=1e-5)

    def test_a_name_with_quotes_and_cleaning_up(self, pi: EmulatedBoard, bundle: Bundle, tmp_path: Path) -> None:
        odd = tmp_path / 'it\'s a "b" $(touch x); `y`.edge'
        odd.write_bytes(bundle.path.read_bytes())
        device = Ssh("pi", pi.entry())
        assert device.selftest(open_bundle(odd))["passed"]
        assert device.clean() > 50e6 and not pi.kept.exists()
        assert not [path for path in pi.home.rglob("*") if path.is_file()]


def _cut_when_running(pi: EmulatedBoard, wire: Wire) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if list(pi.kept.glob("jobs/*/stdout")):
            wire.cut()
            return
        time.sleep(0.01)
