"""Fixtures that several test files share. They import nothing heavy."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent

# Tests that import openvino themselves report nothing either, which takes a process and up to 3 s each time.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory) -> None:
    """Nothing that tests make is kept in the user's cache folder, and nothing there serves them."""
    os.environ.setdefault("EDGEKIT_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session")
def repo_root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Data sets and models that may not be redistributed; tests that need them are skipped without."""
    folder = Path(os.environ.get("EDGEKIT_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no shared data in {folder}; EDGEKIT_SHARED_DATA says where it is")
    return folder


@pytest.fixture(scope="session")
def exact_sums() -> None:
    """Skips where sums of u8 x s8 saturate: what is meant for other processors is not what this one computes."""
    from edgekit.agent.state import machine, saturates

    here = machine()
    if saturates(here["arch"], here["features"]):
        pytest.skip("this processor has no VNNI: its sums of 8-bit products saturate")


@pytest.fixture(scope="session")
def fashion_mnist():
    """The bundled data set."""
    from edgekit.datasource import load_data

    return load_data(ROOT / "calibration_data" / "fashion_mnist")


@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    """The demo's report and its folder: minutes, once for all tests that ask for it, which therefore share a file."""
    import edgekit

    out = tmp_path_factory.mktemp("demo")
    return edgekit.run(ROOT / "examples/fashion_mnist/recipe.yaml", out=out), out


@pytest.fixture
def tiny_npz(tmp_path: Path) -> Path:
    """40 labelled 4 x 4 images in four classes, split into train and test."""
    rng = np.random.default_rng(0)
    path = tmp_path / "tiny.npz"
    np.savez(
        path,
        train_x=rng.integers(0, 256, (32, 4, 4), dtype=np.uint8),
        train_y=np.arange(32) % 4,
        test_x=rng.integers(0, 256, (8, 4, 4), dtype=np.uint8),
        test_y=np.arange(8) % 4,
    )
    return path
