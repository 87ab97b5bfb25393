"""Run a .tflite with ai-edge-litert: outputs, or every tensor in between."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.backends import _litert_flatbuffer as fb
from edgekit.backends._litert_quiet import quiet
from edgekit.errors import BuildError
from edgekit.extras import require

Array = npt.NDArray[Any]


def interpreter(content: bytes, *, builtin: bool = False, keep: bool = False) -> Any:
    """A loaded model, one thread, on XNNPACK or on the `builtin` kernels. `keep` leaves every tensor readable there.

    Raises:
        BuildError: LiteRT refuses the file.
    """
    litert = require("ai_edge_litert.interpreter", extra="litert", why="running .tflite files")
    resolver = (
        litert.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES if builtin or keep else litert.OpResolverType.BUILTIN
    )
    try:
        with quiet():
            loaded = litert.Interpreter(
                model_content=content,
                num_threads=1,
                experimental_preserve_all_tensors=keep,
                experimental_op_resolver_type=resolver,
            )
            loaded.allocate_tensors()
    except (RuntimeError, ValueError) as error:
        raise BuildError(f"LiteRT refuses the file that was built: {' '.join(str(error).split())}") from error
    return loaded


def _invoke(loaded: Any, places: Sequence[int], sample: Sequence[Array]) -> None:
    for place, value in zip(places, sample, strict=True):
        loaded.set_tensor(place, np.ascontiguousarray(value))
    loaded.invoke()


def outputs(content: bytes, samples: Sequence[Sequence[Array]], *, builtin: bool = False) -> list[list[Array]]:
    """The outputs for each sample (one array an input, batch axis included), in the graph's order."""
    loaded = interpreter(content, builtin=builtin)
    (graph,) = fb.read(content).subgraphs
    results = []
    for sample in samples:
        _invoke(loaded, fb.indices(graph.inputs), sample)
        results.append([loaded.get_tensor(index) for index in fb.indices(graph.outputs)])
    return results


def every_tensor(content: bytes, samples: Sequence[Sequence[Array]]) -> dict[int, list[Array]]:
    """The value of every computed float tensor for each sample."""
    loaded = interpreter(content, keep=True)
    model = fb.read(content)
    (graph,) = model.subgraphs
    wanted = [
        index
        for index, tensor in enumerate(graph.tensors)
        if fb.type_name(tensor) == "FLOAT32" and fb.constant(model, tensor) is None
    ]
    values: dict[int, list[Array]] = {index: [] for index in wanted}
    for sample in samples:
        _invoke(loaded, fb.indices(graph.inputs), sample)
        for index in wanted:
            values[index].append(loaded.get_tensor(index))
    return values
