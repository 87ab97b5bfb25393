"""What `torch.export` needs around it: a copy of any module, silence, and one line about what went wrong."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules import transformer

LOGGERS = ("torch.onnx", "torch.export", "torch.fx.experimental.symbolic_shapes", "onnxscript", "onnx_ir")


def copied(module: nn.Module) -> nn.Module:
    """A deep copy in evaluation mode, which shares no tensor with `module`.

    Old-style weight norm keeps what it computes as an attribute that no copy can be made of; every forward computes it
    anew, so the copy starts with the plain numbers.
    """
    computed = {
        id(value): value.detach().clone()
        for layer in module.modules()
        for value in vars(layer).values()
        if isinstance(value, Tensor) and not value.is_leaf
    }
    return copy.deepcopy(module, dict(computed)).eval()


@contextlib.contextmanager
def exporting() -> Iterator[None]:
    """The exporters print their progress, graphs that failed, and warn of things that their user cannot change.

    `nn.Transformer` compares the mask that it is given with a causal one, only to choose a faster kernel; an exporter
    takes that for a branch on data. Here it takes the mask as it is.
    """
    loggers = [logging.getLogger(name) for name in LOGGERS]
    levels = [logger.level for logger in loggers]
    detect = transformer._detect_is_causal_mask
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            transformer._detect_is_causal_mask = _told
            yield
    finally:
        transformer._detect_is_causal_mask = detect
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def without_fast_path() -> Iterator[None]:
    """Attention and transformer layers run as the operations that they are made of."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _told(mask: Tensor | None, is_causal: bool | None = None, size: int | None = None) -> bool:
    """Whether a mask is causal, as the caller says; False keeps the mask."""
    return is_causal is True


def reason(error: BaseException) -> str:
    """What an exporter failed at, in one line: the line of the model where it stopped, and why.

    The exporters wrap an error several times, and the outer messages say little.
    """
    while error.__cause__ is not None:
        error = error.__cause__
    place = _line_of_the_model(error)
    if "DataDependent" in type(error).__name__:
        what = "what runs depends on values in its data, which a graph cannot hold"
        return f"{what}{f', at {place}' if place else ''}. Choose with torch.where instead of if and while"
    text = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {text}{f' (at {place})' if place else ''}"


def _line_of_the_model(error: BaseException) -> str:
    """File, line and text of the innermost frame that is neither torch's, edgekit's nor Python's own."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        file = Path(frame.filename)
        if file.is_absolute() and not _is_no_model(file):
            return f"{file.name}:{frame.lineno}, `{frame.line}`"
    return ""


def _is_no_model(file: Path) -> bool:
    if Path(torch.__file__).parent in file.parents or Path(__file__).parent.parent in file.parents:
        return True
    return Path(contextlib.__file__).parent in file.parents and "site-packages" not in file.parts
