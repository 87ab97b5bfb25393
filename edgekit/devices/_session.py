"""What is done on a board, over however many connections it takes: uploads, jobs, results."""

from __future__ import annotations

import asyncio
import getpass
import hashlib
import logging
import re
import socket
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.devices._board import CHUNK
from edgekit.devices._line import Line, LineLostError, garbage
from edgekit.devices._pending import Ticket
from edgekit.devices.inventory import Entry
from edgekit.errors import DeviceError, EdgekitError, IntegrityError

log = logging.getLogger(__name__)

BOOT_ID = "/proc/sys/kernel/random/boot_id"
BOARD_LOCK = "/tmp/edgekit-board.lock"
"""Every user of a board takes the same lock."""
SLOW_S = 120.0
SLOWEST_HASH = 5e6
"""Bytes a second that the slowest board hashes, with its card."""
DEADLINE_S = 6 * 3600.0
PROBED = {
    "python": str, "executable": str, "implementation": str, "bits": int, "arch": str, "libc": list, "kernel": str,
    "cores": int, "memory_bytes": int, "home": str, "folder": str, "writable": bool, "free_bytes": int,
    "runtimes": list, "boot_id": str, "used_bytes": int, "cpu": str, "features": list,
}  # fmt: skip


@dataclass(frozen=True)
class Work:
    """A job: files by their name in its folder, and the steps that run there."""

    files: Mapping[str, Path]
    steps: Sequence[Sequence[str]]
    extra: Mapping[str, str]
    timed: bool
    expected_s: float = 60.0
    """How long it takes at most, on a usual board: after some of that a silent line is looked after."""


