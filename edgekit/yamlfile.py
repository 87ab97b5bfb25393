"""YAML with line numbers: every error names file, line and path of the setting that caused it."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from annotated_types import Ge, Gt, Interval, Le, Lt
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from edgekit.errors import UsageError

MAX_BYTES = 1_000_000
MAX_NODES = 100_000
MAX_DEPTH = 50
MAX_INT_BITS = 1024
"""Python refuses to write larger ones out, in a message too."""

_SLIPS = (ValueError, TypeError, AttributeError, LookupError, AssertionError, NotImplementedError)
"""What ruamel lets through for some text that is no YAML, such as a key that is a mapping."""

_PLAIN_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("bool", "float", "int", "map", "null", "seq", "str")}

Place = tuple[str | int, ...]
ModelT = TypeVar("ModelT", bound=BaseModel)


@dataclass(frozen=True)
class Document:
    """A parsed file: plain Python values, and the line (from 1) of every key and list item."""

    path: Path
    value: dict[str, Any]
    lines: Mapping[Place, int]

    def error(self, place: Place, message: str) -> UsageError:
        """`file:LINE: a.b[0]: message`. A place without a line of its own has that of what holds it."""
        where = f"{dotted(place)}: " if place else ""
        return UsageError(f"{self.path}:{self.line(place)}: {where}{message}")

    def line(self, place: Place) -> int:
        """The line of a place, or that of what holds it."""
        while place and place not in self.lines:
            place = place[:-1]
        return self.lines.get(place, 1)

    def validate(self, model: type[ModelT], value: object, place: Place = ()) -> ModelT:
        """`value`, found at `place`, as a `model`.

        Raises:
            UsageError: with the first of the problems.
        """
        try:
            return model.model_validate(value)
        except ValidationError as error:
            details = error.errors()
            first = min(details, key=lambda d: d["type"] != "extra_forbidden")  # a typo explains the missing key
            inner = _within(value, tuple(first["loc"]))
            more = len(details) - 1 if first["type"] != "extra_forbidden" else 0
            tail = f" ({more} more problem{'s' if more > 1 else ''} in this section)" if more else ""
            raise self.error((*place, *inner), explain(first, model) + tail) from None
        except UsageError as error:  # from a validator that reads quantities; the value it quotes tells which key
            keys = value.items() if isinstance(value, dict) else ()
            culprit = tuple(key for key, given in keys if str(error).startswith(repr(given)))[:1]
            raise self.error((*place, *culprit), str(error)) from None


def dotted(place: Place) -> str:
    """`("stages", 1, "prune", "macs")` as `stages[1].prune.macs`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    return text.removeprefix(".")


def read_yaml(path: Path, what: str) -> Document:
    """Parse `path`; `what` names the kind of file in messages ("recipe", "target").

    Raises:
        UsageError: missing, too large, not YAML, duplicate keys, or not a mapping.
    """
    return parse_yaml(_read_text(path, what), path, what)


def parse_yaml(text: str, path: Path, what: str) -> Document:
    """`read_yaml` of text that came from `path`."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    try:
        root = YAML(typ="rt", pure=True).load(text)
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        problem = str(error.problem).replace("\n", " ")
        raise UsageError(f"{path}:{line}: not valid YAML: {problem}") from None
    except (YAMLError, RecursionError, *_SLIPS) as error:
        said = (str(error) or type(error).__name__).splitlines()[0]
        raise UsageError(f"{path}:1: not valid YAML: {said}") from None
    if not isinstance(root, dict):
        raise UsageError(f"{path}:1: a {what} is a mapping of settings, got {_kind(root)}.")
    reader = _Reader(path)
    return Document(path, reader.plain(root, ()), reader.lines)


def _read_text(path: Path, what: str) -> str:
    try:
        with path.open("rb") as file:  # a device or a pipe has no size, and may have no end
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise UsageError(f"{path}: more than {MAX_BYTES} bytes, too large for a {what}.")
        return content.decode("utf-8")
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file. Give the path of a {what} in YAML.") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path}: not a text file in UTF-8. Give the path of a {what} in YAML.") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot read the {what}: {error.strerror}.") from None


class _Reader:
    """ruamel's round-trip tree to plain values, noting lines; aliases are expanded, up to a limit."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: dict[Place, int] = {}
        self._nodes = 0

    def plain(self, node: Any, place: Place) -> Any:
        self._nodes += 1
        if self._nodes > MAX_NODES or len(place) > MAX_DEPTH:
            raise UsageError(f"{self.path}:1: too large: more than {MAX_NODES} values or {MAX_DEPTH} levels.")
        tag = getattr(getattr(node, "tag", None), "value", None)
        if tag is not None and tag not in _PLAIN_TAGS:
            raise self._error(place, f"the tag {tag!r} has no meaning here. Leave it out.")
        if isinstance(node, dict):
            return {str(key): self._child(node, key, value, place) for key, value in node.items()}
        if isinstance(node, list):
            return [self._child(node, index, value, place) for index, value in enumerate(node)]
        if isinstance(node, bool) or node is None:
            return node
        if isinstance(node, int) and node.bit_length() > MAX_INT_BITS:
            raise self._error(place, "the number is too large.")
        for kind in (int, float, str):
            if isinstance(node, kind):
                return kind(node)
        return str(node)

    def _error(self, place: Place, message: str) -> UsageError:
        return UsageError(f"{self.path}:{self.lines.get(place, 1)}: {dotted(place)}: {message}")

    def _child(self, node: Any, key: Any, value: Any, place: Place) -> Any:
        inner = (*place, key if isinstance(node, list) else str(key))
        position = (node.lc.data or {}).get(key)
        if position:
            self.lines[inner] = position[0] + 1
        return self.plain(value, inner)


