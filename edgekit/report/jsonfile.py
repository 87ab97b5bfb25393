"""Versioned JSON files that somebody else may have written, cut short or edited: one message, in bounded memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from edgekit.errors import UsageError

CHUNK = 1 << 20

ModelT = TypeVar("ModelT", bound=BaseModel)


def read_versioned(path: Path, model: type[ModelT], version: int, *, largest: int, what: str, again: str) -> ModelT:
    """A file of `schema_version` `version` as a `model`.

    Args:
        path: the file; a pipe will do.
        model: what it must be.
        version: the one that this edgekit reads.
        largest: bytes that are read at most.
        what: names the file in messages, such as "the report.json of a run".
        again: what to do about a broken one, such as "Run the recipe again".

    Raises:
        UsageError: it is missing, too large, no JSON, of another version, or not such a file.
    """
    content = bytearray()
    try:
        with path.open("rb") as file:
            while (chunk := file.read(CHUNK)) and len(content) <= largest:
                content += chunk
        if len(content) > largest:
            raise UsageError(f"{path}: more than {largest} bytes: not {what}.")
        data = json.loads(content)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}. Give {what}.") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not valid JSON ({error}). Give {what}.") from error
    found = data.get("schema_version") if isinstance(data, dict) else None
    if found != version:
        raise UsageError(
            f"{path}: schema_version is {found!r:.40}, this edgekit reads {version}. {again} with this version."
        )
    try:
        return model.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UsageError(f"{path}: {where}: {first['msg']}. {again}.") from error
