"""The YAML of accepted baselines, what is held against it, and drift."""

from __future__ import annotations

import errno
from pathlib import Path

import accepted_runs as runs
import gate_reports as made
import pytest

from edgekit import baseline, stores
from edgekit.errors import DeviceError, IntegrityError, UsageError
from edgekit.report.baselines import Past, baseline_text, file_name, parse_baseline, read_baseline, result_of
from edgekit.report.drift import drift
from edgekit.report.report import read_report
from edgekit.report.values import Bounds
from edgekit.report.verdicts import Judgement
from edgekit.rivals import AbsentError


@pytest.fixture
def accepted(tmp_path: Path) -> Path:
    """A folder of baselines with one accepted run."""
    baseline.accept(runs.run(tmp_path / "run"), tmp_path / "baselines", reason="first: release")
    return tmp_path / "baselines"


def file_of(folder: Path) -> Path:
    return folder / "net-pc.yaml"


def rival_of(folder: Path, run: Path):
    report = read_report(run / "report.json")
    (shipped,) = report.results
    return baseline.baseline_rivals(folder, report)("baseline", shipped)


def test_what_is_accepted_loads_back_exactly(accepted, tmp_path):
    (shipped,) = read_report(tmp_path / "run" / "report.json").results
    kept = read_baseline(file_of(accepted))
    again = result_of(kept, "onnxruntime")
    for name in ("size_bytes", "bundle_bytes", "load_s", "first_inference_s", "peak_rss_bytes", "energy_j", "user",
                 "metrics", "bundle_sha256", "agreement", "agreement_n", "snr_db", "key", "status"):  # fmt: skip
        assert getattr(again, name) == getattr(shipped, name), name
    assert (again.latency_s.p50, again.latency_s.n) == (shipped.latency_s.p50, shipped.latency_s.n)
    assert again.device == shipped.device
    assert parse_baseline(baseline_text(kept), Path("x.yaml")) == kept
    assert kept.backends["onnxruntime"].reason == "first: release"


def test_accepting_the_same_again_changes_nothing(accepted, tmp_path):
    before = file_of(accepted).read_bytes()
    (again,) = baseline.accept(tmp_path / "run", accepted)
    assert again.what == "unchanged"
    assert file_of(accepted).read_bytes() == before


def test_what_is_replaced_becomes_history(accepted, tmp_path):
    p50 = Bounds(value=0.0103, low=0.0102, high=0.0104)
    times = made.result().latency_s.model_copy(update={"p50": p50})
    new = runs.run(tmp_path / "new", content=b"other", wrong=150, latency_s=times, size_bytes=1_010_000)
    (done,) = baseline.accept(new, accepted)
    assert done.what == "changed"
    now, then = read_baseline(file_of(accepted)).backends["onnxruntime"].line()
    assert now.p50_ratio == pytest.approx(1.03)
    assert now.accuracy_change == pytest.approx(-0.005)
    assert (then.p50_ratio, then.accuracy_change) == (None, None)
    assert then.size_bytes == 1_000_000
    elsewhere = runs.run(
        tmp_path / "elsewhere", content=b"third", device=runs.device(fingerprint="e" * 64), data="cd" * 32
    )
    baseline.accept(elsewhere, accepted)
    line = read_baseline(file_of(accepted)).backends["onnxruntime"].line()
    assert len(line) == 3
    assert (line[0].p50_ratio, line[0].accuracy_change) == (None, None)  # another device, other samples


def test_history_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(baseline, "LONGEST_HISTORY", 2)
    for number in range(5):
        run = runs.run(tmp_path / f"run{number}", content=bytes([number]))
        baseline.accept(run, tmp_path / "baselines")
    entry = read_baseline(file_of(tmp_path / "baselines")).backends["onnxruntime"]
    assert len(entry.history) == 2


@pytest.mark.parametrize(
    ("was", "now", "said"),
    [
        ("version: 1", "version: 2", "version: is 2, this edgekit reads 1"),
        ("version: 1", "version: true", "version: is True"),
        ("    bundle_sha256: ", "    bundle_hash: ", "bundle_hash: unknown key. Did you mean 'bundle_sha256'?"),
        ("size_bytes: 1000000", "size_bytes: -1", "size_bytes: "),
        ("size_bytes: 1000000", "size_bytes: .nan", "size_bytes: "),
        ("load_s: 0.4", "load_s: .nan", "load_s: must be a finite number"),
        ("load_s: 0.4", "load_s: .inf", "load_s: must be a finite number"),
        ("load_s: 0.4", "load_s: -0.4", "load_s: must be at least 0"),
        ("load_s: 0.4", "load_s: fast", "load_s: must be a number, got 'fast'"),
        ("low: 0.0099", "low: 0.5", "does not hold the value"),
        ("role: quantized", "role: quantised", "Did you mean 'quantized'?"),
        ("bundle: net-pc.edge", "bundle: net-pc.edge\n    bundle: b", "duplicate key"),
    ],
)  # fmt: skip
def test_edited_files_are_refused_with_their_line(accepted, was, now, said):
    text = file_of(accepted).read_text()
    assert was in text
    file_of(accepted).write_text(text.replace(was, now, 1))
    with pytest.raises(UsageError) as caught:
        read_baseline(file_of(accepted))
    assert said in str(caught.value)
    number = str(caught.value).removeprefix(f"{file_of(accepted)}:").partition(":")[0]
    expected = {
        i for i, text in enumerate(file_of(accepted).read_text().splitlines(), 1) if now.splitlines()[-1] in text
    }
    assert int(number) in expected or "does not hold" in said, number


