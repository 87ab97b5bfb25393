"""The contract of a device."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from edgekit.backends import Job
from edgekit.devices import Device
from edgekit.errors import EdgekitError
from edgekit.extras import require
from edgekit.testing.subjects import SIZE, bundled, host, small_network

if TYPE_CHECKING:
    from edgekit.bundle import Bundle


class DeviceContract:
    """What every device promises. Set `device`; override `bundle` for a device that runs another backend."""

    device: ClassVar[Device]

    def bundle(self, work: Path) -> Bundle:
        """A bundle of the small network for ONNX Runtime."""
        from edgekit.backends.onnxruntime import OnnxRuntime

        target = host("onnxruntime")
        (work / "build").mkdir()
        samples = np.random.default_rng(9).standard_normal((8, 3, SIZE, SIZE)).astype(np.float32)
        facts = target.backends["onnxruntime"]
        job = Job(small_network(), "float", "fp32", target, facts, work / "build", (samples,))
        return bundled("onnxruntime", OnnxRuntime().build(job), job, work / "model.edge")

    def test_describes_itself(self) -> None:
        """A name and a fingerprint that stay the same while nothing changes."""
        seen = self.device.describe()
        assert seen["name"] and seen["fingerprint"], f"describe() gave {dict(seen)}"
        assert json.loads(json.dumps(dict(seen))), "describe() holds more than JSON values"
        assert self.device.describe()["fingerprint"] == seen["fingerprint"], "the fingerprint changes by itself"

    def test_brings_the_outputs_back(self, tmp_path: Path) -> None:
        """All samples go through, in order."""
        from edgekit.graph.execute import run_onnx

        images = np.random.default_rng(3).standard_normal((20, 3, SIZE, SIZE)).astype(np.float32)
        np.save(tmp_path / "in.npy", images)
        ran = self.device.run(self.bundle(tmp_path), tmp_path / "in.npy", tmp_path / "out.npz")
        with np.load(ran.outputs, allow_pickle=False) as outputs:
            seen = outputs["logits"]
        np.testing.assert_allclose(seen, run_onnx(small_network().proto, [images])[0], atol=1e-4)

    def test_measures(self, tmp_path: Path) -> None:
        """Raw latencies in seconds with what belongs to them."""
        bench = self.device.bench(self.bundle(tmp_path), threads=1)
        assert bench.samples_s and all(second > 0 for second in bench.samples_s)
        absent = {"load_s", "first_inference_s", "peak_rss_bytes", "state", "versions", "threads"} - set(bench.info)
        assert not absent, f"info lacks {sorted(absent)}"

    def test_measures_pairs(self, tmp_path: Path) -> None:
        """As many rounds as were asked for, four block medians each."""
        bundle = self.bundle(tmp_path)
        pairs = self.device.pairs(bundle, bundle, rounds=2, threads=1)
        assert len(pairs.rounds) == 2 and all(len(r) == 4 and min(r) > 0 for r in pairs.rounds), f"{pairs.rounds}"

    def test_refuses_a_damaged_bundle(self, tmp_path: Path) -> None:
        """One byte flipped after the bundle was opened: an error, and no result."""
        pytest = require("pytest", extra="dev", why="running contract tests")
        bundle = self.bundle(tmp_path)
        data = bytearray(bundle.path.read_bytes())
        data[len(data) // 2] ^= 1
        bundle.path.write_bytes(bytes(data))
        np.save(tmp_path / "in.npy", np.zeros((1, 3, SIZE, SIZE), np.float32))
        with pytest.raises(EdgekitError):
            self.device.run(bundle, tmp_path / "in.npy", tmp_path / "out.npz")
        assert not (tmp_path / "out.npz").exists(), "a damaged bundle gave a result"
