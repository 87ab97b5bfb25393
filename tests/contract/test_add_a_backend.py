"""docs/add_a_backend.md, block by block: a backend from elsewhere, found by its entry point, keeps the contract."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from edgekit import registry
from edgekit.backends import BACKENDS
from edgekit.errors import UsageError

PAGE = Path(__file__).parents[2] / "docs" / "add_a_backend.md"


@pytest.fixture
def package(tmp_path):
    """The Python files of the page in a folder of their own."""
    for block in re.findall(r"```python\n# (\w+\.py)\n(.*?)```", PAGE.read_text(), re.DOTALL):
        (tmp_path / block[0]).write_text(block[1])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["evaluator.py", "evaluator_runner.py", "test_evaluator.py"]
    return tmp_path


@pytest.mark.slow
def test_the_page_is_proven(package):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_evaluator.py"]
    ran = subprocess.run(command, cwd=package, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert re.search(r"^\d+ passed", ran.stdout, re.MULTILINE), ran.stdout


def test_found_by_its_entry_point(package, monkeypatch):
    """As pip would have installed it: a folder on the path with the entry points of the page."""
    heading, line = re.search(
        r'\[project\.entry-points\."([\w.]+)"\]\n(evaluator = "[\w:]+")', PAGE.read_text()
    ).groups()
    about = package / "evaluator-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: evaluator\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[{heading}]\n{line}\n".replace('"', ""))
    monkeypatch.syspath_prepend(str(package))
    found = registry.resolve("backend", "evaluator", BACKENDS, heading)
    assert found.name == "evaluator" and found().availability().compiles
    with pytest.raises(UsageError, match="Did you mean 'evaluator'"):
        registry.resolve("backend", "evaluater", BACKENDS, heading)
