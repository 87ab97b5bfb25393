"""What every verb does alike: errors become one message and the documented exit code, here and nowhere else."""

from __future__ import annotations

import errno
import functools
import json
import logging
import os
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from typing import Annotated, NoReturn, ParamSpec

import typer

from edgekit.errors import EdgekitError, ExitCode
from edgekit.plain import printable

P = ParamSpec("P")

_UNUSABLE = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP,
)  # fmt: skip
"""System errors that mean a path which cannot be used as it is."""

Json = Annotated[bool, typer.Option("--json", help="Write the result, or the error, to stdout as JSON.")]


def verb(function: Callable[P, int | None]) -> Callable[P, None]:
    """Wrap a command: it returns its exit code (None means 0), and whatever it raises is reported."""

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        _settle_logging()
        try:
            code = function(*args, **kwargs)
        except typer.Exit:
            raise
        except (Exception, KeyboardInterrupt, SystemExit) as error:  # a model's code may call sys.exit()
            _fail(error, as_json=bool(kwargs.get("as_json")))
        raise typer.Exit(int(code or 0))

    return wrapped


def _settle_logging() -> None:
    """Libraries log errors alone, to stderr; EDGEKIT_DEBUG=1 shows their warnings too."""
    debug = os.environ.get("EDGEKIT_DEBUG") == "1"
    logging.basicConfig(level=logging.WARNING if debug else logging.ERROR, stream=sys.stderr)
    if not debug:
        warnings.simplefilter("ignore")
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # LiteRT's own log


@contextmanager
def stdout_for_results() -> Iterator[None]:
    """Until the context ends, whatever libraries print, in Python or below it, goes to stderr."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def say(text: str) -> None:
    """Write a result to stdout; a reader that went away (`| head`) is no error."""
    inert = text.replace("##[", "\\u0023#[")  # JSON alone still has it; see `printable` for what obeys it
    try:
        sys.stdout.write(inert if inert.endswith("\n") else f"{inert}\n")
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(error: BaseException, *, as_json: bool) -> NoReturn:
    code, message = classify(error)
    notes = list(getattr(error, "__notes__", ()))
    if as_json:
        kind = type(error).__name__
        say(json.dumps({"error": {"type": kind, "message": message, "notes": notes, "exit_code": int(code)}}, indent=2))
    with suppress(OSError):  # where nobody can be told, the code still tells
        lines = [f"edgekit: {message}", *(f"  {note}" for note in notes)]
        print(printable("\n".join(lines), keep="\n\t"), file=sys.stderr)
    if code is ExitCode.INTERNAL:
        _leave_traceback(error)
    raise typer.Exit(int(code)) from None


def classify(error: BaseException) -> tuple[ExitCode, str]:
    """The exit code and the message of anything that was raised.

    >>> classify(KeyboardInterrupt())
    (<ExitCode.INTERRUPTED: 130>, 'interrupted.')
    """
    if isinstance(error, KeyboardInterrupt):
        return ExitCode.INTERRUPTED, "interrupted."  # what the verb or a board knows beyond that stands in the notes
    if isinstance(error, SystemExit):
        return ExitCode.USAGE, "the model's or the data's own code called sys.exit(). Let it return, or raise."
    if isinstance(error, EdgekitError):
        return error.exit_code, str(error)
    if isinstance(error, MemoryError):
        return ExitCode.DEVICE, "out of memory on this machine. Use fewer samples or a smaller batch."
    if isinstance(error, OSError):
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return ExitCode.DEVICE, f"the disk is full: {_path(error)}. Free some space, then use `--resume`."
        if error.errno in _UNUSABLE:
            return (
                ExitCode.USAGE,
                f"cannot use {_path(error)}: {error.strerror}. Check its permissions, or choose another.",
            )
    return (
        ExitCode.INTERNAL,
        f"internal error: {type(error).__name__}: {error}\n  This is a bug in edgekit, please report it.",
    )


def _path(error: OSError) -> str:
    return str(error.filename) if error.filename else "a file"


def _leave_traceback(error: BaseException) -> None:
    """The traceback goes to stderr under EDGEKIT_DEBUG=1, else to a log file whose path is shown."""
    text = "".join(traceback.format_exception(error))
    if os.environ.get("EDGEKIT_DEBUG") == "1":
        print(text, file=sys.stderr)
        return
    try:
        with tempfile.NamedTemporaryFile("w", prefix="edgekit-", suffix=".log", delete=False) as log:
            log.write(text)
        print(f"  The traceback is in {log.name} (EDGEKIT_DEBUG=1 shows it here).", file=sys.stderr)
    except OSError:
        print(text, file=sys.stderr)
