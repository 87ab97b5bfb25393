"""`edgekit explain` through the real runtimes, on networks whose weak spots are known by name."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parent / "quant"))
import agent_bundles as small
from quant_graphs import Builder, residual_net

from edgekit.advice import advice
from edgekit.agent.infer import make_runner
from edgekit.backends.looking import LOOKS
from edgekit.bundle import extract_model, open_bundle, read_golden, read_member, write_bundle
from edgekit.cli.app import app
from edgekit.devices.local import Local
from edgekit.errors import IntegrityError, UsageError
from edgekit.explain import explain
from edgekit.pipeline import run
from edgekit.report.explanation import Explanation, Island, Layer, Timed, text

ROOT = Path(__file__).parent.parent
BACKENDS = ["onnxruntime", "openvino", pytest.param("litert", marks=pytest.mark.slow)]
RECIPE = """\
version: 1
model: {{source: {name}.onnx}}
data: {{source: data, task: none}}
stages: [{{quantize: {{calibration: minmax}}}}]
targets: [{{target: x86-64, backends: [{backend}]}}]
"""


def island_net():
    """Two convolutions, an Erf, which no runtime has in 8 bits, and a third."""
    b = Builder(3)
    b.conv("x", "stem", 16, 3)
    b.add("Relu", ["stem"], "stem_relu")
    b.conv("stem_relu", "second", 16, 16)
    b.add("Erf", ["second"], "curve")
    b.conv("curve", "third", 16, 16)
    b.add("Relu", ["third"], "third_relu")
    b.add("GlobalAveragePool", ["third_relu"], "mean")
    b.add("Flatten", ["mean"], "flat", axis=1)
    b.weight("fc.weight", 10, 16)
    b.weight("fc.bias", 10, scale=0.2)
    b.add("Gemm", ["flat", "fc.weight", "fc.bias"], "y", name="fc", transB=1)
    return b.model({"x": ["batch", 3, 12, 12]}, {"y": ["batch", 10]})


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A function from network and backend to its quantized bundle, the float one beside it."""
    folder = tmp_path_factory.mktemp("explain")
    rng = np.random.default_rng(0)
    (folder / "data").mkdir()
    for name, count in (("calibration", 64), ("test", 16)):
        np.savez(folder / "data" / f"{name}.npz", x=rng.standard_normal((count, 3, 12, 12)).astype(np.float32))
    for name, net in (("island", island_net()), ("whole", residual_net())):
        onnx.save(net, folder / f"{name}.onnx")

    def bundle(name, backend):
        out = folder / f"{name}-{backend}"
        if not out.exists():
            recipe = folder / f"{name}-{backend}.yaml"
            recipe.write_text(RECIPE.format(name=name, backend=backend), encoding="utf-8")
            run(recipe, out=out)
        return out / "bundles" / f"{name}-x86-64-{backend}-quantized-int8.edge"

    return bundle


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_float_island_is_explained_by_name(built, backend):
    seen = explain(built("island", backend))
    islands = {island.layers: island.causes for island in seen.islands}
    assert islands[("curve",)] == ("curve: no 8-bit form of Erf",)
    if backend != "openvino":  # which leaves in float what its kernels do no faster in integers
        assert len(islands) == seen.float_layers == 1
    runs = {layer.name: layer.runs for layer in seen.layers}
    assert runs["curve"] == "float"
    assert {runs[name] for name in ("stem", "second", "third", "fc")} == {"int8"}
    assert next(layer for layer in seen.layers if layer.name == "stem").with_it == ("stem_relu",)
    assert seen.conversions >= (0 if backend == "openvino" else 4)  # OpenVINO may fuse them into the float kernels
    assert any("curve" in line and "Relu" in line for line in seen.advice)
    assert "curve: no 8-bit form of Erf" in text(seen)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_network_wholly_in_8_bits(built, backend):
    seen = explain(built("whole", backend))
    weighted = {"stem", "depthwise", "gate_conv", "project", "branch", "head", "fc"}
    runs = {layer.name: layer.runs for layer in seen.layers}
    assert {runs[name] for name in weighted} == {"int8"}
    if backend != "openvino":  # which leaves in float what its kernels do no faster in integers
        assert (seen.float_layers, seen.int8_share, seen.islands) == (0, 1.0, ())


