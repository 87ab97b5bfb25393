"""Quantities as people write them in recipes: sizes, durations, shares and percentage points."""

from __future__ import annotations

import math
import os
import re
from datetime import UTC, datetime

from edgekit.errors import UsageError

_SIZES = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_DURATIONS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "min": 60.0, "m": 60.0, "h": 3600.0}
_QUANTITY = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)\s*([a-zµ%]*)", re.IGNORECASE)


def _parse(text: str | float, what: str, example: str, units: dict[str, float]) -> float:
    match = _QUANTITY.fullmatch(str(text).strip())
    scale = units.get(match[2].lower()) if match else None
    if match is None or scale is None or not math.isfinite(float(match[1])):
        raise UsageError(f"{text!r} is not {what}. Write it like {example}.")
    return float(match[1]) * scale


def parse_size(text: str | float) -> int:
    """Bytes; MB = 10^6 and MiB = 2^20.

    >>> parse_size("2 MB")
    2000000
    """
    return round(_parse(text, "a size", "'2 MB'", {"": 1, **_SIZES}))


def parse_duration(text: str | float) -> float:
    """Seconds; a bare number is seconds.

    >>> parse_duration("10 ms")
    0.01
    """
    return _parse(text, "a duration", "'10 ms'", {"": 1.0, **_DURATIONS})


def parse_points(text: str | float) -> float:
    """Percentage points as a fraction of one; a bare number is that fraction already.

    >>> parse_points("0.5pp")
    0.005
    """
    return _parse(text, "a number of percentage points", "'0.5pp'", {"": 1.0, "pp": 0.01, "%": 0.01})


def parse_percent(text: str | float) -> float:
    """A share; a bare number is a fraction of one.

    >>> parse_percent("5%")
    0.05
    """
    return _parse(text, "a share", "'5%' or 0.05", {"": 1.0, "%": 0.01})


def parse_decibels(text: str | float) -> float:
    """A ratio in decibels; a bare number is decibels already.

    >>> parse_decibels("20 dB")
    20.0
    """
    return _parse(text, "a ratio in decibels", "'20 dB'", {"": 1.0, "db": 1.0})


def source_date() -> datetime | None:
    """The time that stands for now in files that must come out the same again: `SOURCE_DATE_EPOCH`, None without it.

    Seconds since 1970 in UTC, as reproducible-builds.org specifies it.

    Raises:
        UsageError: it is set, and no such number.
    """
    found = os.environ.get("SOURCE_DATE_EPOCH")
    if not found:
        return None
    try:
        return datetime.fromtimestamp(int(found), UTC)
    except (ValueError, OverflowError, OSError) as error:
        raise UsageError(f"SOURCE_DATE_EPOCH must be whole seconds since 1970, got {found!r}.") from error


def parse_energy(text: str | float) -> float:
    """Joules; a bare number is joules already.

    >>> parse_energy("5 mJ")
    0.005
    """
    return _parse(text, "an energy", "'5 mJ'", {"": 1.0, "j": 1.0, "mj": 1e-3, "uj": 1e-6, "µj": 1e-6})


def parse_rate(text: str | float) -> float:
    """Inferences a second; a bare number is that already.

    >>> parse_rate("200 /s")
    200.0
    """
    return _parse(str(text).replace("/s", ""), "a number of inferences a second", "'200 /s'", {"": 1.0})
