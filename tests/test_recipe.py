"""Recipes: the documented one loads, and whatever is wrong is said with file, line and setting."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgekit.errors import ExitCode, UsageError
from edgekit.recipe import Recipe, load_recipe, recipe_schema

RECIPE = """\
version: 1
model: {source: model.py:build, weights: weights.safetensors,
        inputs: {image: {shape: [batch, 1, 28, 28], dtype: float32}}}
data: {source: data, task: classification}
stages:
  - prune:    {macs: 0.5, importance: taylor, round_to: 8}
  - distill:  {epochs: 2, temperature: 4.0}
  - quantize: {precision: int8, calibration: auto, samples: 512, max_drop: 0.5pp, keep_float: []}
targets:
  - {target: x86-64, backends: [onnxruntime, openvino, litert], device: local}
  - {target: raspberry-pi-5, backends: [onnxruntime, litert]}
  - {target: rtx-ampere, backends: [tensorrt]}
gate:
  - {metric: accuracy, vs: reference, max_regression: 1.0pp}
  - {metric: latency.p90, target: x86-64, vs: reference, max_ratio: 1.0}
  - {metric: size, max: 2 MB}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the files that the recipe names, empty."""
    (tmp_path / "model.py").touch()
    (tmp_path / "weights.safetensors").touch()
    (tmp_path / "data").mkdir()
    return tmp_path


def load(folder: Path, text: str, **options) -> Recipe:
    (folder / "recipe.yaml").write_text(text, encoding="utf-8")
    return load_recipe(folder / "recipe.yaml", **options)


def refused(folder: Path, text: str, **options) -> str:
    """The message without the path before `recipe.yaml`."""
    with pytest.raises(UsageError) as caught:
        load(folder, text, **options)
    assert caught.value.exit_code == ExitCode.USAGE
    return str(caught.value).replace(f"{folder}/", "")


def test_the_documented_recipe_loads(folder):
    recipe = load(folder, RECIPE)
    prune, distill, quantize = recipe.stages
    assert (prune.kind, prune.macs, prune.round_to) == ("prune", 0.5, 8)
    assert (distill.kind, distill.epochs, distill.temperature) == ("distill", 2, 4.0)
    assert (quantize.kind, quantize.samples) == ("quantize", 512)
    assert quantize.max_drop == pytest.approx(0.005)
    assert recipe.model.specs()["image"].shape == ("batch", 1, 28, 28)
    assert recipe.weights == folder / "weights.safetensors"
    assert [(t.target.name, t.backends, t.device, t.threads) for t in recipe.targets] == [
        ("x86-64", ("onnxruntime", "openvino", "litert"), "local", 1),
        ("raspberry-pi-5", ("onnxruntime", "litert"), None, 1),
        ("rtx-ampere", ("tensorrt",), None, 1),
    ]
    assert [clause.metric for clause in recipe.gate] == ["accuracy", "latency.p90", "size"]
    assert recipe.base == folder
    assert recipe.written["data"] == {"source": "data", "task": "classification"}


def test_the_demo_recipe_loads(repo_root):
    recipe = load_recipe(repo_root / "examples" / "fashion_mnist" / "recipe.yaml")
    assert recipe.name == "fashion_mnist"


def test_short_forms(folder):
    text = RECIPE[: RECIPE.index("stages:")] + "stages: [quantize]\ntargets: [raspberry-pi-4]\nmeasure: {threads: 2}\n"
    recipe = load(folder, text)
    assert recipe.stages[0].kind == "quantize"
    assert recipe.targets[0].backends == ("onnxruntime", "litert", "openvino")
    assert recipe.targets[0].threads == 2
    assert recipe.gate == ()


def test_only_some_targets(folder):
    recipe = load(folder, RECIPE, targets=["raspberry-pi-5"])
    assert [entry.target.name for entry in recipe.targets] == ["raspberry-pi-5"]
    assert [clause.metric for clause in recipe.gate] == ["accuracy", "size"], "a clause on another target is left out"
    message = refused(folder, RECIPE, targets=["raspbery-pi-5"])
    assert message.startswith(
        "recipe.yaml: Unknown target of this recipe 'raspbery-pi-5'. Did you mean 'raspberry-pi-5'?"
    )


def test_anchors_and_merges(folder):
    text = RECIPE.replace("{target: raspberry-pi-5, backends", "{<<: {device: local}, target: raspberry-pi-5, backends")
    assert load(folder, text).targets[1].device == "local"


def test_a_target_of_ones_own(folder, repo_root):
    board = (repo_root / "targets" / "raspberry-pi-4.yaml").read_text().replace("name: raspberry-pi-4", "name: board")
    (folder / "board.yaml").write_text(board)
    text = RECIPE.replace("target: raspberry-pi-5", "target: board.yaml")
    assert load(folder, text).targets[1].target.name == "board"
    (folder / "board.yaml").write_text(board.replace("cores: 4", "cores: four"))
    assert "board.yaml:5: cpu.cores: must be a whole number, got 'four'" in refused(folder, text)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        # unknown keys and names
        ("version: 1", "version: 1\nsed: 4", "recipe.yaml:2: sed: unknown key. Did you mean 'seed'?"),
        ("task: class", "tsk: class", "recipe.yaml:4: data.tsk: unknown key. Did you mean 'task'? Settings"),
        ("macs: 0.5", "mac: 0.5", "recipe.yaml:6: stages[0].prune.mac: unknown key. Did you mean 'macs'?"),
        ("- prune:", "- prun:", "recipe.yaml:6: stages[0].prun: Unknown stage 'prun'. Did you mean 'prune'?"),
        ("litert], d", "litter], d", "recipe.yaml:10: targets[0].backends[2]: Unknown backend 'litter'. Did you mean"),
        ("target: x86-64,", "target: x86,", "recipe.yaml:10: targets[0].target: Unknown target 'x86'. Did you mean"),
        ("device: local", "device: here", "recipe.yaml:10: targets[0].device: Unknown device 'here'. Available: "),
        ("metric: size", "metric: sice", "recipe.yaml:16: gate[2]: Unknown gate metric 'sice'. Did you mean 'size'?"),
        ("taylor", "tailor", "recipe.yaml:6: stages[0].prune.importance: must be one of 'outputs', "),
        # types and ranges
        ("version: 1", "version: 2", "recipe.yaml:1: version: must be 1, got 2."),
        ("version: 1", "version: '1'", "recipe.yaml:1: version: must be 1, got '1'."),
        ("max_drop: 0.5pp", "max_drop: 50", "recipe.yaml:8: stages[2].quantize.max_drop: must be in [0, 1), got 50"),
        ("task: class", "preprocess: {scale: .nan}, task: class",
         "recipe.yaml:4: data.preprocess.scale: must be a finite"),
        ("max: 2 MB", "max: true", "recipe.yaml:16: gate[2].max: "),
        ("max: 2 MB", "max: -2 MB", "recipe.yaml:16: gate[2]: '-2 MB' cannot be a limit: size is never negative."),
        ("max: 2 MB", "max: 2 MB, min: 3 MB", "recipe.yaml:16: gate[2]: min '3 MB' is more than max '2 MB'"),
        ("max_ratio: 1.0", "max_ratio: .nan", "recipe.yaml:15: gate[1].max_ratio: must be "),
        ("max_ratio: 1.0", "max_ratio: -1.0", "recipe.yaml:15: gate[1].max_ratio: must be more than 0"),
        ("metric: size, max: 2 MB", "metric: loss, max: nan", "recipe.yaml:16: gate[2]: 'nan' is not a number of nat"),
        (
            "macs: 0.5", "macs: 1.5",
            "recipe.yaml:6: stages[0].prune.macs: must be in (0, 1], or an amount, got 1.5. "
            "Use 0.5 to keep half of the multiply-accumulates, or their number",
        ),
        ("epochs: 2", "epochs: two", "recipe.yaml:7: stages[1].distill.epochs: must be a whole number, got 'two'."),
        ("macs: 0.5", "macs: .nan", "recipe.yaml:6: stages[0].prune.macs: must be "),
        ("samples: 512", "samples: [1]", "recipe.yaml:8: stages[2].quantize.samples: must be a whole number"),
        ("max_drop: 0.5pp", "max_drop: much", "recipe.yaml:8: stages[2].quantize.max_drop: "),
        ("max: 2 MB", "max: 2 MQ", "recipe.yaml:16: gate[2]: '2 MQ' is not a size. Write it like '2 MB'."),
        ("size, max", "size, vs: float, max", "recipe.yaml:16: gate[2]: "),
        ("[batch, 1,", "[batch, -1,", "recipe.yaml:3: model.inputs.image.shape[1]: must be more than 0, got -1."),
        ("dtype: float32", "dtype: f32", "recipe.yaml:3: model.inputs.image.dtype: must be one of 'float32', "),
        ("backends: [tensorrt]", "backends: tensorrt", "recipe.yaml:12: targets[2].backends: must be a list"),
        ("task: classification", "task: 5", "recipe.yaml:4: data.task: must be one of 'classification', 'detection', "),
        ("data: {source: data, task: classification}", "data: 5", "recipe.yaml:4: data: must be a mapping of settings"),
        # what is missing
        ("version: 1\n", "", "recipe.yaml:1: version: is missing."),
        ("source: data, ", "", "recipe.yaml:4: data.source: is missing. Use the path of a folder or an .npz file."),
        ("macs: 0.5, ", "", "recipe.yaml:6: stages[0].prune: prune needs one budget"),
        ("weights.safe", "absent.safe", "recipe.yaml:2: model.weights: no such file: absent.safetensors."),
        ("model.py:build", "absent.py:build", "recipe.yaml:2: model.source: no such file: absent.py."),
        ("source: data", "source: absent", "recipe.yaml:4: data.source: no such file or folder: absent."),
        # what does not go together
        ("model.py:build", "weights.safetensors", "recipe.yaml:2: model.source: must be `file.py:function`"),
        ("rtx-ampere, backends: [tensorrt]", "rtx-ampere, backends: [litert]",
         "recipe.yaml:12: targets[2].backends[0]: target 'rtx-ampere' has no backend 'litert'. It has: tensorrt."),
        ("raspberry-pi-5, backends: [onnxruntime, litert]", "x86-64, backends: [litert]",
         "recipe.yaml:11: targets[1].backends[0]: 'litert' for 'x86-64' stands here twice."),
        ("latency.p90, target: x86-64", "latency.p90, target: raspberry-pi-4",
         "recipe.yaml:15: gate[1].target: Unknown target of this recipe 'raspberry-pi-4'. Did"),
        ("- prune:    {macs: 0.5, importance: taylor, round_to: 8}", "- {prune: {macs: 0.5}, distill: {}}",
         "recipe.yaml:6: stages[0]: a stage is one kind with its settings, got 2: prune, distill."),
        ("targets:", "  - quantize\ntargets:", "recipe.yaml:9: stages[3]: 'quantize' stands here twice."),
        # not YAML
        ("version: 1", "version: 1\nversion: 1", 'recipe.yaml:2: not valid YAML: found duplicate key "version"'),
        ("stages:", "stages: [", "not valid YAML: "),
        ("version: 1", "version: !!python/object/apply:os.system [id]",
         "recipe.yaml:1: version: the tag 'tag:yaml.org"),
        ("version: 1", "version: !one 1", "recipe.yaml:1: version: the tag '!one' has no meaning here."),
        ("version: 1", "version: 1\nseed: 0x" + "f" * 5000, "recipe.yaml:2: seed: the number is too large."),
    ],
)  # fmt: skip
def test_one_clear_error_with_file_and_line(folder, old, new, message):
    assert old in RECIPE
    assert message in refused(folder, RECIPE.replace(old, new, 1))


def test_python_models_need_their_inputs(folder):
    text = RECIPE.replace(",\n        inputs: {image: {shape: [batch, 1, 28, 28], dtype: float32}}}", "}")
    assert "recipe.yaml:2: model.inputs: is missing: a Python model needs the shape of its inputs" in refused(
        folder, text
    )


def test_what_trains_comes_before_quantize(folder):
    lines = RECIPE.splitlines(keepends=True)
    lines[5], lines[7] = lines[7], lines[5]
    message = refused(folder, "".join(lines))
    assert "recipe.yaml:7: stages[1]: 'distill' trains weights and cannot follow 'quantize'. Move it before." in message


def test_what_trains_in_8_bits_comes_after_quantize(folder):
    qat = RECIPE.replace("targets:", "  - qat: {epochs: 3, grid: reduced_range}\ntargets:")
    (folder / "recipe.yaml").write_text(qat)
    assert load_recipe(folder / "recipe.yaml").stages[-1].grid == "reduced_range"
    message = refused(folder, qat.replace("reduced_range", "reduced"))
    assert (
        "recipe.yaml:9: stages[3].qat.grid: must be one of 'affine', 'symmetric' or 'reduced_range', got 'reduced'."
    ) in message
    message = refused(folder, RECIPE.replace("  - quantize:", "  - qat\n  - quantize:"))
    assert "recipe.yaml:8: stages[2]: 'qat' trains what 'quantize' makes. Move it behind." in message
    lines = qat.splitlines(keepends=True)
    del lines[7]
    message = refused(folder, "".join(lines))
    assert "recipe.yaml:8: stages[2]: 'qat' trains what 'quantize' makes. Add `- quantize` in front of it." in message


def test_a_missing_recipe(tmp_path):
    with pytest.raises(UsageError, match=r"absent.yaml: no such file. Give the path of a recipe in YAML."):
        load_recipe(tmp_path / "absent.yaml")
    with pytest.raises(UsageError, match=r"cannot read the recipe: Is a directory"):
        load_recipe(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "a recipe is a mapping of settings, got nothing"),
        (b"- 1\n", "a recipe is a mapping of settings, got a list"),
        (b"\x80\x81", "not a text file in UTF-8"),
        (b"[" * 5000, "not valid YAML"),
        (b"a: " + b"x" * 1_000_001, "too large for a recipe"),
        (b"a: &a [1,1,1,1,1,1,1,1,1,1]\n" + b"".join(
            b"%c: &%c [%s]\n" % (98 + i, 98 + i, b",".join([b"*%c" % (97 + i)] * 10)) for i in range(6)), "too large"),
    ],
)  # fmt: skip
def test_files_that_are_no_recipe(tmp_path, content, message):
    (tmp_path / "recipe.yaml").write_bytes(content)
    with pytest.raises(UsageError) as caught:
        load_recipe(tmp_path / "recipe.yaml")
    assert message in str(caught.value)


def test_a_file_without_an_end_is_no_recipe():
    with pytest.raises(UsageError, match="/dev/zero: more than 1000000 bytes, too large for a recipe"):
        load_recipe("/dev/zero")


def test_the_schema_has_every_setting_of_every_stage():
    schema = recipe_schema()
    assert schema == json.loads(json.dumps(schema))
    kinds = {name for entry in schema["properties"]["stages"]["items"]["oneOf"] for name in entry["properties"]}
    assert {"prune", "distill", "quantize"} <= kinds
    budgets = [{"required": [name]} for name in ("macs", "parameters", "bytes", "memory", "latency")]
    assert schema["$defs"]["stage.prune"]["oneOf"] == budgets
    assert schema["$defs"]["stage.prune"]["additionalProperties"] is False
    assert set(schema["required"]) == {"version", "model", "data", "targets"}


def test_every_reference_in_the_schema_exists():
    schema = recipe_schema()

    def references(value):
        if isinstance(value, dict):
            yield from ([value["$ref"]] if "$ref" in value else [])
            for inner in value.values():
                yield from references(inner)
        elif isinstance(value, list):
            for inner in value:
                yield from references(inner)

    found = set(references(schema))
    assert found
    assert all(name.removeprefix("#/$defs/") in schema["$defs"] for name in found)
