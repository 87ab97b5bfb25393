"""The output folder of a run: what lies where, what is kept between a killed run and its `--resume`."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import numpy.typing as npt

from edgekit.errors import DeviceError, UsageError
from edgekit.model import Model, OnnxModel, Step, TorchModel
from edgekit.quant.spec import Variant

if TYPE_CHECKING:
    from edgekit.context import Progress
    from edgekit.data import DataSet
    from edgekit.target import Target


def digest(*parts: str | bytes | Path) -> str:
    """sha256 over texts, bytes and the contents of files, in order, each with its length before it."""
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            total.update(part.stat().st_size.to_bytes(8, "big"))
            with part.open("rb") as file:
                while block := file.read(1 << 20):
                    total.update(block)
            continue
        data = part.encode() if isinstance(part, str) else part
        total.update(len(data).to_bytes(8, "big") + data)
    return total.hexdigest()


@contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Turn what the operating system says about a folder into this project's errors."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DeviceError(
                f"{folder}: the disk is full ({error.strerror}). Free some space and use --resume."
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG):
            raise UsageError(
                f"{folder}: cannot be written ({error.strerror}). Choose another folder with --out."
            ) from error
        raise


FOLDERS = ("bundles", "models", "predictions", "samples", "work")
REPORTS = ("report.json", "report.html")


def _lock(root: Path) -> int | None:
    """Keep a second run out of the folder until this one closes it or ends."""
    handle = os.open(root, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise UsageError(f"{root}: another run is writing there. Wait for it, or choose another with --out.") from None
    except OSError:  # a file system without locks
        os.close(handle)
        return None
    return handle


@dataclass(frozen=True)
class Workspace:
    """Folders of one run. `bundles`, `models`, `predictions` and `samples` are results; `work` is for resuming."""

    root: Path
    lock: int | None = None
    """The open folder itself, while a run holds it."""

    @staticmethod
    def check(root: Path) -> None:
        """Fail early where the folder cannot be made or written, before anything long; nothing is left behind."""
        if str(root) != str(root).encode(errors="replace").decode():
            raise UsageError(f"{root}: runtimes need names in UTF-8. Choose another folder with --out.")
        try:
            with writing_to(root):
                there = next(f for f in (root, *root.absolute().parents) if f.exists())
                with tempfile.TemporaryFile(dir=there) as probe:
                    probe.write(b"edgekit")
        except FileNotFoundError as error:  # below a folder that was removed, or in /proc
            raise UsageError(f"{root}: cannot be made there. Choose another folder with --out.") from error

    @classmethod
    def open(cls, root: Path, *, resume: bool) -> Workspace:
        """Make the folders; without `resume` earlier work is removed."""
        with writing_to(root):
            root.mkdir(parents=True, exist_ok=True)
            space = cls(root.resolve(), _lock(root))
            if not resume and space.work.exists():
                if not all((space.root / name).is_dir() for name in FOLDERS):
                    raise UsageError(f"{root}: its folder 'work' is not of an earlier run. Choose another with --out.")
                shutil.rmtree(space.work)
            for name in FOLDERS:
                (space.root / name).mkdir(exist_ok=True)
            for name in REPORTS:
                (space.root / name).unlink(missing_ok=True)  # it would tell of bundles that are being replaced
        return space

    def close(self) -> None:
        """Let other runs write here."""
        if self.lock is not None:
            os.close(self.lock)

    @property
    def bundles(self) -> Path:
        """The `.edge` files."""
        return self.root / "bundles"

    @property
    def models(self) -> Path:
        """The plain model files, a folder a bundle."""
        return self.root / "models"

    @property
    def predictions(self) -> Path:
        """What every bundle answered to every test sample."""
        return self.root / "predictions"

    @property
    def samples(self) -> Path:
        """Raw latencies."""
        return self.root / "samples"

    @property
    def work(self) -> Path:
        """What `--resume` goes on from."""
        return self.root / "work"

    def relative(self, path: Path) -> str:
        """A path inside the output folder as the report holds it."""
        return path.resolve().relative_to(self.root).as_posix()

    def stage(self, number: int, name: str) -> Path:
        """The folder that a stage may keep its own checkpoints in."""
        folder = self.work / f"{number}-{name}"
        folder.mkdir(exist_ok=True)
        return folder


@dataclass(frozen=True)
class Context:
    """The pipeline's `RunContext` for one stage."""

    data: DataSet
    targets: tuple[Target, ...]
    seed: int
    work: Path
    deadline: float | None
    progress: Progress

    measuring: Callable[..., dict[str, Any]]
    base: Path = Path()

    def measure(
        self, model: Model, target: Target, *, backend: str = "", against: Model | None = None
    ) -> dict[str, Any]:
        """How long `model` takes on `target`'s device: see `edgekit.probing`."""
        return self.measuring(model, target, backend=backend, against=against)


