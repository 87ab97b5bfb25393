"""The targets that come with edgekit: complete, consistent with one another, and found by name."""

from __future__ import annotations

import re

import pytest

from edgekit.backends import BACKENDS
from edgekit.errors import UsageError
from edgekit.target import list_targets, load_target

PROMISED = {
    "x86-64", "x86-64-no-vnni", "raspberry-pi-5", "raspberry-pi-4", "jetson-orin-nano", "jetson-agx-orin", "rtx-ampere",
}  # fmt: skip
OPSET_OF = {"1.19": 21, "10.3": 20}
"""Newest ONNX opset that a release reads: ONNX Runtime 1.19 (its compatibility table), TensorRT 10.3 (its parser)."""


def test_the_promised_targets_are_there():
    assert set(list_targets()) >= PROMISED


@pytest.mark.parametrize("name", list_targets())
def test_a_target_is_complete(name):
    target = load_target(name)
    assert target.name == name
    assert target.description
    assert target.python
    assert all(re.fullmatch(r"3\.\d+", version) for version in target.python)
    assert target.cpu.cores > 0
    assert target.cpu.features
    assert target.budget.size_mb
    assert target.budget.latency_ms
    assert all(source.startswith("https://") for source in target.sources)
    assert set(target.backends) <= set(BACKENDS)
    for facts in target.backends.values():
        assert "fp32" in facts.precisions
        assert facts.runtimes
        assert facts.min_version


@pytest.mark.parametrize("name", list_targets())
def test_opsets_go_with_the_oldest_runtime(name):
    for backend, facts in load_target(name).backends.items():
        if backend in ("onnxruntime", "tensorrt"):
            assert facts.max_opset == OPSET_OF[facts.min_version]


@pytest.mark.parametrize("name", list_targets())
def test_grids_fit_the_hardware(name):
    target = load_target(name)
    for backend, facts in target.backends.items():
        if backend == "tensorrt":
            assert facts.grid == "symmetric"
            assert target.gpu is not None
        elif backend in ("onnxruntime", "openvino") and "int8" in facts.precisions:
            saturates = target.arch == "x86_64" and not any("vnni" in feature for feature in target.cpu.features)
            assert facts.grid == ("reduced_range" if saturates else "affine")


def test_jetson_engines_are_built_on_the_board():
    assert load_target("jetson-orin-nano").backends["tensorrt"].built_on == "device"
    assert load_target("jetson-agx-orin").gpu.compute == "8.7"
    assert load_target("rtx-ampere").backends["tensorrt"].built_on == "host"
    assert load_target("rtx-ampere").gpu.compute == "8.6"


def test_the_boards_processors_differ_where_it_matters_to_int8():
    assert "asimddp" in load_target("raspberry-pi-5").cpu.features
    assert "asimddp" not in load_target("raspberry-pi-4").cpu.features


def test_unknown_targets_are_guessed():
    with pytest.raises(UsageError, match=r"Unknown target 'raspberry-pi5'. Did you mean 'raspberry-pi-5'\? Available:"):
        load_target("raspberry-pi5")


def test_a_target_file_of_ones_own_is_checked(tmp_path):
    file = tmp_path / "board.yaml"
    file.write_text("name: board\narch: riscv\ncpu: {model: x, cores: 1}\nbackends: {}\nsources: [x]\n")
    with pytest.raises(UsageError, match=r"board.yaml:2: arch: must be one of 'x86_64' or 'aarch64', got 'riscv'"):
        load_target(file)
    with pytest.raises(UsageError, match="no such file"):
        load_target(tmp_path / "absent.yaml")
