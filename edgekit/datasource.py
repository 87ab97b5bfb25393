"""Where samples come from: a folder with a card, `.npz`, images by class, a function of the user's own."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from edgekit.data import Array, DataSet, Environment, Inputs, Preprocess
from edgekit.datasplits import Raw, check_split, complete, samples_digest
from edgekit.errors import UsageError
from edgekit.extras import require, unknown
from edgekit.tasks import TASKS
from edgekit.usercode import call_function, function_of, is_function
from edgekit.yamlfile import ModelT, explain, read_yaml

MAX_ARRAY_BYTES = 16 * 2**30
ALIASES = {"val": "validation", "valid": "validation", "dev": "validation", "calib": "calibration", "eval": "test"}


Task = Literal[
    "classification", "detection", "segmentation", "regression", "embedding", "restoration", "anomaly", "policy",
    "custom", "none",
]  # fmt: skip
"""The keys of `edgekit.tasks.TASKS`."""


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _as_list(value: object) -> object:
    return [value] if isinstance(value, int | float) and not isinstance(value, bool) else value


Numbers = Annotated[tuple[float, ...], BeforeValidator(_as_list), Field(min_length=1)]


class PreprocessSettings(_Value):
    """Raw samples to model input: `raw * scale + offset`, then `layout` to `to`. What is absent is the source's own."""

    scale: Numbers | None = Field(default=None, examples=["0.00392156862745098 for 1/255"])
    offset: Numbers | None = None
    layout: Literal["NHW", "NHWC", "NCHW", ""] | None = None
    to: Literal["NHW", "NHWC", "NCHW", ""] | None = None


class ImageSettings(_Value):
    """What a folder of images is brought to: `size` `[H, W]` (the aspect is not kept), `channels` 1 or 3."""

    size: tuple[int, int] | None = None
    channels: Literal[1, 3] | None = None


class EnvironmentSettings(_Value):
    """The gymnasium environment that a policy acts in: its `name`, how many `episodes`, the `seed` of the first."""

    name: str
    episodes: int = Field(default=50, ge=1, le=10_000)
    seed: int = Field(default=0, ge=0)


class CardSplit(_Value):
    """One split: an `.npz` with `x` (or `x.<input>`, ...) and `y`, of which `rows` `[start, end]` (all without it).

    Arrays `slice.<column>` in it give each sample a text or number, by which accuracy is looked at in parts.
    """

    file: str
    rows: tuple[int, int] | None = None


