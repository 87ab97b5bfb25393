"""This machine: the bundle is run by this Python in a fresh process, as it would be on a board."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, ClassVar

from edgekit.agent import state
from edgekit.bundle import Bundle
from edgekit.devices import Bench, Pairs, Run, _pairs
from edgekit.devices.benching import gather, interleaved
from edgekit.errors import (
    DeviceError,
    EdgekitError,
    IntegrityError,
    MissingDependencyError,
    UsageError,
)

RUN_BATCH = 64
"""Samples in one call when accuracy is asked for; latency is always that of single inferences."""

STOP_S = 2.0
"""How long a process that is interrupted has to end by itself."""

ERRORS: dict[int, type[EdgekitError]] = {
    1: DeviceError,
    2: UsageError,
    5: DeviceError,
    6: MissingDependencyError,
    8: IntegrityError,
    70: EdgekitError,
}


class Local:
    """The machine that edgekit runs on."""

    name: ClassVar[str] = "local"
    run_batch: ClassVar[int] = RUN_BATCH
    """Samples in one call of `run`, after each of which progress is told."""
    exact: ClassVar[bool] = False

    def __init__(self, python: Path | None = None) -> None:
        """`python` runs the bundles; by default the one that runs edgekit."""
        self.python = str(python or sys.executable)
        self._running: set[_Process] = set()
        self._interrupted = False

    def describe(self) -> Mapping[str, Any]:
        """Processor, features, cores, memory, kernel; `fingerprint` is a hash over all of them."""
        machine = state.machine()
        text = json.dumps(machine, sort_keys=True).encode()
        return {"name": self.name, "fingerprint": hashlib.sha256(text).hexdigest()[:16], **machine}

    def selftest(self, bundle: Bundle, *, threads: int = 1) -> Mapping[str, Any]:
        """Golden inputs through the bundle: the agent's JSON, `passed` among it."""
        return self._finish(self._start(bundle, ["selftest", "--json", f"--threads={threads}"]), accept=(0, 1))

    def run(
        self,
        bundle: Bundle,
        inputs: Path,
        outputs: Path,
        *,
        on_done: Callable[[int], None] | None = None,
        threads: int | None = None,
        batch: int | None = None,
    ) -> Run:
        """All samples of `inputs` through the bundle, to the .npz `outputs`."""
        threads = threads or state.machine()["cores"]
        batch = batch or self.run_batch
        options = ["run", f"--inputs={inputs}", f"--outputs={outputs}", f"--threads={threads}", f"--batch={batch}"]
        options += ["--progress", *(["--exact"] if self.exact else [])]
        return Run(outputs, self._finish(self._start(bundle, options), on_done=on_done))

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
        """Latency of single inferences, cold starts and peak memory, each in processes of its own."""
        common = _common(threads, inputs, affinity)

        def ask(options: list[str]) -> dict[str, Any]:
            return self._finish(self._start(bundle, options))

        return gather(ask, common, percentile=percentile, min_seconds=min_seconds, max_seconds=max_seconds)

    def layers(self, bundle: Bundle, *, threads: int = 1, inputs: Path | None = None) -> Mapping[str, Any]:
        """Time layer by layer, where the runtime tells it: the agent's JSON, `layers` among it (None: see `reason`)."""
        return self._finish(self._start(bundle, ["layers", "--json", *_common(threads, inputs)]))

    def pairs(self, a: Bundle, b: Bundle, *, rounds: int, threads: int = 1, inputs: Path | None = None) -> Pairs:
        """Rounds of fresh processes that take turns, driven as on a board: see `edgekit.devices._pairs`."""
        driver = [self.python, "-B", str(_pairs.__file__), str(rounds), str(_pairs.TIMED_S), str(a.path), str(b.path)]
        process = self._started([*driver, *_common(threads, inputs)], self._environment(), a.path)
        return interleaved(self._finish(process)["rounds"])

    def _start(self, bundle: Bundle, options: Sequence[str]) -> _Process:
        command, environment = self._launch(bundle)
        return self._started([*command, str(bundle.path), *options], environment, bundle.path)

    def _started(self, command: Sequence[str], environment: Mapping[str, str], path: Path) -> _Process:
        """A process that runs the bundle at `path`."""
        if self._interrupted:
            raise KeyboardInterrupt
        try:
            popen = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=environment,
                text=True,
            )
        except OSError as error:
            raise DeviceError(f"cannot start {command[0]}: {error}") from error
        process = _Process(popen, path)
        self._running.add(process)
        if self._interrupted:  # meanwhile: whoever interrupted did not see this process
            self._end(process)
        return process

    def _launch(self, bundle: Bundle) -> tuple[list[str], dict[str, str]]:
        """What starts the bundle, and its environment. -B: a bundle leaves nothing behind."""
        return [self.python, "-B"], self._environment()

    def _environment(self) -> dict[str, str]:
        """This process's, without what would change Python or its threads."""
        unwanted = ("PYTHON", "OMP_", "KMP_", "MKL_")
        return {key: value for key, value in os.environ.items() if not key.startswith(unwanted)}

    def _finish(
        self, process: _Process, *, accept: Sequence[int] = (0,), on_done: Callable[[int], None] | None = None
    ) -> dict[str, Any]:
        try:
            process.on_done = on_done
            process.follow()
            return process.result(accept)
        finally:
            self._end(process)

    def _end(self, process: _Process) -> None:
        self._running.discard(process)
        _kill(process)
        if self._interrupted:
            raise KeyboardInterrupt

    def interrupt(self) -> None:
        """End the calls of other threads, for good: they raise KeyboardInterrupt soon."""
        self._interrupted = True
        for process in tuple(self._running):
            process.popen.kill()


