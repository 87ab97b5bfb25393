"""A clause that could never be judged is refused before anything long starts."""

from __future__ import annotations

import pytest

from edgekit.clauses import DIFFERENCES, RATIOS, UNITS, Clause, check
from edgekit.errors import UsageError
from edgekit.profile import COMPARED

LATENCIES = {metric for metric in UNITS if metric.startswith("latency.p")}


@pytest.mark.parametrize("metric", sorted(set(UNITS) - {*RATIOS, *DIFFERENCES}))
@pytest.mark.parametrize("limit", [{"max_ratio": 1.0}, {"max_regression": 0.05}], ids=str)
def test_what_is_never_compared_cannot_be_compared(metric, limit):
    with pytest.raises(UsageError, match=f"'{metric}' is not compared between bundles"):
        check(Clause(metric=metric, vs="reference", **limit))


@pytest.mark.parametrize("metric", DIFFERENCES)
def test_differences_have_no_ratio(metric):
    with pytest.raises(UsageError, match="Give max_regression"):
        check(Clause(metric=metric, vs="float", max_ratio=1.0))


@pytest.mark.parametrize("metric", [*RATIOS, *DIFFERENCES])
def test_what_is_compared_can_be(metric):
    check(Clause(metric=metric, vs="float", max_regression=0.05))
    if metric in RATIOS:
        check(Clause(metric=metric, vs="reference", max_ratio=0.9))


def test_the_latencies_that_can_be_compared_are_those_that_are():
    assert LATENCIES & set(RATIOS) == {f"latency.p{percent}" for percent in COMPARED}
