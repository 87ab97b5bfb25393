"""Requirements of wheels by the markers of a board's Python, where pip asks those of the Python that runs it."""

from __future__ import annotations

import email
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from edgekit.extras import require


def environment(board: Mapping[str, Any]) -> dict[str, str]:
    """The variables of markers (PEP 508) on a board, by what its probe told."""
    full = str(board["python"])
    return {
        "implementation_name": "cpython",
        "implementation_version": full,
        "os_name": "posix",
        "platform_machine": str(board["arch"]),
        "platform_python_implementation": "CPython",
        "platform_release": str(board.get("kernel", "")),
        "platform_system": "Linux",
        "platform_version": "",
        "python_full_version": full,
        "python_version": ".".join(full.split(".")[:2]),
        "sys_platform": "linux",
        "extra": "",
    }


def lacking(wheels: Iterable[Path], board: Mapping[str, Any]) -> list[str]:
    """What the wheels require on the board and no wheel is, such as a backport for its older Python."""
    require("packaging", extra="ssh", why="reading what a board's wheels require")
    from packaging.utils import canonicalize_name, parse_wheel_filename

    files = list(wheels)
    have = {parse_wheel_filename(file.name)[0] for file in files}
    variables = environment(board)
    wanted = {}
    for requirement in (one for file in files for one in _requirements(file)):
        applies = requirement.marker is None or requirement.marker.evaluate(variables)
        if applies and (name := canonicalize_name(requirement.name)) not in have:
            wanted[name] = f"{requirement.name}{requirement.specifier}"
    return sorted(wanted.values())


def _requirements(file: Path) -> Iterator[Any]:
    from packaging.requirements import InvalidRequirement, Requirement

    with zipfile.ZipFile(file) as archive:
        name = next((n for n in archive.namelist() if n.endswith(".dist-info/METADATA")), None)
        told = email.message_from_bytes(archive.read(name) if name else b"")
    for text in told.get_all("Requires-Dist", []):
        try:
            yield Requirement(text)
        except InvalidRequirement:  # pip had the last word on it
            continue
