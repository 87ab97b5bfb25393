"""A plain model file as bundles for a device: nothing of it is compressed, its samples are random or given."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.assess import Oracle
from edgekit.backends import BACKENDS
from edgekit.building import CANDIDATES, Builder, Outcome, Part
from edgekit.bundle import Bundle
from edgekit.data import DataSet, Preprocess, Split, check_against, drawn
from edgekit.devices import Device
from edgekit.errors import UsageError
from edgekit.extras import unknown
from edgekit.model import OnnxModel, TensorSpec, as_onnx
from edgekit.registry import resolve
from edgekit.sources import load_model
from edgekit.target import Target, fitting, list_targets, load_target
from edgekit.workspace import Workspace

SUFFIXES = (".onnx", ".pt2")
"""Files that hold a whole model, other than bundles."""


def is_model(path: Path) -> bool:
    """Whether `path` names a plain model file, by its suffix."""
    return path.suffix.lower() in SUFFIXES


def wrap(
    file: Path,
    target: Target,
    folder: Path,
    *,
    backends: Sequence[str] | None = None,
    inputs: Path | None = None,
) -> list[Outcome]:
    """Float bundles of a model file under `folder`, one for each of the backends, or the reason why there is none.

    Args:
        file: an ONNX file or an archive of `torch.export`.
        target: what the bundles are for.
        folder: an empty one.
        backends: of the target; by default all that can be compiled here.
        inputs: samples as the model takes them, .npy or .npz, of which some travel in the bundle. By default floats
            are drawn from a normal distribution and integers are 0 or 1.

    Raises:
        UsageError: the model or its inputs cannot be used as they are, or the target has no such backend.
        MissingDependencyError: what reads the model is not installed.
    """
    chosen = _backends(target, backends)
    model = as_onnx(load_model(str(file)))
    data = _data(model, inputs)
    check_against(data, model.inputs)
    builder = Builder(Workspace.open(folder, resume=False), Oracle.of(model, data))
    return [builder.build(Part("float", "fp32", model), target, name) for name in chosen]


def said_of_inputs(bundle: Bundle, inputs: Path | None) -> str:
    """A line on what a wrapped model is fed with."""
    if inputs is not None:
        return ""
    specs = [TensorSpec(entry.name, entry.dtype, entry.shape) for entry in bundle.manifest.inputs]
    shapes = ", ".join(f"{spec.name} {spec.dtype}{list(spec.sized(1))}" for spec in specs)
    return f"a plain model file: its inputs are random ({shapes}); --inputs gives real ones"


def target_of(device: Device) -> Target:
    """The target that a device is one of: what it is registered as, or the one named after its architecture.

    Raises:
        UsageError: that is not known.
    """
    from edgekit.devices.inventory import load_inventory

    entry = load_inventory().get(device.name)
    if entry is not None and entry.target is not None:
        return load_target(entry.target)
    seen = device.describe()
    arch = str(seen.get("arch"))
    found = fitting(arch, seen.get("features", ()))
    if found is None:
        raise UsageError(
            f"{device.name} is {arch}: which target is it? Name it with --target ({', '.join(list_targets())}), or "
            "for good with `edgekit devices add --replace --target`."
        )
    return found


def _backends(target: Target, wanted: Sequence[str] | None) -> list[str]:
    for name in wanted or ():
        if name not in target.backends:
            raise UsageError(unknown(f"backend of {target.name}", name, target.backends))
    if wanted:
        return list(dict.fromkeys(wanted))
    known = {name: resolve("backend", name, BACKENDS, "edgekit.backends")() for name in target.backends}
    here = [name for name, backend in known.items() if backend.availability().compiles]
    return here or list(target.backends)[:1]  # which then says what is missing


def _data(model: OnnxModel, inputs: Path | None) -> DataSet:
    """A few samples, as the model takes them."""
    size = max((spec.shape[0] for spec in model.inputs if spec.shape and isinstance(spec.shape[0], int)), default=1)
    count = size * -(-CANDIDATES // size)
    names = [spec.name for spec in model.inputs]
    scalars = ", ".join(repr(spec.name) for spec in model.inputs if not spec.shape)
    if scalars:
        raise UsageError(f"{model.name}: input {scalars} is a scalar: it has no first axis for the samples.")
    arrays = _read(inputs, names) if inputs else dict(zip(names, drawn(model.inputs, count), strict=True))
    least = min((len(array) for array in arrays.values() if array.ndim), default=0)
    if not least:
        raise UsageError(f"{inputs}: it holds no samples.")
    arrays = {name: array[: min(count, least)] for name, array in arrays.items()}
    ids = tuple(map(str, range(min(count, least))))
    split = Split("test", arrays if len(arrays) > 1 else next(iter(arrays.values())), None, ids, Preprocess())
    return DataSet(inputs.name if inputs else "random samples", {"test": split}, task="none")


def _read(path: Path, names: Sequence[str]) -> Mapping[str, Any]:
    try:
        arrays = np.load(path, allow_pickle=False)
        if isinstance(arrays, np.lib.npyio.NpzFile):
            with arrays as archive:
                arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UsageError(f"{path}: no .npy or .npz file that can be read ({error}).") from error
    if isinstance(arrays, np.ndarray) and len(names) == 1:
        return {names[0]: arrays}
    if not isinstance(arrays, dict) or not set(names) <= set(arrays):
        has = ", ".join(arrays) if isinstance(arrays, dict) else "one array"
        raise UsageError(f"{path}: it holds {has}; the model takes {', '.join(names)}. Store them in an .npz by name.")
    return {name: arrays[name] for name in names}
