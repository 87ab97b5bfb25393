"""Runtimes for a board: which platform tags fit it, and real wheels from the package index, installed offline."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import agent_bundles as small
import pytest
from boards import Board, board
from packaging import tags
from pythons import interpreter

from edgekit.devices import _wheels
from edgekit.devices._markers import lacking
from edgekit.devices.ssh import Ssh
from edgekit.errors import DeviceError, MissingDependencyError


def test_platform_tags_are_those_that_packaging_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    """For this machine, by the library that pip decides with."""
    from packaging import _manylinux

    libc = _manylinux._get_glibc_version()
    if libc == (-1, -1):
        pytest.skip("no glibc here")
    arch = os.uname().machine
    ours = _wheels.platform_tags(["glibc", f"{libc[0]}.{libc[1]}"], arch)
    expected = [tag for tag in tags.platform_tags() if tag.endswith(arch)]
    assert sorted(ours) == sorted(expected)
    assert [t for t in ours if t.startswith("many")] == [t for t in expected if t.startswith("many")]


def test_platform_tags_for_musl() -> None:
    assert _wheels.platform_tags(["musl", "1.2"], "aarch64")[:2] == ("musllinux_1_2_aarch64", "musllinux_1_1_aarch64")


def test_a_backend_of_the_boards_own_needs_no_wheels() -> None:
    assert _wheels.resolve(["tensorrt"], {}, {}) is None


ARM = {"python": "3.11.2", "libc": ["glibc", "2.36"], "arch": "aarch64"}


def downloaded(backends: list[str], wanted: dict[str, str], about: dict) -> tuple[_wheels.Wheel, ...]:
    try:
        found = _wheels.resolve(backends, wanted, about)
    except DeviceError as error:
        pytest.skip(f"no package index here: {error}")
    assert found
    return found


def wheel(folder: Path, name: str, *requires: str) -> Path:
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        lines = "".join(f"Requires-Dist: {one}\n" for one in requires)
        text = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{lines}"
        archive.writestr(f"{name}-1.0.dist-info/METADATA", text)
    return path


def test_markers_are_those_of_the_board(tmp_path: Path) -> None:
    runtime = wheel(
        tmp_path,
        "runtime",
        "Other_Thing>=1",
        'backports.strenum>=1.2; python_version < "3.11"',
        'exceptiongroup; python_full_version >= "3.13.1"',
        'neon; platform_machine == "aarch64"',
        'winreg2; sys_platform == "win32"',
        'plots; extra == "plots"',
        "not a requirement at all ;;",
    )
    wheels = [runtime, wheel(tmp_path, "other_thing")]
    old, new = {**ARM, "python": "3.10.12", "arch": "x86_64"}, {**ARM, "python": "3.13.2"}
    assert lacking(wheels, old) == ["backports.strenum>=1.2"]
    assert lacking(wheels, new) == ["exceptiongroup", "neon"]
    assert lacking([*wheels, wheel(tmp_path, "backports_strenum")], old) == []


@pytest.mark.slow
def test_wheels_for_a_board_of_another_architecture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path))
    found = downloaded(["onnxruntime"], {"onnxruntime": "1.23.2"}, ARM)
    names = [wheel.name for wheel in found]
    assert any(name.startswith("onnxruntime-1.23.2-cp311-") and "aarch64" in name for name in names)
    assert any(name.startswith("pip-") for name in names) and not any("x86" in name for name in names)
    text = _wheels.requirements_text(found)
    assert text.count("--hash=sha256:") == len(found) - 1 and "pip==" not in text
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert _wheels.resolve(["onnxruntime"], {"onnxruntime": "1.23.2"}, ARM) == found  # from the cache
    found[0].path.write_bytes(b"damaged")
    with pytest.raises(MissingDependencyError, match=r"no wheels of onnxruntime for Python 3\.11\.2, glibc 2\.36"):
        _wheels.resolve(["onnxruntime"], {"onnxruntime": "1.23.2"}, ARM)


@pytest.mark.slow
def test_no_wheels_for_such_a_board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path))
    about = {**ARM, "arch": "riscv64"}
    with pytest.raises((MissingDependencyError, DeviceError), match=r"no wheels of openvino.*riscv64|index cannot"):
        _wheels.resolve(["openvino"], {}, about)


@pytest.fixture(scope="module")
def pi() -> Iterator[Board]:
    with board() as running:
        running.trust()
        yield running


@pytest.fixture
def host(pi: Board, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("HOME", str(pi.host_home))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    subprocess.run(["rm", "-rf", str(pi.home / ".cache")], check=True)


def bare(version: str) -> str:
    """A Python that brings no runtime."""
    found = interpreter(version)
    if found is None or subprocess.run([found, "-c", "import onnxruntime"], capture_output=True).returncode == 0:
        pytest.skip(f"no Python {version} without onnxruntime here")
    return found


@pytest.mark.slow
@pytest.mark.parametrize("version", ["3.9", "3.11", "3.13"])
def test_an_empty_board_gets_its_runtime(pi: Board, host: None, tmp_path: Path, version: str) -> None:
    """Nothing is there but Python; what is installed lies in edgekit's folder, and goes with it."""
    device, bundle = (
        Ssh("pi", pi.entry(python=bare(version)), board_lock=str(pi.folder / "lock")),
        small.bundle(tmp_path),
    )
    downloaded(["onnxruntime"], {}, device.probe())
    told = device.selftest(bundle)
    assert told["passed"]
    ready = json.loads(next(pi.kept.glob("envs/*/ready.json")).read_text())
    assert ready["venv"] and device.bench(bundle, max_seconds=1).info["versions"]["python"].startswith(version)
    device.clean()
    assert not [path for path in pi.home.rglob("*") if path.is_file()]


