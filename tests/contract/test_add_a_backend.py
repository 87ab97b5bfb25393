"""docs/add_a_backend.md, block by block: a backend from elsewhere, found by its entry point, keeps the contract."""

import re
import subprocess
import sys
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import pytest

from edgekit import plugins
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


def test_the_page_is_proven(package):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_evaluator.py"]
    ran = subprocess.run(command, cwd=package, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert re.search(r"^\d+ passed", ran.stdout, re.MULTILINE), ran.stdout


def test_found_by_its_entry_point(package, monkeypatch):
    group, value = re.search(r'entry-points\."([\w.]+)"\]\nevaluator = "([\w:]+)"', PAGE.read_text()).groups()
    point = EntryPoint(name="evaluator", value=value, group=group)
    monkeypatch.syspath_prepend(str(package))
    monkeypatch.setattr(plugins, "entry_points", lambda group: EntryPoints([point]).select(group=group))
    found = plugins.load("backend", "evaluator", "edgekit.backends", BACKENDS)
    assert found.name == "evaluator" and found().availability().compiles
    with pytest.raises(UsageError, match="Did you mean 'evaluator'"):
        plugins.load("backend", "evaluater", "edgekit.backends", BACKENDS)
