"""Fuzzed baselines: refused in words with file and line, or read right; never a traceback, a hang or a flood.

`EDGEKIT_FUZZ_EXAMPLES` runs more. What is a trap of its own is kept in `corpus/baseline`.
"""

from __future__ import annotations

import math
import os
import re
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edgekit.errors import UsageError
from edgekit.report.baselines import Baseline, baseline_text, parse_baseline, read_baseline, result_of

CORPUS = Path(__file__).parent / "corpus" / "baseline"
GOOD = (CORPUS / "good.yaml").read_text()
fuzz = settings(max_examples=int(os.environ.get("EDGEKIT_FUZZ_EXAMPLES", "150")), deadline=None)


def read(text: str) -> Baseline | None:
    """A baseline that comes back as it was, or None with a message that names a line."""
    try:
        found = parse_baseline(text, Path("b.yaml"))
    except UsageError as error:
        assert re.match(r"b\.yaml:\d+: ", str(error)), str(error)
        return None
    assert parse_baseline(baseline_text(found), Path("b.yaml")) == found
    for backend in found.backends:
        result_of(found, backend)
    return found


@pytest.mark.parametrize("path", sorted(CORPUS.glob("bad_*.yaml")), ids=lambda path: path.stem)
def test_the_corpus_is_refused(path):
    with pytest.raises(UsageError, match=rf"{re.escape(path.name)}:\d+: "):
        read_baseline(path)


def test_the_good_one_is_read():
    assert read(GOOD) is not None


tokens = st.sampled_from(
    [".nan", ".inf", "-1", "1e999", "0x1F", "1_0", "null", "true", "[]", "{}", "'", '"', "&a [*a]", "!!python/none x",
     "2026-01-01", "1" * 400, "\x00", "\x1b[31m", "\u2028", "~", "- ", ": ", "? x", "|", "<<: *a", "%YAML 1.1"]
)  # fmt: skip


@fuzz
@given(
    st.lists(
        st.tuples(st.integers(0, len(GOOD)), st.integers(0, 30), st.one_of(tokens, st.text(max_size=8))), max_size=4
    )
)
def test_changed_files(changes):
    text = GOOD
    for place, removed, put in changes:
        text = text[:place] + put + text[place + removed :]
    read(text)


@fuzz
@given(st.integers(0, len(GOOD.splitlines()) - 1), tokens)
def test_changed_values(number, token):
    lines = GOOD.splitlines()
    key, colon, _ = lines[number].partition(":")
    lines[number] = f"{key}{colon} {token}"
    read("\n".join(lines))


@fuzz
@given(st.text(max_size=300))
def test_any_text(text):
    read(text)


@fuzz
@example("1e5", 5e-324)
@example("12345678e9", 1e22)
@example("\x85\u2028\ud7ff\x1b", 0.1)
@given(st.text(max_size=40), st.floats(0, allow_infinity=False, allow_nan=False))
def test_any_text_and_number_is_written_so_that_it_comes_back(text, number):
    entry = parse_baseline(GOOD, Path("b.yaml")).backends["onnxruntime"]
    changed = entry.model_copy(update={"reason": text, "load_s": number, "bundle_sha256": "1" * 30 + "e" + "2" * 33})
    whole = Baseline(model=text, target=text, backends={text: changed})
    again = parse_baseline(baseline_text(whole), Path("b.yaml"))
    assert again == whole
    assert math.copysign(1, again.backends[text].load_s) == math.copysign(1, number)