class Card(_Value):
    """`card.yaml`: what a data set is, where it comes from, and the sha256 of each of its files."""

    name: str
    description: str = ""
    source: str
    licence: str
    task: Task = "classification"
    classes: tuple[str, ...] = ()
    preprocess: PreprocessSettings = PreprocessSettings()
    files: dict[str, str] = Field(min_length=1)
    splits: dict[str, CardSplit] = Field(min_length=1)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Found:
    """What a reader found, before splits are derived."""

    name: str
    splits: Mapping[str, Raw]
    preprocess: Preprocess = field(default_factory=Preprocess)
    classes: tuple[str, ...] = ()
    task: str = "classification"
    licence: str = ""
    card: Mapping[str, object] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def load_data(
    source: str | Path,
    *,
    base: Path = Path(),
    task: str | None = None,
    preprocess: Mapping[str, object] | None = None,
    splits: Mapping[str, str] | None = None,
    classes: Sequence[str] | None = None,
    images: Mapping[str, object] | None = None,
    decode: str | None = None,
    metrics: Mapping[str, str] | None = None,
    environment: Mapping[str, Any] | None = None,
) -> DataSet:
    """Load a data set, check every sample, and derive the splits that are missing.

    Args:
        source: a folder with `card.yaml`, a folder of images by class, a folder of one `.npz` a split, an `.npz`
            file (`x` and `y`, or `<split>_x` and `<split>_y`), or `module.py:function`. For a network with several
            inputs `x` is one array each: `x.input_ids`, `x.attention_mask`, or a dict from a function.
        base: what a relative source is relative to.
        task: one of `edgekit.tasks.TASKS`, "none" for data without labels; None takes it from the source.
        preprocess: values that replace the source's own: `scale`, `offset`, `layout`, `to`.
        splits: edgekit's split name -> the source's own name, such as `{"test": "val"}`.
        classes: class names, in the order of the labels.
        images: `size` `[H, W]` and `channels` (1 or 3) that a folder of images is brought to.
        decode: `module.py:function` that makes of a network's list of outputs what the task's metrics take.
        environment: of `task: policy`: `name` of a gymnasium environment, `episodes`, `seed`.
        metrics: name -> `module.py:function` that gets the outputs and the labels, and gives a number or one a sample.

    Raises:
        UsageError: the source is missing, damaged, empty, not finite, or its labels don't fit.
        MissingDependencyError: images need Pillow.

    >>> data = load_data("calibration_data/fashion_mnist")
    >>> {name: len(split) for name, split in data.splits.items()}
    {'train': 16000, 'calibration': 1024, 'test': 10000}
    """
    found = _read(str(source), base, splits or {}, _settings(ImageSettings, images, "images"))
    found = replace(
        found,
        task=task or found.task,
        classes=tuple(classes) if classes is not None else found.classes,
        preprocess=_overridden(found.preprocess, _settings(PreprocessSettings, preprocess, "preprocess")),
    )
    if not found.splits:
        raise UsageError(f"Data {found.name!r} holds no samples at all.")
    if found.task not in TASKS:
        raise UsageError(f"Data {found.name!r}: {unknown('task', found.task, TASKS)}")
    checked = {
        name: check_split(found.name, name, raw, found.preprocess, task=found.task, classes=len(found.classes))
        for name, raw in found.splits.items()
    }
    whole, notes = complete(found.name, checked)
    world = _environment(found, environment, decode, base)
    return DataSet(
        name=found.name,
        splits=whole,
        classes=found.classes,
        task=found.task,
        licence=found.licence,
        card=found.card,
        notes=(*found.notes, *notes),
        sha256=samples_digest(checked),
        decode=_function(decode, base) if decode else None,
        environment=world,
        metrics={name: _function(source, base) for name, source in (metrics or {}).items()},
    )


def _environment(found: _Found, given: Mapping[str, Any] | None, decode: str | None, base: Path) -> Environment | None:
    """The environment of a policy, which takes the samples as its observations."""
    if found.task != "policy" or not given:
        if found.task == "policy" or given:
            raise UsageError(
                f"Data {found.name!r}: `task: policy` and `environment` go together; the samples are observations, the "
                "environment is one of gymnasium's. Write `environment: {name: CartPole-v1}`."
            )
        return None
    settings = _settings(EnvironmentSettings, given, "environment").model_dump()
    gym = require("gymnasium", extra="metrics", why="the return of episodes")
    try:
        shape = gym.make(settings["name"]).observation_space.shape
    except gym.error.Error as error:
        raise UsageError(f"data.environment.name: {' '.join(str(error).split())}") from None
    for name, raw in found.splits.items():
        if not isinstance(raw.inputs, Mapping) and raw.inputs.shape[1:] != shape:
            raise UsageError(
                f"Data {found.name!r}, split {name!r}: samples have shape {list(raw.inputs.shape[1:])}; what "
                f"{settings['name']} lets observe has {list(shape)}."
            )
    file, _, function = (decode or "").rpartition(":")
    return Environment(**settings, decode=f"{(base / file).resolve()}:{function}" if decode else "")


def _function(source: str, base: Path) -> Callable[..., Any]:
    if not is_function(source):
        raise UsageError(f"{source!r} is no function. Write `file.py:function`, relative to the recipe's folder.")
    file, _, function = source.rpartition(":")
    return function_of(base / file, function)


def _settings(model: type[ModelT], given: Mapping[str, object] | None, what: str) -> ModelT:
    try:
        return model.model_validate(dict(given or {}))
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(f"data.{what}.{first['loc'][0]}: {explain(first, model)}") from None


def _overridden(own: Preprocess, settings: PreprocessSettings) -> Preprocess:
    return replace(own, **settings.model_dump(exclude_none=True))


def _read(source: str, base: Path, splits: Mapping[str, str], images: ImageSettings) -> _Found:
    if is_function(source):
        return _renamed(_from_function(source, base), splits)
    path = base / source
    if path.is_file() and path.suffix == ".npz":
        return _renamed(_Found(path.stem, _read_npz(path)), splits)
    if path.is_file() and path.name == "card.yaml":
        return _renamed(_from_card(path), splits)
    if path.is_dir():
        return _from_folder(path, splits, images)
    seen = "is not a data file" if path.exists() else "does not exist"
    raise UsageError(
        f"Data source {path} {seen}. Give a folder with card.yaml, an .npz file, a folder of images by class, or "
        "module.py:function."
    )