def test_a_missing_hash_and_a_cut_file_are_refused(accepted):
    lines = file_of(accepted).read_text().splitlines()
    file_of(accepted).write_text("\n".join(line for line in lines if "bundle_object" not in line))
    with pytest.raises(UsageError, match=r"bundle_object: is missing"):
        read_baseline(file_of(accepted))
    file_of(accepted).write_text("\n".join(lines[:9]))
    with pytest.raises(UsageError, match=r"net-pc.yaml:\d+: .*is missing"):
        read_baseline(file_of(accepted))


def test_a_rival_is_what_was_accepted(accepted, tmp_path):
    rival = rival_of(accepted, tmp_path / "run")
    assert rival.stale == ""
    assert len(rival.load(rival.result.predictions_file)) == made.N
    assert rival.bundle().read_bytes() == (tmp_path / "run" / "bundles" / "net-pc.edge").read_bytes()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"device": runs.device(fingerprint="e" * 64)}, "was local (ffffffffffff), now it is local (eeeeeeeeeeee)"),
        ({"device": runs.device(threads=2)}, "threads was 1, now it is 2"),
        ({"device": runs.device(versions={"onnxruntime": "1.24"})}, "onnxruntime was 1.23, now it is 1.24"),
        ({"device": runs.device(state={"before": {"power_mode": "15W"}})}, "power mode was unknown, now it is 15W"),
        ({"device": runs.device(state={"before": {"governor": ["performance"]}})}, "governor was unknown, now it is"),
        ({"data": "cd" * 32}, "scored on data abababababab (test), now on cdcdcdcdcdcd (test)"),
    ],
)  # fmt: skip
def test_unlike_conditions_are_named_with_both_values(accepted, tmp_path, changes, said):
    assert said in rival_of(accepted, runs.run(tmp_path / "now", **changes)).stale


def test_no_entry_is_no_comparable_baseline(accepted, tmp_path):
    run = runs.run(tmp_path / "now", target="phone")
    with pytest.raises(AbsentError, match=r"no comparable baseline: .* has no entry for net on phone with onnxruntime"):
        rival_of(accepted, run)


def test_a_missing_object_is_absent_to_a_gate_and_a_damaged_one_is_refused(accepted, tmp_path):
    entry = read_baseline(file_of(accepted)).backends["onnxruntime"]
    place = accepted / "store" / entry.bundle_object[:2] / entry.bundle_object
    whole = place.read_bytes()
    place.write_bytes(whole[:-1])
    with pytest.raises(IntegrityError, match="is damaged: its sha256 is"):
        rival_of(accepted, tmp_path / "run").bundle()
    place.unlink()
    with pytest.raises(AbsentError, match=r"no comparable baseline: .*does not hold"):
        rival_of(accepted, tmp_path / "run").bundle()


def test_a_damaged_object_is_mended_by_accepting_again(accepted, tmp_path):
    entry = read_baseline(file_of(accepted)).backends["onnxruntime"]
    (accepted / "store" / entry.bundle_object[:2] / entry.bundle_object).write_bytes(b"?")
    baseline.accept(tmp_path / "run", accepted)
    assert baseline.check_stored(read_baseline(file_of(accepted)), accepted) == 2


def test_a_bundle_that_was_not_measured_is_not_accepted(tmp_path):
    run = runs.run(tmp_path / "run", bundle_sha256="0" * 64)
    with pytest.raises(IntegrityError, match="it is not the bundle that was measured"):
        baseline.accept(run, tmp_path / "baselines")
    (run / "bundles" / "net-pc.edge").write_bytes(b"PK")
    with pytest.raises(IntegrityError):
        baseline.accept(run, tmp_path / "baselines")
    (run / "bundles" / "net-pc.edge").unlink()
    with pytest.raises(UsageError, match="does not lie beside the report"):
        baseline.accept(run, tmp_path / "baselines")
    assert not (tmp_path / "baselines").exists()


def test_a_failed_gate_needs_force(tmp_path):
    failed = Judgement(
        clause="size: max 1 MB", target="pc", backend="onnxruntime", verdict="fail", reason="", exit_code=1
    )
    run = runs.run(tmp_path / "run", gate=(failed,))
    with pytest.raises(UsageError, match=r"size: max 1 MB \(pc/onnxruntime\).*--force"):
        baseline.accept(run, tmp_path / "baselines")
    assert baseline.accept(run, tmp_path / "baselines", force=True)
    invalid = runs.run(tmp_path / "hot", invalid="under-voltage")
    with pytest.raises(UsageError, match=r"under-voltage.*--force"):
        baseline.accept(invalid, tmp_path / "baselines")


