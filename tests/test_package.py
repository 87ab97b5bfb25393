"""What is shipped: a wheel that works outside the checkout, with the targets in it."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

CORE = ("numpy", "pydantic", "rich", "ruamel.yaml", "typer")


@pytest.fixture(scope="module")
def project(repo_root) -> dict:
    return tomllib.loads((repo_root / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def wheel(repo_root, tmp_path_factory) -> Path:
    if importlib.util.find_spec("hatchling") is None:
        pytest.skip("hatchling is not installed: it comes with the extra dev")
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)], cwd=repo_root, check=True
    )
    return next(folder.glob("*.whl"))


def test_names(project):
    assert project["name"] == "edgekit-toolchain"
    assert project["scripts"] == {"edgekit": "edgekit.cli:main"}
    assert project["requires-python"].startswith(">=3.11")


def test_the_core_stays_small(project):
    names = {line.split(">")[0].split("=")[0] for line in project["dependencies"]}
    assert names == set(CORE)


def test_every_backend_has_an_extra_and_all_has_all(project):
    from edgekit.backends import BACKENDS

    extras = project["optional-dependencies"]
    assert set(BACKENDS) | {"torch", "onnx", "images", "all", "dev"} <= set(extras)
    assert all(name in extras["all"][0] for name in set(extras) - {"all", "dev"})


def test_every_pip_line_in_the_code_names_an_extra_that_exists(repo_root, project):
    import ast

    extras = set(project["optional-dependencies"])
    seen = set()
    for file in sorted((repo_root / "edgekit").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            given = [k.value for k in node.keywords if k.arg == "extra"] if name == "require" else []
            given += node.args[:1] if name == "pip_command" else []
            seen |= {(file.name, value.value) for value in given if isinstance(value, ast.Constant)}
    assert seen
    assert {extra for _, extra in seen} <= extras, seen


@pytest.mark.slow
def test_the_wheel_holds_targets_and_no_tests(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert "edgekit/_targets/raspberry-pi-5.yaml" in names
    assert "edgekit/py.typed" in names
    assert "edgekit/agent/__init__.py" in names
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/", "calibration_data/"))]
    assert any(name.endswith("licenses/LICENSE") for name in names)


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The `bin` folder of an environment that holds the wheel and its core dependencies, and nothing else."""
    folder = tmp_path_factory.mktemp("core")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    subprocess.run([folder / "bin" / "python", "-m", "pip", "install", "-q", wheel], check=True)
    return folder / "bin"


@pytest.mark.slow
def test_an_installed_wheel_finds_its_targets_outside_the_checkout(installed, tmp_path, repo_root):
    done = subprocess.run([installed / "edgekit", "targets", "--json"], cwd=tmp_path, capture_output=True, check=True)
    names = [target["name"] for target in json.loads(done.stdout)]
    assert names == sorted(path.stem for path in (repo_root / "targets").glob("*.yaml"))


@pytest.mark.slow
def test_without_extras_doctor_says_what_to_type(installed, tmp_path):
    command = [installed / "edgekit", "doctor"]
    text = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    for extra in ("onnxruntime", "openvino", "litert", "tensorrt", "torch", "onnx"):
        assert f"pip install 'edgekit-toolchain[{extra}]'" in text


@pytest.mark.slow
def test_a_missing_extra_is_one_line_with_the_pip_command(installed, tmp_path, repo_root):
    recipe = repo_root / "examples" / "fashion_mnist" / "recipe.yaml"
    command = [installed / "edgekit", "run", recipe, "--out", tmp_path / "out", "--quiet"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 6
    assert done.stdout == ""
    assert "needs the package 'torch'. Install it: pip install 'edgekit-toolchain[torch]'" in done.stderr
    assert done.stderr.count("\n") == 1