@pytest.mark.usefixtures("exact_sums")
@pytest.mark.parametrize("backend", BACKENDS)
def test_ratios_are_those_of_the_bundles_outputs(built, backend):
    """The output's signal-to-noise ratio, computed again from what the two bundles answer."""
    path = built("whole", backend)
    seen = explain(path)
    quantized, other = (
        np.float64(read_golden(open_bundle(p), "outputs")[0])
        for p in (path, path.with_name(path.name.replace("quantized-int8", "float-fp32")))
    )
    expected = 10 * np.log10((other**2).sum() / ((quantized - other) ** 2).sum())
    assert seen.output_snr_db == pytest.approx(expected, abs=0.01)
    compared = [layer for layer in seen.layers if layer.snr_db is not None]
    assert len(compared) >= len(seen.layers) - 2
    assert seen.first_divergent is None


def test_the_first_layer_that_diverges(built, tmp_path):
    """Inputs ten times as large as those that calibrated: the first convolution's output is clipped already."""
    x = 10 * np.random.default_rng(1).standard_normal((4, 3, 12, 12)).astype(np.float32)
    np.save(tmp_path / "loud.npy", x)
    seen = explain(built("island", "onnxruntime"), inputs=tmp_path / "loud.npy")
    assert seen.first_divergent is not None
    assert seen.first_divergent.layer == "stem"
    stem = seen.layers[0]
    assert stem.clipped is not None
    # The oracle: ReLU's outputs scale with the input but for the bias; a third and more of them exceed the range.
    assert 0.1 < stem.clipped < 0.5
    assert any("lie outside of its range" in line for line in seen.advice)
    assert seen.samples == 4


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_layers_are_timed_where_the_runtime_tells(built, backend):
    seen = explain(built("island", backend))
    timed = {layer.name: (layer.seconds, layer.float_seconds) for layer in seen.layers}
    for name in ("stem", "second", "third"):
        assert all(value is not None and value > 0 for value in timed[name]), (name, timed[name])


def test_int8_against_float(built):
    seen = explain(built("island", "onnxruntime"), device=Local(), rounds=2)
    assert seen.latency is not None
    assert seen.latency.low <= seen.latency.ratio <= seen.latency.high
    assert seen.latency.rounds == 2


def test_without_a_float_bundle_layers_are_placed_and_not_compared(built, tmp_path):
    alone = Path(shutil.copy(built("island", "onnxruntime"), tmp_path))
    seen = explain(alone, device=Local())
    assert (seen.against, seen.output_snr_db, seen.latency) == (None, None, None)
    assert seen.float_layers == 1
    assert any("--against" in note for note in seen.notes)
    given = built("island", "onnxruntime").with_name("island-x86-64-onnxruntime-float-fp32.edge")
    assert explain(alone, against=given).output_snr_db is not None


def test_what_cannot_be_explained(built, tmp_path):
    quantized = built("island", "onnxruntime")
    other = quantized.with_name("island-x86-64-onnxruntime-float-fp32.edge")
    with pytest.raises(UsageError, match=r"is the float bundle, in fp32: there is nothing quantized to explain"):
        explain(other)
    with pytest.raises(UsageError, match=r"what is needed is island, onnxruntime, float"):
        explain(quantized, against=built("whole", "onnxruntime"))
    np.save(tmp_path / "wrong.npy", np.zeros((2, 5, 5), np.float32))
    with pytest.raises(UsageError, match=r"input x expects"):
        explain(quantized, inputs=tmp_path / "wrong.npy")
    with pytest.raises(UsageError, match=r"cannot read the bundle"):
        explain(tmp_path / "absent.edge")
    files = {"model.onnx": small.model(tmp_path / "model.onnx")}
    golden = [np.zeros((1, 1, 8, 8), np.float32)], [np.zeros((1, 3), np.float32)]
    old = small.manifest(role="quantized", precision="int8")
    with pytest.raises(UsageError, match=r"has no quant\.json"):
        explain(write_bundle(tmp_path / "old.edge", old, files, *golden).path)
    with pytest.raises(UsageError, match=r"quant\.json is of another version"):
        extra = {"quant.json": b'{"version": 9}'}
        explain(write_bundle(tmp_path / "new.edge", old, files, *golden, extra).path)
    engine = small.manifest(role="quantized", precision="int8", backend="tensorrt")
    extra = {"quant.json": read_member(open_bundle(quantized), "quant.json")}
    with pytest.raises(UsageError, match=r"cannot look into models of 'tensorrt'"):
        explain(write_bundle(tmp_path / "rt.edge", engine, files, *golden, extra).path)


