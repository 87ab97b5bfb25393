"""Imports only go down, the agent stands apart, and importing edgekit imports nothing heavy."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "edgekit"

LAYERS = [
    {"errors", "extras", "launched", "licences", "plain", "registry", "tasks", "turns", "units", "usercode",
     "yamlfile"},
    {"bundle", "clauses", "confidence", "context", "data", "datasource", "datasplits", "graph", "imagefolder",
     "metrics", "model", "percentiles", "prune", "pt2", "quant", "report", "rivals", "robust", "scores", "scoring",
     "sealed", "signing",
     "slices", "sources", "stores", "target", "train", "validity"},
    {"backends", "devices", "recipe", "stages", "testing"},
    {"advice", "assess", "baseline", "building", "calibrating", "checking", "compare", "conditions", "doctor",
     "emitting", "episodes", "explain", "follow", "gate", "gating", "measuring", "observed", "outputs", "pipeline",
     "planning", "probing", "profile", "profiling", "remeasure", "reporting", "ships", "stored", "stressing",
     "workspace", "wrapping"},
    {"cli", "__main__"},
]  # fmt: skip
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}

HEAVY = (
    "accelerate", "ai_edge_litert", "asyncssh", "cryptography", "cyclonedx", "jax", "litert_torch", "nncf", "onnx",
    "onnxruntime", "onnxscript", "openvino", "pandas", "PIL", "scipy", "tensorrt", "tensorrt_rtx", "torch",
    "torch_pruning", "transformers", "ai_edge_quantizer", "gymnasium", "pycocotools", "skimage", "sklearn",
)  # fmt: skip


def python_files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))


def imported(file: Path) -> set[str]:
    """Every `edgekit.<part>` that a file imports, at the top or inside a function."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "edgekit":
            names |= {f"edgekit.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level:
            package = file.relative_to(PACKAGE.parent).parts[: -node.level]
            names.add(".".join((*package, *(node.module or "").split("."))))
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    return {name.split(".")[1] for name in names if name.startswith("edgekit.")} - {""}


@pytest.mark.parametrize(
    "file",
    [f for f in python_files(PACKAGE) if f.parent != PACKAGE / "agent"],
    ids=lambda f: str(f.relative_to(PACKAGE)),
)
def test_imports_only_go_down(file):
    part = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if part in ("__init__", "__main__", "agent"):
        return
    assert part in LEVEL, f"edgekit/{part} has no layer: add it to LAYERS here"
    wrong = {name for name in imported(file) - {"agent", part} if LEVEL.get(name, 99) > LEVEL[part]}
    assert not wrong, f"{file.name} (layer {LEVEL[part]}) imports {sorted(wrong)}"


@pytest.mark.parametrize("file", python_files(PACKAGE / "agent"), ids=lambda f: f.name)
def test_the_agent_imports_nothing_of_edgekit(file):
    assert imported(file) <= {"agent"}


def modules_after(code: str) -> set[str]:
    """Top-level names in `sys.modules` of a fresh interpreter after `code`."""
    report = "\nimport sys, json\nprint(json.dumps(sorted({m.partition('.')[0] for m in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", code + report], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


INVOKE = """
from typer.testing import CliRunner
from edgekit.cli.app import app
for words in {words!r}:
    assert CliRunner().invoke(app, words).exit_code == 0, words
"""


def test_help_imports_nothing_heavy():
    assert not modules_after(INVOKE.format(words=[["--help"], ["--version"]])) & {*HEAVY, "numpy", "pydantic", "ruamel"}
    verbs = [[verb, "--help"] for verb in ("run", "targets", "doctor", "schema", "bundle", "devices", "baseline")]
    assert not modules_after(INVOKE.format(words=verbs)) & {*HEAVY, "numpy", "ruamel"}


def test_looking_around_imports_nothing_heavy():
    assert not modules_after(INVOKE.format(words=[["targets"], ["targets", "x86-64", "--json"], ["doctor"]])) & set(
        HEAVY
    )


def test_import_edgekit_imports_next_to_nothing():
    assert not modules_after("import edgekit") & {*HEAVY, "numpy", "pydantic", "ruamel", "rich", "typer"}


def test_no_module_imports_anything_heavy():
    names = [
        ".".join(("edgekit", *file.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
        for file in python_files(PACKAGE)
        if file.name != "__main__.py" and "agent" not in file.relative_to(PACKAGE).parts
    ]
    light = [
        name
        for name in names
        if name.split(".")[1:2] and name.split(".")[1] not in ("graph", "quant", "prune", "train")
    ]
    assert len(light) > 30
    seen = modules_after("import importlib\n" + "\n".join(f"importlib.import_module({name!r})" for name in light))
    assert not seen & set(HEAVY)


def test_public_names_exist_and_are_few():
    import edgekit

    assert len(edgekit.__all__) <= 25
    assert sorted(edgekit.__all__) == sorted(edgekit._PUBLIC)
    for name in edgekit.__all__:
        assert getattr(edgekit, name) is not None
    assert set(edgekit.__all__) <= set(dir(edgekit))
    with pytest.raises(AttributeError, match="no attribute 'absent'"):
        edgekit.absent  # noqa: B018
