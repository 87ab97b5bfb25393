"""The agent needs the standard library, numpy and one runtime: nothing of edgekit, nothing newer than Python 3.9."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from pythons import interpreter

AGENT = Path(__file__).parents[2] / "edgekit" / "agent"
FILES = sorted(AGENT.rglob("*.py"))
RUNTIMES = {"numpy", "onnxruntime", "openvino", "ai_edge_litert", "tflite_runtime"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(AGENT).as_posix())
def test_imports_nothing_else(file: Path) -> None:
    for node in ast.walk(ast.parse(file.read_text(), feature_version=(3, 9))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module or ""]
        else:
            continue
        for name in names:
            root = name.partition(".")[0]
            assert root in sys.stdlib_module_names or root in RUNTIMES, f"{file.name}: {name}"


@pytest.mark.parametrize("version", ["3.9", "3.10", "3.11", "3.12", "3.13", "3.14"])
def test_compiles_under(version: str) -> None:
    python = interpreter(version)
    if python is None:
        pytest.skip(f"no Python {version} here")
    code = "import ast, sys; [compile(open(f).read(), f, 'exec') for f in sys.argv[1:]]"
    subprocess.run([python, "-W", "error", "-c", code, *map(str, FILES)], check=True)


def test_lines_in_a_runner_stay_few() -> None:
    for name in ("onnxruntime", "openvino", "litert", "tensorrt", "tensorrt_build", "cudart"):
        assert len((AGENT / "runners" / f"{name}.py").read_text().splitlines()) <= 110, name


def test_the_agent_stays_small() -> None:
    assert sum(file.stat().st_size for file in FILES) < 120_000
