"""The command line as people use it: what it prints, where, and how it ends."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from edgekit.cli.app import app
from edgekit.cli.verb import classify, verb
from edgekit.errors import BuildError, DeviceError, ExitCode, IntegrityError, MissingDependencyError, UsageError

ENTRY = [sys.executable, "-c", "from edgekit.cli import main; main()"]

RECIPE = """\
version: 1
model: {source: model.onnx}
data: {source: DATA}
targets: [{target: x86-64, backends: [onnxruntime]}]
"""


def edgekit(*words: str, **options) -> subprocess.CompletedProcess[str]:
    """Run the real command in a process of its own."""
    return subprocess.run([*ENTRY, *map(str, words)], capture_output=True, text=True, timeout=120, **options)


def invoke(*words: object):
    return CliRunner().invoke(app, list(map(str, words)))


def test_version():
    from importlib.metadata import version

    assert invoke("--version").output == f"edgekit {version('edgekit-toolchain')}\n"


def test_help_names_every_verb_and_exit_code():
    text = " ".join(invoke("--help").output.split())
    for word in ("run", "targets", "doctor", "schema", "bundle", "--install-completion", "130 interrupted"):
        assert word in text


def test_targets_as_table_and_json(monkeypatch):
    from edgekit.target import list_targets

    monkeypatch.setenv("COLUMNS", "80")
    rows = invoke("targets").output.splitlines()
    assert [row.split()[0] for row in rows if not row.startswith(" ")] == list(list_targets())
    assert max(map(len, rows)) <= 80
    facts = invoke("targets", "raspberry-pi-5").output.splitlines()
    assert max(len(line) for line in facts if "https:" not in line) <= 80  # a link is never broken
    values = json.loads(invoke("targets", "--json").output)
    assert [value["name"] for value in values] == list(list_targets())
    one = json.loads(invoke("targets", "jetson-orin-nano", "--json").output)
    assert one["gpu"]["compute"] == "8.7"
    assert "compute capability 8.7" in invoke("targets", "jetson-orin-nano").output


def test_an_error_is_one_message_on_stderr():
    done = edgekit("targets", "raspberry-pi")
    assert done.returncode == ExitCode.USAGE
    assert done.stdout == ""
    assert done.stderr.startswith("edgekit: Unknown target 'raspberry-pi'. Did you mean 'raspberry-pi-")
    assert done.stderr.count("\n") == 1


def test_an_error_is_json_on_stdout_with_json():
    done = edgekit("targets", "nope", "--json")
    error = json.loads(done.stdout)["error"]
    assert (error["type"], error["exit_code"]) == ("UsageError", 2)
    assert error["message"].startswith("Unknown target 'nope'.")
    assert done.stderr.startswith("edgekit: Unknown target 'nope'.")


def test_wrong_options_end_with_2():
    assert edgekit("targets", "--jsn").returncode == ExitCode.USAGE
    assert edgekit("frobnicate").returncode == ExitCode.USAGE


def test_doctor_tells_what_there_is():
    from edgekit.backends import BACKENDS

    found = json.loads(invoke("doctor", "--json").output)
    assert {backend["name"] for backend in found["backends"]} >= set(BACKENDS)
    assert found["cores"] >= 1
    text = invoke("doctor").output
    assert all(name in text for name in BACKENDS)
    for backend in found["backends"]:
        here = backend["availability"]
        assert (here["compiles"] and here["runs"]) or here["reason"], "what is not possible has a reason"


def test_schema_is_json():
    assert json.loads(invoke("schema").output)["title"] == "edgekit recipe"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell):
    done = edgekit(env={**os.environ, "_EDGEKIT_COMPLETE": f"source_{shell}"})
    assert "edgekit" in done.stdout
    assert "complet" in done.stdout


def test_completion_of_a_verb():
    words = {"_EDGEKIT_COMPLETE": "complete_bash", "COMP_WORDS": "edgekit ta", "COMP_CWORD": "1"}
    assert edgekit(env={**os.environ, **words}).stdout.split() == ["targets"]


def test_a_reader_that_goes_away_is_no_error():
    command = f"{sys.executable} -c 'from edgekit.cli import main; main()' schema | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "{\n", "")


def test_closed_streams_are_no_error():
    entry = f"{sys.executable} -c 'from edgekit.cli import main; main()'"
    for command, code in (("targets >&-", 0), ("targets 2>&-", 0), ("run absent.yaml >&- 2>&- <&-", 2)):
        done = subprocess.run(["bash", "-c", f"{entry} {command}"], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (code, ""), command


BUFFERING = pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])


@BUFFERING
def test_an_error_that_cannot_be_told_keeps_its_code(unbuffered):
    with Path("/dev/full").open("w") as full:
        environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
        done = subprocess.run([*ENTRY, "run", "absent.yaml"], stderr=full, env=environment)
    assert done.returncode == ExitCode.USAGE


@BUFFERING
@pytest.mark.parametrize("words", [["--help"], ["--version"], ["targets"], ["targets", "--json"], ["schema"]])
def test_a_result_that_cannot_be_written_is_told(words, unbuffered):
    with Path("/dev/full").open("w") as full:
        environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
        done = subprocess.run([*ENTRY, *words], stdout=full, stderr=subprocess.PIPE, text=True, env=environment)
    assert done.returncode == ExitCode.DEVICE
    (line,) = done.stderr.splitlines()
    assert line.startswith("edgekit: ")


@BUFFERING
def test_a_reader_that_went_away_is_no_error(unbuffered):
    read, write = os.pipe()
    os.close(read)
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run([*ENTRY, "schema"], stdout=write, stderr=subprocess.PIPE, text=True, env=environment)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_terminal_without_unicode_is_no_error():
    probe = "from edgekit.cli import _settle_streams; _settle_streams(); print('\\u00b1 1')"
    done = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, env={**os.environ, "PYTHONIOENCODING": "ascii"}
    )
    assert (done.returncode, done.stdout) == (0, "? 1\n")


@pytest.mark.parametrize(
    ("out", "message"),
    [(b"a\xff", "names in UTF-8"), (b"/proc/out", "cannot be made there"), (b"a" * 300, "File name too long")],
)
def test_an_output_folder_that_cannot_be_is_refused(folder, out, message):
    np.savez(folder / "d.npz", x=np.zeros((9, 4)), y=np.arange(9) % 2)
    (folder / "recipe.yaml").write_text(RECIPE.replace("DATA", "d.npz"))
    words = [*ENTRY, "run", str(folder / "recipe.yaml"), "-q", "--out", out]
    done = subprocess.run(words, capture_output=True, text=True, cwd=folder)
    assert done.returncode == ExitCode.USAGE
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


# -- bad input, through `run`


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model.onnx").touch()
    return tmp_path


def run(folder: Path, data: str, recipe: str = RECIPE, *words: object, **options) -> subprocess.CompletedProcess[str]:
    (folder / "recipe.yaml").write_text(recipe.replace("DATA", data))
    return edgekit("run", folder / "recipe.yaml", "--out", folder / "out", *words, **options)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (
            RECIPE.replace("version: 1", "version: 1\nstage: []"),
            "recipe.yaml:2: stage: unknown key. Did you mean 'stages'?",
        ),
        (RECIPE.replace("model.onnx", "other.onnx"), "recipe.yaml:2: model.source: no such file"),
        (RECIPE.replace("[onnxruntime]", "onnxruntime"), "recipe.yaml:4: targets[0].backends: must be a list"),
        (RECIPE.replace("x86-64", "x86-65"), "recipe.yaml:4: targets[0].target: Unknown target 'x86-65'. Did you mean"),
    ],
)
def test_recipe_errors_end_with_2_and_write_nothing(folder, recipe, message):
    (folder / "d.npz").touch()
    done = run(folder, "d.npz", recipe)
    assert done.returncode == ExitCode.USAGE
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (folder / "out").exists()


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.zeros((0, 4), np.float32), np.zeros(0, int), "is empty"),
        (np.full((9, 4), np.nan), np.zeros(9, int), "sample 0 holds NaN or infinity"),
        (np.zeros((9, 4), "U3"), np.zeros(9, int), "samples are of type <U3; integers or floats are needed"),
        (np.zeros((9, 4), object), np.zeros(9, int), "holds pickled Python objects"),
        (np.zeros((9, 4)), np.full(9, -1), "label -1 (sample 0) is out of range"),
        (np.zeros((9, 4)), np.zeros(8, int), "9 samples need labels of shape [9], got [8]"),
    ],
)
def test_data_errors_end_with_2(folder, x, y, message):
    np.savez(folder / "d.npz", test_x=x, test_y=y)
    done = run(folder, "d.npz", RECIPE, "--quiet")
    assert (done.returncode, done.stdout) == (ExitCode.USAGE, "")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_an_unwritable_output_folder_ends_with_2(folder):
    np.savez(folder / "d.npz", x=np.zeros((9, 4)), y=np.arange(9) % 2)
    (folder / "file").touch()
    (folder / "recipe.yaml").write_text(RECIPE.replace("DATA", "d.npz"))
    done = edgekit("run", folder / "recipe.yaml", "--out", folder / "file" / "out", "-q")
    assert done.returncode == ExitCode.USAGE
    assert "Not a directory" in done.stderr


def test_what_libraries_print_stays_out_of_the_result(folder):
    """Prints of Python and of native code go to stderr, so that stdout is JSON and nothing else."""
    (folder / "loud.py").write_text(
        "import os\ndef load():\n    print('from Python')\n    os.write(1, b'from below\\n')\n    return 5\n"
    )
    done = run(folder, "loud.py:load", RECIPE, "--json", "--quiet")
    assert done.returncode == ExitCode.USAGE
    assert "loud.py:load returned int" in json.loads(done.stdout)["error"]["message"]
    assert "from Python" in done.stderr
    assert "from below" in done.stderr


@pytest.mark.parametrize("signal_", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_ctrl_c_and_being_ended_are_130(folder, signal_):
    (folder / "slow.py").write_text(
        "import pathlib, time\n"
        "def load():\n"
        "    pathlib.Path(__file__).with_name('started').touch()\n"
        "    time.sleep(60)\n"
    )
    (folder / "recipe.yaml").write_text(RECIPE.replace("DATA", "slow.py:load"))
    process = subprocess.Popen(
        [*ENTRY, "run", folder / "recipe.yaml", "--out", folder / "out"], stderr=subprocess.PIPE, text=True
    )
    for _ in range(600):
        if (folder / "started").exists():
            break
        time.sleep(0.1)
    process.send_signal(signal_)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == ExitCode.INTERRUPTED
    assert "edgekit: interrupted." in stderr
    assert "Traceback" not in stderr


@pytest.mark.parametrize("action", ["inspect", "verify"])
def test_what_is_no_bundle_ends_with_8(tmp_path, action):
    (tmp_path / "x.edge").write_bytes(b"PK\x03\x04 not a bundle")
    done = edgekit("bundle", action, tmp_path / "x.edge")
    assert done.returncode == ExitCode.INTEGRITY
    assert "x.edge" in done.stderr
    assert "Traceback" not in done.stderr


# -- one place maps errors to exit codes


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("x"), 2),
        (MissingDependencyError("x"), 6),
        (DeviceError("x"), 5),
        (BuildError("x"), 7),
        (IntegrityError("x"), 8),
        (KeyboardInterrupt(), 130),
        (OSError(errno.ENOSPC, "No space left on device", "f"), 5),
        (PermissionError(errno.EACCES, "Permission denied", "f"), 2),
        (OSError(errno.ENAMETOOLONG, "File name too long", "f"), 2),
        (SystemExit(0), 2),
        (OSError(errno.EIO, "Input/output error"), 70),
        (MemoryError(), 5),
        (ValueError("x"), 70),
        (AssertionError(), 70),
    ],
)
def test_exit_codes(error, code):
    assert classify(error)[0] == code


def failing_app(error: BaseException) -> typer.Typer:
    small = typer.Typer()

    @small.command()
    @verb
    def fail() -> None:
        raise error

    return small


def test_a_bug_says_so_and_leaves_its_traceback(monkeypatch, tmp_path):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.delenv("EDGEKIT_DEBUG", raising=False)
    result = CliRunner().invoke(failing_app(ValueError("broken")))
    assert result.exit_code == ExitCode.INTERNAL
    assert "edgekit: internal error: ValueError: broken\n  This is a bug in edgekit" in result.stderr
    (log,) = tmp_path.glob("edgekit-*.log")
    assert "Traceback" in log.read_text()
    assert str(log) in result.stderr
    monkeypatch.setenv("EDGEKIT_DEBUG", "1")
    assert "Traceback" in CliRunner().invoke(failing_app(ValueError("broken"))).stderr


def test_notes_say_where_it_happened():
    error = UsageError("wrong")
    error.add_note("in stage 'prune', after the original model")
    assert (
        CliRunner().invoke(failing_app(error)).stderr
        == "edgekit: wrong\n  in stage 'prune', after the original model\n"
    )
