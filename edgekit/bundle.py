"""The file that ships: a stored zip that Python can execute, with model, manifest, golden samples and the agent."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import shutil
import struct
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgekit.agent import seal
from edgekit.agent.arrays import write_npz
from edgekit.errors import DeviceError, IntegrityError, UsageError
from edgekit.model import Precision, Role
from edgekit.sealed import (
    LARGEST_MANIFEST,
    check_arrays,
    check_distinct,
    check_members,
    check_name,
    misplaced,
    shortened,
)

AGENT = Path(__file__).parent / "agent"
RUNNER_FILES: dict[str, tuple[str, ...]] = {
    "onnxruntime": ("onnxruntime.py",),
    "openvino": ("openvino.py",),
    "litert": ("litert.py",),
    "tensorrt": ("tensorrt.py", "tensorrt_build.py", "cudart.py"),
}
"""What of `agent/runners` travels in a bundle of each backend."""

LARGEST = 2**31 - 1
"""Python executes no larger zip."""

MAIN = (
    b"""\
# A model with what runs it. Try: python3 <this file> selftest
import edgekit_agent.start
edgekit_agent.start.main()
raise SystemExit(8)
"""
    + b"#" * 287
    + b"\n"
)
"""`__main__.py`. `main` never returns; where a damaged file skips it, the last line still fails.

A changed byte in the zip's directory can cut it short at any length that differs in one byte. The padding sees to
it that every such length still holds all of the code.
"""


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class TensorEntry(_Value):
    """An input or output of the shipped model; `step` is the quantization step of a quantized output."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    step: float | None = None


class PreprocessEntry(_Value):
    """Raw sample to model input, as the agent does it: see `edgekit.data.Preprocess`."""

    scale: tuple[float, ...] = (1.0,)
    offset: tuple[float, ...] = (0.0,)
    layout: str = ""
    to: str = ""


class Manifest(_Value):
    """`manifest.json` of a bundle, schema version 1."""

    schema_version: Literal[1] = 1
    model: str
    target: str
    backend: str
    role: Role
    precision: Precision
    status: Literal["built", "emitted"]
    entry: str
    runner: dict[str, Any] = Field(default_factory=dict)
    inputs: tuple[TensorEntry, ...]
    outputs: tuple[TensorEntry, ...]
    preprocess: PreprocessEntry = PreprocessEntry()
    tolerance: dict[str, float]
    """How far `selftest` may stray from the golden outputs.

    `{"steps": 1}`: quantization steps, for an output that has one. `{"absolute": 1e-4}`: times max(1, largest
    magnitude). Both may be given; an output without a step takes the second.
    """
    members: dict[str, str] = Field(default_factory=dict)
    """sha256 of every other member of the zip, by name."""
    source_sha256: str = ""
    stages: tuple[dict[str, Any], ...] = ()
    versions: dict[str, str] = Field(default_factory=dict)
    """Of the runtime that the model was compiled with, and of what converted it."""
    edgekit: str = ""
    """Version that wrote the bundle, and that its agent is of."""
    data: dict[str, str] = Field(default_factory=dict)
    """What it was calibrated and scored on: `name`, `sha256` over its samples, `task`."""
    licences: dict[str, str] = Field(default_factory=dict)
    """Of the "model" and the "data", as the recipe and the data's card say; of packages, as they say themselves."""


@dataclass(frozen=True)
class Bundle:
    """An opened, verified bundle. `model_bytes` counts the compiled model's files alone."""

    path: Path
    manifest: Manifest
    sha256: str
    model_bytes: int

    @property
    def size_bytes(self) -> int:
        """The whole file."""
        return self.path.stat().st_size


def write_bundle(
    path: Path,
    manifest: Manifest,
    files: Mapping[str, Path],
    golden_inputs: Sequence[npt.NDArray[Any]],
    golden_outputs: Sequence[npt.NDArray[Any]],
    extra: Mapping[str, bytes] | None = None,
) -> Bundle:
    """Write a bundle: the same arguments give the same bytes.

    Args:
        path: where to put it, `<model>-<target>-<backend>-<role>-<precision>.edge`.
        manifest: without `members`, which are filled in.
        files: the compiled model's files, by their name in the bundle's `model/`; `manifest.entry` is one of them.
        golden_inputs: preprocessed samples `[n, ...]`, one array an input of the manifest.
        golden_outputs: what the compiled model gave for them, one array an output.
        extra: further members, by name, that running the model does not need.

    Raises:
        UsageError: the folder cannot be written, or names or counts do not fit the manifest.
        DeviceError: the disk is full; nothing is left behind.
    """
    _check_parts(manifest, files, golden_inputs, golden_outputs)
    members: dict[str, bytes | Path] = dict(_agent_files(manifest.backend))
    members |= {f"model/{name}": file for name, file in files.items()}
    members["golden/inputs.npz"] = _npz([e.name for e in manifest.inputs], golden_inputs)
    members["golden/outputs.npz"] = _npz([e.name for e in manifest.outputs], golden_outputs)
    members |= extra or {}
    for name in members:
        check_name(name, UsageError)
    check_distinct(path, list(members), UsageError)
    full = manifest.model_copy(update={"members": {name: _sha256(members[name]) for name in sorted(members)}})
    members["manifest.json"] = full.model_dump_json(indent=1).encode()
    with _replacing(path) as file:
        _write_zip(file, members)
        digest = _seal(file)
    sizes = {name: file.stat().st_size for name, file in files.items()}
    return Bundle(path=path, manifest=full, sha256=digest, model_bytes=_model_bytes(full, sizes))


