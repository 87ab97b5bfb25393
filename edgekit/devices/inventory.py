"""The boards that a user registered: `~/.config/edgekit/devices.yaml`, or the file that EDGEKIT_DEVICES names.

It holds no secrets: how to log in is what `~/.ssh/config`, the agent and `known_hosts` say.
"""

from __future__ import annotations

import fcntl
import io
import os
import re
import tempfile
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from edgekit.errors import UsageError
from edgekit.extras import unknown
from edgekit.yamlfile import Document, read_yaml

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
PLAIN = re.compile(r"[A-Za-z/~][A-Za-z0-9/~._-]*")
HEADER = "# Boards of edgekit: `edgekit devices add|remove|calibrate` write here. No secrets: SSH has its own places.\n"


def _one_line(text: str) -> str:
    odd = any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in text)  # controls, no characters, line ends
    if not text.strip() or text.startswith("-") or odd:
        raise ValueError(f"must be text on one line that does not start with '-', got {text!r}.")
    return text


def _without(forbidden: str) -> AfterValidator:
    """A word that may stand in a ProxyCommand of `~/.ssh/config`, which a shell reads; the rule of OpenSSH 9.6."""

    def check(text: str) -> str:
        if any(ord(c) > 126 or c.isspace() or c in forbidden for c in text) or text.endswith("\\"):
            raise ValueError(f"must be plain, without spaces, quotes and signs of a shell, got {text!r}.")
        return text

    return AfterValidator(check)


Word = Annotated[str, AfterValidator(_one_line)]
Host = Annotated[Word, _without("'`\"$\\;&<>|(){}")]
User = Annotated[Word, _without("'`\";&<>|(){}")]


class Noise(BaseModel):
    """The board against itself, as `edgekit devices calibrate` measured it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    half_width: float = Field(gt=0, lt=1, description="half of the interval of A against A, as a share of the time")
    rounds: int = Field(gt=1, description="interleaved rounds that it comes from")
    bundle: str = Field(description="sha256 of the bundle that it was measured with")
    measured: str = Field(description="when, in UTC")


class Entry(BaseModel):
    """One board. `host` is a name, an address, or an alias of `~/.ssh/config`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["ssh"] = "ssh"
    host: Host
    user: User | None = None
    port: int | None = Field(None, ge=1, le=65535)
    python: Word = Field("python3", description="the Python on the board, 3.9 or later")
    folder: Word = Field("~/.cache/edgekit-board", description="the folder on the board that edgekit keeps to")
    target: Word | None = Field(None, description="the target that the board is one of")
    emulated: bool = Field(False, description="true where it runs in an emulator: it is never timed")
    wait: bool = Field(False, description="true queues behind another user of the board; false is refused at once")
    quota_mb: int = Field(4000, ge=50, description="the most that edgekit keeps on the board, in MB")
    noise: Noise | None = None


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    devices: dict[str, Any] = Field(default_factory=dict)


def inventory_path() -> Path:
    """EDGEKIT_DEVICES, or `devices.yaml` in the user's configuration folder."""
    chosen = os.environ.get("EDGEKIT_DEVICES")
    home = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(chosen).expanduser() if chosen else Path(home).expanduser() / "edgekit" / "devices.yaml"


def load_inventory(path: Path | None = None) -> dict[str, Entry]:
    """Name -> board; empty where there is no file.

    Raises:
        UsageError: with file and line of what is wrong.
    """
    path = path or inventory_path()
    if not path.exists():
        return {}
    return _entries(read_yaml(path, "device inventory"))


def _entries(document: Document) -> dict[str, Entry]:
    file = document.validate(_File, document.value)
    found = {}
    for name, value in file.devices.items():
        try:
            check_name(name)
        except UsageError as error:
            raise document.error(("devices", name), str(error)) from None
        found[name] = document.validate(Entry, value, ("devices", name))
    return found


