"""The badge: what shields.io reads, and an image that says the same in words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from gate_samples import NASTY, gate, hostile, judgement
from lxml import etree

from edgekit.errors import UsageError
from edgekit.report import badge

SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize(
    ("seen", "message", "error"),
    [(gate([judgement()], 0), "pass 1/1", False), (gate([judgement("fail", 1)], 1), "gate failed 0/1", True),
     (gate([judgement("inconclusive", 4)], 4), "inconclusive 0/1", False),
     (hostile(), "measurement invalid 1/5", False), (gate([judgement()], 8), "integrity 1/1", True)],
)  # fmt: skip
def test_shields_gets_its_fields(seen, message, error):
    found = json.loads(badge.endpoint(seen))
    assert found.pop("isError", False) is error
    assert found.pop("color") in badge._COLOURS.values()
    assert found == {"schemaVersion": 1, "label": "edgekit gate", "message": message}


def test_the_image_is_well_formed_and_says_its_text():
    root = etree.fromstring(badge.svg(gate([judgement("fail", 1)], 1)).encode())
    assert root.tag == f"{SVG}svg" and root.get("role") == "img"
    assert root.get("aria-label") == root.find(f"{SVG}title").text == "edgekit gate of fashion_cnn: gate failed 0/1"
    assert [text.text for text in root.iter(f"{SVG}text")] == ["edgekit gate", "gate failed 0/1"]


def test_a_name_cannot_act_in_the_image():
    root = etree.fromstring(badge.svg(gate(model=NASTY)).encode())
    assert {element.tag for element in root.iter()} == {
        f"{SVG}{n}" for n in ("svg", "title", "rect", "path", "g", "text")
    }
    assert "<script>alert(1)</script>" in root.find(f"{SVG}title").text


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("colour", [*badge._COLOURS.values(), "#333a42"])
def test_white_text_reads_on_every_colour(colour):
    assert 1.05 / (luminance(colour) + 0.05) >= 4.5


def test_the_suffix_decides():
    assert badge.for_file(Path("a/x.SVG")) is badge.svg and badge.for_file(Path("x.json")) is badge.endpoint
    with pytest.raises(UsageError, match=r"x\.png: a badge is an \.svg or, for shields\.io, a \.json"):
        badge.for_file(Path("x.png"))
