"""Emulated devices for tests, set up once: under `EDGEKIT_TEST_CACHE`, or `edgekit-tests` in the user's cache."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import pytest

from edgekit.devices.emulated import ALL, Emulated
from edgekit.errors import EdgekitError


def cache() -> Path:
    """Where what was set up stays."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = Path(os.environ.get("EDGEKIT_TEST_CACHE") or home / "edgekit-tests")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@functools.cache
def _set_up(name: str) -> Emulated | EdgekitError:
    device = ALL[name](cache() / "emulated")
    try:
        device.setup()
    except EdgekitError as error:
        return error
    return device


def emulated(name: str) -> Emulated:
    """The device, set up; the test is skipped with the reason where that cannot be done."""
    found = _set_up(name)
    if isinstance(found, EdgekitError):
        pytest.skip(f"no emulator: {found}")
    return found
