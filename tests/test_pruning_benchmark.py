"""What the comparison of pruning tells of its rows, without training any."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

from pruning import ablations, difference, points, ratio_of, table
from recovering import Bench, Row

from edgekit.metrics import Difference
from edgekit.report.predictions import Predictions
from edgekit.robust.statistics import paired_mean
from edgekit.stages.prune import Prune


def drawn(seed: int, share: float, count: int = 400) -> np.ndarray:
    return np.random.default_rng(seed).random(count) < share


def test_a_difference_over_seeds_is_that_of_each_images_mean():
    some, others = [drawn(1, 0.9), drawn(2, 0.9)], [drawn(3, 0.8)] * 2
    labels = np.zeros(400, np.int64)

    def predictions(hits: np.ndarray) -> Predictions:
        top = np.where(hits, 0, 1)[:, None].astype(np.int32)
        return Predictions(tuple(map(str, range(400))), labels, top, None, "", "test")

    want = paired_mean([predictions(h) for h in some], [predictions(h) for h in others])
    assert isinstance(want, Difference)
    assert difference(some, others) == pytest.approx([100 * want.value, 100 * want.low, 100 * want.high], abs=0.01)


def test_no_difference_has_an_interval_all_the_same():
    found = difference([drawn(0, 0.9)], [drawn(0, 0.9)])
    assert found[0] == 0 and found[1] < 0 < found[2]
    assert points(found).startswith("+0.00 [-")


def test_times_are_compared_round_by_round():
    times = {"a/fp32": [1.0, 2.0, 4.0], "b/fp32": [0.5, 1.0, 2.0]}
    assert ratio_of(times, ["b/fp32"], "a/fp32") == "0.500 [0.500, 0.500]"
    assert ratio_of(times, ["missing/fp32"], "a/fp32") == ""


def test_a_variant_of_the_ablation_changes_what_its_name_says():
    variants = ablations(2.07)
    cut, recovery = (settings for _, settings in variants["prune, distill"])
    named = {name: steps for name, steps in variants.items() if name.split(" ")[0] in Prune.model_fields}
    assert len(named) >= 10
    for name, steps in named.items():
        changed = {key: value for key, value in dict(steps)["prune"].items() if cut.get(key) != value}
        assert ", ".join(f"{key} {value}" for key, value in changed.items()) == name
        assert dict(steps)["distill"] == recovery


def test_a_table_has_medians_over_the_seeds(tmp_path: Path):
    bench = Bench(tmp_path, tmp_path, "test")
    rows = [Row("dense", 1.0, 0, "test"), *(Row("edgekit", 2.07, seed, "test") for seed in (0, 1, 2))]
    for number, row in enumerate(rows):
        found = {name: np.arange(200) >= 10 * (number + 1) for name in ("fp32", "int8")}
        row.macs, row.parameters, row.samples = [200, 100], [10, 5], 200
        row.hits = {name: int(hits.sum()) for name, hits in found.items()}
        bench.folder(row).mkdir()
        np.savez(bench.folder(row) / "hits.npz", **found)
    line = next(line for line in table(rows, bench, {}).splitlines() if line.startswith("| edgekit, 2.07x"))
    assert "| 50.0% | 5 | 3 | 85.00% (80.00%, 85.00%, 90.00%) |" in line
    assert "| -10.00; -10.00 [" in line and "| +0.00; +0.00 [" in line
