"""What a sealed zip may look like, before anything of it is read: members that lie end to end, plain files by name.

All checks work on the directory and the members' headers, in memory that the size of a member does not change. Facts
of the format are from PKWARE's APPNOTE 6.3.10, sections 4.3 and 4.4.
"""

from __future__ import annotations

import io
import math
import os
import stat
import struct
import unicodedata
import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import IO

from edgekit.agent import seal
from edgekit.errors import IntegrityError, UsageError

LARGEST_DIRECTORY = 4 << 20
"""Bytes of a zip's directory: some tens of thousands of members, where a bundle has about forty."""

LARGEST_MANIFEST = 16 << 20
"""Bytes of `manifest.json`: it is the one member that is read whole."""

LONGEST_NAME = 255
"""Bytes of each part of a member's name, as on usual file systems."""

_LOCAL = struct.Struct("<4s5H3I2H")
_END = struct.Struct("<4s4H2IH")
_PLAIN_FLAGS = 0x800
"""The one flag that a member may have: its name is UTF-8."""


def misplaced(path: Path) -> str:
    """Why the zip does not begin and end where the file does, or "": what trails or leads would run unseen."""
    with path.open("rb") as file:
        start = file.read(4)
        if file.seek(0, os.SEEK_END) < seal.LENGTH + _END.size:
            return "the file is too short to be a bundle"
        file.seek(-seal.LENGTH - _END.size, os.SEEK_END)
        end = file.read(_END.size)
    if start != b"PK\3\4" or end[:4] != b"PK\5\6" or int.from_bytes(end[20:], "little") != seal.LENGTH:
        return "the zip does not begin and end where the file does"
    _, *disks, size, offset, _ = _END.unpack(end)
    if disks[:2] != [0, 0] or disks[2] != disks[3]:
        return "the zip's end record tells of other disks"
    if size + offset + _END.size + seal.LENGTH != path.stat().st_size:
        return "the zip's directory is not where its end record says"
    if size > LARGEST_DIRECTORY:
        return f"the zip's directory takes {size} bytes: no bundle has so many members"
    return ""


def check_name(name: str, error: type[UsageError] | type[IntegrityError]) -> None:
    """Refuse a member name that would lead out of a folder, or that some file system reads otherwise.

    >>> check_name("model/../../up", IntegrityError)
    Traceback (most recent call last):
        ...
    edgekit.errors.IntegrityError: unsafe member name in a bundle: 'model/../../up'
    """
    path = PurePosixPath(name)
    unsafe = path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name or not name.isprintable()
    unsafe = unsafe or any(len(part.encode(errors="replace")) > LONGEST_NAME for part in path.parts)
    if unsafe or not name or name != str(path) or any(part != part.rstrip(" .") for part in path.parts):
        raise error(f"unsafe member name in a bundle: {shortened(name)}")


def shortened(text: str) -> str:
    """`repr(text)`, in which nothing of the text can act on a terminal, and at most 80 characters of it."""
    return repr(text if len(text) <= 80 else f"{text[:77]}...")


def check_members(path: Path, file: IO[bytes], infos: Sequence[zipfile.ZipInfo], directory: int) -> None:
    """Refuse every zip whose members are not plain stored files with safe, distinct names, end to end in the file.

    Args:
        path: what errors call the file.
        file: the same, open.
        infos: the members by the zip's directory.
        directory: byte at which that directory begins.

    Raises:
        IntegrityError: naming the first member that is not so.
    """
    for info in infos:
        check_name(info.filename, IntegrityError)
        if reason := _odd(info):
            raise IntegrityError(f"{path}: member {shortened(info.filename)} {reason}: not a bundle")
    check_distinct(path, [info.filename for info in infos], IntegrityError)
    file.seek(-seal.LENGTH - _END.size, os.SEEK_END)
    told = _END.unpack(file.read(_END.size))[4]
    if told != len(infos):
        raise IntegrityError(f"{path}: its directory has {len(infos)} members, its end record tells of {told}")
    place = 0
    for info in sorted(infos, key=lambda info: info.header_offset):
        if info.header_offset != place:
            raise IntegrityError(
                f"{path}: member {shortened(info.filename)} begins at byte {info.header_offset}, not at {place} "
                "where the one before it ends: not a bundle"
            )
        place += _extent(path, file, info)
    if place != directory:
        raise IntegrityError(f"{path}: its members end at byte {place}, its directory begins at {directory}")


