"""The file of registered boards: what it takes, what it refuses and where, and how names are found."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from edgekit.devices import device_names, inventory, open_device
from edgekit.devices.inventory import Entry, Noise
from edgekit.devices.local import Local
from edgekit.devices.ssh import Ssh
from edgekit.errors import UsageError

NOISE = Noise(half_width=0.01, rounds=40, bundle="0" * 64, measured="2026-01-01T00:00:00Z")


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "config" / "devices.yaml"
    monkeypatch.setenv("EDGEKIT_DEVICES", str(path))
    return path


def test_what_was_registered_is_read_back(file: Path) -> None:
    pi = Entry(host="pi.local", user="pi", port=2222, python="/opt/python3.11", emulated=True, noise=NOISE)
    inventory.register("pi", pi)
    inventory.register("nano", Entry(host="nano"))
    assert inventory.load_inventory() == {"nano": Entry(host="nano"), "pi": pi}
    assert inventory.unregister("nano").host == "nano" and list(inventory.load_inventory()) == ["pi"]
    assert sorted(path.name for path in file.parent.iterdir()) == [".devices.yaml.lock", "devices.yaml"]
    assert "password" not in file.read_text().lower().replace("no secrets", "")


def test_a_name_is_taken_once() -> None:
    inventory.register("pi", Entry(host="a"))
    with pytest.raises(UsageError, match="'pi' is registered already"):
        inventory.register("pi", Entry(host="b"))
    inventory.register("pi", Entry(host="b"), replace=True)
    assert inventory.find("pi").host == "b"


@pytest.mark.parametrize("name", ["", "a b", "-pi", "../pi", "pi\n", "a" * 65, "local", "pi;ls"])
def test_names_that_are_none(name: str, file: Path) -> None:
    with pytest.raises(UsageError, match=r"is no name|of edgekit itself"):
        inventory.register(name, Entry(host="a"))
    assert not file.exists()


@pytest.mark.parametrize(
    ("text", "where"),
    [
        (
            "version: 1\ndevices:\n  pi:\n    hots: pi.local\n",
            r":4: devices\.pi\.hots: unknown key\. Did you mean 'host'",
        ),
        ("version: 1\ndevices:\n  pi: {user: pi}\n", r":3: devices\.pi\.host: is missing"),
        (
            "devices:\n  pi:\n    host: a\n    port: 70000\n",
            r":4: devices\.pi\.port: must be in \[1, 65535\], got 70000",
        ),
        ("devices:\n  pi:\n    host: a\n    password: x\n", r":4: devices\.pi\.password: unknown key"),
        ("devices:\n  pi:\n    host: '-oProxyCommand=x'\n", r":3: devices\.pi\.host: must be text on one line"),
        ('devices:\n  pi:\n    host: "a\\nb"\n', r":3: devices\.pi\.host: must be text on one line"),
        ("devices:\n  a b: {host: a}\n", r":2: devices\.a b: 'a b' is no name"),
        ("version: 2\n", r":1: version: must be 1, got 2"),
        ("- pi\n", r":1: a device inventory is a mapping"),
    ],
)
def test_errors_name_file_and_line(file: Path, text: str, where: str) -> None:
    file.parent.mkdir()
    file.write_text(text)
    with pytest.raises(UsageError, match=r"devices\.yaml" + where):
        inventory.load_inventory()


def test_a_change_that_fails_leaves_the_file(file: Path) -> None:
    inventory.register("pi", Entry(host="a"))
    before = file.read_bytes()
    with pytest.raises(UsageError, match="Unknown registered device 'nano'"):
        inventory.unregister("nano")
    file.parent.chmod(0o755)
    assert file.read_bytes() == before


def test_a_folder_that_cannot_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEKIT_DEVICES", "/proc/none/devices.yaml")
    with pytest.raises(UsageError, match="cannot be written"):
        inventory.register("pi", Entry(host="a"))


def test_many_at_once_lose_nothing() -> None:
    threads = [
        threading.Thread(target=inventory.register, args=(f"pi{number}", Entry(host="a"))) for number in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(inventory.load_inventory()) == 12


def test_devices_are_found_by_name() -> None:
    assert isinstance(open_device("local"), Local)
    inventory.register("raspi", Entry(host="a"))
    found = open_device("raspi")
    assert isinstance(found, Ssh) and found.name == "raspi"
    assert {"local", "raspi", "emulated-cortex-a72"} <= set(device_names())
    with pytest.raises(UsageError, match=r"Unknown device 'rapsi'. Did you mean 'raspi'\?.*devices add"):
        open_device("rapsi")


def test_a_recipe_may_name_a_board(tmp_path: Path) -> None:
    from edgekit.recipe import load_recipe

    (tmp_path / "m.onnx").touch()
    np.savez(tmp_path / "d.npz", x=np.zeros(2))
    inventory.register("raspi", Entry(host="a"))
    text = (
        "version: 1\nmodel: {source: m.onnx}\ndata: {source: d.npz, task: classification}\n"
        "targets:\n  - {target: raspberry-pi-5, device: DEVICE}\n"
    )
    (tmp_path / "r.yaml").write_text(text.replace("DEVICE", "raspi"))
    assert load_recipe(tmp_path / "r.yaml").targets[0].device == "raspi"
    (tmp_path / "r.yaml").write_text(text.replace("DEVICE", "rapsi"))
    with pytest.raises(UsageError, match=r"r\.yaml:5: targets\[0\]\.device: Unknown device 'rapsi'. Did you mean"):
        load_recipe(tmp_path / "r.yaml")


@pytest.mark.parametrize(("tolerance", "refused"), [(0.019, True), (0.02, False), (0.05, False)])
def test_a_tolerance_below_twice_the_noise(tolerance: float, refused: bool) -> None:
    inventory.check_tolerance("local", tolerance)
    inventory.register("pi", Entry(host="a"))
    inventory.check_tolerance("pi", tolerance)
    inventory.store_noise("pi", NOISE)
    if refused:
        with pytest.raises(UsageError, match=r"1\.90% on 'pi' is below twice its own noise \(1\.00%"):
            inventory.check_tolerance("pi", tolerance)
    else:
        inventory.check_tolerance("pi", tolerance)
