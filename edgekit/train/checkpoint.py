"""Checkpoints that a killed run goes on from, and trained models on disk: tensors and plain values, never code."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgekit.errors import UsageError
from edgekit.model import TorchModel
from edgekit.prune.rebuild import description_of, rebuilt
from edgekit.prune.shapes import state
from edgekit.train.samples import Samples


def digest(settings: Any, student: nn.Module, teacher: nn.Module, *samples: Samples) -> str:
    """What a checkpoint must have been made from to be of use: settings, both networks, and the samples."""
    made = hashlib.sha256(repr(dataclasses.astuple(settings)).encode())
    for module in (student, teacher):
        for name, value in module.state_dict().items():
            made.update(f"{name}{tuple(value.shape)}".encode())
            made.update(value.detach().cpu().contiguous().numpy().tobytes())
    for part in samples:
        made.update(part.rows.tobytes())
        made.update(f"{part.split.name}{part.split.array.shape}{part.split.array.dtype}".encode())
    return made.hexdigest()


class Checkpoint:
    """One file in `folder`, replaced as a whole; `key` says what it belongs to."""

    def __init__(self, folder: Path, key: str) -> None:
        self.path, self.key = folder / "checkpoint.pt", key

    def save(self, content: Mapping[str, Any]) -> None:
        """Write, force to disk, then rename: a kill leaves the old file or the new one, and so does a full disk.

        Raises:
            OSError: it could not be written; the old file is there as before.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        draft = self.path.with_suffix(".tmp")
        packed = io.BytesIO()  # straight into a file torch says of a full disk that it is a bug of its own
        torch.save({"key": self.key, **content}, packed)
        try:
            with draft.open("wb") as file:
                file.write(packed.getbuffer())
                file.flush()
                os.fsync(file.fileno())
            draft.replace(self.path)
        except OSError:
            draft.unlink(missing_ok=True)
            raise

    def load(self) -> dict[str, Any] | None:
        """The content, or None if there is no checkpoint of this very training."""
        if not self.path.is_file():
            return None
        try:
            content: dict[str, Any] = torch.load(self.path, weights_only=True)
        except Exception as error:
            raise UsageError(
                f"The checkpoint {self.path} cannot be read ({error}). Remove it to start anew."
            ) from error
        return content if isinstance(content, dict) and content.get("key") == self.key else None


def save_torch(model: TorchModel, folder: Path) -> None:
    """Keep a (pruned, trained) module in `folder`: `weights.safetensors`, and what else was cut in `model.json`."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    tensors, shapes = state(model.module)
    description = {"version": 2, "shapes": shapes, "cut": description_of(model.module)}
    weights, text = folder / "weights.safetensors", folder / "model.json"
    text.unlink(missing_ok=True)  # while it is absent the folder holds no model
    save_file(tensors, weights.with_suffix(".tmp"))
    weights.with_suffix(".tmp").replace(weights)
    text.with_suffix(".tmp").write_text(json.dumps(description, indent=1))
    text.with_suffix(".tmp").replace(text)


def load_torch(folder: Path, fresh: TorchModel) -> TorchModel:
    """The module that `save_torch` kept, in the place of that of `fresh`: its source, or any stage's result of it.

    The history stays that of `fresh`.

    Raises:
        UsageError: the folder holds no model, or one of another source.
    """
    from safetensors.torch import load_file

    try:
        description = json.loads((folder / "model.json").read_text())
        tensors = load_file(folder / "weights.safetensors")
    except (OSError, ValueError) as error:
        raise UsageError(f"{folder} holds no saved model ({error}). Run without --resume.") from error
    if description.get("version") != 2 or {k: list(v.shape) for k, v in tensors.items()} != description.get("shapes"):
        raise UsageError(f"The saved model in {folder} is damaged or of another version. Run without --resume.")
    module = rebuilt(fresh.module, tensors, description.get("cut"), _probe(fresh))
    return dataclasses.replace(fresh, module=module)


def _probe(model: TorchModel) -> tuple[torch.Tensor, ...]:
    return tuple(torch.zeros(spec.sized(2), dtype=getattr(torch, spec.dtype)) for spec in model.inputs)
