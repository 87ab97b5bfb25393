"""The line to a board: an SSH connection, and on it one helper process that answers requests.

Everything that a request says travels as JSON over stdin. The only words that a shell on the board sees are the
configured Python and a fixed program, so no name of a file, device or job can reach it.
"""

from __future__ import annotations

import asyncio
import json
import shlex
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.devices.inventory import Entry
from edgekit.errors import DeviceError, EdgekitError, IntegrityError, UsageError
from edgekit.extras import require

if TYPE_CHECKING:
    import asyncssh

HELPER = Path(__file__).with_name("_board.py")
MARK = b"edgekit-board 1"
BOOT = (
    "import sys;v=sys.version_info;"
    'v<(3,9) and (sys.stdout.write("edgekit-old %d.%d\\n"%v[:2]) or 1) and (sys.stdout.flush() or 1) and sys.exit(0);'
    "s=sys.stdin.buffer.read(int(sys.stdin.buffer.readline())).decode();"
    'g={"__name__":"edgekit_board"};exec(compile(s,"edgekit_board","exec"),g);g["SOURCE"]=s;g["serve"]()'
)
"""Python 2 and early Python 3 understand it far enough to tell their version."""
SHELL = 'exec "$0" -I -B -c "$1"'
CONNECT_S = 20.0
KEEPALIVE_S, KEEPALIVE_COUNT = 15.0, 4
"""A line that answers nothing for a minute is dead. 1 MiB passes in that time at 17 KB/s."""
LONGEST_LINE = 4 << 20
"""A board that sends more without a line break sends no answer."""
NOISE = 1 << 16
"""What a login script may print before the helper starts."""
ERRORS: Mapping[int, type[EdgekitError]] = {2: UsageError, 5: DeviceError, 8: IntegrityError, 70: EdgekitError}


class LineLostError(Exception):
    """The connection ended or went silent; the same request may be asked again on a new one."""