def save_stage(folder: Path, key: str, model: Model) -> None:
    """Keep a stage's result; `done.json` is written last and says what it was made from."""
    from edgekit.graph.io import save_onnx

    with writing_to(folder):
        (folder / "done.json").unlink(missing_ok=True)
        if isinstance(model, TorchModel):
            from edgekit.train.checkpoint import save_torch

            save_torch(model, folder / "model")
        else:
            (folder / "model").mkdir(exist_ok=True)
            save_onnx(model.proto, folder / "model" / "graph.onnx")
            if model.quant is not None:
                (folder / "model" / "quant.json").write_text(model.quant.to_json(), encoding="utf-8")
            for variant, changed in model.corrections.items():
                # By position: any text can be the name of an initializer, and not all of them can be keywords.
                file = folder / "model" / f"corrections-{variant}.npz"
                np.savez(file, *changed.values(), names=np.array(list(changed)), allow_pickle=False)
        files = _files(folder / "model")
        done = {"key": key, "kind": type(model).__name__, "step": asdict(model.history[-1]), "files": files}
        temporary = folder / ".done.json"
        temporary.write_text(json.dumps(done, indent=1, default=str), encoding="utf-8")
        temporary.replace(folder / "done.json")


def _files(folder: Path) -> dict[str, str]:
    return {path.name: digest(path) for path in sorted(folder.iterdir())}


def load_stage(folder: Path, key: str, before: Model) -> Model | None:
    """The result that an earlier run kept for exactly this `key`, or None: a damaged one is none."""
    from edgekit.graph.io import load_onnx
    from edgekit.graph.tools import tensor_specs
    from edgekit.quant.spec import QuantSpec

    try:
        done: Mapping[str, Any] = json.loads((folder / "done.json").read_text(encoding="utf-8"))
        if done["key"] != key or done["files"] != _files(folder / "model"):
            return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    listed = {name: tuple(done["step"].get(name, ())) for name in ("notes", "warnings", "curve", "sensitivity")}
    step = Step(**{**done["step"], **listed})
    if done["kind"] == "TorchModel":
        from edgekit.train.checkpoint import load_torch

        assert isinstance(before, TorchModel)
        return load_torch(folder / "model", before).after(step)
    proto = load_onnx(folder / "model" / "graph.onnx")
    quant = folder / "model" / "quant.json"
    spec = QuantSpec.from_json(quant.read_text(encoding="utf-8"), str(quant)) if quant.exists() else None
    inputs, outputs = tensor_specs(proto)
    return OnnxModel(
        name=before.name, proto=proto, inputs=inputs, outputs=outputs, quant=spec,
        history=(*before.history, step), original=before.reference, corrections=_corrections(folder / "model"),
    )  # fmt: skip


def _corrections(folder: Path) -> dict[Variant, dict[str, npt.NDArray[np.float32]]]:
    """What `save_stage` kept of `OnnxModel.corrections`."""
    found: dict[Variant, dict[str, npt.NDArray[np.float32]]] = {}
    for variant in get_args(Variant):
        path = folder / f"corrections-{variant}.npz"
        if path.exists():
            with np.load(path, allow_pickle=False) as arrays:
                names = [str(name) for name in arrays["names"]]
                found[variant] = {name: arrays[f"arr_{i}"] for i, name in enumerate(names)}
    return found
