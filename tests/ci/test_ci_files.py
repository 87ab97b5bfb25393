"""The action, the GitLab template, the hook and the example repository: valid by schema, and run step by step."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ci_steps import EXPRESSION, Job, gitlab_job, read, run_gitlab
from junitparser import JUnitXml

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "report"))
from report_samples import realistic

from edgekit.report.report import read_report, write_text
from edgekit.report.verdicts import read_gate

BIN = Path(sys.executable).parent


@pytest.fixture(scope="session")
def report(tmp_path_factory) -> Path:
    """The folder of a run whose accuracy, size and times are known."""
    folder = tmp_path_factory.mktemp("run") / "out"
    folder.mkdir()
    write_text(folder / "report.json", realistic(folder).model_dump_json())
    return folder


CLAUSES = {
    "pass": "{metric: size, max: 3 MB}",
    "fail": "{metric: accuracy, min: 99%}",  # on each of three backends
    "inconclusive": "{metric: accuracy, min: ACCURACY, backend: onnxruntime}",
    "error": "{metric: acuracy, min: 90%}",
}


@pytest.fixture
def job(tmp_path, repo_root, report) -> Job:
    """A checked out repository with a report."""
    folder = tmp_path / "repository"
    shutil.copytree(report, folder / "out")
    shipped = read_report(report / "report.json").shipped("x86-64", "onnxruntime")
    for name, clause in CLAUSES.items():
        clause = clause.replace("ACCURACY", str(shipped.metrics.accuracy.value))
        (folder / f"{name}.yaml").write_text(f"version: 1\ngate:\n  - {clause}\n")
    return Job(folder=folder, home=tmp_path / "home", action=repo_root)


def workflows(root: Path) -> list[Path]:
    found = [*(root / "examples" / "ci").rglob("workflows/*.yml")]
    assert found
    return found


@pytest.mark.parametrize(
    ("schema", "pattern"),
    [("vendor.github-actions", "action.yml"), ("vendor.github-workflows", "examples/ci/.github/workflows/*.yml"),
     ("vendor.gitlab-ci", "examples/ci/.gitlab-ci.yml"), ("vendor.gitlab-ci", "examples/ci/gitlab/*.yml")],
)  # fmt: skip
def test_the_files_are_valid_by_their_schemas(repo_root, schema, pattern):
    files = sorted(repo_root.glob(pattern))
    assert files
    done = subprocess.run(
        [BIN / "check-jsonschema", "--builtin-schema", schema, *files], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("verb", "file"),
    [("validate-manifest", ".pre-commit-hooks.yaml"), ("validate-config", "examples/ci/.pre-commit-config.yaml")],
)
def test_pre_commit_takes_its_files(repo_root, verb, file):
    done = subprocess.run([BIN / "pre-commit", verb, repo_root / file], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def scripts(root: Path) -> list[str]:
    """Every script of every file, by itself."""
    steps = list(read(root / "action.yml")["runs"]["steps"])
    for workflow in workflows(root):
        steps += [step for job in read(workflow)["jobs"].values() for step in job["steps"]]
    found = [step["run"] for step in steps if "run" in step]
    for file in (root / "examples" / "ci" / ".gitlab-ci.yml", *(root / "examples" / "ci" / "gitlab").glob("*.yml")):
        jobs = [job for job in read(file).values() if isinstance(job, dict)]
        found += ["\n".join([*job.get("before_script", []), *job["script"]]) for job in jobs if "script" in job]
    return found


def test_no_script_has_an_expression_in_it(repo_root):
    for script in scripts(repo_root):
        assert not EXPRESSION.search(script), script


def test_shellcheck_finds_nothing(repo_root):
    for script in scripts(repo_root):
        done = subprocess.run(
            [BIN / "shellcheck", "--shell=bash", "--enable=check-unassigned-uppercase", "-e", "SC2154", "-"],
            input=script, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout


def test_every_option_of_the_scripts_is_one_of_the_verb(repo_root):
    from typer.main import get_command

    from edgekit.cli.app import app

    known = {option for parameter in get_command(app).commands["gate"].params for option in parameter.opts}
    for script in scripts(repo_root):
        asked = {f"--{name}" for name in re.findall(r"^\s*add ([\w-]+) ", script, re.MULTILINE)}
        asked |= set(re.findall(r'["\s](--[a-z-]+)=\$?', script)) if "edgekit gate" in script else set()
        assert asked <= known, asked - known


@pytest.mark.parametrize(
    ("clauses", "code"), [("pass", 0), ("fail", 1), ("inconclusive", 4), ("error", 2)], ids=lambda v: str(v)
)
def test_the_action_ends_as_the_gate_does_and_keeps_what_was_found(job, clauses, code):
    job.run_action({"id": "it", "with": {"report": "out", "clauses": f"{clauses}.yaml", "version": "installed"}})
    assert [(ran.name, ran.code) for ran in job.ran if not ran.skipped] == [("Judge", 0), ("Verdict", code)]
    folder = job.folder / "edgekit-gate"
    assert job.steps["it"] == {"exit-code": str(code), "verdict": clauses, "json": str(folder / "gate.json")}
    assert job.used == [
        ("actions/upload-artifact@v7", {"name": "edgekit-gate", "path": str(folder), "if-no-files-found": "warn"})
    ]
    if code == 2:
        assert "Did you mean 'accuracy'" in job.ran[1].out
        return
    assert read_gate(folder / "gate.json").exit_code == code
    assert sum(len(list(suite)) for suite in JUnitXml.fromfile(str(folder / "junit.xml"))) > 0
    assert job.summary == (folder / "gate.md").read_text(encoding="utf-8")
    commands = re.findall(r"^::(\w+) ", job.ran[1].out, re.MULTILINE)
    assert commands.count("error") == (0 if code == 0 else 3 if code == 1 else 1) and commands.count("notice") == 1


NASTY = (
    "$(touch pwned)", "`touch pwned`", "'; touch pwned; '", '"; touch pwned; "', "a\ntouch pwned\n", "--help", "-x",
    "a b*?", "${IFS}touch${IFS}pwned", "x\nverdict=pass\nexit-code=0",
)  # fmt: skip
FREE = (
    "report",
    "clauses",
    "device",
    "baselines",
    "previous",
    "require-signature",
    "retry-invalid",
    "history",
    "badge",
)


def test_the_action_s_outputs_may_lie_anywhere(job, tmp_path):
    folder = tmp_path / "elsewhere"
    fine = {"report": "out", "clauses": "pass.yaml", "version": "installed"}
    job.run_action({"id": "it", "with": {**fine, "outputs": str(folder)}})
    assert job.steps["it"]["json"] == str(folder / "gate.json")
    assert job.used[0][1]["path"] == str(folder) and (folder / "gate.json").exists()


@pytest.mark.parametrize("text", NASTY)
def test_no_input_is_read_as_shell(job, text):
    fine = {"report": "out", "clauses": "pass.yaml", "version": "installed"}
    for given in (fine | dict.fromkeys(FREE, text), fine | {"outputs": text}):
        job.steps, job.failed = {}, False
        job.run_action({"id": "it", "with": given})
        assert set(job.ran[-2].outputs) == {"exit-code", "verdict", "json", "folder"}
        assert job.steps["it"]["verdict"] == ("pass" if "outputs" in given else "error")
    assert len(job.ran) == 6
    assert not list(job.folder.rglob("pwned")) and not list(job.home.rglob("pwned"))


def test_the_action_installs_itself(job):
    target = job.home / "installed"
    job.extra = {"PIP_TARGET": str(target), "PIP_NO_DEPS": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_NO_CACHE_DIR": "1"}
    steps = [step for step in read(job.action / "action.yml")["runs"]["steps"] if step.get("name") == "Install edgekit"]
    for extras in ("", "ssh"):
        job.run_steps(steps, {"version": "", "extras": extras}, None)
        assert job.ran[-1].code == 0, job.ran[-1].out
    assert (target / "edgekit" / "gate.py").is_file() and (target / "bin" / "edgekit").is_file()


def test_an_unknown_version_ends_the_action_before_it_judges(job):
    job.run_action({"id": "it", "with": {"report": "out", "version": "999.9"}})
    assert [ran.name for ran in job.ran if ran.skipped] == ["Judge", "Upload", "Verdict"]
    assert "edgekit-toolchain==999.9" in job.ran[0].out and job.failed


@pytest.mark.parametrize(("clauses", "code"), [("pass", 0), ("fail", 1), ("inconclusive", 4), ("error", 2)])
def test_the_gitlab_job_ends_as_the_gate_does_and_leaves_its_reports(job, repo_root, clauses, code):
    found = gitlab_job([repo_root / "examples" / "ci" / "gitlab" / "edgekit.gitlab-ci.yml"], ".edgekit-gate")
    found["variables"] |= {"GATE_CLAUSES": f"{clauses}.yaml", "GATE_HISTORY": "history.jsonl"}
    done = run_gitlab(found, job)
    assert done.returncode == code, done.stderr
    reports = found["artifacts"]["reports"].values()
    there = [(job.folder / path).is_file() for path in reports]
    assert there == [code != 2] * 3
    if code != 2:
        assert len((job.folder / "history.jsonl").read_text().splitlines()) == 1
        assert (
            len(json.loads((job.folder / "edgekit-gate" / "codequality.json").read_text())) == {0: 0, 1: 3, 4: 1}[code]
        )
        assert (job.folder / "edgekit-gate" / "metrics.txt").read_text().endswith("# EOF\n")


@pytest.mark.parametrize("text", NASTY)
def test_no_variable_of_gitlab_is_read_as_shell(job, repo_root, text):
    template = repo_root / "examples" / "ci" / "gitlab" / "edgekit.gitlab-ci.yml"
    free = ("REPORT", "CLAUSES", "DEVICE", "BASELINES", "PREVIOUS", "KEY", "HISTORY", "RETRY_INVALID")
    found = gitlab_job([template], ".edgekit-gate")
    found["variables"] |= {f"GATE_{name}": text for name in free}
    assert run_gitlab(found, job).returncode == 2
    assert not list(job.folder.rglob("pwned"))


def test_gitlab_runs_again_what_is_the_device_s_fault_and_nothing_else(repo_root):
    found = gitlab_job([repo_root / "examples" / "ci" / "gitlab" / "edgekit.gitlab-ci.yml"], ".edgekit-gate")
    assert found["retry"]["exit_codes"] == [3, 5]


@pytest.fixture
def example(tmp_path, repo_root) -> Job:
    """The example repository, checked out."""
    folder = tmp_path / "repository"
    shutil.copytree(repo_root / "examples" / "ci", folder, ignore=shutil.ignore_patterns("out", "edgekit-gate"))
    return Job(folder=folder, home=tmp_path / "home", action=repo_root)


@pytest.mark.slow
def test_the_example_s_workflow_runs_step_by_step(example):
    (workflow,) = workflows(example.action)
    found = read(workflow)
    shell = found["defaults"]["run"]["shell"]
    for job in found["jobs"].values():
        example.run_steps(job["steps"], {}, shell)
    told = {ran.name: ran.code for ran in example.ran if not ran.skipped}
    assert told == dict.fromkeys(("Install", "Check", "Build and measure", "Judge", "Verdict", "Say so"), 0), [
        ran.out for ran in example.ran if ran.code
    ]
    assert example.ran[-1].out == "The gate said pass.\n"
    gate = read_gate(example.folder / "edgekit-gate" / "gate.json")
    assert len(gate.judgements) == len(read(example.folder / "gate.yaml")["gate"])
    assert [j.verdict for j in gate.judgements] == [*["pass"] * 4, "missing"]  # no baseline yet

    step = next(step for step in found["jobs"]["gate"]["steps"] if step.get("id") == "gate")
    accept = {"run": "edgekit baseline accept out --reason 'the first'", "name": "Accept"}
    example.run_steps([accept, step], {}, shell)
    assert {j.verdict for j in read_gate(example.folder / "edgekit-gate" / "gate.json").judgements} == {"pass"}

    text = (example.folder / "gate.yaml").read_text()
    (example.folder / "gate.yaml").write_text(text.replace("min: 80%", "min: 99%"))
    example.run_steps([step, found["jobs"]["gate"]["steps"][-1]], {}, shell)
    assert [(ran.name, ran.code) for ran in example.ran if ran.code] == [("Verdict", 1)]
    assert example.ran[-1].out == "The gate said fail.\n"  # the step that always runs


@pytest.mark.slow
def test_the_example_s_gitlab_jobs_run_one_after_another(example):
    files = [example.folder / "gitlab" / "edgekit.gitlab-ci.yml", example.folder / ".gitlab-ci.yml"]
    for name in ("build", "gate"):
        done = run_gitlab(gitlab_job(files, name), example)
        assert done.returncode == 0, done.stdout + done.stderr
    assert (example.folder / "edgekit-gate" / "junit.xml").is_file()


def hooked(example: Job) -> subprocess.CompletedProcess[str]:
    """The hook as pre-commit runs it, with the `edgekit` of this checkout instead of an environment of its own."""
    hook = read(example.action / ".pre-commit-hooks.yaml")[0]
    config = {"repos": [{"repo": "local", "hooks": [{**hook, "language": "system"}]}]}
    (example.folder / ".pre-commit-config.yaml").write_text(json.dumps(config))
    env = {**example.environment(), "PRE_COMMIT_HOME": str(example.home / "pre-commit")}
    env["PATH"] += f":{Path(shutil.which('git') or '/usr/bin/git').parent}"
    for words in (["init", "-q"], ["add", "-A"]):
        subprocess.run(["git", *words], cwd=example.folder, env=env, check=True)
    return subprocess.run(
        [BIN / "pre-commit", "run", "--all-files", "--verbose"], cwd=example.folder, env=env, capture_output=True,
        text=True,
    )  # fmt: skip


def test_the_hook_passes_the_example_and_stops_a_wrong_recipe_with_its_line(example):
    done = hooked(example)
    assert done.returncode == 0, done.stdout
    assert "gate.yaml: a gate file" in done.stdout and "recipe.yaml: a recipe" in done.stdout
    recipe = example.folder / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("max_drop", "max_dorp"))
    done = hooked(example)
    assert done.returncode != 0
    assert re.search(r"edgekit: recipe\.yaml:\d+: .*max_dorp.*Did you mean 'max_drop'", done.stdout), done.stdout


def test_the_readme_s_layout_is_that_of_the_example(repo_root):
    folder = repo_root / "examples" / "ci"
    text = (folder / "README.md").read_text(encoding="utf-8")
    tree = re.search(r"```\n(.*?)```", text, re.DOTALL)
    assert tree
    named = {line.split()[0].rstrip("/") for line in tree[1].splitlines() if line.strip()}
    tracked = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=folder, capture_output=True, text=True
    )
    if tracked.returncode == 0 and (repo_root / ".git").exists():
        there = {line for line in tracked.stdout.splitlines() if line != "README.md"}
    else:
        there = {os.path.relpath(p, folder) for p in folder.rglob("*") if p.is_file() and p.name != "README.md"}
    assert {name for name in named if "." in name or "/" in name} >= there, there - named
