"""Under which licence an installed package says that it is."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import metadata

LONGEST = 200
"""Characters: what is longer is the licence's text, not its name."""

_CLASSIFIERS = {
    "MIT License": "MIT",
    "MIT No Attribution License (MIT-0)": "MIT-0",
    "ISC License (ISCL)": "ISC",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "The Unlicense (Unlicense)": "Unlicense",
    "zlib/libpng License": "Zlib",
}
"""Classifiers that name one SPDX licence; others ("Apache Software License") leave the version open, and stay text."""


def licence_of(distribution: str) -> str | None:
    """The licence of an installed package, an SPDX expression where it gives one; None where it is not installed.

    By the fields that PyPA's core metadata has for it, the strictest first: `License-Expression` (PEP 639), then
    classifiers, then the first line of `License`. A package that is installed and says nothing is "unknown".

    >>> licence_of("numpy") is None or isinstance(licence_of("numpy"), str)
    True
    """
    try:
        told = metadata.metadata(distribution)
    except metadata.PackageNotFoundError:
        return None
    fields = told.json  # `.get` is not typed in every version
    expression = str(fields.get("license_expression") or "")
    if expression and len(expression) <= LONGEST:
        return expression
    named = [str(line).rpartition(" :: ")[2] for line in fields.get("classifier", ()) if line.startswith("License :: ")]
    if named:
        return ", ".join(_CLASSIFIERS.get(name, name) for name in named)[:LONGEST]
    first = next(iter(str(fields.get("license") or "").splitlines()), "").strip()
    return first[:LONGEST] or "unknown"


def licences_of(distributions: Iterable[str]) -> dict[str, str]:
    """Those of the packages that are installed, by name."""
    found = {name: licence_of(name) for name in distributions}
    return {name: licence for name, licence in found.items() if licence is not None}