class Line:
    """One connection with its helper. Make it with `Line.open`."""

    def __init__(self, name: str, connection: asyncssh.SSHClientConnection, process: Any) -> None:
        self.name, self._connection, self._process = name, connection, process
        self._buffer = b""

    @classmethod
    async def open(cls, name: str, entry: Entry) -> Line:
        """Connect, check the host's key, log in, start the helper.

        Raises:
            DeviceError: each of these failed, with what to do.
        """
        connection = await connect(name, entry)
        try:
            with _losing():
                return await cls._started(name, entry, connection)
        except (TimeoutError, LineLostError) as error:
            connection.abort()
            raise DeviceError(f"{name}: logged in, but the helper did not start: {error or 'no answer'}") from error
        except BaseException:
            connection.abort()
            raise

    @classmethod
    async def _started(cls, name: str, entry: Entry, connection: asyncssh.SSHClientConnection) -> Line:
        command = shlex.join(["sh", "-c", SHELL, entry.python, BOOT])
        process = await connection.create_process(command, encoding=None)
        line = cls(name, connection, process)
        await asyncio.wait_for(line._greet(entry), CONNECT_S)
        return line

    async def _greet(self, entry: Entry) -> None:
        source = HELPER.read_bytes()
        with suppress(LineLostError), _losing():  # where it ended already, what it said tells why
            self._process.stdin.write(b"%d\n" % len(source) + source)
        seen = 0
        while seen < NOISE:
            try:
                line = await self._read_line()
            except LineLostError:
                raise await self._no_python(entry) from None
            if line == MARK:
                return
            if line.startswith(b"edgekit-old "):
                version = line.split()[1][:10].decode(errors="replace")
                raise DeviceError(
                    f"{self.name}: {entry.python} there is Python {version}, 3.9 or later is needed. Name another one: "
                    f"`edgekit devices add {self.name} --python /usr/bin/python3.11 ...`"
                )
            seen += len(line) + 1
        raise DeviceError(f"{self.name}: its login scripts print without end; the first bytes: {self._buffer[:60]!r}")

    async def _no_python(self, entry: Entry) -> DeviceError:
        told = (await self._process.stderr.read(2000)).decode(errors="replace").strip()
        if "not found" in told or "No such file" in told:
            return DeviceError(
                f"{self.name}: no Python there: {entry.python!r} was not found. Install python3 on the board, or name "
                "its path with --python."
            )
        return DeviceError(f"{self.name}: {entry.python} does not start there: {told or 'it ended without a word'}")

    async def call(
        self, request: Mapping[str, Any], data: bytes = b"", *, on_progress: Callable[[int], None] | None = None
    ) -> dict[str, Any]:
        """The answer to one request.

        Raises:
            LineLostError: the connection ended first.
            EdgekitError: what the board refused, by the code that it gives.
            DeviceError: the answer is no answer.
        """
        with _losing():
            self._process.stdin.write(json.dumps(request).encode() + b"\n" + data)
            await self._process.stdin.drain()
        while True:
            answer = self._parsed(await self._read_line())
            if "error" in answer:
                kind = ERRORS.get(int(answer["code"]) if isinstance(answer.get("code"), int) else 5, DeviceError)
                raise kind(f"{self.name}: {str(answer['error'])[:4000]}")
            if set(answer) != {"progress"}:
                return answer
            if on_progress and isinstance(answer["progress"], int):
                on_progress(answer["progress"])

    def _parsed(self, line: bytes) -> dict[str, Any]:
        try:
            answer = json.loads(line)
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            raise garbage(self.name, line)
        return answer

    async def read(self, count: int) -> bytes:
        """`count` bytes that follow an answer."""
        while len(self._buffer) < count:
            self._buffer += await self._receive()
        found, self._buffer = self._buffer[:count], self._buffer[count:]
        return found

    async def _read_line(self) -> bytes:
        while b"\n" not in self._buffer:
            if len(self._buffer) > LONGEST_LINE:
                raise garbage(self.name, self._buffer)
            self._buffer += await self._receive()
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    async def _receive(self) -> bytes:
        with _losing():
            data: bytes = await self._process.stdout.read(1 << 18)
        if not data:
            raise LineLostError("the connection ended")
        return data

    def quiet(self, wanted: bool) -> None:
        """While quiet, nothing at all is sent: a board that measures is left alone."""
        self._connection.set_keepalive(0 if wanted else KEEPALIVE_S)

    async def close(self) -> None:
        """End the helper and the connection."""
        try:
            with _losing():
                self._process.stdin.write_eof()
                self._connection.close()
                await asyncio.wait_for(self._connection.wait_closed(), 5)
        except (TimeoutError, LineLostError):
            self._connection.abort()

    def abort(self) -> None:
        """Drop the connection at once."""
        self._connection.abort()


def garbage(name: str, data: bytes) -> DeviceError:
    """The error for an answer that is none."""
    return DeviceError(f"{name}: the board answered with garbage, starting {data[:60]!r}. Nothing of it was used.")


async def connect(name: str, entry: Entry) -> asyncssh.SSHClientConnection:
    """A connection by the rules of `~/.ssh/config`, with keys alone: nothing asks for a password.

    Raises:
        DeviceError: unreachable, an unknown or changed host key, or no key that the board takes.
    """
    ssh = require("asyncssh", extra="ssh", why=f"reaching the board {name!r}")
    keys = _host_keys(ssh)
    known: dict[str, Any] = {"host": entry.host}
    known |= {"username": entry.user} if entry.user else {}
    known |= {"port": entry.port} if entry.port else {}
    try:
        options = await ssh.SSHClientConnectionOptions.construct(
            config=(), client_factory=lambda: keys, password_auth=False, kbdint_auth=False, login_timeout=CONNECT_S,
            keepalive_interval=KEEPALIVE_S, keepalive_count_max=KEEPALIVE_COUNT, **known,
        )  # fmt: skip
    except (ssh.Error, ssh.KeyImportError, ValueError, OSError) as error:
        raise DeviceError(f"{name}: the SSH configuration cannot be used: {error}") from error
    where = f"{options.username}@{options.host}:{options.port}"
    try:
        return await asyncio.wait_for(ssh.connect(entry.host, options=options), CONNECT_S + 5)
    except ssh.HostKeyNotVerifiable as error:
        raise _untrusted(ssh, name, keys, options) or DeviceError(f"{name}: {error}") from error
    except ssh.PermissionDenied as error:
        raise DeviceError(
            f"{name}: {where} took none of your keys. Put one there with `ssh-copy-id -p {options.port} "
            f"{options.username}@{options.host}`, or name it as IdentityFile in ~/.ssh/config."
        ) from error
    except (TimeoutError, OSError, ssh.Error) as error:
        if not options.tunnel and (other := await _other_key(ssh, name, options)):
            raise other from error
        told = str(error) or "no answer"
        raise DeviceError(f"{name}: {where} cannot be reached: {told}. Is the board on, and sshd running?") from error


