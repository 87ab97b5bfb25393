"""Emulated devices: what they say, refuse and compute, and what is said where something is missing."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import agent_bundles as small
import numpy as np
import pytest
from emulators import cache, emulated
from typer.testing import CliRunner

from edgekit.bundle import Bundle
from edgekit.cli.app import app
from edgekit.devices import DEVICES, _emulator, device_names, is_emulated, open_device
from edgekit.devices.emulated import ALL, CortexA72, CortexA76, Haswell
from edgekit.devices.local import Local
from edgekit.errors import DeviceError, MeasurementInvalidError, MissingDependencyError
from edgekit.report.profiled import Profiles
from edgekit.report.report import read_report
from edgekit.target import load_target

linux = pytest.mark.skipif(os.uname().sysname != "Linux", reason="qemu's user mode exists for Linux alone")


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return small.bundle(tmp_path)


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without tools, whose PATH is the folder that is returned; and an empty cache."""
    path = tmp_path / "bin"
    path.mkdir()
    monkeypatch.setenv("PATH", str(path))
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("EDGEKIT_DEVICES", str(tmp_path / "devices.yaml"))
    return path


def program(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


def edgekit(*words: object) -> Any:
    return CliRunner().invoke(app, [*map(str, words)])


class TestWhatTheySay:
    def test_recipes_and_the_command_line_know_them(self) -> None:
        assert set(ALL) == {name for name in DEVICES if name.startswith("emulated-")} <= set(device_names())
        for name in ALL:
            device = open_device(name)
            assert device.name == name and is_emulated(device)
            seen = device.describe()
            assert seen["emulated"] is True and seen["fingerprint"] == device.describe()["fingerprint"]
            assert json.loads(json.dumps(dict(seen))) == dict(seen)

    @pytest.mark.parametrize(
        ("device", "target"),
        [(CortexA72, "raspberry-pi-4"), (CortexA76, "raspberry-pi-5"), (Haswell, "x86-64-no-vnni")],
    )
    def test_they_have_what_their_target_has(self, device: Any, target: str) -> None:
        wanted, seen = load_target(target), device().describe()
        assert seen["arch"] == wanted.arch
        assert set(wanted.cpu.features) <= set(seen["features"])

    def test_a_cortex_a72_has_no_dot_products_and_a_haswell_no_vnni(self) -> None:
        assert "asimddp" not in CortexA72().describe()["features"]
        assert not {"avx_vnni", "avx512_vnni"} & set(Haswell().describe()["features"])

    def test_the_kernels_files_agree_with_each_other(self) -> None:
        """Main ID register: implementer, variant, architecture, part and revision (Arm ARM, MIDR_EL1)."""
        for device, part in ((CortexA72, 0xD08), (CortexA76, 0xD0B)):
            files = dict(device.processor.files(3))
            fields = dict(line.split("\t: ") for line in files["proc/cpuinfo"].splitlines() if "\t: " in line)
            assert int(fields["CPU part"], 16) == part == device.processor.midr >> 4 & 0xFFF
            assert int(fields["CPU implementer"], 16) == 0x41 and files["proc/cpuinfo"].count("processor") == 3
            told = files["sys/devices/system/cpu/cpu2/regs/identification/midr_el1"]
            assert int(told, 16) == device.processor.midr
            assert files["sys/devices/system/cpu/online"] == "0-2"
            assert files["sys/devices/system/cpu/cpu1/cache/index0/shared_cpu_map"] == "2"
        assert not list(Haswell.processor.files(2))


class TestNeverATime:
    def test_the_device_refuses(self, bundle: Bundle) -> None:
        device = Haswell()
        for ask in (
            lambda: device.bench(bundle, threads=1),
            lambda: device.pairs(bundle, bundle, rounds=2),
            lambda: device.layers(bundle),
        ):
            with pytest.raises(MeasurementInvalidError, match=r"emulated-haswell is emulated: .* mean nothing"):
                ask()

    def test_profile_and_compare_end_with_3(self, bundle: Bundle, tmp_path: Path) -> None:
        page = tmp_path / "page.html"
        seen = edgekit("profile", bundle.path, "--device", "emulated-haswell", "--json", "--html", page, "--quiet")
        (found,) = Profiles.model_validate_json(seen.stdout).results
        assert seen.exit_code == found.exit_code == 3 and found.emulated
        assert found.latency_s is None and not found.samples_s and found.layers is None and found.load_s is None
        assert "is emulated" in found.invalid and "emulated-haswell (emulated)" in page.read_text()
        seen = edgekit("compare", bundle.path, bundle.path, "--device", "emulated-haswell", "--quiet")
        assert seen.exit_code == 3 and "emulated-haswell is emulated" in seen.output


@linux
class TestWhatIsMissing:
    def test_without_qemu_it_says_what_to_type(self, empty: Path, bundle: Bundle, tmp_path: Path) -> None:
        with pytest.raises(MissingDependencyError, match=r"no apt-get to fetch it with.* qemu-user-static"):
            CortexA72().setup()
        with pytest.raises(MissingDependencyError, match="edgekit devices setup emulated-cortex-a72"):
            CortexA72().run(bundle, tmp_path / "in.npy", tmp_path / "out.npz")
        seen = edgekit("devices", "check", "emulated-cortex-a72")
        assert seen.exit_code == 6 and "not set up" in seen.output
        assert edgekit("devices", "setup", "emulated-cortex-a72", "--quiet").exit_code == 6

    def test_where_apt_fetches_none(self, empty: Path) -> None:
        program(empty, "apt-get", "echo 'E: Unable to locate package qemu-user-static' >&2; exit 100")
        program(empty, "dpkg-deb", "exit 0")
        with pytest.raises(MissingDependencyError, match=r"Unable to locate package .* sudo apt-get install qemu"):
            CortexA72().setup()

    def test_without_mmdebstrap(self, empty: Path) -> None:
        program(empty, "qemu-aarch64-static", "exit 0")
        program(empty, "qemu-x86_64-static", "exit 0")
        other = CortexA72 if _emulator.foreign(CortexA72.processor) else Haswell
        with pytest.raises(MissingDependencyError, match="mmdebstrap is not installed"):
            other().setup()

    def test_without_a_network_nothing_is_left(self, empty: Path, tmp_path: Path) -> None:
        program(empty, "qemu-aarch64-static", "exit 0")
        program(empty, "qemu-x86_64-static", "exit 0")
        program(empty, "mmdebstrap", "echo 'E: apt-get update failed: Could not resolve deb.debian.org' >&2; exit 25")
        other = CortexA72 if _emulator.foreign(CortexA72.processor) else Haswell
        with pytest.raises(DeviceError, match=r"Could not resolve deb.debian.org. Is there a network\? .*keyring"):
            other().setup()
        assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file() or path.name.startswith(".new")]

    def test_a_name_that_is_none(self, empty: Path) -> None:
        seen = edgekit("devices", "setup", "emulated-haswel")
        assert seen.exit_code == 2 and "Did you mean 'emulated-haswell'?" in seen.output
        seen = edgekit("devices", "setup", "local")
        assert seen.exit_code == 2 and "needs no setting up" in seen.output
        for verb in ("remove", "calibrate"):
            seen = edgekit("devices", verb, "emulated-haswell", *(["x.edge"] if verb == "calibrate" else []))
            assert seen.exit_code == 2 and "a device of edgekit itself" in seen.output

    def test_a_runtime_that_cannot_be_brought(self, tmp_path: Path) -> None:
        with pytest.raises(MissingDependencyError, match="tensorrt has no runtime that could be brought"):
            _emulator.site_for(tmp_path, "tensorrt", {}, "aarch64", print)


