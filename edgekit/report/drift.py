"""What gets worse in steps that are too small for anybody to mind."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from edgekit.plain import printable
from edgekit.report.baselines import Past, ratio

DRIFT_RATIO = 0.05
"""Of p50 and of size: what a history may lose in small steps before it is a warning."""
DRIFT_SHARE = 0.01
"""The same of accuracy."""


def drift(line: Sequence[Past]) -> list[str]:
    """What got worse in small steps, each within its tolerance, and beyond it in total.

    From the newest entry back, steps are chained while each is known and within the tolerance (5 % of p50 and of size,
    1 pp of accuracy); of all stretches that end with the newest, the one that lost most is told where it lost more than
    the tolerance. A ratio of p50 exists only between neighbours that were measured alike: absolute times of other
    devices, threads or versions never meet.

    Args:
        line: an entry's own numbers and those before it, newest first: `Entry.line`.
    """
    sizes = [ratio(now.size_bytes, then.size_bytes) for now, then in pairwise(line)]
    said = []
    for what, steps in (("p50", [past.p50_ratio for past in line[:-1]]), ("size", sizes)):
        total, back = _worst([None if step is None else step - 1 for step in steps], DRIFT_RATIO, product=True)
        if back:
            said.append(_drifted(what, f"{total:+.1%}", line, back, f"{DRIFT_RATIO:.0%}"))
    losses = [None if past.accuracy_change is None else -past.accuracy_change for past in line[:-1]]
    total, back = _worst(losses, DRIFT_SHARE, product=False)
    if back:
        said.append(_drifted("accuracy", f"{-total * 100:+.2f} pp", line, back, f"{DRIFT_SHARE * 100:g} pp"))
    return said


def _worst(steps: Sequence[float | None], tolerance: float, *, product: bool) -> tuple[float, int]:
    """The largest total of a stretch from the newest step back, and its length; 0 where it is within the tolerance."""
    total, worst, length = 0.0, 0.0, 0
    for back, step in enumerate(steps, start=1):
        if step is None or step > tolerance:
            break
        total = (1 + total) * (1 + step) - 1 if product else total + step
        if total > worst:
            worst, length = total, back
    return (worst, length) if worst > tolerance + 1e-12 else (worst, 0)


def _drifted(what: str, total: str, line: Sequence[Past], back: int, tolerance: str) -> str:
    since, until = (printable(past.created) for past in (line[back], line[0]))
    return f"{what} drifted by {total} from {since} to {until}, in {back} steps that were each within {tolerance}"
