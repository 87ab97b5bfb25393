"""The bundle's command line: `python3 X.edge selftest | bench | run | info | state`.

Exit codes: 0 done · 1 the selftest found a difference · 2 usage · 5 out of memory or a full disk · 6 the runtime is
missing · 8 the bundle is damaged · 70 a bug · 130 interrupted.
"""

from __future__ import annotations

import argparse
import errno
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from . import output
from .failures import DEVICE, INTERNAL, INTERRUPTED, MISMATCH, MISSING_RUNTIME, NO_FILE, USAGE, Failure, missing

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
    try:
        import numpy  # noqa: F401
    except ImportError as error:
        raise missing("numpy", "running a bundle", error) from error
    from .unpack import Archive

    return _dispatch(options, Archive(path))


def _dispatch(options: argparse.Namespace, archive: Any) -> int:
    if options.command == "info":
        output.emit({"sha256": archive.sha256, "manifest": archive.manifest})
    elif options.command == "state":
        from . import state

        output.emit({"machine": state.machine(), "state": state.read()})
    elif options.command == "selftest":
        return _selftest(options, archive)
    elif options.command == "run":
        from . import infer

        done = infer.run(
            archive, options.inputs, options.outputs, options.threads, options.batch, progress=options.progress
        )
        output.emit(done)
    else:
        _bench(options, archive)
    return 0


def _selftest(options: argparse.Namespace, archive: Any) -> int:
    from . import selftest

    result = selftest.selftest(archive, options.threads)
    output.emit(result, None if options.json else selftest.line(result))
    return 0 if result["passed"] else MISMATCH


def _bench(options: argparse.Namespace, archive: Any) -> None:
    from . import bench, stats

    if options.blocks:
        bench.serve(archive, options.inputs, options.threads)
        return
    result = bench.bench(
        archive, options.inputs, options.threads, options.percentile, options.min_seconds, options.max_seconds
    )
    told = " ".join(f"p{p} {stats.percentile(result['samples_s'], p) * 1e3:.3f} ms" for p in (50, 90))
    output.emit(result, None if options.json else f"{told} ({len(result['samples_s'])} inferences)")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python3 X.edge", description="A model that was made for this device.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("info", help="print the manifest")
    commands.add_parser("state", help="print what this device is and how it does")
    selftest = commands.add_parser("selftest", help="compare with the outputs from where the bundle was built")
    selftest.add_argument("--json", action="store_true")
    bench = commands.add_parser("bench", help="measure the latency of single inferences")
    bench.add_argument("--json", action="store_true", help="raw samples in seconds and the device's state")
    bench.add_argument("--inputs", default="", help=".npy or .npz; the golden inputs otherwise")
    bench.add_argument("--percentile", type=float, default=90.0, help="measure until this one is known")
    bench.add_argument("--min-seconds", type=_seconds, default=1.0)
    bench.add_argument("--max-seconds", type=_seconds, default=60.0)
    bench.add_argument("--blocks", action="store_true", help="one block of inferences for every line on stdin")
    run = commands.add_parser("run", help="all samples of a file through the model")
    run.add_argument("--inputs", required=True, help="raw or preprocessed samples: .npy, or .npz for several inputs")
    run.add_argument("--outputs", required=True, help=".npy, or .npz for several outputs")
    run.add_argument("--batch", type=_positive, default=1, help="samples in one call, where the model allows it")
    run.add_argument("--progress", action="store_true", help="lines of JSON on stderr")
    for command in (selftest, bench, run):
        command.add_argument("--threads", type=_threads, default=1)
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


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value
