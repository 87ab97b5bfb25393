"""What the README and the docs tell people to type exists."""

from __future__ import annotations

import re
import shlex

import pytest
from typer.main import get_command

from edgekit.cli.app import app


def blocks(text: str) -> list[str]:
    """The lines of every fenced block."""
    return [line.strip() for block in re.findall(r"```\w*\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]


@pytest.fixture(scope="module")
def lines(repo_root) -> list[str]:
    files = [repo_root / "README.md", *sorted((repo_root / "docs").rglob("*.md"))]
    return [line.removeprefix("$ ") for file in files for line in blocks(file.read_text(encoding="utf-8"))]


def test_every_edgekit_command_exists_with_its_options(lines):
    root = get_command(app)
    for line in lines:
        if not line.startswith("edgekit "):
            continue
        words = shlex.split(line, comments=True)[1:]
        command = root
        while words and not words[0].startswith("-") and words[0] in getattr(command, "commands", {}):
            command = command.commands[words.pop(0)]
        known = {option for parameter in command.params for option in parameter.opts} | {"--help", "-h"}
        known |= {"--install-completion", "--show-completion"}
        options = {word.split("=")[0] for word in words if word.startswith("-")}
        assert options <= known, f"{line!r}: {options - known} is no option of {command.name}"
        if command is root:
            assert not [word for word in words if not word.startswith("-")], f"{line!r} names no verb of edgekit"


def test_every_make_target_exists(lines, repo_root):
    rules = set(re.findall(r"^([a-z]+):", (repo_root / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    asked = {word for line in lines if line.startswith("make ") for word in shlex.split(line, comments=True)[1:]}
    assert {word for word in asked if "=" not in word} <= rules


def test_every_pip_line_names_the_distribution_and_its_extras(lines, repo_root):
    import tomllib

    extras = tomllib.loads((repo_root / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for line in lines:
        if "pip install" in line and "edgekit" in line:
            match = re.search(r"edgekit-toolchain(?:\[([\w,-]+)\])?", line)
            assert match, f"{line!r}: the distribution is called edgekit-toolchain"
            assert set((match[1] or "all").split(",")) <= set(extras), line


def test_every_file_that_the_readme_links_to_exists(repo_root):
    text = (repo_root / "README.md").read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#\s]+)", text):
        if "://" not in link and not link.startswith("mailto:"):
            assert (repo_root / link).exists(), link