def check_name(name: str) -> str:
    """`name` if a board may be called that.

    >>> check_name("pi 5")
    Traceback (most recent call last):
        ...
    edgekit.errors.UsageError: 'pi 5' is no name for a device: use letters, digits, '.', '_' and '-', 64 at most.
    """
    from edgekit.devices import DEVICES

    if not NAME.fullmatch(name):
        raise UsageError(f"{name!r} is no name for a device: use letters, digits, '.', '_' and '-', 64 at most.")
    if name in DEVICES:
        raise UsageError(f"{name!r} is a device of edgekit itself: choose another name.")
    return name


def check_free(name: str, path: Path | None = None) -> None:
    """Refuse a name that is registered already."""
    if name in load_inventory(path):
        raise UsageError(f"A device {name!r} is registered already. --replace takes its place.")


def find(name: str, path: Path | None = None) -> Entry:
    """The board `name`.

    Raises:
        UsageError: none is called that.
    """
    from edgekit.devices import DEVICES

    known = load_inventory(path)
    if name in DEVICES:
        raise UsageError(f"{name!r} is a device of edgekit itself, no registered board.")
    if name not in known:
        raise UsageError(unknown("registered device", name, known) + " `edgekit devices add` registers one.")
    return known[name]


def register(name: str, entry: Entry, *, replace: bool = False, path: Path | None = None) -> None:
    """Add a board to the file; with `replace` one of that name gives way.

    Raises:
        UsageError: the name is taken or unfit, or the file cannot be used.
    """
    check_name(name)
    with _changing(path or inventory_path()) as devices:
        if name in devices and not replace:
            raise UsageError(f"A device {name!r} is registered already. --replace takes its place.")
        devices[name] = entry


def unregister(name: str, path: Path | None = None) -> Entry:
    """Take a board out of the file; what it was.

    Raises:
        UsageError: none is called that.
    """
    with _changing(path or inventory_path()) as devices:
        if name not in devices:
            raise UsageError(unknown("registered device", name, devices))
        return devices.pop(name)


@contextmanager
def _changing(path: Path) -> Iterator[dict[str, Entry]]:
    """The boards, to be changed and written back; two processes take turns."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror}). EDGEKIT_DEVICES names another file.") from None
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        devices = load_inventory(path)
        yield devices
        _write(path, devices)
    finally:
        os.close(lock)


def _write(path: Path, devices: Mapping[str, Entry]) -> None:
    from ruamel.yaml import YAML
    from ruamel.yaml.scalarstring import DoubleQuotedScalarString

    values = {name: entry.model_dump(mode="json", exclude_defaults=True) for name, entry in sorted(devices.items())}
    for entry in values.values():  # as the writer leaves them plain, not all texts can be read again
        odd = {key: text for key, text in entry.items() if isinstance(text, str) and not PLAIN.fullmatch(text)}
        entry.update({key: DoubleQuotedScalarString(text) for key, text in odd.items()})
    text = io.StringIO()
    YAML(typ="rt", pure=True).dump({"version": 1, "devices": values}, text)
    handle, temporary = tempfile.mkstemp(prefix=".devices-", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(HEADER + text.getvalue())
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path.resolve())  # the file itself where `path` is a link to it
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def store_noise(name: str, noise: Noise, path: Path | None = None) -> None:
    """Remember the noise of a board that is registered.

    Raises:
        UsageError: none is called that (any more).
    """
    with _changing(path or inventory_path()) as devices:
        if name not in devices:
            raise UsageError(unknown("registered device", name, devices))
        devices[name] = devices[name].model_copy(update={"noise": noise})


def check_tolerance(name: str, tolerance: float, path: Path | None = None) -> None:
    """Refuse a tolerance that the noise of the device `name` would drown.

    `tolerance` is a share of the time: 0.05 for 5 %. A device that was not calibrated is not refused anything.

    Raises:
        UsageError: the tolerance is below twice the half-width of the interval of A against A.
    """
    entry = load_inventory(path).get(name)
    noise = entry.noise if entry else None
    if noise is not None and tolerance < 2 * noise.half_width:
        raise UsageError(
            f"A tolerance of {tolerance:.2%} on {name!r} is below twice its own noise ({noise.half_width:.2%}, the "
            f"half-width of a model against itself after {noise.rounds} rounds): use {2 * noise.half_width:.2%} or "
            "more, or calibrate again on a quieter board."
        )
