"""What a board may say about interleaved rounds, and what is refused as none."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgekit.devices.inventory import Entry
from edgekit.devices.ssh import Ssh
from edgekit.errors import DeviceError

TURN = [[0.25, 0.5, 1.0], [1.0], [1.0], [0.5]]
BUNDLE: Any = SimpleNamespace(path=Path("x.edge"))


class Saying(Ssh):
    """A board whose driver ended with this."""

    said: Any = None

    def _agent(self, *_: Any, **__: Any) -> dict[str, Any]:
        return {"rounds": self.said}


def rounds_of(said: Any, rounds: int = 1) -> Any:
    board = Saying("pi", Entry(host="127.0.0.1"))
    board.said = said
    return board.pairs(BUNDLE, BUNDLE, rounds=rounds)


def test_the_middle_turn_stands_for_the_round() -> None:
    slow, fast = [[4.0], [1.0], [1.0], [4.0]], [[0.1], [1.0], [1.0], [0.1]]
    told = {"a": {"threads": 1}, "b": {}, "samples_s": [slow, TURN, fast]}
    seen = rounds_of([told])
    assert seen.rounds == ((0.5, 1.0, 1.0, 0.5),) and seen.info == (told,)


@pytest.mark.parametrize(
    "said",
    [
        None,
        "rounds",
        [],
        [{"samples_s": [TURN]}] * 2,
        ["no round"],
        [{}],
        [{"samples_s": []}],
        [{"samples_s": "0.1"}],
        [{"samples_s": [TURN[:3]]}],
        [{"samples_s": [[*TURN, [1.0]]]}],
        [{"samples_s": [[[], *TURN[1:]]]}],
        [{"samples_s": [[["0.1"], *TURN[1:]]]}],
        [{"samples_s": [[[0.0], *TURN[1:]]]}],
        [{"samples_s": [[[-0.1], *TURN[1:]]]}],
        [{"samples_s": [[[float("nan")], *TURN[1:]]]}],
        [{"samples_s": [[[1e300], *TURN[1:]]]}],
        [{"samples_s": [[[True], *TURN[1:]]]}],
        [{"samples_s": [[None, *TURN[1:]]]}],
    ],
)
def test_what_is_no_round_is_refused(said: Any) -> None:
    with pytest.raises(DeviceError, match="not one of edgekit's agent"):
        rounds_of(said)
