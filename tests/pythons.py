"""Other versions of Python on this machine, for what must run on old and new ones."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path


@functools.cache
def interpreter(version: str) -> str | None:
    """A Python of that version, such as "3.9", that starts; None where there is none."""
    roots = [Path(sys.base_prefix).parent, Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"]
    found = [str(path) for root in roots for path in sorted(root.glob(f"{version}.*/bin/python"))]
    same = [sys.executable] if sys.version_info[:2] == tuple(map(int, version.split("."))) else []
    named = [path] if (path := shutil.which(f"python{version}")) else []
    return next((path for path in (*found, *same, *named) if _is(path, version)), None)


def _is(path: str, version: str) -> bool:
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    done = subprocess.run([path, "-c", code], capture_output=True, text=True)
    return done.returncode == 0 and done.stdout.strip() == version