def test_a_damaged_bundle_ends_with_8(built, tmp_path):
    damaged = tmp_path / "damaged.edge"
    content = bytearray(built("island", "onnxruntime").read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(IntegrityError):
        explain(damaged)
    done = CliRunner().invoke(app, ["explain", str(damaged), "--no-time"])
    assert done.exit_code == 8
    assert "Traceback" not in done.output


def test_the_command(built):
    path = str(built("island", "onnxruntime"))
    done = CliRunner().invoke(app, ["explain", path, "--no-time", "--json", "--quiet"])
    assert done.exit_code == 0, done.output
    seen = Explanation.model_validate_json(done.stdout)
    assert seen.float_layers == 1
    shown = CliRunner().invoke(app, ["explain", path, "--no-time", "--layers", "--quiet"])
    assert shown.exit_code == 0
    for layer in seen.layers:
        assert re.search(rf"^{layer.name} +{layer.type} ", shown.stdout, re.MULTILINE)


def test_looking_changes_nothing_that_the_runtime_computes(built, tmp_path):
    """With every tensor as an output the network's own outputs stay bit for bit what they were."""
    from edgekit.backends.looking import look_at
    from edgekit.quant.record import Record

    bundle = open_bundle(built("whole", "onnxruntime"))
    record = Record.model_validate_json(read_member(bundle, "quant.json"))
    extract_model(bundle, tmp_path)
    manifest = bundle.manifest.model_dump(mode="json")
    probe, plain = look_at("onnxruntime", tmp_path, manifest, record).probe(), make_runner(tmp_path, manifest, 1, 1)
    for row in read_golden(bundle, "inputs")[0][:, None]:
        np.testing.assert_array_equal(probe([row])["y"], plain.infer([row])[0])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx"]


def explanation(layers, **changes):
    values = {
        "bundle": "x.edge", "sha256": "0" * 64, "model": "net", "target": "x86-64", "backend": "onnxruntime",
        "precision": "int8", "runtime": "onnxruntime 1", "against": "f.edge", "samples": 4, "conversions": 2,
        "int8_layers": sum(la.runs == "int8" for la in layers), "float_layers": sum(la.runs != "int8" for la in layers),
        "int8_share": 1.0, "conversion_seconds": None, "layout_seconds": None, "layers": tuple(layers), "islands": (),
        "threshold_db": 20.0, "first_divergent": None, "largest_drop": None, "output_snr_db": 40.0,
        "latency": Timed(ratio=1.1, low=1.0, high=1.2, rounds=10), "advice": (), "notes": (),
    }  # fmt: skip
    return Explanation.model_validate({**values, **changes})


def layer(name, seconds=1e-3, float_seconds=None, **changes):
    values = {"name": name, "type": "Conv", "runs": "int8", "kernels": ("K",), "seconds": seconds}
    return Layer.model_validate({**values, "float_seconds": float_seconds, **changes})


@pytest.mark.parametrize(
    ("seen", "line"),
    [
        (
            explanation([layer("a"), layer("b", runs="float", reason="kept float by the recipe")]),
            r"1 layer in float \(b, 50% of the time\): take them out of `keep_float`",
        ),
        (explanation([layer("a")], conversion_seconds=1e-3), r"50% of the time goes to 2 conversions"),
        (explanation([layer("a")], layout_seconds=1e-3), r"50% of the time goes to changes of layout"),
        (explanation([layer("a", 2e-3, 1e-3), layer("b", 1e-3, 2e-3)]), r"slower in 8 bits than in float: a\."),
        (explanation([layer("a", 1e-6), layer("b", 1e-6)]), r"gains in bytes, not in time"),
        (
            explanation([layer("a", clipped=0.2)], output_snr_db=12.0),
            r"20\.0% of the values of a lie outside of its range",
        ),
    ],
)
def test_advice(seen, line):
    assert any(re.search(line, found) for found in advice(seen)), list(advice(seen))


def test_advice_says_so_where_nothing_stands_out(monkeypatch):
    from edgekit.agent import state

    monkeypatch.setattr(state, "machine", lambda: {"arch": "x86_64", "features": ["avx512_vnni"]})
    (line,) = advice(explanation([layer("a", 1e-3, 1e-3)]))
    assert line.startswith("no single cause stands out")
    monkeypatch.setattr(state, "machine", lambda: {"arch": "x86_64", "features": ["avx2"]})
    assert any("VNNI" in line for line in advice(explanation([layer("a", 1e-3, 1e-3)])))
    monkeypatch.setattr(state, "machine", lambda: {"arch": "x86_64", "features": []})  # unknown: nothing is claimed
    assert not any("VNNI" in line for line in advice(explanation([layer("a", 1e-3, 1e-3)])))


def test_the_docs_name_every_field_and_backend():
    page = (ROOT / "docs" / "explain.md").read_text(encoding="utf-8")
    for value in (Explanation, Layer, Island, Timed):
        for name in value.model_fields:
            assert f"`{name}`" in page, f"docs/explain.md lacks {name} of {value.__name__}"
    assert set(LOOKS) == {"onnxruntime", "openvino", "litert"}
