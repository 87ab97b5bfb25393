"""The licence that a package names, by each of the fields that it may stand in."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.licences import licence_of, licences_of

CASES = {
    "License-Expression: Apache-2.0 AND MIT\nClassifier: License :: Public Domain\n": "Apache-2.0 AND MIT",
    "Classifier: License :: OSI Approved :: MIT License\nLicense: see LICENSE\n": "MIT",
    "Classifier: License :: OSI Approved :: Apache Software License\n": "Apache Software License",
    "Classifier: License :: Other/Proprietary License\nLicense: Proprietary\n": "Other/Proprietary License",
    "License: BSD\n": "BSD",
    "License: MIT License\n        Copyright (c) Somebody\n": "MIT License",
    "": "unknown",
}


@pytest.mark.parametrize(("fields", "licence"), CASES.items(), ids=map(str, range(len(CASES))))
def test_the_strictest_field_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fields: str, licence: str
) -> None:
    folder = tmp_path / "some_package-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.4\nName: some-package\nVersion: 1.0\n{fields}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert licence_of("some-package") == licence


def test_what_is_not_installed_has_none() -> None:
    assert licences_of(["numpy", "there-is-no-such-package"]).keys() == {"numpy"}