@pytest.mark.slow
@linux
class TestWhatTheyCompute:
    @pytest.mark.parametrize("name", list(ALL))
    def test_the_same_as_here_and_how_far_it_is(self, name: str, bundle: Bundle, tmp_path: Path) -> None:
        device = emulated(name)
        np.save(tmp_path / "in.npy", small.samples(40))
        told: list[int] = []
        ran = device.run(bundle, tmp_path / "in.npy", tmp_path / "out.npz", on_done=told.append)
        Local().run(bundle, tmp_path / "in.npy", tmp_path / "here.npz")
        assert told == sorted(told) and told[-1] == 40 == ran.info["samples"] and told[0] < 40
        with np.load(tmp_path / "out.npz") as there, np.load(tmp_path / "here.npz") as here:
            np.testing.assert_allclose(there["logits"], here["logits"], atol=1e-5)
        assert device.selftest(bundle)["passed"]

    def test_set_up_and_cleaned_by_the_command_line(
        self, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        emulated("emulated-cortex-a72")  # skips where it cannot be had
        monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
        seen = edgekit("devices", "setup", "emulated-cortex-a72", "--json", "--quiet")
        assert seen.exit_code == 0, seen.output
        folder = Path(json.loads(seen.stdout)["folder"])
        assert folder.is_relative_to(tmp_path) and stat.S_IMODE((folder / "root").stat().st_mode) & 0o555 == 0o555
        assert "ready" in edgekit("devices", "check", "emulated-cortex-a72").output
        device = open_device("emulated-cortex-a72")
        assert device.selftest(bundle)["versions"]["onnxruntime"]  # type: ignore[attr-defined]
        freed = json.loads(edgekit("devices", "clean", "emulated-cortex-a72", "--json").stdout)["freed_bytes"]
        assert freed > 50e6 and not folder.exists()

    def test_a_bundle_that_is_damaged(self, bundle: Bundle, tmp_path: Path) -> None:
        content = bytearray(bundle.path.read_bytes())
        content[len(content) // 2] ^= 1
        bundle.path.write_bytes(content)
        seen = edgekit("profile", bundle.path, "--device", "emulated-haswell", "--quiet")
        assert seen.exit_code == 8

    def test_a_recipe_is_scored_there_and_never_timed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The same model file for two targets: one is scored here, the other in the emulator."""
        emulated("emulated-cortex-a72")
        monkeypatch.setenv("EDGEKIT_CACHE", str(cache()))
        small.model(tmp_path / "net.onnx")
        rng = np.random.default_rng(0)
        images = {f"{split}_x": rng.integers(0, 256, (n, 8, 8), np.uint8) for split, n in (("train", 64), ("test", 48))}
        labels = {name.replace("_x", "_y"): np.arange(len(x)) % 3 for name, x in images.items()}
        np.savez(tmp_path / "data.npz", **images, **labels)
        (tmp_path / "recipe.yaml").write_text(
            """
version: 1
model: {source: net.onnx}
data: {source: data.npz, task: classification, preprocess: {scale: [0.00392157], layout: NHW, to: NCHW}}
stages: [quantize: {samples: 32}]
targets:
  - {target: x86-64, backends: [onnxruntime]}
  - {target: raspberry-pi-4, backends: [onnxruntime], device: emulated-cortex-a72}
gate:
  - {metric: accuracy, vs: reference, max_regression: 20pp}
  - {metric: latency.p50, max: 1 s, on_missing: warn}
"""
        )
        seen = edgekit("run", tmp_path / "recipe.yaml", "--out", tmp_path / "out")
        assert seen.exit_code == 0, seen.output
        report = read_report(tmp_path / "out" / "report.json")
        there = [r for r in report.results if r.target == "raspberry-pi-4"]
        assert {r.role for r in there} >= {"reference", "quantized"}
        for result in there:
            assert result.device and result.device.emulated and result.measured_on == "emulated-cortex-a72"
            assert result.accuracy and result.accuracy.n == 48 and result.snr_db
            assert result.latency_s is None and not result.paired and result.peak_rss_bytes is None
            assert not result.invalid and result.load_s is None and result.energy_j is None
        assert all(r.measured_on == "local" for r in report.results if r.target == "x86-64")
        assert [j.verdict for j in report.gate] == ["pass", "missing"]
        assert "on emulated-cortex-a72" in report.gate[0].reason
        assert "is emulated: it is never timed" in report.gate[1].reason and report.gate[1].observed is None
        assert "emulated, not timed" in seen.output
        page = (tmp_path / "out" / "report.html").read_text()
        assert "emulated: not timed" in page and '"emulated": true' in (tmp_path / "out" / "report.json").read_text()
