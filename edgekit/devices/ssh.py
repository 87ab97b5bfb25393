"""A board that has only Linux, sshd and Python: bundles are sent there, measured there, and their results fetched."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import statistics
import tempfile
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from edgekit.bundle import Bundle, open_bundle
from edgekit.devices import Bench, Pairs, Run, _answers, _pairs, refuse_times
from edgekit.devices import _wheels as wheels
from edgekit.devices._calls import Calls
from edgekit.devices._pending import Ticket
from edgekit.devices._session import BOARD_LOCK, BOOT_ID, Session, Work
from edgekit.devices.benching import gather, interleaved
from edgekit.devices.inventory import Entry
from edgekit.devices.local import ERRORS, RUN_BATCH
from edgekit.errors import DeviceError, IntegrityError, MissingDependencyError

T = TypeVar("T")
PAIRS = Path(_pairs.__file__)
LARGEST_JSON = 64 << 20
LONGEST_MESSAGE = 16 << 10
INSTALL_S = 900.0
LOADING_S = 60.0


@dataclass(frozen=True)
class Python:
    """How a bundle is started on the board: with what Python, and what more in its environment."""

    path: str
    extra: Mapping[str, str]
    key: str = ""


class Ssh:
    """A registered board. One call is one connection; nothing stays open in between."""

    def __init__(
        self,
        name: str,
        entry: Entry,
        *,
        wait: bool = False,
        kill_on_interrupt: bool = False,
        boot_id: str = BOOT_ID,
        board_lock: str = BOARD_LOCK,
    ) -> None:
        """`boot_id` is the board's file that changes with every start, `board_lock` the one that its users share."""
        self.name, self.entry = name, entry
        self._options: dict[str, Any] = {
            "wait": wait or entry.wait,
            "kill_on_interrupt": kill_on_interrupt, "boot_id": boot_id, "board_lock": board_lock,
        }  # fmt: skip
        self._calls = Calls()
        self._probed: dict[str, Any] | None = None
        self._pythons: dict[tuple[str, ...], Python] = {}

    @property
    def emulated(self) -> bool:
        """Whether its entry says that it runs in an emulator: it is never timed then."""
        return self.entry.emulated

    def describe(self) -> Mapping[str, Any]:
        """Processor, features, cores, memory, kernel; `fingerprint` is a hash over all of them."""
        seen = self.probe()
        keys = ("cpu", "features", "cores", "memory_bytes", "arch", "kernel")
        machine = {**{key: seen[key] for key in keys}, "system": "Linux"}
        text = json.dumps(machine, sort_keys=True).encode()
        more: dict[str, Any] = {"emulated": True} if self.entry.emulated else {}
        if self.entry.noise:
            more["noise"] = self.entry.noise.half_width
        return {"name": self.name, "fingerprint": hashlib.sha256(text).hexdigest()[:16], **machine, **more}

    def probe(self) -> dict[str, Any]:
        """What the board is: Python, libc, architecture, cores, disk, runtimes. Nothing is written there.

        Raises:
            DeviceError: it cannot be reached, or has no Python that serves.
        """
        if self._probed is None:
            self._probed = self._do(lambda session: session.probe())
        return self._probed

    def selftest(self, bundle: Bundle, *, threads: int = 1) -> Mapping[str, Any]:
        """Golden inputs through the bundle: the agent's JSON, `passed` among it."""
        return self._agent([bundle], ["selftest", "--json", f"--threads={threads}"], accept=(0, 1))

    def run(
        self,
        bundle: Bundle,
        inputs: Path,
        outputs: Path,
        *,
        on_done: Callable[[int], None] | None = None,
        threads: int | None = None,
        batch: int = RUN_BATCH,
    ) -> Run:
        """All samples of `inputs` through the bundle, to the .npz `outputs`."""
        options = ["run", "--outputs=outputs.npz", f"--threads={threads or self.probe()['cores']}", f"--batch={batch}"]
        info = self._agent([bundle], [*options, "--progress"], inputs, on_done=on_done, outputs=outputs)
        if on_done and isinstance(info.get("samples"), int):
            on_done(info["samples"])
        return Run(outputs, info)

    def bench(
        self,
        bundle: Bundle,
        *,
        threads: int = 1,
        inputs: Path | None = None,
        percentile: float = 90.0,
        min_seconds: float = 1.0,
        max_seconds: float = 60.0,
        affinity: Sequence[int] | None = None,
    ) -> Bench:
        """Latency of single inferences, cold starts and peak memory, each in processes of its own.

        Raises:
            MeasurementInvalidError: the board is emulated.
        """
        self._refuse_emulated()

        def ask(options: list[str]) -> dict[str, Any]:
            return self._agent([bundle], options, inputs, expected_s=LOADING_S + max_seconds)

        rule = {"percentile": percentile, "min_seconds": min_seconds, "max_seconds": max_seconds}
        try:
            found = gather(ask, _common(threads, affinity), **rule)
        except (KeyError, TypeError, ValueError, statistics.StatisticsError) as error:
            raise _answers.nonsense(self.name) from error
        return Bench(_answers.latencies(self.name, list(found.samples_s)), found.info)

    def layers(self, bundle: Bundle, *, threads: int = 1, inputs: Path | None = None) -> Mapping[str, Any]:
        """Time layer by layer, where the runtime tells it: the agent's JSON, `layers` among it (None: see `reason`)."""
        self._refuse_emulated()
        return self._agent([bundle], ["layers", "--json", *_common(threads)], inputs, expected_s=LOADING_S)

    def pairs(self, a: Bundle, b: Bundle, *, rounds: int, threads: int = 1, inputs: Path | None = None) -> Pairs:
        """Interleaved rounds: a driver on the board starts both bundles and lets them take turns.

        Raises:
            MeasurementInvalidError: the board is emulated.
        """
        self._refuse_emulated()
        expected = rounds * (2 * LOADING_S + _pairs.TIMED_S)
        told = self._agent(
            [a, b], [str(rounds), str(_pairs.TIMED_S)], inputs, expected_s=expected, bench=_common(threads)
        )
        return interleaved(_answers.turns(self.name, told.get("rounds"), rounds))

    def clean(self, *, force: bool = False) -> int:
        """Remove all that edgekit keeps on the board: bytes that were freed.

        Raises:
            DeviceError: jobs run there, unless `force` ends them.
        """
        self._pythons.clear()
        answer = self._do(lambda session: session.call("clean", force=force))
        return int(answer.get("freed_bytes", 0))

    def install(self, backends: Sequence[str], wanted: Mapping[str, str] | None = None) -> None:
        """Make the board ready for bundles of `backends`, ahead of their first measurement."""
        self.probe()
        self._do(lambda session: self._python(session, tuple(sorted(set(backends))), wanted or {}))

    def _refuse_emulated(self) -> None:
        if self.entry.emulated:
            refuse_times(self.name)

    def _agent(
        self,
        bundles: Sequence[Bundle],
        options: Sequence[str],
        inputs: Path | None = None,
        *,
        expected_s: float | None = None,
        accept: Sequence[int] = (0,),
        on_done: Callable[[int], None] | None = None,
        outputs: Path | None = None,
        bench: Sequence[str] = (),
    ) -> dict[str, Any]:
        """The bundle's agent, or the driver of two of them, in a fresh process on the board: the JSON of its last line.

        `options` are those of the command, `bench` those that the driver hands on to both bundles.
        """
        files = {f"{place}/{_plain(b.path.name)}": b.path for place, b in zip("ab", bundles, strict=False)}
        command = [*files, *options] if len(bundles) == 1 else ["pairs.py", *options, *files, *bench]
        if len(bundles) == 2:
            files["pairs.py"] = PAIRS
        if inputs:
            name = f"inputs{inputs.suffix}"
            files[name] = inputs
            command.append(f"--inputs={name}")
        for bundle in bundles:
            if open_bundle(bundle.path).sha256 != bundle.sha256:
                raise IntegrityError(f"{bundle.path}: the file is not the one that was opened. Build it again.")

        async def work(session: Session) -> dict[str, Any]:
            backends = tuple(sorted({bundle.manifest.backend for bundle in bundles}))
            wanted = {key: value for bundle in bundles for key, value in bundle.manifest.versions.items()}
            python = await self._python(session, backends, wanted)
            sums = await session.prepare(files.values(), [python.key])
            step = [python.path, "-B", "-s", *command]
            job = Work(files, [step], python.extra, expected_s is not None, expected_s or 0)
            with _ticket(self.name, job, sums) as ticket:
                done = await session.job(ticket, job, sums, on_done)
                if done["code"] not in accept:
                    told = await session.text(ticket, done, "stderr", LONGEST_MESSAGE)
                    await session.forget(ticket)
                    raise self._failure(done, told, bundles[0].path.name)
                info = _answers.last_line(self.name, await session.text(ticket, done, "stdout", LARGEST_JSON))
                if outputs:
                    most = _answers.most_bytes(bundles[0], info)
                    await session.fetch(ticket, done, "outputs.npz", outputs, most)
                    _answers.check_outputs(self.name, outputs, bundles[0])
                await session.forget(ticket)
                return info

        self.probe()
        return self._do(work)

    async def _python(self, session: Session, backends: tuple[str, ...], wanted: Mapping[str, str]) -> Python:
        """Where `backends` run: an environment of their own, installed when it is needed first."""
        assert self._probed is not None
        board = self._probed
        if backends in self._pythons:
            return self._pythons[backends]
        stop = threading.Event()
        try:
            found = await asyncio.to_thread(wheels.resolve, backends, wanted, board, stop)
        except asyncio.CancelledError:
            stop.set()
            raise
        if found is None:
            return Python(self.entry.python, {})
        key = wheels.environment_key(found, board)
        ready = (await session.call("environment", key=key)).get("ready")
        if ready is None:
            await self._install(session, found, key)
            ready = (await session.call("environment", key=key)).get("ready")
        if not isinstance(ready, dict) or not isinstance(ready.get("python"), str):
            raise DeviceError(f"{self.name}: the runtime was installed, but its environment is not there")
        extra = {str(name): str(value) for name, value in (ready.get("extra") or {}).items()}
        self._pythons[backends] = Python(ready["python"], extra, key)
        return self._pythons[backends]

    async def _install(self, session: Session, found: Sequence[wheels.Wheel], key: str) -> None:
        assert self._probed is not None
        with tempfile.TemporaryDirectory() as folder:
            requirements = Path(folder) / "requirements.txt"
            requirements.write_text(wheels.requirements_text(found))
            files = {f"wheels/{wheel.name}": wheel.path for wheel in found} | {"wheels/requirements.txt": requirements}
            sums = await session.prepare(files.values())
            base = self._probed["folder"]
            step = [
                self._probed["executable"],
                "-I",
                "-B",
                f"{base}/board.py",
                "install",
                f"{base}/envs/{key}",
                "wheels",
            ]
            job = Work(files, [step], {}, timed=False, expected_s=INSTALL_S)
            with _ticket(self.name, job, sums) as ticket:
                done = await session.job(ticket, job, sums)
                told = await session.text(ticket, done, "stderr", LONGEST_MESSAGE)
                await session.forget(ticket)
        if done["code"]:
            raise self._failure(done, told, "installing the runtime")

    def _failure(self, done: Mapping[str, Any], told: str, what: str) -> Exception:
        """The error for the way in which a job ended."""
        code, peak = done["code"], done.get("peak_rss_bytes")
        lines = [line.removeprefix("edgekit: ") for line in told.splitlines() if not line.startswith('{"done"')]
        said = "\n".join(lines).strip()[-4000:]
        memory = f" It had held {peak / 1e6:.0f} MB at its peak." if isinstance(peak, int) else ""
        if "timeout_s" in done:
            return DeviceError(f"{self.name}: {what} was still running after {done['timeout_s']:.0f} s and was ended.")
        if code == -9:
            return DeviceError(f"{self.name}: {what} was ended by SIGKILL: out of memory?{memory} {said}".strip())
        if code < 0:
            return DeviceError(f"{self.name}: {what} was ended by signal {-code}. {said}".strip())
        more = memory if code == 5 and "memory" in said else ""
        kind = ERRORS.get(code, MissingDependencyError if code == 127 else DeviceError)
        return kind(f"{self.name}: {what}: {said or f'ended with code {code} and no message'}{more}")

    def _do(self, work: Callable[[Session], Coroutine[Any, Any, T]]) -> T:
        killed = self._options["kill_on_interrupt"]

        async def whole() -> T:
            nonlocal killed
            async with Session(self.name, self.entry, **self._options) as session:
                try:
                    return await work(session)
                finally:
                    killed = session.kill

        try:
            return self._calls.run(whole)
        except KeyboardInterrupt as error:
            error.add_note(
                f"What ran on {self.name} was ended."
                if killed
                else f"A job that runs on {self.name} goes on; asking for the same again takes up its result."
            )
            raise

    def interrupt(self) -> None:
        """End the calls of other threads: they raise KeyboardInterrupt soon."""
        self._calls.interrupt()


def _common(threads: int, affinity: Sequence[int] | None = None) -> list[str]:
    return [f"--threads={threads}", *([f"--affinity={','.join(map(str, affinity))}"] if affinity else [])]


@contextmanager
def _ticket(device: str, work: Work, sums: Mapping[Path, str]) -> Iterator[Ticket]:
    """The id of a job; it is left for the next call where this one does not see the job's end."""
    files = {name: sums[path] for name, path in work.files.items()}
    ticket = Ticket(device, {"files": files, "steps": [list(step) for step in work.steps], "extra": dict(work.extra)})
    try:
        yield ticket
    finally:
        ticket.leave()


def _plain(name: str) -> str:
    """A bundle's own name, for messages, as far as every file system takes it.

    >>> _plain("it's a 'b'.edge")
    'it_s a _b_.edge'
    """
    return re.sub(r"[^\w .+=,@-]", "_", name)[-120:].lstrip(". -") or "bundle.edge"


__all__: Sequence[str] = ("Ssh",)