class StandIn(Local):
    """The machine that edgekit runs on, in the place of one that adds up 8-bit products without overflow.

    ONNX Runtime computes them in float there, which gives the same sums; other runtimes compute as they always do.
    """

    exact = True


class _Process:
    """A running agent: its last stdout line is the result, its stderr holds progress and messages."""

    def __init__(self, popen: subprocess.Popen[str], path: Path) -> None:
        self.popen, self.path = popen, path
        self.messages: list[str] = []
        self.on_done: Callable[[int], None] | None = None
        self.reader: threading.Thread | None = None

    def follow(self) -> None:
        """Read stderr beside stdout, so that neither pipe fills up."""
        self.reader = threading.Thread(target=self._read, args=(self.popen.stderr,), daemon=True)
        self.reader.start()

    def _read(self, stream: IO[str]) -> None:
        for line in stream:
            if not line.startswith('{"done"'):
                self.messages.append(line)
                continue
            if self.on_done:
                self.on_done(int(json.loads(line)["done"]))

    def result(self, accept: Sequence[int] = (0,)) -> dict[str, Any]:
        """The JSON of the last line, when the agent ended with a code in `accept`."""
        assert self.popen.stdin and self.popen.stdout and self.reader
        self.popen.stdin.close()
        lines = self.popen.stdout.read().splitlines()
        self.popen.wait()
        self.reader.join()
        if self.popen.returncode not in accept or not lines:
            raise self.failure()
        found: dict[str, Any] = json.loads(lines[-1])
        if self.on_done:
            self.on_done(int(found["samples"]))
        return found

    def failure(self) -> EdgekitError:
        """The error for the way in which the agent ended."""
        code = self.popen.wait()
        told = "".join(self.messages).strip().removeprefix("edgekit: ")
        if code == 130:
            raise KeyboardInterrupt
        if code < 0:
            name = signal.Signals(-code).name
            guess = " (out of memory?)" if -code == signal.SIGKILL else ""
            return DeviceError(f"{self.path.name}: the process was ended by {name}{guess}. {told}".strip())
        return ERRORS.get(code, DeviceError)(f"{self.path.name}: {told or f'ended with code {code} and no message'}")


def _common(threads: int, inputs: Path | None, affinity: Sequence[int] | None = None) -> list[str]:
    kept = [f"--affinity={','.join(map(str, affinity))}"] if affinity else []
    return [f"--threads={threads}", *([f"--inputs={inputs}"] if inputs else []), *kept]


def _kill(process: _Process) -> None:
    if process.popen.poll() is None:
        process.popen.send_signal(signal.SIGINT)  # the driver of pairs ends its two processes first
        with suppress(subprocess.TimeoutExpired):
            process.popen.wait(STOP_S)
        process.popen.kill()
        process.popen.wait()
    for stream in (process.popen.stdin, process.popen.stdout, process.popen.stderr):
        if stream:
            stream.close()
