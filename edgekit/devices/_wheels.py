"""Runtimes for a board, resolved here for its very Python, C library and architecture, and kept by hash."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

from edgekit.agent.unpack import cache_folder
from edgekit.devices._markers import lacking
from edgekit.errors import DeviceError, MissingDependencyError

PACKAGES: dict[str, tuple[tuple[str, ...], ...]] = {
    "onnxruntime": (("onnxruntime", "numpy"),),
    "openvino": (("openvino", "numpy"),),
    "litert": (("ai-edge-litert", "numpy"), ("tflite-runtime", "numpy<2")),
}
"""Backend -> what to install for it: the first set that the board can take. The others run on what the board has."""

OLDEST_MANYLINUX = 5
ALIASES = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}
"""PEP 600: the older names of three platform tags, by the minor version of glibc 2."""
ROUNDS = 4
"""How often what the board's Python needs beyond the host's is looked for."""
STOPPED_S = 0.3
"""How often an interrupt is looked for while pip works."""
NO_INDEX = re.compile(r"Connection|Temporary failure|timed out|Name or service|Max retries|ProxyError", re.IGNORECASE)


@dataclass(frozen=True)
class Wheel:
    """A file for pip; `name` is what pip reads platform and version from."""

    path: Path
    sha256: str

    @property
    def name(self) -> str:
        """The file name."""
        return self.path.name


def platform_tags(libc: Sequence[str], arch: str) -> tuple[str, ...]:
    """The platforms whose wheels run with that C library, best first (PEP 600 for glibc, PEP 656 for musl).

    >>> platform_tags(["glibc", "2.18"], "aarch64")[:3]
    ('manylinux_2_18_aarch64', 'manylinux_2_17_aarch64', 'manylinux2014_aarch64')
    """
    major, _, minor = libc[1].partition(".")
    newest = int(minor.partition(".")[0] or 0) if major.isdigit() else 0
    tags = []
    if libc[0] == "musl":
        tags = [f"musllinux_1_{number}_{arch}" for number in range(newest, -1, -1)]
    elif libc[0] == "glibc":
        for number in range(newest, OLDEST_MANYLINUX - 1, -1):
            tags.append(f"manylinux_2_{number}_{arch}")
            tags += [f"{ALIASES[number]}_{arch}"] if number in ALIASES else []
    return (*tags, f"linux_{arch}")


def resolve(
    backends: Iterable[str], wanted: Mapping[str, str], board: Mapping[str, Any], stop: Event | None = None
) -> tuple[Wheel, ...] | None:
    """The wheels that run bundles of `backends` on `board` (what its probe told), pip among them.

    `wanted` holds versions that are preferred, by package: those that the bundle was built with. None where a backend
    runs on what the board itself has. Setting `stop`, from another thread, ends it soon with a DeviceError.

    Raises:
        MissingDependencyError: there are no such wheels, or edgekit's own Python has no pip.
        DeviceError: the package index cannot be reached.
    """
    names = sorted(set(backends))
    if not all(name in PACKAGES for name in names):
        return None
    choices: list[tuple[str, ...]] = [()]
    for name in names:
        choices = [(*before, *more) for before in choices for more in PACKAGES[name]]
    told = ""
    for packages in choices:
        pinned = [f"{p}=={wanted[p]}" if p in wanted else p for p in packages]
        for requirements in dict.fromkeys((tuple(pinned), packages)):
            wheels, told = _cached(tuple(sorted(set(requirements))), board, stop)
            if wheels:
                return wheels
    tags = f"Python {board['python']}, {' '.join(board['libc'])}, {board['arch']}"
    raise MissingDependencyError(f"no wheels of {' or '.join(c[0] for c in choices)} for {tags}: {told}")


def _cached(
    requirements: tuple[str, ...], board: Mapping[str, Any], stop: Event | None
) -> tuple[tuple[Wheel, ...], str]:
    version = ".".join(str(board["python"]).split(".")[:2])
    about = [requirements, version, list(board["libc"]), board["arch"]]
    folder = cache_folder() / "wheels" / hashlib.sha256(json.dumps(about).encode()).hexdigest()[:32]
    if kept := _intact(folder):
        return kept, ""
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=".new-", dir=folder.parent))
    try:
        tags = platform_tags(board["libc"], board["arch"])
        for group in (requirements, ("pip",)):
            if told := _download(group, version, tags, fresh, stop):
                return (), told
        for _ in range(ROUNDS):
            if not (more := lacking(fresh.glob("*.whl"), board)):
                break
            if told := _download(more, version, tags, fresh, stop):
                return (), told
        sums = {file.name: _sha256(file) for file in sorted(fresh.glob("*.whl"))}
        (fresh / "wheels.json").write_text(json.dumps(sums, indent=1))
        shutil.rmtree(folder, ignore_errors=True)
        fresh.rename(folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return _intact(folder), ""


def _intact(folder: Path) -> tuple[Wheel, ...]:
    """The wheels of a folder, each hashed again; none where something is missing or differs."""
    try:
        sums = json.loads((folder / "wheels.json").read_text())
        wheels = tuple(Wheel(folder / name, digest) for name, digest in sums.items())
        return wheels if all(_sha256(wheel.path) == wheel.sha256 for wheel in wheels) else ()
    except (OSError, ValueError):
        return ()


def _download(requirements: Sequence[str], version: str, tags: Sequence[str], folder: Path, stop: Event | None) -> str:
    """Fetch wheels into `folder`; "" or what pip said."""
    abi = f"cp{version.replace('.', '')}"
    command = [sys.executable, "-m", "pip", "download", "--only-binary=:all:", "--disable-pip-version-check", "--quiet",
               "--implementation", "cp", "--python-version", version, "--dest", str(folder),
               *(part for one in (abi, "abi3", "none") for part in ("--abi", one)),
               *(part for tag in tags for part in ("--platform", tag)), *requirements]  # fmt: skip
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    code, told = _ended(command, environment, stop)
    if not code:
        return ""
    lines = [line for line in told.strip().splitlines() if not line.startswith("WARNING")]
    if "No module named pip" in told:
        raise MissingDependencyError(
            "fetching a board's runtime needs pip in edgekit's own environment. Install it: python -m ensurepip"
        )
    if NO_INDEX.search(told) and "No matching distribution" not in told:
        raise DeviceError(f"the package index cannot be reached: {lines[-1] if lines else told.strip()[-300:]}")
    return lines[-1].removeprefix("ERROR: ") if lines else f"pip ended with {code}"


def _ended(command: Sequence[str], environment: Mapping[str, str], stop: Event | None) -> tuple[int, str]:
    """The exit code of a command and what it said on stderr; it is killed when `stop` is set."""
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        while True:
            try:
                told = process.communicate(timeout=STOPPED_S)[1]
                return process.returncode, told
            except subprocess.TimeoutExpired:
                if stop is not None and stop.is_set():
                    process.kill()
                    raise DeviceError("fetching the board's runtime was interrupted") from None
            except BaseException:
                process.kill()
                raise


def requirements_text(wheels: Iterable[Wheel]) -> str:
    """What `pip install --require-hashes -r` reads; pip itself is not among it."""
    lines = []
    for wheel in wheels:
        name, version = wheel.name.split("-")[:2]
        if name != "pip":
            lines.append(f"{name}=={version} --hash=sha256:{wheel.sha256}\n")
    return "".join(lines)


def environment_key(wheels: Iterable[Wheel], board: Mapping[str, Any]) -> str:
    """The same for the same wheels under the same Python of the board."""
    parts = [board["executable"], board["python"], *sorted(wheel.sha256 for wheel in wheels)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