def open_bundle(path: Path) -> Bundle:
    """Verify a bundle, whole, before anything of it is used or run.

    Raises:
        UsageError: there is no such file.
        IntegrityError: the digest does not match, something trails, a member's name is unsafe or its content is not
            what the manifest says, or the manifest is not one.

    >>> open_bundle(Path("absent.edge"))
    Traceback (most recent call last):
        ...
    edgekit.errors.UsageError: cannot read the bundle absent.edge: No such file or directory
    """
    path = Path(path)
    if path.is_fifo():
        raise UsageError(f"cannot read the bundle {path}: it is a pipe. Copy it into a file first")
    try:
        reason = seal.broken(str(path)) or misplaced(path)
    except OSError as error:
        raise UsageError(f"cannot read the bundle {path}: {error.strerror}") from error
    if reason:
        raise IntegrityError(f"{path}: {reason}. Copy it again from where it was built, or build it again.")
    try:
        with zipfile.ZipFile(path) as bundle:
            return _verified(path, bundle)
    except (zipfile.BadZipFile, NotImplementedError, EOFError, ValueError, struct.error) as error:
        raise IntegrityError(f"{path}: not a bundle: {error}") from error


def read_golden(bundle: Bundle, which: Literal["inputs", "outputs"]) -> tuple[npt.NDArray[Any], ...]:
    """The golden arrays of a bundle, in the manifest's order."""
    with zipfile.ZipFile(bundle.path) as archive:
        arrays = np.load(io.BytesIO(archive.read(f"golden/{which}.npz")), allow_pickle=False)
    return tuple(arrays[entry.name] for entry in getattr(bundle.manifest, which))


def read_member(bundle: Bundle, name: str) -> bytes | None:
    """A member's content, None where the bundle has no such member."""
    if name not in bundle.manifest.members:
        return None
    with zipfile.ZipFile(bundle.path) as archive:
        return archive.read(name)


def extract_model(bundle: Bundle, folder: Path) -> list[Path]:
    """The plain model files of a bundle, for people who want to load them in an app of their own."""
    written = []
    with zipfile.ZipFile(bundle.path) as archive:
        for name in bundle.manifest.members:
            if name.startswith("model/"):
                target = folder / name.removeprefix("model/")
                with _replacing(target) as file, archive.open(name) as member:
                    shutil.copyfileobj(member, file, 1 << 20)
                written.append(target)
    return written


def _check_parts(
    manifest: Manifest,
    files: Mapping[str, Path],
    golden_inputs: Sequence[npt.NDArray[Any]],
    golden_outputs: Sequence[npt.NDArray[Any]],
) -> None:
    if manifest.entry not in files:
        raise UsageError(f"the entry {manifest.entry!r} is not among the model files {sorted(files)}")
    if manifest.backend not in RUNNER_FILES and manifest.runner.get("module") not in files:
        raise UsageError(
            f"no runner for backend {manifest.backend!r}. Available: {', '.join(RUNNER_FILES)}; a backend from "
            "elsewhere names the file with its own as `module` in `Built.runner`"
        )
    for kind, entries, arrays in (
        ("input", manifest.inputs, golden_inputs),
        ("output", manifest.outputs, golden_outputs),
    ):
        if len(entries) != len(arrays) or len({entry.name for entry in entries}) != len(entries):
            raise UsageError(f"{len(arrays)} golden {kind}s for the {kind}s {[entry.name for entry in entries]}")


def _agent_files(backend: str) -> Iterator[tuple[str, bytes]]:
    yield "__main__.py", MAIN
    runners = [AGENT / "runners" / name for name in ("__init__.py", *RUNNER_FILES.get(backend, ()))]
    for file in [*AGENT.glob("*.py"), *runners]:
        yield f"edgekit_agent/{file.relative_to(AGENT).as_posix()}", file.read_bytes()


def _npz(names: Sequence[str], arrays: Sequence[npt.NDArray[Any]]) -> bytes:
    buffer = io.BytesIO()
    write_npz(buffer, dict(zip(names, arrays, strict=True)))
    return buffer.getvalue()


