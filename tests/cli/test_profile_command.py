"""`edgekit profile`: what it measures, prints and writes."""

from __future__ import annotations

import json
import math
from pathlib import Path

import agent_bundles as small
import pytest
from typer.testing import CliRunner

from edgekit.agent.stats import least_samples
from edgekit.cli.app import app
from edgekit.devices.inventory import Entry, register
from edgekit.report.profiled import Profiles


def profile(*words: object):
    return CliRunner().invoke(app, ["profile", *map(str, words), "--quiet"])


@pytest.mark.slow
def test_json_holds_every_sample_and_the_page_stands_alone(tmp_path: Path) -> None:
    one, other = (small.bundle(tmp_path, name, model=text) for name, text in (("a.edge", "<b>&"), ("b.edge", "plain")))
    page = tmp_path / "page.html"
    ended = profile(one.path, other.path, "--json", "--html", page)
    assert ended.exit_code == 0, ended.stderr
    found = Profiles.model_validate_json(ended.stdout)
    assert [(r.bundle, r.device_name) for r in found.results] == [("a.edge", "local"), ("b.edge", "local")]
    for result in found.results:
        taken = sorted(result.samples_s)
        assert len(taken) == result.latency_s.n >= least_samples(99)
        assert result.latency_s.p50.value == taken[math.ceil(len(taken) / 2) - 1]
        assert result.latency_s.p99.low <= result.latency_s.p99.value <= result.latency_s.p99.high
        assert 0 < result.load_s < result.to_first_answer_s
        assert result.peak_rss_bytes > 10e6 and result.size_bytes == one.model_bytes
        assert result.energy_j is not None or "no meter" in result.energy_reason
        assert sum(layer.share for layer in result.layers) == pytest.approx(1)
        assert result.device.state["during"] and result.device.fingerprint
    html = page.read_text(encoding="utf-8")
    assert "&lt;b&gt;&amp;" in html and "<b>&" not in html
    assert "Latency over time" in html and "http" not in html.replace("http-equiv", "")


@pytest.mark.slow
def test_what_fails_stays_with_its_bundle(tmp_path: Path) -> None:
    good, bad = small.bundle(tmp_path, "good.edge"), small.bundle(tmp_path, "bad.edge", backend="litert")
    ended = profile(bad.path, good.path, "--no-layers", "--percentile", 50)
    assert ended.exit_code in (2, 5, 6)
    told = ended.stdout.split("\n\n")
    assert "failed" in told[0] and "bad.edge" in told[0]
    assert "latency        p50" in told[1] and "layers" not in told[1]


@pytest.mark.slow
def test_a_plain_model_is_built_and_measured(tmp_path: Path) -> None:
    file = small.model(tmp_path / "m.onnx")
    both = ("--backend", "onnxruntime", "--backend", "openvino")
    ended = profile(file, *both, "--no-layers", "--percentile", 50, "--json")
    assert ended.exit_code == 0, ended.stderr
    found = Profiles.model_validate_json(ended.stdout).results
    assert [(one.backend, one.role) for one in found] == [("onnxruntime", "float"), ("openvino", "float")]
    assert all("its inputs are random (image float32[1, 1, 8, 8])" in one.notes[-1] for one in found)
    assert all(one.latency_s.p50.value > 0 and one.model == "m" for one in found)


@pytest.mark.slow
def test_a_board_that_cannot_be_asked_what_it_is_keeps_nothing_from_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEKIT_DEVICES", str(tmp_path / "devices.yaml"))
    register("pi", Entry(host="127.0.0.1", port=1))  # nothing listens there
    words = ("--device", "pi", "--device", "local", "--backend", "onnxruntime", "--no-layers", "--percentile", 50)
    ended = profile(small.model(tmp_path / "m.onnx"), *words, "--json")
    away, here = Profiles.model_validate_json(ended.stdout).results
    assert ended.exit_code == away.exit_code == 5 and away.model == "m" and "cannot be reached" in away.error
    assert here.latency_s.p50.value > 0 and not here.error
    assert "m.onnx" in profile(tmp_path / "m.onnx", *words).stdout


def test_an_emulated_board_is_never_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEKIT_DEVICES", str(tmp_path / "devices.yaml"))
    register("pi", Entry(host="127.0.0.1", emulated=True))
    ended = profile(small.bundle(tmp_path, "good.edge").path, "--device", "pi", "--json")
    (found,) = Profiles.model_validate_json(ended.stdout).results
    assert ended.exit_code == found.exit_code == 3
    assert "emulated" in found.invalid and found.latency_s is None


def test_no_bundle_no_device_and_no_page(tmp_path: Path) -> None:
    good = small.bundle(tmp_path, "good.edge")
    assert profile(tmp_path / "absent.edge").exit_code in (2, 8)
    assert profile(good.path, "--device", "nowhere").exit_code == 2
    assert json.loads(profile(good.path, "--device", "nowhere", "--json").stdout)["error"]["exit_code"] == 2
