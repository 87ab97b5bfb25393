"""What a runtime makes of a built model: its kernels and how long they take, and the value of every tensor."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from edgekit.errors import UsageError
from edgekit.quant.record import Record

Array = npt.NDArray[Any]
Feed = Sequence[Array]
"""The arrays of one inference, one an input of the model."""

LOOKS: dict[str, str] = {
    "onnxruntime": "edgekit.backends._look_onnxruntime:LookAtOnnxRuntime",
    "openvino": "edgekit.backends._look_openvino:LookAtOpenVino",
    "litert": "edgekit.backends._look_litert:LookAtLiteRT",
}
"""Backend -> the class that looks into its models."""

WARM_UP, TIMED = 5, 30
"""Inferences before kernels are timed, and those whose median counts."""


@dataclass(frozen=True)
class Kernel:
    """One step of the runtime's own plan.

    `operators` are those of the source's graph that it computes, none for a conversion between float and 8 bits or a
    change of layout. `seconds` is the median over single inferences, None where the runtime does not tell.
    """

    name: str
    kind: Literal["int8", "float", "conversion", "layout"]
    operators: tuple[str, ...] = ()
    seconds: float | None = None


class Look(Protocol):
    """A built model opened for looking: made of the folder and the manifest of a bundle, and a quantized one's record.

    Raises:
        MissingDependencyError: the runtime is not installed.
        UsageError: the runtime refuses the model.
    """

    def __init__(self, folder: Path, manifest: Mapping[str, Any], record: Record) -> None: ...

    def kernels(self, feed: Feed) -> list[Kernel]:
        """The runtime's plan, in its order, timed on `feed` where the runtime tells times."""

    def probe(self) -> Callable[[Feed], dict[str, Array]]:
        """A function from inputs to the values of tensors as floats, under the names of the source's graph."""


def look_at(backend: str, folder: Path, manifest: Mapping[str, Any], record: Record) -> Look:
    """Open a model of `backend`.

    Raises:
        UsageError: nothing can look into a model of that backend.
    """
    from importlib import import_module

    if backend not in LOOKS:
        known = ", ".join(LOOKS)
        raise UsageError(f"`edgekit explain` cannot look into models of {backend!r}. It can for {known}.")
    module, _, name = LOOKS[backend].partition(":")
    opened: Look = getattr(import_module(module), name)(folder, manifest, record)
    return opened


class Owners:
    """From the names that a runtime gives its steps and tensors to operators of the source's graph."""

    def __init__(self, record: Record) -> None:
        self.names = {operator.name for operator in record.operators}
        self.makers = {tensor: operator.name for tensor, operator in record.makers().items()}

    def find(self, name: str) -> str | None:
        """`conv` for `conv`, `conv_token_3`, `conv/WithoutBiases`, and for the tensor that `conv` makes."""
        plain = re.sub(r"(_token_\d+|_nchwc|_nhwc)+$", "", name)
        while plain:
            if plain in self.names:
                return plain
            if plain in self.makers:
                return self.makers[plain]
            plain = plain.rpartition("/")[0]
        return None

    def all(self, names: Iterable[str]) -> tuple[str, ...]:
        """The operators that any of `names` means, each once."""
        return tuple(dict.fromkeys(found for found in map(self.find, names) if found))


def median(seconds: Sequence[float]) -> float | None:
    """The median, None of nothing."""
    return float(np.median(seconds)) if len(seconds) else None


def plain_name(tensor: str) -> str:
    """The source's name of a tensor that an emitter split: `relu` for `relu/float` and `relu/dequantized`."""
    return re.sub(r"/(float|quantized|dequantized)$", "", tensor)