def _odd(info: zipfile.ZipInfo) -> str:
    """Why the directory's entry is not that of a plain stored file, or ""."""
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind == stat.S_IFLNK:
        return "is a symbolic link"
    if kind not in (0, stat.S_IFREG):
        return "is no plain file"
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & ~_PLAIN_FLAGS:
        return "is compressed or encrypted"
    if info.compress_size != info.file_size:
        return f"says {info.file_size} bytes and holds {info.compress_size}"
    return "has fields that edgekit does not write" if info.extra or info.comment else ""


def check_distinct(path: Path, names: Sequence[str], error: type[UsageError] | type[IntegrityError]) -> None:
    """Refuse equal names, those that differ in case or in how accents are composed alone, and files in other files.

    Some file systems take such names for one.
    """
    seen: dict[str, str] = {}
    for name in names:
        key = unicodedata.normalize("NFC", name).casefold()
        if key in seen:
            twice = (
                "a member name stands twice in the bundle" if seen[key] == name else "two names differ in case alone"
            )
            raise error(f"{path}: {twice}: {shortened(seen[key])}, {shortened(name)}")
        seen[key] = name
    for key, name in seen.items():
        for parent in PurePosixPath(key).parents:
            if str(parent) in seen:
                raise error(f"{path}: {shortened(seen[str(parent)])} is a file, and {shortened(name)} is in it")


def _extent(path: Path, file: IO[bytes], info: zipfile.ZipInfo) -> int:
    """Bytes that a member takes with its header, which must say what the directory says."""
    file.seek(info.header_offset)
    header = file.read(_LOCAL.size)
    if len(header) == _LOCAL.size:
        magic, _, flags, method, _, _, _, packed, size, name, extra = _LOCAL.unpack(header)
        told = (magic, flags, method, packed, size, file.read(name), extra)
        encoded = info.filename.encode("utf-8" if info.flag_bits & _PLAIN_FLAGS else "cp437")
        if told == (b"PK\3\4", info.flag_bits, info.compress_type, info.file_size, info.file_size, encoded, 0):
            return _LOCAL.size + int(name) + info.file_size
    raise IntegrityError(f"{path}: member {shortened(info.filename)} is not what the zip's directory says of it")


def check_arrays(content: IO[bytes], names: Sequence[str]) -> str:
    """Why an `.npz` does not hold plain stored arrays of these names, or "": reading it must not take more than it has.

    A compressed array, or a header that tells of more than follows it, would have numpy allocate what it claims.
    """
    import numpy as np

    try:
        with zipfile.ZipFile(content) as archive:
            infos = archive.infolist()
            if sorted(info.filename for info in infos) != sorted(f"{name}.npy" for name in names):
                return "does not hold the arrays that the manifest names"
            for info in infos:
                if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
                    return "holds compressed arrays"
                with archive.open(info) as member:
                    start = io.BytesIO(member.read(1 << 12))
                version = np.lib.format.read_magic(start)
                if version != (1, 0):
                    return f"holds an array of version {version}"
                shape, _, dtype = np.lib.format.read_array_header_1_0(start)
                if dtype.hasobject or start.tell() + math.prod(shape) * dtype.itemsize != info.file_size:
                    return "holds an array that is not as large as its header says"
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError, struct.error) as error:
        return f"cannot be read: {error}"
    return ""