def _from_folder(path: Path, splits: Mapping[str, str], images: ImageSettings) -> _Found:
    if (path / "card.yaml").is_file():
        return _renamed(_from_card(path / "card.yaml"), splits)
    if splits and all(name.endswith(".npz") for name in splits.values()):
        return _Found(path.name, {split: _only(path / file, _read_npz(path / file)) for split, file in splits.items()})
    files = sorted(path.glob("*.npz"))
    if files:
        raw = {_canonical(file.stem): _only(file, _read_npz(file)) for file in files}
        return _renamed(_Found(path.name, raw), splits)
    from edgekit.imagefolder import read_images

    raw, classes, layout = read_images(path, size=images.size, channels=images.channels)
    found = _Found(path.name, {_canonical(name): value for name, value in raw.items()}, classes=classes)
    return replace(_renamed(found, splits), preprocess=Preprocess((1 / 255,), (0.0,), layout, "NCHW"))


def _canonical(name: str) -> str:
    return ALIASES.get(name.lower(), name.lower())


def _renamed(found: _Found, splits: Mapping[str, str]) -> _Found:
    """Only the splits that the recipe names, under edgekit's names; all of them when it names none."""
    if not splits:
        return found
    chosen = {}
    for name, own in splits.items():
        key = own if own in found.splits else _canonical(own)
        if key not in found.splits:
            raise UsageError(f"Data {found.name!r} has no split {own!r}. It has: {', '.join(found.splits)}.")
        chosen[name] = found.splits[key]
    return replace(found, splits=chosen)


def _read_npz(path: Path) -> dict[str, Raw]:
    arrays = _arrays(path)
    columns = {match: arrays.pop(key) for key in list(arrays) if (match := re.fullmatch(r"(?:(.+)_)?slice\.(.+)", key))}
    samples: dict[str, dict[str, Array]] = {}  # `x` or `<split>_x` -> input ("" where it is not named) -> array
    for key, array in arrays.items():
        found = re.fullmatch(r"(x|.*?_x)(?:\.(.+))?", key)
        if found:
            samples.setdefault(found[1], {})[found[2] or ""] = array
    if "x" in samples:
        samples = {"x": samples["x"]}
    if not samples:
        raise UsageError(
            f"{path} holds {', '.join(arrays) or 'nothing'}: edgekit reads `x` and `y`, or `<split>_x` and "
            "`<split>_y`; for a network with several inputs `x.<input>` each."
        )
    for group, named in samples.items():
        if "" in named and len(named) > 1:
            others = ", ".join(f"{group}.{name}" for name in named if name)
            raise UsageError(f"{path} holds both {group!r} and {others}: name all of them or none.")
    for match in columns:
        if (group := "x" if match[1] is None else f"{match[1]}_x") not in samples:
            raise UsageError(f"{path} holds the slices {match[0]!r} and no {group!r} that they could be of.")
    found_splits: dict[str, Raw] = {}
    for group, named in samples.items():
        split = "all" if group == "x" else _canonical(group.removesuffix("_x"))
        prefix = None if group == "x" else group.removesuffix("_x")
        slices = {match[2]: values for match, values in columns.items() if match[1] == prefix}
        found_splits[split] = Raw(named.get("", named), arrays.get(f"{group.removesuffix('x')}y"), slices=slices)
    return found_splits


def _only(path: Path, splits: Mapping[str, Raw]) -> Raw:
    if len(splits) != 1:
        raise UsageError(
            f"{path} holds several splits ({', '.join(splits)}); a file that is one split has `x` and `y`."
        )
    return next(iter(splits.values()))