def test_a_store_that_vanishes_leaves_the_old_baseline(accepted, tmp_path, monkeypatch):
    before = file_of(accepted).read_bytes()
    new = runs.run(tmp_path / "new", content=b"other", wrong=150)
    kept = stores.FolderStore.put
    calls = []

    def vanishing(self, file, sha256):
        calls.append(sha256)
        if len(calls) == 2:
            raise OSError(errno.EIO, "Input/output error")
        kept(self, file, sha256)

    monkeypatch.setattr(stores.FolderStore, "put", vanishing)
    with pytest.raises(DeviceError, match="cannot be reached or used"):
        baseline.accept(new, accepted)
    assert len(calls) == 2
    assert file_of(accepted).read_bytes() == before
    assert baseline.check_stored(read_baseline(file_of(accepted)), accepted) == 2


def test_what_another_accepts_meanwhile_is_not_lost(accepted, tmp_path, monkeypatch):
    mine, other = (runs.run(tmp_path / name, content=name.encode(), wrong=150) for name in ("mine", "other"))
    keep = baseline.keep

    def interrupted(store, file):
        monkeypatch.setattr(baseline, "keep", keep)
        baseline.accept(other, accepted, reason="the other's")
        return keep(store, file)

    monkeypatch.setattr(baseline, "keep", interrupted)
    with pytest.raises(UsageError, match=r"net-pc\.yaml: it changed meanwhile; nothing was written over it"):
        baseline.accept(mine, accepted, reason="mine")
    assert read_baseline(file_of(accepted)).backends["onnxruntime"].reason == "the other's"
    (done,) = baseline.accept(mine, accepted, reason="mine")
    assert (done.what, len(done.entry.history)) == ("changed", 2)


@pytest.mark.parametrize("name", ["..", "", "/", "a\\0b", "a" * 300])
def test_the_name_of_a_bundle_leads_nowhere(accepted, tmp_path, name):
    text = file_of(accepted).read_text()
    file_of(accepted).write_text(text.replace("bundle: net-pc.edge", f'bundle: "{name}"'))
    assert baseline.check_stored(read_baseline(file_of(accepted)), accepted) == 2


def test_names_that_are_no_file_names_stay_in_the_folder(tmp_path):
    assert "/" not in file_name("../../etc/x", "a\x1b[31m")
    run = runs.run(tmp_path / "run", source={"name": "../up", "size_bytes": 1})
    (done,) = baseline.accept(run, tmp_path / "baselines")
    assert done.path.resolve().parent == (tmp_path / "baselines").resolve()


def test_two_models_whose_file_names_meet_are_not_mixed(accepted, tmp_path):
    text = file_of(accepted).read_text()
    file_of(accepted).write_text(text.replace("model: net", "model: other"))
    with pytest.raises(UsageError, match="it is of 'other' on 'pc'"):
        baseline.accept(tmp_path / "run", accepted)


def line_of(*steps: dict[str, float | None], size: int = 1000) -> list[Past]:
    """Newest first, from oldest first."""
    entries = [{"p50_ratio": None}, *steps]
    return [
        Past(created=f"2026-01-{day:02d}", bundle_sha256="0" * 64, **{"size_bytes": size, **step})
        for day, step in enumerate(entries, 1)
    ][::-1]


def test_small_steps_that_add_up_are_drift():
    (said,) = drift(line_of(*[{"p50_ratio": 1.02}] * 3))
    assert said == "p50 drifted by +6.1% from 2026-01-01 to 2026-01-04, in 3 steps that were each within 5%"
    (said,) = drift(line_of(*[{"accuracy_change": -0.004}] * 3))
    assert said == "accuracy drifted by -1.20 pp from 2026-01-01 to 2026-01-04, in 3 steps that were each within 1 pp"
    (said,) = drift(line_of(*[{"size_bytes": 1000 + 30 * n} for n in (1, 2)]))
    assert said.startswith("size drifted by +6.0%")


def test_what_is_no_drift():
    assert drift([]) == drift(line_of()) == []
    assert drift(line_of(*[{"p50_ratio": 1.02}] * 2)) == []  # within the tolerance in total
    assert drift(line_of({"p50_ratio": 1.3})) == []  # one step, seen and accepted
    assert drift(line_of({"p50_ratio": 1.02}, {"p50_ratio": None}, {"p50_ratio": 1.02}, {"p50_ratio": 1.02})) == []
    assert drift(line_of({"p50_ratio": 0.9}, {"p50_ratio": 0.99})) == []  # better


def test_the_stretch_that_lost_most_is_told():
    (said,) = drift(line_of({"p50_ratio": 0.8}, *[{"p50_ratio": 1.03}] * 2))
    assert "+6.1% from 2026-01-02" in said
