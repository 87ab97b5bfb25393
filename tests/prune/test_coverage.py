"""Six of the forty architectures of `benchmarks/coverage.py`, one a family, each from its module to ONNX Runtime."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

SIX = ("seresnet18", "cspresnet50", "vit_tiny", "levit_128s", "unet", "gpt")


@pytest.fixture(scope="module")
def covering():
    """The benchmark's own functions. Other tests find neither its folder nor the libraries that it looks for."""
    path, modules = list(sys.path), set(sys.modules)
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
    import architectures
    import covering

    try:
        architectures.find_libraries()
        import timm  # noqa: F401
    except ImportError:
        pytest.skip("timm and torchvision are not here; `make test` puts them into .venv/timm")
    yield covering
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name.partition(".")[0] in ("timm", "torchvision", "architectures", "covering", "own_networks"):
            del sys.modules[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", SIX)
def test_half_of_the_work_goes_and_the_rest_runs_in_onnxruntime(covering, name, tmp_path):
    from architectures import BY_NAME

    row = covering.measured(BY_NAME[name], "module", tmp_path)
    assert row.passed, row.reason
    assert 0.3 < row.share <= covering.REACHED
    assert max(row.masked, row.runtime) <= covering.CLOSE
