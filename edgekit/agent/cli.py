"""The bundle's command line: `python3 X.edge selftest | bench | cold | memory | layers | energy | run | info | state`.

Exit codes: 0 done · 1 the selftest found a difference · 2 usage · 5 out of memory or a full disk · 6 the runtime is
missing · 8 the bundle is damaged · 70 a bug · 130 interrupted.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from . import output
from .failures import DEVICE, INTERNAL, INTERRUPTED, MISMATCH, MISSING_RUNTIME, NO_FILE, USAGE, Failure, missing, usage

MOST_THREADS = 1024
"""More would take a runtime minutes to start, or never."""


def main(path: str, argv: Sequence[str]) -> int:
    """Run one command; the exit code."""
    try:
        return _command(path, argv)
    except Failure as failure:
        return _fail(failure.code, str(failure))
    except KeyboardInterrupt:
        return _fail(INTERRUPTED, "interrupted")
    except MemoryError as error:
        return _fail(DEVICE, f"out of memory: {error}")
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return _fail(DEVICE, f"the disk is full: {error}")
        if error.errno == errno.ENOMEM:
            return _fail(DEVICE, f"out of memory: {error}")
        if error.errno in NO_FILE:
            return _fail(USAGE, str(error))
        return _fail(INTERNAL, traceback.format_exc())
    except Exception:  # the last resort: a bug, told whole
        return _fail(INTERNAL, traceback.format_exc())


def _fail(code: int, message: str) -> int:
    print("edgekit: " + message, file=sys.stderr, flush=True)
    return code


def _command(path: str, argv: Sequence[str]) -> int:
    if sys.version_info < (3, 9):
        return _fail(MISSING_RUNTIME, "Python 3.9 or later is needed, this is " + sys.version.split()[0])
    try:
        options = _parser().parse_args(argv)
    except SystemExit as stop:  # argparse's own: 2 for an error, 0 after --help
        return int(stop.code or 0)
    _keep_to(getattr(options, "affinity", None))
    if getattr(options, "watch", False):  # without numpy: it starts while something is about to be measured
        from . import watch

        watch.serve(options.interval, options.power)
        return 0
    try:
        import numpy  # noqa: F401
    except ImportError as error:
        raise missing("numpy", "running a bundle", error) from error
    from .unpack import Archive

    return _dispatch(options, Archive(path))


def _keep_to(processors: Any) -> None:
    """Bind this process to some processors, before numpy and the runtime start threads of theirs, which inherit it."""
    if not processors:
        return
    if not hasattr(os, "sched_setaffinity"):
        raise usage("--affinity: this system binds no process to processors")
    try:
        os.sched_setaffinity(0, processors)
    except OSError as error:
        there = ",".join(map(str, sorted(os.sched_getaffinity(0))))
        raise usage(
            f"--affinity: cannot run on {','.join(map(str, processors))} ({error}). There are {there}"
        ) from error
    kept = os.sched_getaffinity(0)
    if kept != set(processors):
        raise usage(f"--affinity: asked for {','.join(map(str, processors))}, got {','.join(map(str, sorted(kept)))}")


def _dispatch(options: argparse.Namespace, archive: Any) -> int:
    if options.command == "selftest":
        return _selftest(options, archive)
    if options.command == "bench":
        _bench(options, archive)
    else:
        output.emit(*_result(options, archive))
    return 0


def _result(options: argparse.Namespace, archive: Any) -> tuple[Any, ...]:
    """What to print: a result, and a line for a person where that is wanted."""
    if options.command == "info":
        return ({"sha256": archive.sha256, "manifest": archive.manifest},)
    if options.command == "state":
        from . import state

        return ({"machine": state.machine(), "state": state.read()},)
    if options.command == "layers":
        from . import layers

        result = layers.layers(archive, options)
        return result, None if options.json else layers.table(result)
    if options.command == "energy":
        from . import power

        return (power.energy(archive, options),)
    if options.command in ("cold", "memory"):
        from . import fresh

        once = options.command == "cold" and options.once
        return (
            (fresh.memory if options.command == "memory" else fresh.once if once else fresh.cold)(archive, options),
        )
    from . import infer

    return (infer.run(archive, options),)


def _selftest(options: argparse.Namespace, archive: Any) -> int:
    from . import selftest

    result = selftest.selftest(archive, options.threads)
    output.emit(result, None if options.json else selftest.line(result))
    return 0 if result["passed"] else MISMATCH


def _bench(options: argparse.Namespace, archive: Any) -> None:
    from . import bench

    if options.blocks:
        bench.serve(archive, options)
        return
    result = bench.bench(archive, options)
    output.emit(result, None if options.json else bench.line(result))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python3 X.edge", description="A model that was made for this device.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("info", help="print the manifest")
    state = commands.add_parser("state", help="print what this device is and how it does")
    state.add_argument("--watch", action="store_true", help="a line every interval, until stdin ends")
    state.add_argument("--power", action="store_true", help=argparse.SUPPRESS)
    state.add_argument("--interval", type=_seconds, default=1.0)
    selftest = commands.add_parser("selftest", help="compare with the outputs from where the bundle was built")
    selftest.add_argument("--json", action="store_true")
    bench = commands.add_parser("bench", help="measure the latency of single inferences")
    bench.add_argument("--json", action="store_true", help="raw samples in seconds and the device's state")
    bench.add_argument("--percentile", type=float, default=90.0, help="measure until this one is known")
    bench.add_argument("--min-seconds", type=_seconds, default=1.0)
    bench.add_argument("--max-seconds", type=_seconds, default=60.0)
    bench.add_argument("--warm-up", type=_positive, default=5, help="least inferences before the first that counts")
    bench.add_argument("--warm-up-seconds", type=_seconds, default=0.3, help="least time for them")
    bench.add_argument("--blocks", action="store_true", help="one block of inferences for every line on stdin")
    cold = commands.add_parser("cold", help="seconds of import, load and first inference, in fresh processes")
    cold.add_argument("--repeat", type=_positive, default=5, help="fresh processes")
    cold.add_argument("--max-seconds", type=_seconds, default=60.0, help="start none any more after that")
    cold.add_argument("--once", action="store_true", help=argparse.SUPPRESS)
    memory = commands.add_parser("memory", help="peak memory before and after loading, and after inferences")
    memory.add_argument("--inferences", type=_positive, default=20)
    memory.add_argument("--max-seconds", type=_seconds, default=10.0)
    layers = commands.add_parser("layers", help="the time of each layer, where the runtime tells it")
    layers.add_argument("--json", action="store_true")
    layers.add_argument("--repeat", type=_positive, default=50, help="inferences")
    layers.add_argument("--max-seconds", type=_seconds, default=10.0)
    energy = commands.add_parser("energy", help="joules of one inference, where the device has a meter")
    energy.add_argument("--windows", type=_positive, default=5)
    energy.add_argument("--window-seconds", type=_seconds, default=10.0)
    energy.add_argument("--idle-seconds", type=_seconds, default=10.0)
    for command in (bench, cold, memory, layers, energy):
        command.add_argument("--inputs", default="", help=".npy or .npz; the golden inputs otherwise")
    run = commands.add_parser("run", help="all samples of a file through the model")
    run.add_argument("--inputs", required=True, help="raw or preprocessed samples: .npy, or .npz for several inputs")
    run.add_argument("--outputs", required=True, help=".npy, or .npz for several outputs")
    run.add_argument("--batch", type=_positive, default=1, help="samples in one call, where the model allows it")
    run.add_argument("--progress", action="store_true", help="lines of JSON on stderr")
    run.add_argument("--exact", action="store_true", help="8-bit sums in float, where the runtime can: slower")
    for command in (selftest, bench, cold, memory, layers, energy, run):
        command.add_argument("--threads", type=_threads, default=1)
        command.add_argument("--affinity", type=_processors, help="processors to run on, such as 0,1")
    return parser


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):  # so written, it refuses NaN too
        raise argparse.ArgumentTypeError(f"must be at least 0, got {value}")
    return value


def _threads(text: str) -> int:
    value = _positive(text)
    if value > MOST_THREADS:
        raise argparse.ArgumentTypeError(f"must be at most {MOST_THREADS}, got {value}")
    return value


def _processors(text: str) -> list[int]:
    found = sorted({int(part) for part in text.split(",")})
    if found[0] < 0:
        raise argparse.ArgumentTypeError(f"must be numbers of processors, got {text}")
    return found


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value
