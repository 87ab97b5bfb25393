"""What every device does: `bench` is commands of the agent joined to one, `pairs` the middle turns of rounds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from edgekit.devices import Bench, Pairs

COLD_REPEAT, COLD_S = 5, 5.0
"""Fresh processes for cold starts, and the seconds after which no further one is started."""

MEMORY_S = 2.0


def gather(
    ask: Callable[[list[str]], dict[str, Any]],
    common: Sequence[str],
    *,
    percentile: float,
    min_seconds: float,
    max_seconds: float,
) -> Bench:
    """Latency, then cold starts, peak memory, and energy where there is a meter: none of them disturbs another.

    Args:
        ask: runs one command of the agent in a fresh process on the device and returns its JSON.
        common: options of all three: threads, inputs, affinity.
        percentile: samples enough for this one are taken.
        min_seconds: how long the latency is measured at least.
        max_seconds: how long at most.

    Returns:
        `info` is that of `bench`; `load_s` (import of the runtime and loading of the model), `first_inference_s` and
        `peak_rss_bytes` are those of the other processes, told whole in `cold` and `memory`.
    """
    rule = [f"--percentile={percentile}", f"--min-seconds={min_seconds}", f"--max-seconds={max_seconds}"]
    info = ask(["bench", "--json", *rule, *common])
    cold = ask(["cold", f"--repeat={COLD_REPEAT}", f"--max-seconds={COLD_S}", *common])
    memory = ask(["memory", f"--max-seconds={MEMORY_S}", *common])
    energy = ask(["energy", *common])
    loads = zip(cold["import_s"]["samples"], cold["load_s"]["samples"], strict=True)
    info |= {
        "load_s": statistics.median(imported + loaded for imported, loaded in loads),
        "first_inference_s": cold["first_inference_s"]["median"],
        "peak_rss_bytes": memory["peak_rss_bytes"],
        "cold": cold,
        "memory": memory,
        "energy": energy,
    }
    return Bench(tuple(info.pop("samples_s")), info)


def interleaved(rounds: Sequence[Mapping[str, Any]]) -> Pairs:
    """The `Pairs` of rounds as `_pairs.pairs` gives them: each is stood for by its middle turn.

    That is the turn whose ratio is the median: turns in which something else ran, be it a large part of them, do not
    move it far.
    """
    return Pairs(tuple(_middle(told["samples_s"]) for told in rounds), tuple(rounds))


def _middle(turns: Sequence[Sequence[Sequence[float]]]) -> tuple[float, float, float, float]:
    medians = [tuple(map(statistics.median, blocks)) for blocks in turns]
    a1, b1, b2, a2 = sorted(medians, key=lambda m: math.log(m[0] * m[3] / (m[1] * m[2])))[len(medians) // 2]
    return float(a1), float(b1), float(b2), float(a2)