class Session:
    """The requests of one call, each asked again on a new connection where a line was lost."""

    patience_s = 120.0
    """How long a lost board is tried, from its last answer."""

    def __init__(
        self, name: str, entry: Entry, *, wait: bool, kill_on_interrupt: bool, boot_id: str, board_lock: str
    ) -> None:
        self.name, self.entry, self.wait_for_others, self.kill = name, entry, wait, kill_on_interrupt
        self._common = {"folder": entry.folder, "boot_id_path": boot_id}
        self._board_lock = board_lock
        self._line: Line | None = None
        self._answered: float | None = None

    async def __aenter__(self) -> Session:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._line:
            await self._line.close()

    async def call(self, op: str, *, limit_s: float = SLOW_S, data: bytes = b"", **more: Any) -> dict[str, Any]:
        """The answer to a request that may be asked twice."""
        return (await self._asked({"op": op, **more}, limit_s, data))[0]

    async def _asked(
        self,
        request: Mapping[str, Any],
        limit_s: float,
        data: bytes = b"",
        on_progress: Callable[[int], None] | None = None,
        follows: bool = False,
    ) -> tuple[dict[str, Any], bytes]:
        pause = 0.2
        while True:
            try:
                async with asyncio.timeout(limit_s):
                    line = await self._connected()
                    answer = await line.call({**self._common, **request}, data, on_progress=on_progress)
                    count = answer.get("n", 0) if follows else 0
                    if not isinstance(count, int) or not 0 <= count <= CHUNK:
                        raise garbage(self.name, repr(answer).encode())
                    rest = await line.read(count)
                self._answered = time.monotonic()
                return answer, rest
            except (LineLostError, TimeoutError) as lost:
                log.warning("%s: the line was lost (%s), trying again", self.name, lost or "no answer")
                self._drop()
                self._answered = self._answered if self._answered is not None else time.monotonic()
                await self._give_up_late(str(lost) or "no answer", pause)
                pause = min(pause * 2, 10)
            except asyncio.CancelledError:
                self._drop()
                raise

    async def _give_up_late(self, reason: str, pause: float) -> None:
        assert self._answered is not None
        if time.monotonic() - self._answered > self.patience_s:
            raise DeviceError(
                f"{self.name}: the line was lost ({reason}) and did not come back in {self.patience_s:.0f} s. A job "
                "that runs there goes on; the same command takes up its result."
            )
        await asyncio.sleep(pause)

    async def _connected(self) -> Line:
        if self._line is None:
            try:
                self._line = await Line.open(self.name, self.entry)
            except DeviceError as error:
                if self._answered is None:
                    raise
                raise LineLostError(str(error)) from error
        return self._line

    def _drop(self) -> None:
        if self._line:
            self._line.abort()
            self._line = None

    async def probe(self) -> dict[str, Any]:
        """What the board is; nothing is written there.

        Raises:
            DeviceError: it tells something else than a board does.
        """
        from edgekit.agent.state import WANTED_FEATURES

        seen = await self.call("probe", features=list(WANTED_FEATURES))
        if any(not isinstance(seen.get(key), kind) for key, kind in PROBED.items()) or not (
            len(seen["libc"]) == 2
            and all(isinstance(x, str) for key in ("libc", "features", "runtimes") for x in seen[key])
        ):
            raise garbage(self.name, repr(seen).encode())
        if any(re.fullmatch(r"[\w.+-]*", text) is None for text in (seen["python"], seen["arch"], *seen["libc"])):
            raise garbage(self.name, repr(seen).encode())
        return seen

    async def prepare(self, files: Iterable[Path], keep: Iterable[str] = ()) -> dict[Path, str]:
        """Make room and upload what is not there; sha256 of each file.

        Raises:
            DeviceError: the quota or the disk is too small, or the folder cannot be written.
            IntegrityError: what arrives is not what was sent.
        """
        sums = {path: await asyncio.to_thread(_sha256, path) for path in dict.fromkeys(files)}
        sizes = {path: path.stat().st_size for path in sums}
        room: dict[str, Any] = {"quota_bytes": self.entry.quota_mb * 1_000_000, "keep": [*sums.values(), *keep]}
        await self.call("prepare", need_bytes=0, **room)
        lacking = [path for path, sha in sums.items() if not (await self._have(sha, sizes[path]))["complete"]]
        if lacking:
            await self.call("prepare", need_bytes=sum(sizes[path] for path in lacking), **room)
        for path in lacking:
            await self._upload(path, sums[path], sizes[path])
        return sums

    async def _have(self, sha: str, size: int) -> dict[str, Any]:
        answer = await self.call("have", sha256=sha, size=size, limit_s=SLOW_S + size / SLOWEST_HASH)
        if not isinstance(answer.get("have"), int) or not 0 <= answer["have"] <= size:
            raise garbage(self.name, repr(answer).encode())
        return {"complete": answer.get("complete") is True, "have": answer["have"]}

    async def _upload(self, path: Path, sha: str, size: int) -> None:
        for _ in range(2):
            have = await self._have(sha, size)
            if have["complete"]:  # another client sent it meanwhile
                return
            with path.open("rb") as file:
                for offset in range(have["have"], size, CHUNK):
                    file.seek(offset)
                    await self._send(file.read(CHUNK), offset, sha)
            limit = SLOW_S + size / SLOWEST_HASH
            if (await self.call("finish", sha256=sha, size=size, limit_s=limit)).get("complete") is True:
                return
            log.warning("%s: %s arrived damaged, sending it again", self.name, path.name)
        raise IntegrityError(
            f"{self.name}: {path.name} arrives damaged, twice: its sha256 there is not {sha[:16]}... The board's disk "
            "or memory may be failing."
        )

    async def _send(self, data: bytes, offset: int, sha: str) -> None:
        digest = hashlib.sha256(data).hexdigest()
        for _ in range(3):
            answer = await self.call("chunk", data=data, sha256=sha, offset=offset, n=len(data), digest=digest)
            if answer.get("accepted") is True:
                return
        raise IntegrityError(f"{self.name}: a chunk of {len(data)} bytes arrives damaged, three times.")

    async def job(
        self, ticket: Ticket, work: Work, sums: Mapping[Path, str], on_progress: Callable[[int], None] | None = None
    ) -> dict[str, Any]:
        """Start a job, or take it up where it was started before, and wait until it ended: how it did.

        Raises:
            DeviceError: somebody else measures there, the board was started anew, or the job was ended from outside.
        """
        try:
            await self.call(
                "start",
                id=ticket.id,
                files={name: sums[path] for name, path in work.files.items()},
                job={
                    "steps": [list(step) for step in work.steps],
                    "extra": dict(work.extra),
                    "who": f"{getpass.getuser()}@{socket.gethostname()}",
                    "wait": self.wait_for_others,
                    "limit_bytes": self.entry.quota_mb * 1_000_000,
                    "deadline_s": DEADLINE_S,
                    "board_lock": self._board_lock,
                    "boot_id_path": self._common["boot_id_path"],
                },
            )
            done = await self._ended(ticket, work, on_progress)
        except (asyncio.CancelledError, KeyboardInterrupt):
            await self._interrupted(ticket)
            raise
        if done.get("ended") is not True:
            await self.forget(ticket)
            raise DeviceError(f"{self.name}: {str(done.get('reason', 'the job ended'))[:2000]}. Run it again.")
        if "busy" in done:
            await self.forget(ticket)
            raise DeviceError(
                f"{self.name}: another measurement runs there, of {str(done['busy'])[:200]}. Wait for it with "
                "--wait, or for good with `wait: true` in the file of boards."
            )
        if not isinstance(done.get("code"), int) or not isinstance(done.get("sizes"), dict):
            raise garbage(self.name, repr(done).encode())
        return done

    async def _ended(self, ticket: Ticket, work: Work, on_progress: Callable[[int], None] | None) -> dict[str, Any]:
        """Nothing is sent while a timed job runs; after four times of what it should take, the line is looked after."""
        line = await self._connected()
        line.quiet(work.timed)
        limit = max(SLOW_S, 4 * work.expected_s) if work.timed else DEADLINE_S
        try:
            request = {"op": "wait", "id": ticket.id, "follow": not work.timed}
            return (await self._asked(request, limit, on_progress=on_progress))[0]
        finally:
            if self._line:
                self._line.quiet(False)

    async def _interrupted(self, ticket: Ticket) -> None:
        self._drop()
        if not self.kill:
            ticket.leave()
            return
        try:
            await asyncio.wait_for(self.call("kill", id=ticket.id), 20)
        except (TimeoutError, EdgekitError, LineLostError):  # it cannot be reached: the job goes on there
            self.kill = False
            ticket.leave()
        else:
            ticket.done()

    async def text(self, ticket: Ticket, done: Mapping[str, Any], name: str, most: int) -> str:
        """A small file of a job, its last `most` bytes."""
        size = self._size(done, name)
        start = max(0, size - most)
        parts = [part async for part in self._parts(ticket, name, start, size)]
        return b"".join(parts).decode("utf-8", "replace")

    async def fetch(self, ticket: Ticket, done: Mapping[str, Any], name: str, target: Path, most: int) -> None:
        """A file of a job, to `target`.

        Raises:
            DeviceError: it is larger than `most` bytes, or absent.
        """
        size = self._size(done, name)
        if size > most or size == 0:
            raise DeviceError(
                f"{self.name}: the result has {size} bytes, at most {most} are believed: nothing of it was fetched."
            )
        temporary = target.with_name(target.name + ".part")
        try:
            with temporary.open("wb") as file:
                async for part in self._parts(ticket, name, 0, size):
                    file.write(part)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)

    def _size(self, done: Mapping[str, Any], name: str) -> int:
        size = done["sizes"].get(name, 0)
        if not isinstance(size, int) or size < 0:
            raise garbage(self.name, repr(done["sizes"]).encode())
        return size

    async def _parts(self, ticket: Ticket, name: str, start: int, size: int) -> Any:
        while start < size:
            request = {"op": "read", "id": ticket.id, "name": name, "offset": start, "n": min(CHUNK, size - start)}
            answer, data = await self._asked(request, SLOW_S, follows=True)
            if not data or len(data) > size - start or hashlib.sha256(data).hexdigest() != answer.get("digest"):
                raise garbage(self.name, data)
            start += len(data)
            yield data

    async def forget(self, ticket: Ticket) -> None:
        """The job's files there, and its id here, are of no more use."""
        await self.call("forget", id=ticket.id)
        ticket.done()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
