"""Devices from the user's side: register a board or set up an emulated device, look at it, clean it up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgekit.context import Progress
from edgekit.devices import inventory
from edgekit.devices.emulated import ALL, Emulated
from edgekit.devices.inventory import Entry
from edgekit.devices.ssh import Ssh
from edgekit.errors import UsageError
from edgekit.extras import unknown
from edgekit.target import load_target

ROOM = 500_000_000
"""Bytes that a runtime and a few models take."""


@dataclass(frozen=True)
class Checked:
    """What a board is, and what stands in the way of measuring on it (`problems`, empty where nothing does)."""

    name: str
    entry: Entry
    facts: Mapping[str, Any]
    problems: tuple[str, ...]


def add(name: str, entry: Entry, *, check: bool = True, replace: bool = False) -> Checked:
    """Register a board, after a look at it: one that cannot be reached, or cannot serve at all, is not registered.

    Raises:
        UsageError: the name is taken or unfit, or there is no such target.
        DeviceError: the board cannot be reached, or has no Python that serves.
    """
    inventory.check_name(name)
    if entry.target is not None:
        load_target(entry.target)
    if not replace:
        inventory.check_free(name)
    seen = look(name, entry) if check else Checked(name, entry, {}, ())
    inventory.register(name, entry, replace=replace)
    return seen


def check(name: str) -> Checked:
    """A registered board, looked at now. Nothing is written there.

    Raises:
        UsageError: none is called that.
        DeviceError: it cannot be reached, or has no Python that serves.
    """
    return look(name, inventory.find(name))


def look(name: str, entry: Entry) -> Checked:
    """What the board behind `entry` is."""
    facts = Ssh(name, entry).probe()
    problems = []
    if not facts["writable"]:
        problems.append(f"{facts['folder']} cannot be written there. Choose another with --folder.")
    if facts["free_bytes"] < ROOM:
        problems.append(
            f"{facts['free_bytes'] / 1e6:.0f} MB are free there, a runtime takes up to {ROOM / 1e6:.0f} MB."
        )
    if facts["libc"][0] not in ("glibc", "musl"):
        problems.append(
            f"its C library {' '.join(facts['libc']).strip() or '(unknown)'} is one for which no wheels exist."
        )
    if facts["implementation"] != "cpython":
        problems.append(f"its Python is {facts['implementation']}; wheels are made for cpython.")
    if entry.target and (arch := load_target(entry.target).arch) != facts["arch"]:
        problems.append(f"the target {entry.target!r} is {arch}, the board is {facts['arch']}.")
    return Checked(name, entry, facts, tuple(problems))


def emulated(name: str) -> Emulated | None:
    """The emulated device of that name, if it is one."""
    return ALL[name]() if name in ALL else None


def setup(name: str, progress: Progress | None = None) -> Emulated:
    """Set up an emulated device: what is missing is fetched; nothing is installed, and no privilege needed.

    Raises:
        UsageError: it is none.
        MissingDependencyError: this is no Linux, or a tool is missing and cannot be fetched.
        DeviceError: Debian's packages cannot be fetched.
    """
    if name not in ALL:
        if name == "local" or name in inventory.load_inventory():
            raise UsageError(f"{name!r} needs no setting up: runtimes are brought there with the first measurement.")
        raise UsageError(unknown("emulated device", name, ALL))
    device = ALL[name](progress=progress)
    device.setup()
    return device


def remove(name: str) -> Entry:
    """Forget a board. What lies on it stays there: clean it first.

    Raises:
        UsageError: none is called that.
    """
    inventory.find(name)
    return inventory.unregister(name)


def clean(name: str, *, force: bool = False) -> int:
    """Remove all that edgekit left on a board, or made for an emulated device: the bytes that were freed.

    Raises:
        UsageError: none is called that.
        DeviceError: it cannot be reached, or jobs run there and `force` does not end them.
    """
    if device := emulated(name):
        return device.clean()
    return Ssh(name, inventory.find(name)).clean(force=force)
