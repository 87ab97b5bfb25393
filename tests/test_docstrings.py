"""Examples in docstrings run, and every public function has one."""

from __future__ import annotations

import doctest
import importlib
import inspect
from pathlib import Path

import pytest

import edgekit

PACKAGE = Path(edgekit.__file__).resolve().parent


SLOW = {"edgekit.pipeline", "edgekit.sources"}
"""Examples that load or compress a model."""


def modules() -> list:
    """Every module of edgekit with an example in it."""
    files = [file for file in sorted(PACKAGE.rglob("*.py")) if ">>>" in file.read_text(encoding="utf-8")]
    names = [".".join(("edgekit", *file.relative_to(PACKAGE).with_suffix("").parts)) for file in files]
    names = [name.removesuffix(".__init__") for name in names]
    return [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in names]


@pytest.mark.parametrize("name", modules())
def test_examples(name, monkeypatch, repo_root, request):
    monkeypatch.chdir(repo_root)
    module = importlib.import_module(name)
    names = {"edgekit": edgekit, "getfixture": request.getfixturevalue}
    found = doctest.testmod(module, extraglobs=names, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert found.failed == 0


def test_every_public_function_has_an_example():
    for name in edgekit.__all__:
        value = getattr(edgekit, name)
        if inspect.isfunction(inspect.unwrap(value)):
            assert ">>>" in (value.__doc__ or ""), f"edgekit.{name} has no example in its docstring"