def _within(value: Any, loc: Place) -> Place:
    """The part of a pydantic location that exists in the file (its union tags do not), plus a missing last key."""
    place: Place = ()
    for depth, part in enumerate(loc):
        indexed = isinstance(value, list) and isinstance(part, int) and part < len(value)
        if indexed or (isinstance(value, dict) and part in value):
            value, place = value[part], (*place, part)
        elif isinstance(value, dict) and depth == len(loc) - 1:
            return (*place, part)
    return place


def explain(error: ErrorDetails, model: type[BaseModel] | None = None) -> str:
    """A pydantic error as one sentence: what must be, what was seen, what to use."""
    kind, given, ctx = error["type"], error["input"], error.get("ctx", {})
    field = _field(model, tuple(error["loc"]))
    if kind == "extra_forbidden":
        return unknown_key(str(error["loc"][-1]), _siblings(model, tuple(error["loc"])))
    if kind == "missing":
        return f"is missing.{_hint(field)}"
    if kind in {"value_error", "assertion_error"}:
        return str(ctx.get("error", error["msg"]))
    if (
        bounds := _bounds(field)
        if kind in {"greater_than", "greater_than_equal", "less_than", "less_than_equal"}
        else ""
    ):
        return f"must be {bounds}, got {given!r}.{_hint(field)}"
    wanted = {
        "greater_than": f"more than {ctx.get('gt')}",
        "greater_than_equal": f"at least {ctx.get('ge')}",
        "less_than": f"less than {ctx.get('lt')}",
        "less_than_equal": f"at most {ctx.get('le')}",
        "literal_error": f"{'one of ' if len(_choices(ctx)) > 1 else ''}{ctx.get('expected')}",
        "model_type": "a mapping of settings",
        "dict_type": "a mapping",
        "list_type": "a list",
        "tuple_type": "a list",
        "string_type": "text",
        "int_type": "a whole number",
        "int_parsing": "a whole number",
        "int_from_float": "a whole number",
        "float_type": "a number",
        "float_parsing": "a number",
        "finite_number": "a finite number",
        "bool_type": "true or false",
        "bool_parsing": "true or false",
        "too_short": f"at least {ctx.get('min_length')} long",
        "too_long": f"at most {ctx.get('max_length')} long",
        "string_too_short": "not empty",
    }.get(kind)
    if wanted is None:
        return f"{error['msg'][0].lower()}{error['msg'][1:]}, got {_shown(given)}."
    near = difflib.get_close_matches(str(given), _choices(ctx), n=1) if kind == "literal_error" else []
    guess = f" Did you mean {near[0]!r}?" if near and near[0] != given else _hint(field)
    return f"must be {wanted}, got {_shown(given)}.{guess}"


def unknown_key(key: str, known: list[str]) -> str:
    """The message for a key that no setting has, with a guess where one is near."""
    near = difflib.get_close_matches(key, known, n=1)
    guess = f" Did you mean {near[0]!r}?" if near else ""
    settings = f" Settings here: {', '.join(known)}." if known else ""
    return f"unknown key.{guess}{settings}"


def _choices(ctx: Mapping[str, Any]) -> list[str]:
    return str(ctx.get("expected", "")).replace(" or ", ", ").replace("'", "").split(", ")


def _shown(given: object) -> str:
    return {True: "true", False: "false"}[given] if isinstance(given, bool) else _kind(given)


def _kind(value: object) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    return repr(value) if isinstance(value, str | int | float) else type(value).__name__


def _owner(model: type[BaseModel] | None, loc: Place) -> type[BaseModel] | None:
    """The model that holds the last part of `loc`, as far as field annotations tell."""
    for part in loc[:-1]:
        if model is None or isinstance(part, int) or part not in model.model_fields:
            continue
        model = _model_in(model.model_fields[part].annotation)
    return model


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for arg in getattr(annotation, "__args__", ()) if (found := _model_in(arg))), None)


def _siblings(model: type[BaseModel] | None, loc: Place) -> list[str]:
    owner = _owner(model, loc)
    return [field.alias or name for name, field in owner.model_fields.items()] if owner else []


def _field(model: type[BaseModel] | None, loc: Place) -> FieldInfo | None:
    owner, name = _owner(model, loc), loc[-1] if loc else None
    return owner.model_fields.get(name) if owner and isinstance(name, str) else None


def _hint(field: FieldInfo | None) -> str:
    if field is None:
        return ""
    if field.examples:
        return f" Use {field.examples[0]}."
    return f" It means: {field.description}." if field.description else ""


def _bounds(field: FieldInfo | None) -> str:
    """`in (0, 1]` from a field's own constraints; "" where they are one-sided or unknown."""
    low = high = ""
    for constraint in field.metadata if field else ():
        parts = constraint if isinstance(constraint, Interval) else [constraint]
        for part in parts:
            if isinstance(part, Gt | Ge):
                low = f"({part.gt}" if isinstance(part, Gt) else f"[{part.ge}"
            if isinstance(part, Lt | Le):
                high = f"{part.lt})" if isinstance(part, Lt) else f"{part.le}]"
    return f"in {low}, {high}" if low and high else ""