def _host_keys(ssh: Any) -> Any:
    class HostKeys(ssh.SSHClient):  # type: ignore[misc]
        """Trusts nothing that known_hosts does not, and remembers what it refused."""

        seen: tuple[str, str, int, Any] | None = None

        def validate_host_public_key(self, host: str, addr: str, port: int, key: Any) -> bool:
            self.seen = host, addr, port, key
            return False

    return HostKeys()


async def _other_key(ssh: Any, name: str, options: Any) -> DeviceError | None:
    """The error for a host that ends the connection because it has no key of the kind that known_hosts expects."""
    try:
        key = await asyncio.wait_for(ssh.get_server_host_key(options.host, options.port, config=None), CONNECT_S)
        address = socket.gethostbyname(options.host)
    except (TimeoutError, OSError, ssh.Error):
        return None
    keys = _host_keys(ssh)
    expected = ssh.match_known_hosts(
        _known_hosts(options), options.host_key_alias or options.host, address, options.port
    )
    if key is None or not expected[0] or key in expected[0]:
        return None
    keys.seen = options.host_key_alias or options.host, address, options.port, key
    return _untrusted(ssh, name, keys, options)


def _known_hosts(options: Any) -> list[str] | bytes:
    """The files; no text at all where there are none, as on a machine that never used SSH."""
    files = options.known_hosts or "~/.ssh/known_hosts"
    paths = [Path(file).expanduser() for file in ([files] if isinstance(files, str) else files)]
    return [str(path) for path in paths if path.is_file()] or b""


def _alias(options: Any) -> str:
    host = options.host_key_alias or options.host
    return host if options.port == 22 else f"[{host}]:{options.port}"


def _untrusted(ssh: Any, name: str, keys: Any, options: Any) -> DeviceError | None:
    """The error for an unknown key, with the line to add, or for one that is not what it was."""
    if keys.seen is None:
        return None
    host, addr, port, key = keys.seen
    public, print_ = key.export_public_key("openssh").decode().split()[:2], key.get_fingerprint()
    expected = ssh.match_known_hosts(_known_hosts(options), host, addr, port)[0]
    where = _alias(options)
    if expected:
        return DeviceError(
            f"{name}: THE HOST KEY OF {where} CHANGED. known_hosts expects {expected[0].get_fingerprint()}, the host "
            f"shows {print_}. Either the board was set up anew or someone stands between. Nothing was sent. Only if "
            f"you know why: ssh-keygen -R {where!r}, then add the new key."
        )
    return DeviceError(
        f"{name}: the host key of {where} is unknown ({print_}). If that is the board's (there: ssh-keygen -lf "
        f"/etc/ssh/ssh_host_ed25519_key.pub), add this line to ~/.ssh/known_hosts:\n{where} {' '.join(public)}"
    )


@contextmanager
def _losing() -> Iterator[None]:
    ssh = require("asyncssh", extra="ssh", why="reaching a board")
    try:
        yield
    except TimeoutError:
        raise
    except (OSError, ssh.Error) as error:
        raise LineLostError(str(error)) from error
