"""Where the facts about a device come from: files under a root, and commands that answer in time or not at all."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

COMMAND_S = 2.0
"""No command that tells a state takes longer: one that hangs must not hang a measurement."""


class UnknownError(ValueError):
    """Why a field has no value, in words for the reader of a report."""


def command(arguments: Sequence[str]) -> str:
    """What a command of the device prints; an UnknownError where it is missing, fails or is silent too long."""
    try:
        done = subprocess.run(
            list(arguments), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=COMMAND_S, check=False
        )
    except FileNotFoundError:
        raise UnknownError(f"{arguments[0]} is not installed") from None
    except subprocess.TimeoutExpired:
        raise UnknownError(f"{arguments[0]} did not answer within {COMMAND_S:g} s") from None
    except (OSError, ValueError) as error:
        raise UnknownError(f"{arguments[0]} cannot be run: {error}") from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise UnknownError(f"{' '.join(arguments)} ended with {done.returncode}: {said[-1] if said else 'no message'}")
    return done.stdout


def _elsewhere(arguments: Sequence[str]) -> str:
    raise UnknownError(f"{arguments[0]} cannot be asked about files of another machine")


class System:
    """A device: `root` holds its `proc`, `sys` and `etc`; `run` answers commands, which for "/" are really run."""

    def __init__(self, root: str = "/", run: Callable[[Sequence[str]], str] | None = None) -> None:
        self.root = Path(root)
        self.run = run or (command if root == "/" else _elsewhere)

    def text(self, path: str) -> str:
        """The content of a file, without blanks and NULs at its ends; an UnknownError where it cannot be read."""
        try:
            return (self.root / path).read_bytes().decode("utf-8", "replace").strip("\0 \n\t")
        except OSError as error:
            raise UnknownError(f"/{path}: {error.strerror}") from None

    def number(self, path: str, scale: float = 1.0) -> float:
        """A number in a file, times `scale`."""
        text = self.text(path)
        try:
            return int(text, 0) * scale
        except ValueError:
            raise UnknownError(f"/{path} holds no number: {text[:40]!r}") from None

    def find(self, pattern: str) -> list[str]:
        """Paths that match, relative to the root; sorted with numbers as numbers, so that cpu10 follows cpu9."""
        found = [path.relative_to(self.root).as_posix() for path in self.root.glob(pattern)]
        return sorted(found, key=lambda path: (len(path), path))

    def hwmon(self, name: str) -> list[str]:
        """Folders of the driver `name`: the numbers under sys/class/hwmon change from boot to boot."""
        return [path[: -len("/name")] for path in self.find("sys/class/hwmon/hwmon*/name") if self._is(path, name)]

    def _is(self, path: str, text: str) -> bool:
        try:
            return self.text(path) == text
        except UnknownError:
            return False