@pytest.mark.slow
def test_a_python_without_venv_gets_a_folder(pi: Board, host: None, tmp_path: Path) -> None:
    base = bare("3.11")
    wrapper = pi.folder / "python3"
    wrapper.write_text(
        '#!/bin/bash\ncase " $* " in *" -m venv "*) echo "No module named venv" >&2; exit 1;; esac\n'
        f'exec -a {wrapper} {base} "$@"\n'
    )
    wrapper.chmod(wrapper.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
    told = subprocess.run([wrapper, "-I", "-c", "import sys; print(sys.executable)"], capture_output=True, text=True)
    if told.stdout.strip() != str(wrapper):
        pytest.skip(f"this Python cannot be wrapped: {told.stdout} {told.stderr[-200:]}")
    device = Ssh("pi", pi.entry(python=str(wrapper)), board_lock=str(pi.folder / "lock"))
    downloaded(["onnxruntime"], {}, device.probe())
    assert device.selftest(small.bundle(tmp_path))["passed"]
    ready = json.loads(next(pi.kept.glob("envs/*/ready.json")).read_text())
    assert not ready["venv"] and ready["extra"]["PYTHONPATH"].endswith("/site")


@pytest.mark.slow
def test_a_line_cut_while_installing(pi: Board, host: None, tmp_path: Path) -> None:
    import threading
    import time

    from boards import Wire

    with Wire(pi.port) as wire:
        pi.trust(wire.port)
        device = Ssh("pi", pi.entry(python=bare("3.11"), port=wire.port), board_lock=str(pi.folder / "lock"))
        downloaded(["onnxruntime"], {}, device.probe())
        cuts = []

        def cut() -> None:
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline and not list(pi.kept.glob("envs/*/venv")):
                time.sleep(0.01)
            cuts.append(list(pi.kept.glob("envs/*/ready.json")))
            wire.cut()

        cutter = threading.Thread(target=cut)
        cutter.start()
        assert device.selftest(small.bundle(tmp_path))["passed"]
        cutter.join()
    assert cuts == [[]] and len(list(pi.kept.glob("envs/*/ready.json"))) == 1


def test_wheels_that_were_changed_are_not_installed(pi: Board, host: None, tmp_path: Path) -> None:
    """pip on the board holds each file against its hash: told with code 6, and nothing is left."""
    from edgekit.devices import _board

    wheels = tmp_path / "wheels"
    wheels.mkdir()
    ensurepip = Path(sys.base_prefix) / "lib" / f"python3.{sys.version_info[1]}" / "ensurepip" / "_bundled"
    pips = list(ensurepip.glob("pip-*.whl"))
    if not pips:
        pytest.skip("this Python brings no wheel of pip")
    (wheels / pips[0].name).write_bytes(pips[0].read_bytes())
    (wheels / "thing-1.0-py3-none-any.whl").write_bytes(pips[0].read_bytes())
    (wheels / "requirements.txt").write_text(f"thing==1.0 --hash=sha256:{'0' * 64}\n")
    assert _board.install(str(tmp_path / "env"), str(wheels)) == 6
    assert not (tmp_path / "env").exists()
