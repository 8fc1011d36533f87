"""What the README tells people to type exists: commands, options, files."""

import re
import shlex
from pathlib import Path

import pytest
import typer
from atlasd.tools import cli

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"```(?:sh|console)\n(.*?)```", re.DOTALL)
LINK = re.compile(r"\]\((?!https?:)([^)#]+)")


def commands() -> list[str]:
    """Every `atlasd ...` line of a shell block, joined over backslashes, comments cut."""
    found = []
    for page in PAGES:
        for block in BLOCK.findall(page.read_text()):
            lines = block.replace("\\\n", " ").splitlines()
            found += [line.removeprefix("$ ") for line in lines]
    return [line for line in found if line.startswith("atlasd ")]


def test_the_readme_shows_commands():
    assert len(commands()) >= 4


@pytest.mark.parametrize("line", commands())
def test_a_command_of_the_documentation_parses(line):
    command = typer.main.get_command(cli.app)
    words = shlex.split(line, comments=True)[1:]
    while words and hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    command.make_context("atlasd", words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_within_the_repository_lead_somewhere(page):
    for target in LINK.findall(page.read_text()):
        assert (page.parent / target).exists(), target


def test_the_newcomers_two_commands_are_in_the_makefile():
    readme, makefile = (ROOT / "README.md").read_text(), (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", readme, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
