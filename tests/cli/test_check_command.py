"""`edgekit check`: recipes and gate files without running anything."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from edgekit.cli.app import app

GATE = "version: 1\ngate:\n  - {metric: size, max: 2 MB}\n"


def check(*words):
    return CliRunner().invoke(app, ["check", *map(str, words)])


@pytest.fixture
def recipe(repo_root):
    return repo_root / "examples" / "fashion_mnist" / "recipe.yaml"


def test_it_says_what_each_file_is(recipe, tmp_path):
    (tmp_path / "gate.yaml").write_text(GATE)
    done = check(recipe, tmp_path / "gate.yaml")
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines() == [f"{recipe}: a recipe", f"{tmp_path / 'gate.yaml'}: a gate file"]


@pytest.mark.parametrize(
    ("text", "said"),
    [(GATE.replace("size", "sise"), r":3: .*sise.*Did you mean 'size'"), ("version: 1\ngate: [", r"gate\.yaml:2"),
     ("version: 1\nmodel: {source: absent.onnx}\n", r"data: is missing|required|data"),
     ("version: 1\ngate: []\n", r":2: gate: there is no clause: nothing to judge"),
     ("[]", "gate.yaml"), ("", "gate.yaml"), (GATE + "  - {metric: size, max: 3 MB}\n", r":4: ")],
)  # fmt: skip
def test_each_error_is_one_line_with_its_file(tmp_path, text, said):
    path = tmp_path / "gate.yaml"
    path.write_text(text)
    (tmp_path / "fine.yaml").write_text(GATE)
    done = check(path, tmp_path / "absent.yaml", tmp_path / "fine.yaml")
    assert done.exit_code == 2
    first, second = done.stderr.splitlines()
    assert first.startswith(f"edgekit: {path}")
    assert re.search(said, first), first
    assert "absent.yaml: no such file" in second
    assert done.stdout == f"{tmp_path / 'fine.yaml'}: a gate file\n"


def test_nothing_is_said_on_stdout_where_nothing_is_fine(tmp_path):
    assert check(tmp_path / "absent.yaml").stdout == ""


def test_json(recipe, tmp_path):
    found = json.loads(check(recipe, tmp_path / "absent.yaml", "--json").stdout)
    assert [one["kind"] for one in found] == ["recipe", None] and "no such file" in found[1]["error"]


def test_a_name_cannot_act_on_the_terminal(tmp_path):
    done = check(tmp_path / "\x1b[31mred.yaml")
    assert done.exit_code == 2 and "\x1b" not in done.output


def test_it_imports_nothing_heavy(recipe):
    code = "import sys\nfrom pathlib import Path\nfrom edgekit.checking import check_file\n"
    code += f"check_file(Path({str(recipe)!r}))"
    code += "\nprint(sorted({'torch', 'onnx', 'onnxruntime', 'openvino', 'scipy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