def _sha256(content: bytes | Path) -> str:
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    with content.open("rb") as file:
        return _digest(file)


def _digest(file: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


@contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    """A temporary file that takes `path`'s place when all went well, and is gone when not."""
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name[:64]}-", dir=path.parent)
        with os.fdopen(handle, "w+b") as file:
            yield file
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise DeviceError(f"cannot write {path}: {error.strerror}. Free some space and try again.") from error
        raise UsageError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if temporary:
            Path(temporary).unlink(missing_ok=True)


def _write_zip(file: IO[bytes], members: Mapping[str, bytes | Path]) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as bundle:
        for name in sorted(members):
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            info.create_system, info.external_attr = 3, 0o644 << 16
            content = members[name]
            info.file_size = len(content) if isinstance(content, bytes) else content.stat().st_size
            if file.tell() + info.file_size > LARGEST:
                raise UsageError(f"the bundle would be larger than {LARGEST} bytes, the most that Python can execute")
            with bundle.open(info, "w") as member:
                if isinstance(content, bytes):
                    member.write(content)
                else:
                    with content.open("rb") as source:
                        while block := source.read(1 << 20):
                            member.write(block)
        bundle.comment = seal.PREFIX + b"0" * 64


def _seal(file: IO[bytes]) -> str:
    """Put the digest of all that comes before it into the zip comment."""
    left = file.seek(0, os.SEEK_END) - seal.LENGTH
    digest = hashlib.sha256()
    file.seek(0)
    while left > 0:
        block = file.read(min(left, 1 << 20))
        digest.update(block)
        left -= len(block)
    file.seek(-64, os.SEEK_END)
    file.write(digest.hexdigest().encode())
    file.flush()
    return digest.hexdigest()


def _verified(path: Path, bundle: zipfile.ZipFile) -> Bundle:
    infos = bundle.infolist()
    with path.open("rb") as file:
        check_members(path, file, infos, bundle.start_dir)
    sizes = {info.filename: info.file_size for info in infos}
    manifest = _manifest(path, bundle, sizes)
    if set(manifest.members) != set(sizes) - {"manifest.json"}:
        differing = sorted(set(manifest.members) ^ (set(sizes) - {"manifest.json"}))
        raise IntegrityError(
            f"{path}: its members are not those of its manifest: {', '.join(map(shortened, differing[:5]))}"
        )
    for name in ("__main__.py", "golden/inputs.npz", "golden/outputs.npz", f"model/{manifest.entry}"):
        if name not in sizes:
            raise IntegrityError(f"{path}: it lacks {shortened(name)}")
    for name, expected in manifest.members.items():
        with bundle.open(name) as member:
            if _digest(member) != expected:
                raise IntegrityError(f"{path}: member {shortened(name)} is not what the manifest says")
    for which, entries in (("inputs", manifest.inputs), ("outputs", manifest.outputs)):
        with bundle.open(f"golden/{which}.npz") as member:
            if reason := check_arrays(member, [entry.name for entry in entries]):
                raise IntegrityError(f"{path}: golden/{which}.npz {reason}")
    models = {name.removeprefix("model/"): size for name, size in sizes.items() if name.startswith("model/")}
    digest = bundle.comment[-64:].decode()
    return Bundle(path=path, manifest=manifest, sha256=digest, model_bytes=_model_bytes(manifest, models))


def _model_bytes(manifest: Manifest, sizes: Mapping[str, int]) -> int:
    """The model's files alone: a runner that came along with them is code."""
    return sum(size for name, size in sizes.items() if name != manifest.runner.get("module"))


def _manifest(path: Path, bundle: zipfile.ZipFile, sizes: Mapping[str, int]) -> Manifest:
    size = sizes.get("manifest.json")
    if size is None:
        raise IntegrityError(f"{path}: it has no manifest.json: not a bundle")
    if size > LARGEST_MANIFEST:
        raise IntegrityError(f"{path}: its manifest.json has {size} bytes: not a bundle")
    try:
        return Manifest.model_validate_json(bundle.read("manifest.json"))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = shortened(".".join(map(str, first["loc"])))[1:-1]
        raise IntegrityError(
            f"{path}: manifest.json: {where}: {first['msg']} (got {shortened(str(first['input']))})"
        ) from error


def unlike(bundle: Bundle, measured: str | None) -> str:
    """Why a bundle is not the one that was measured, or "".

    Args:
        bundle: an opened one.
        measured: `bundle_sha256` of the report's result; None where the report is from before that field.
    """
    if measured is None:
        return "the report does not say which bundle it measured (it has no bundle_sha256). Run the recipe again"
    if measured != bundle.sha256:
        return (
            f"it is not the bundle that was measured: its sha256 is {bundle.sha256}, the report's {shortened(measured)}"
        )
    return ""
