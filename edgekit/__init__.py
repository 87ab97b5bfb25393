"""edgekit: prune, distil, quantize, compile, measure and gate a trained model for edge devices.

The names below are loaded when they are first used, so `import edgekit` costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgekit.bundle import Bundle, open_bundle
    from edgekit.clauses import Clause
    from edgekit.data import DataSet, Preprocess, Split, check_against
    from edgekit.datasource import load_data
    from edgekit.doctor import diagnose
    from edgekit.errors import EdgekitError, ExitCode, UsageError
    from edgekit.model import OnnxModel, TensorSpec, TorchModel
    from edgekit.pipeline import run
    from edgekit.quant.spec import QuantSpec
    from edgekit.recipe import Recipe, load_recipe
    from edgekit.report.report import Report
    from edgekit.sources import load_model
    from edgekit.target import Target, list_targets, load_target

_PUBLIC = {
    "Bundle": "bundle",
    "Clause": "clauses",
    "DataSet": "data",
    "EdgekitError": "errors",
    "ExitCode": "errors",
    "OnnxModel": "model",
    "Preprocess": "data",
    "QuantSpec": "quant.spec",
    "Recipe": "recipe",
    "Report": "report.report",
    "Split": "data",
    "Target": "target",
    "TensorSpec": "model",
    "TorchModel": "model",
    "UsageError": "errors",
    "check_against": "data",
    "diagnose": "doctor",
    "list_targets": "target",
    "load_data": "datasource",
    "load_model": "sources",
    "load_recipe": "recipe",
    "load_target": "target",
    "open_bundle": "bundle",
    "run": "pipeline",
}

__all__ = [
    "Bundle",
    "Clause",
    "DataSet",
    "EdgekitError",
    "ExitCode",
    "OnnxModel",
    "Preprocess",
    "QuantSpec",
    "Recipe",
    "Report",
    "Split",
    "Target",
    "TensorSpec",
    "TorchModel",
    "UsageError",
    "check_against",
    "diagnose",
    "list_targets",
    "load_data",
    "load_model",
    "load_recipe",
    "load_target",
    "open_bundle",
    "run",
]


def __getattr__(name: str) -> object:
    """Load a public name from its module, once."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'edgekit' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"edgekit.{_PUBLIC[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
