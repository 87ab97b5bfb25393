"""Plain model files as bundles: what they compute, what they are fed with, and what is refused."""

from __future__ import annotations

from pathlib import Path

import agent_bundles as small
import numpy as np
import pytest

from edgekit.devices.inventory import Entry, register
from edgekit.devices.local import Local
from edgekit.errors import UsageError
from edgekit.target import load_target
from edgekit.wrapping import said_of_inputs, target_of, wrap


def test_a_bundle_computes_what_the_file_does(tmp_path: Path) -> None:
    file = small.model(tmp_path / "m.onnx")
    (outcome,) = wrap(file, load_target("x86-64"), tmp_path / "out", backends=["onnxruntime"])
    bundle = outcome.bundle
    assert bundle is not None and (bundle.manifest.role, bundle.manifest.precision) == ("float", "fp32")
    samples = small.samples(5)
    np.save(tmp_path / "in.npy", samples)
    ran = Local().run(bundle, tmp_path / "in.npy", tmp_path / "out.npz")
    with np.load(ran.outputs) as found:
        np.testing.assert_allclose(found["logits"], small.expected(file, samples), rtol=1e-4, atol=1e-5)
    assert "its inputs are random (image float32[1, 1, 8, 8])" in said_of_inputs(bundle, None)
    assert Local().selftest(bundle)["passed"]


def test_a_bundle_of_another_backend_that_is_not_here_says_so(tmp_path: Path) -> None:
    file = small.model(tmp_path / "m.onnx")
    outcomes = wrap(file, load_target("jetson-orin-nano"), tmp_path / "out")
    assert [outcome.result.backend for outcome in outcomes] and all(o.bundle or o.result.reason for o in outcomes)


def test_given_inputs_travel_in_the_bundle(tmp_path: Path) -> None:
    file, samples = small.model(tmp_path / "m.onnx"), small.samples(6)
    np.savez(tmp_path / "in.npz", image=samples)
    wanted = {"backends": ["onnxruntime"], "inputs": tmp_path / "in.npz"}
    (outcome,) = wrap(file, load_target("x86-64"), tmp_path / "out", **wanted)
    assert said_of_inputs(outcome.bundle, tmp_path / "in.npz") == ""
    import io
    import zipfile

    with zipfile.ZipFile(outcome.bundle.path) as archive:
        names = [name for name in archive.namelist() if "golden" in name and "input" in name]
        golden = np.load(io.BytesIO(archive.read(names[0])))
    golden = golden if isinstance(golden, np.ndarray) else golden["image"]
    assert all(any(np.array_equal(row, sample) for sample in samples) for row in golden)


@pytest.mark.parametrize(
    ("array", "told"),
    [
        (np.zeros((3, 1, 9, 9), np.float32), r"a sample has shape \[1, 9, 9\].*wants \[1, 8, 8\]"),
        (np.zeros((0, 1, 8, 8), np.float32), "holds no samples"),
        (np.array("text"), "holds no samples"),
    ],
)
def test_inputs_that_do_not_fit(tmp_path: Path, array: np.ndarray, told: str) -> None:
    np.save(tmp_path / "in.npy", array)
    with pytest.raises(UsageError, match=told):
        wrap(small.model(tmp_path / "m.onnx"), load_target("x86-64"), tmp_path / "out", inputs=tmp_path / "in.npy")


def test_files_and_names_that_serve_nothing(tmp_path: Path) -> None:
    file, target = small.model(tmp_path / "m.onnx"), load_target("x86-64")
    (tmp_path / "no.npy").write_text("nothing")
    np.savez(tmp_path / "other.npz", picture=small.samples(2))
    (tmp_path / "empty.npy").write_bytes(b"")
    (tmp_path / "half.npz").write_bytes((tmp_path / "other.npz").read_bytes()[:-40])
    for changes, told in (
        ({"inputs": tmp_path / "empty.npy"}, "can be read"),
        ({"inputs": tmp_path / "half.npz"}, "can be read"),
        ({"inputs": tmp_path / "no.npy"}, r"no \.npy or \.npz file that can be read"),
        ({"inputs": tmp_path / "absent.npy"}, "can be read"),
        ({"inputs": tmp_path / "other.npz"}, "holds picture; the model takes image"),
        ({"backends": ["openvion"]}, "Did you mean 'openvino'"),
    ):
        with pytest.raises(UsageError, match=told):
            wrap(file, target, tmp_path / "out", **changes)
    with pytest.raises(UsageError, match="there is no file"):
        wrap(tmp_path / "absent.onnx", target, tmp_path / "out")


def test_the_target_of_a_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEKIT_DEVICES", str(tmp_path / "devices.yaml"))
    register("pi", Entry(host="127.0.0.1", target="raspberry-pi-5"))

    class Fake:
        def __init__(self, name: str, arch: str = "aarch64", features: tuple[str, ...] = ()) -> None:
            self.name, self.seen = name, {"arch": arch, "features": features}

        def describe(self) -> dict[str, object]:
            return self.seen

    assert target_of(Fake("pi")).name == "raspberry-pi-5"
    assert target_of(Fake("a", "x86_64", ("avx2", "fma"))).name == "x86-64-no-vnni"
    assert target_of(Fake("b", "x86_64", ("avx2", "fma", "avx512_vnni"))).name == "x86-64"
    with pytest.raises(UsageError, match=r"c is aarch64: which target is it\? Name it with --target .*raspberry-pi-4"):
        target_of(Fake("c"))
