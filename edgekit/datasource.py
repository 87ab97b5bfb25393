"""Where samples come from: a folder with a card, `.npz`, images by class, a function of the user's own."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from edgekit.data import DataSet, Preprocess, Split
from edgekit.errors import UsageError
from edgekit.usercode import call_function, is_function
from edgekit.yamlfile import ModelT, explain, read_yaml

HELD_OUT = 0.2
"""Share of a data set with one split that is held out as `test`."""
CALIBRATION_SAMPLES = 1024
"""Samples of `train` that serve as `calibration` where a source has no such split (never more than a quarter)."""
MAX_ARRAY_BYTES = 16 * 2**30
ALIASES = {"val": "validation", "valid": "validation", "dev": "validation", "calib": "calibration", "eval": "test"}

Array = npt.NDArray[Any]
Raw = tuple[Array, Array | None, tuple[str, ...] | None]
"""Samples, labels, ids (None: numbered)."""


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


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


class CardSplit(_Value):
    """One split: an `.npz` with `x` and `y`, of which `rows` `[start, end]` (all without it)."""

    file: str
    rows: tuple[int, int] | None = None


class Card(_Value):
    """`card.yaml`: what a data set is, where it comes from, and the sha256 of each of its files."""

    name: str
    description: str = ""
    source: str
    licence: str
    task: Literal["classification", "none"] = "classification"
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


def load(
    source: str,
    *,
    base: Path,
    task: str | None,
    preprocess: Mapping[str, object] | None,
    splits: Mapping[str, str] | None,
    classes: Sequence[str] | None,
    images: Mapping[str, object] | None,
) -> DataSet:
    """See `edgekit.data.load_data`."""
    found = _read(source, base, splits or {}, _settings(ImageSettings, images, "images"))
    found = replace(
        found,
        task=task or found.task,
        classes=tuple(classes) if classes is not None else found.classes,
        preprocess=_overridden(found.preprocess, _settings(PreprocessSettings, preprocess, "preprocess")),
    )
    checked = {name: _check(found, name, raw) for name, raw in found.splits.items()}
    complete, notes = _derive(found.name, checked)
    return DataSet(
        name=found.name,
        splits=complete,
        classes=found.classes,
        task=found.task,
        licence=found.licence,
        card=found.card,
        notes=(*found.notes, *notes),
        sha256=_digest(checked),
    )


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
    if "x" in arrays:
        pairs = {"all": ("x", "y")}
    else:
        names = [key.removesuffix("_x") for key in arrays if key.endswith("_x")]
        pairs = {_canonical(name): (f"{name}_x", f"{name}_y") for name in names}
    if not pairs:
        raise UsageError(
            f"{path} holds {', '.join(arrays) or 'nothing'}: edgekit reads `x` and `y`, or `<split>_x` and `<split>_y`."
        )
    return {name: (arrays[x], arrays.get(y), None) for name, (x, y) in pairs.items()}


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
            return {name: arrays[name] for name in arrays.files}
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
    x, y, _ = raw
    start, end = rows or (0, len(x))
    if not 0 <= start < end <= len(x):
        raise UsageError(f"Rows {start} to {end} are not within the {len(x)} samples of {stem}.npz.")
    return x[start:end], None if y is None else y[start:end], tuple(f"{stem}/{i}" for i in range(start, end))


def _from_function(source: str, base: Path) -> _Found:
    file, _, function = source.rpartition(":")
    result = call_function(base / file, function)
    if isinstance(result, DataSet):
        raw = {name: (s.inputs, s.labels, s.ids) for name, s in result.splits.items()}
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
    if isinstance(result, Mapping) and all(isinstance(v, tuple) and len(v) == 2 for v in result.values()):
        pairs = {
            _canonical(str(k)): (np.asarray(x), None if y is None else np.asarray(y), None)
            for k, (x, y) in result.items()
        }
        return _Found(function, pairs)
    raise UsageError(
        f"{source} returned {type(result).__name__}: it must return an edgekit.DataSet or a dict of "
        "split name -> (samples, labels or None)."
    )


def _check(found: _Found, name: str, raw: Raw) -> Split:
    """One split, with every sample and label looked at."""
    x, y, ids = raw
    where = f"Data {found.name!r}, split {name!r}"
    if x.ndim < 2 or len(x) == 0:
        raise UsageError(f"{where} is empty: its samples have shape {list(x.shape)}, [N, ...] with N >= 1 is needed.")
    if x.dtype.kind not in "uif":
        raise UsageError(f"{where}: samples are of type {x.dtype}; integers or floats are needed.")
    if x.dtype.kind == "f":
        _check_finite(where, x)
    labels = None
    if found.task == "classification" and y is not None:
        labels = _check_labels(where, y, len(x), len(found.classes))
    return Split(name, x, labels, ids or tuple(f"{name}/{i}" for i in range(len(x))), found.preprocess)


def _check_finite(where: str, x: Array) -> None:
    for start in range(0, len(x), 1024):
        bad = ~np.isfinite(x[start : start + 1024]).reshape(len(x[start : start + 1024]), -1).all(axis=1)
        if bad.any():
            raise UsageError(f"{where}: sample {start + int(bad.argmax())} holds NaN or infinity. Remove or repair it.")


def _check_labels(where: str, y: Array, count: int, classes: int) -> npt.NDArray[np.int64]:
    if y.ndim != 1 or len(y) != count:
        raise UsageError(f"{where}: {count} samples need labels of shape [{count}], got {list(y.shape)}.")
    if y.dtype.kind not in "ui":
        raise UsageError(f"{where}: labels are of type {y.dtype}; whole numbers from 0 are needed.")
    low, high = int(y.min()), int(y.max())
    if low < 0 or (classes and high >= classes):
        bad, limit = (
            (low, int(y.argmin())) if low < 0 else (high, int(y.argmax())),
            f"0 to {classes - 1}" if classes else "0 and up",
        )
        raise UsageError(f"{where}: label {bad[0]} (sample {bad[1]}) is out of range: classes are {limit}.")
    return y.astype(np.int64)


def _shuffled(ids: Sequence[str]) -> npt.NDArray[np.int64]:
    """Row numbers in an order that depends on the ids alone: the same on every machine and numpy version."""
    keys = [hashlib.blake2b(name.encode(), digest_size=8).digest() for name in ids]
    return np.array(sorted(range(len(ids)), key=lambda row: keys[row]), dtype=np.int64)


def _derive(name: str, given: Mapping[str, Split]) -> tuple[dict[str, Split], tuple[str, ...]]:
    """Add what is missing of `train`, `calibration` and `test`, and say what was done."""
    splits, notes = dict(given), []
    if "test" not in splits and "validation" in splits:
        splits["test"] = replace(splits["validation"], name="test")
        notes.append(f"Data {name!r} has no test split: accuracy is measured on its validation split.")
    pool = splits.pop("all", None) or (splits.get("train") if "test" not in splits else None)
    if pool is not None:
        order, held = _shuffled(pool.ids), max(1, round(len(pool) * HELD_OUT))
        if len(pool) < 2:
            raise UsageError(
                f"Data {name!r} holds {len(pool)} sample; a test sample must not calibrate, so 2 are needed."
            )
        splits["test"] = pool.take(np.sort(order[:held]), "test")
        splits["train"] = pool.take(np.sort(order[held:]), "train")
        notes.append(
            f"Data {name!r} has one split only: {held} of its {len(pool)} samples were held out as test, and accuracy "
            "is measured on them. If the model was trained on them, its accuracy on new data is lower."
        )
    if "calibration" not in splits and (train := splits.get("train")) is not None:
        count = max(1, min(CALIBRATION_SAMPLES, len(train) // 4))
        splits["calibration"] = train.take(_balanced(train, count), "calibration")
        notes.append(f"Data {name!r} has no calibration split: {count} samples of train serve, by a fixed rule.")
    return splits, tuple(notes)


def _balanced(split: Split, count: int) -> npt.NDArray[np.int64]:
    """`count` rows with every class as often as any other, as far as there are enough."""
    order = _shuffled(split.ids)
    if split.labels is None:
        return np.sort(order[:count])
    seen: dict[int, int] = {}
    ranks = []
    for row in order:
        label = int(split.labels[row])
        ranks.append(seen.get(label, 0))
        seen[label] = ranks[-1] + 1
    return np.sort(order[np.argsort(ranks, kind="stable")[:count]])


def _digest(splits: Mapping[str, Split]) -> str:
    digest = hashlib.sha256()
    for name in sorted(splits):
        split = splits[name]
        digest.update(f"{name} {split.inputs.dtype.str} {split.inputs.shape} {split.preprocess}".encode())
        digest.update(np.ascontiguousarray(split.inputs).data)
        if split.labels is not None:
            digest.update(split.labels.data)
    return digest.hexdigest()
