"""A damaged bundle that is run directly: never exit code 0, never a result; 8 where the agent's code still starts."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import agent_bundles as small
import pytest

CHECKING = ("__main__.py", "edgekit_agent/start.py", "edgekit_agent/seal.py", "edgekit_agent/output.py")
HARNESS = Path(__file__).with_name("flip_bytes.py")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.bundle(tmp_path_factory.mktemp("damage")).path


def regions(path: Path) -> Iterator[tuple[str, range]]:
    """Every byte of the file: headers and contents by member, the zip's directory, its end record, the digest."""
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            start = info.header_offset + 30 + len(info.filename.encode())
            yield "header", range(info.header_offset, start)
            yield info.filename, range(start, start + info.file_size)
        yield "directory", range(archive.start_dir, size - 93)
    yield "end", range(size - 93, size - 71)
    yield "digest", range(size - 71, size)


def outcomes(path: Path, flips: Iterable[tuple[int, int]]) -> list[tuple[int, int, int, int]]:
    """(offset, xor, exit code, bytes on stdout) for each flip."""
    lines = "\n".join(f"{offset} {xor}" for offset, xor in flips)
    done = subprocess.run(
        [sys.executable, str(HARNESS), str(path)], input=lines, capture_output=True, text=True, check=True
    )
    found = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    return [(offset, xor, code, told) for offset, xor, code, told in found]


def test_regions_cover_the_whole_file(path: Path) -> None:
    covered = [offset for _, region in regions(path) for offset in region]
    assert covered == list(range(path.stat().st_size))


def test_an_intact_bundle_passes_the_harness(path: Path) -> None:
    ((_, _, code, told),) = outcomes(path, [(0, 0)])
    assert code == 0 and told > 100


def test_sampled_flips_in_every_region(path: Path) -> None:
    flips = [
        (offset, xor)
        for name, region in regions(path)
        for offset in region[len(region) // 3 :: max(1, len(region) // (8 if name in CHECKING else 2))]
        for xor in ((0x01, 0xFF) if name in CHECKING else (0x01,))
    ]
    seen = outcomes(path, flips)
    assert len(seen) == len(flips)
    assert [one for one in seen if one[2] == 0 or one[3]] == []


def test_8_wherever_code_of_the_agent_starts(path: Path) -> None:
    places = {
        offset
        for name, region in regions(path)
        if name not in CHECKING and name not in ("header", "directory", "end") and not name.endswith("__init__.py")
        for offset in (region[0], region[len(region) // 2])
    }
    assert {code for _, _, code, _ in outcomes(path, [(offset, 0x01) for offset in sorted(places)])} == {8}


def test_a_damaged_bundle_run_by_python_itself(path: Path, tmp_path: Path) -> None:
    for name, region in regions(path):
        if name not in (*CHECKING, "model/model.onnx", "manifest.json", "directory", "digest"):
            continue
        damaged = bytearray(path.read_bytes())
        damaged[region[len(region) // 2]] ^= 0x01
        copy = tmp_path / "damaged.edge"
        copy.write_bytes(damaged)
        done = subprocess.run([sys.executable, str(copy), "selftest"], capture_output=True, text=True)
        assert done.returncode != 0 and done.stdout == "", name
        if name in ("model/model.onnx", "manifest.json", "digest"):
            assert done.returncode == 8 and "do not match its digest" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", [*CHECKING, "header", "directory", "end", "digest"])
def test_every_byte_where_a_flip_could_hide(path: Path, name: str) -> None:
    offsets = [offset for region_name, region in regions(path) if region_name == name for offset in region]
    stride = 3 if name in ("header", "directory") else 1
    flips = [(offset, 0x01 if offset % 2 else 0xFF) for offset in offsets[::stride]]
    assert [one for one in outcomes(path, flips) if one[2] == 0 or one[3]] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKING)
def test_comments_and_zeros_where_code_was(path: Path, name: str) -> None:
    content = path.read_bytes()
    (region,) = (region for region_name, region in regions(path) if region_name == name)
    stride = 1 if name in CHECKING[:2] else 3
    wanted = [(o, content[o] ^ new) for o in region[::stride] for new in b"#0" if content[o] != new]
    assert [one for one in outcomes(path, wanted) if one[2] == 0 or one[3]] == []
