"""Runs the steps of a workflow, a composite action or a GitLab job with the shell and the environment that CI gives.

The little of GitHub's expression language that the files use is evaluated here; anything else is an error, not a guess.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

SHELLS = {  # https://docs.github.com/actions/reference/workflows-and-actions/workflow-syntax#jobsjob_idstepsshell
    "bash": ["bash", "--noprofile", "--norc", "-eo", "pipefail", "{0}"],
    None: ["bash", "-e", "{0}"],
}
EXPRESSION = re.compile(r"\$\{\{(.*?)\}\}", re.DOTALL)


def read(path: Path) -> Any:
    return YAML(typ="safe", pure=True).load(path)


@dataclass
class Ran:
    """What a step left behind."""

    name: str
    code: int = 0
    skipped: bool = False
    out: str = ""
    outputs: dict[str, str] = field(default_factory=dict)


@dataclass
class Job:
    """The state of a job: its folder, its environment, and what its steps gave."""

    folder: Path
    home: Path
    action: Path
    steps: dict[str, dict[str, str]] = field(default_factory=dict)
    ran: list[Ran] = field(default_factory=list)
    used: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    failed: bool = False
    extra: Mapping[str, str] = field(default_factory=dict)
    summary: str = ""

    def environment(self) -> dict[str, str]:
        """Little more than a runner has; `edgekit` and `python` are those of this checkout."""
        tools = self.home / "bin"
        tools.mkdir(parents=True, exist_ok=True)
        root = Path(__file__).resolve().parents[2]
        for name, words in (("python", '"$@"'), ("edgekit", '-m edgekit "$@"')):
            script = tools / name
            script.write_text(f'#!/bin/sh\nexec "{sys.executable}" {words}\n')
            script.chmod(0o755)
        return {
            "PATH": f"{tools}:/usr/bin:/bin", "HOME": str(self.home), "LANG": "C.UTF-8", "CI": "true",
            "PYTHONPATH": str(root), "EDGEKIT_CACHE": os.environ.get("EDGEKIT_CACHE", str(self.home / "cache")),
            "OMP_NUM_THREADS": "1", "PIP_NO_INDEX": "1", "TMPDIR": tempfile.gettempdir(), **self.extra,
        }  # fmt: skip

    def run_step(self, step: Mapping[str, Any], inputs: Mapping[str, str], shell: str | None) -> None:
        """One `run` step, as the runner does it."""
        name = step.get("name", step["run"])
        self.home.mkdir(exist_ok=True)
        if not self._wanted(str(step.get("if", "")), inputs):
            self.ran.append(Ran(name, skipped=True))
            return
        files = {key: self.home / key.lower() for key in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY", "GITHUB_ENV")}
        for file in files.values():
            file.write_text("")
        env = {key: self.evaluated(str(value), inputs) for key, value in step.get("env", {}).items()}
        script = self.home / "step.sh"
        script.write_text(self.evaluated(step["run"], inputs))
        command = [word.replace("{0}", str(script)) for word in SHELLS[step.get("shell", shell)]]
        folder = self.folder / self.evaluated(str(step.get("working-directory", ".")), inputs)
        all_of = {**self.environment(), "GITHUB_ACTIONS": "true", **{k: str(v) for k, v in files.items()}, **env}
        done = subprocess.run(command, cwd=folder, env=all_of, capture_output=True, text=True, errors="replace")
        outputs = dict(line.split("=", 1) for line in files["GITHUB_OUTPUT"].read_text().splitlines())
        self.summary += files["GITHUB_STEP_SUMMARY"].read_text(encoding="utf-8")
        if "id" in step:
            self.steps[step["id"]] = outputs
        self.failed |= done.returncode != 0
        self.ran.append(Ran(name, done.returncode, out=done.stdout + done.stderr, outputs=outputs))

    def run_action(self, step: Mapping[str, Any]) -> None:
        """The composite action of this checkout, with its own `steps`; its outputs become those of the step."""
        action = read(self.action / "action.yml")
        given = {key: self.evaluated(str(value), {}) for key, value in step.get("with", {}).items()}
        unknown = given.keys() - action["inputs"].keys()
        assert not unknown, f"the action has no input {unknown}"
        missing = {key for key, spec in action["inputs"].items() if spec.get("required")} - given.keys()
        assert not missing, f"the action needs {missing}"
        inputs = {key: given.get(key, str(spec.get("default", ""))) for key, spec in action["inputs"].items()}
        outer, self.steps = self.steps, {}
        self.run_steps(action["runs"]["steps"], inputs, None)
        outputs = {key: self.evaluated(spec["value"], inputs) for key, spec in action["outputs"].items()}
        self.steps = {**outer, **({step["id"]: outputs} if "id" in step else {})}

    def run_steps(self, steps: list[Mapping[str, Any]], inputs: Mapping[str, str], shell: str | None) -> None:
        """Every step in order; after a failure those alone that say `always()`."""
        for step in steps:
            if self.failed and "always()" not in str(step.get("if", "")):
                self.ran.append(Ran(step.get("name", "?"), skipped=True))
            elif "run" in step:
                self.run_step(step, inputs, shell)
            elif "/edgekit@" in step["uses"]:
                self.run_action(step)
            elif self._wanted(str(step.get("if", "")), inputs):
                given = {key: self.evaluated(str(value), inputs) for key, value in step.get("with", {}).items()}
                self.used.append((step["uses"], given))

    def evaluated(self, text: str, inputs: Mapping[str, str]) -> str:
        """`text` with its expressions replaced."""
        return EXPRESSION.sub(lambda match: self._value(match[1].strip(), inputs), text)

    def _value(self, expression: str, inputs: Mapping[str, str]) -> str:
        if match := re.fullmatch(r"inputs\.([\w-]+)", expression):
            return inputs[match[1]]
        if match := re.fullmatch(r"steps\.([\w-]+)\.outputs\.([\w-]+)", expression):
            return self.steps.get(match[1], {}).get(match[2], "")
        if expression == "github.action_path":
            return str(self.action)
        raise AssertionError(f"an expression that this runner does not know: {expression}")

    def _wanted(self, condition: str, inputs: Mapping[str, str]) -> bool:
        text = condition.strip().removeprefix("${{").removesuffix("}}").strip()
        for part in [part.strip() for part in text.split("&&")] if text else []:
            if part == "always()":
                continue
            match = re.fullmatch(r"(.+?) (!=|==) '(.*)'", part)
            assert match, f"a condition that this runner does not know: {part}"
            if (self._value(match[1], inputs) == match[3]) != (match[2] == "=="):
                return False
        return True


def gitlab_job(files: list[Path], name: str) -> dict[str, Any]:
    """A job of GitLab with what it extends and the files that are included, as far as these files use it."""
    jobs: dict[str, Any] = {}
    for file in files:
        jobs.update(read(file))
    job = dict(jobs[name])
    base = dict(jobs[job.pop("extends")]) if "extends" in job else {}
    return {**base, **job, "variables": {**base.get("variables", {}), **job.get("variables", {})}}


def run_gitlab(job: Mapping[str, Any], at: Job) -> subprocess.CompletedProcess[str]:
    """`before_script` and `script` in one shell, with what the runner sets for bash."""
    lines = [*job.get("before_script", []), *job["script"]]
    variables = {key: str(value) for key, value in job.get("variables", {}).items()}
    return subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", "\n".join(lines)], cwd=at.folder,
        env={**at.environment(), "GITLAB_CI": "true", **variables}, capture_output=True, text=True,
    )  # fmt: skip