def _arrays(path: Path) -> dict[str, Array]:
    """Every array of an `.npz`; pickled objects are refused, never executed."""
    import zipfile

    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(info.file_size for info in archive.infolist())
        if size > MAX_ARRAY_BYTES:
            raise UsageError(f"{path} unpacks to {size} bytes, more than the limit of {MAX_ARRAY_BYTES}.")
        with np.load(path, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in arrays.files}
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file.") from None
    except ValueError as error:
        if "allow_pickle" in str(error):
            raise UsageError(
                f"{path} holds pickled Python objects, which could run code; it was not loaded. Store plain arrays: "
                "numpy.savez_compressed(path, x=images, y=labels)."
            ) from None
        raise UsageError(f"{path} is damaged: {error}") from None
    except (zipfile.BadZipFile, EOFError, OSError, KeyError) as error:
        raise UsageError(f"{path} is not a readable .npz file: {error}") from None
    strange = [name for name, array in found.items() if not isinstance(array, np.ndarray)]
    if strange:
        raise UsageError(f"{path} is damaged: {', '.join(strange)} in it is no array.")
    return found


def _from_card(path: Path) -> _Found:
    document = read_yaml(path, "data card")
    card = document.validate(Card, document.value)
    folder = path.parent
    for name, expected in card.files.items():
        file = folder / name
        if not file.resolve().is_relative_to(folder.resolve()):
            raise document.error(("files", name), "lies outside the folder of the card.")
        if not file.is_file():
            raise document.error(("files", name), f"{file} does not exist.")
        if (seen := hashlib.sha256(file.read_bytes()).hexdigest()) != expected:
            raise document.error(
                ("files", name), f"sha256 of {file} is {seen}, the card says {expected}. Restore the file or the card."
            )
    arrays: dict[str, Raw] = {}
    splits: dict[str, Raw] = {}
    for name, split in card.splits.items():
        if split.file not in card.files:
            raise document.error(("splits", name, "file"), f"{split.file!r} has no sha256 under `files`.")
        if split.file not in arrays:
            arrays[split.file] = _only(folder / split.file, _read_npz(folder / split.file))
        splits[_canonical(name)] = _rows(arrays[split.file], Path(split.file).stem, split.rows)
    return _Found(
        name=card.name,
        splits=splits,
        preprocess=_overridden(Preprocess(), card.preprocess),
        classes=card.classes,
        task=card.task,
        licence=card.licence,
        card=card.model_dump(mode="json"),
        notes=card.notes,
    )


def _rows(raw: Raw, stem: str, rows: tuple[int, int] | None) -> Raw:
    x, y, _, slices = raw
    count = min(len(array) for array in x.values()) if isinstance(x, Mapping) else len(x)
    start, end = rows or (0, count)
    if not 0 <= start < end <= count:
        raise UsageError(f"Rows {start} to {end} are not within the {count} samples of {stem}.npz.")
    part: Inputs = {key: array[start:end] for key, array in x.items()} if isinstance(x, Mapping) else x[start:end]
    ids = tuple(f"{stem}/{i}" for i in range(start, end))
    return Raw(part, None if y is None else y[start:end], ids, {name: v[start:end] for name, v in slices.items()})


def _from_function(source: str, base: Path) -> _Found:
    file, _, function = source.rpartition(":")
    result = call_function(base / file, function)
    if isinstance(result, DataSet):
        raw = {
            name: Raw(s.inputs, s.labels if s.truth is None else s.truth, s.ids, s.slices)
            for name, s in result.splits.items()
        }
        first = next(iter(result.splits.values()), None)
        return _Found(
            name=result.name,
            splits=raw,
            preprocess=first.preprocess if first else Preprocess(),
            classes=result.classes,
            task=result.task,
            licence=result.licence,
            card=result.card,
            notes=result.notes,
        )
    if isinstance(result, Mapping) and result and all(isinstance(v, tuple) and len(v) == 2 for v in result.values()):
        try:
            pairs: dict[str, Raw] = {
                _canonical(str(k)): Raw(_inputs(source, x), None if y is None else np.asarray(y))
                for k, (x, y) in result.items()
            }
        except ValueError as error:
            raise UsageError(f"{source} returned samples or labels that are no array: {error}") from error
        return _Found(function, pairs)
    raise UsageError(
        f"{source} returned {type(result).__name__}: it must return an edgekit.DataSet or a dict of "
        "split name -> (samples, labels or None)."
    )


def _inputs(source: str, samples: object) -> Inputs:
    """What a function gave as samples: an array, or a dict of arrays by the name of the network's input."""
    if not isinstance(samples, Mapping):
        return np.asarray(samples)
    if not samples:
        raise UsageError(f"{source} returned an empty dict as samples: name at least one input of the network.")
    return {str(key): np.asarray(array) for key, array in samples.items()}
