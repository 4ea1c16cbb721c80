"""README and docs are true: parameters, defaults, commands, options and artefacts are those of the code."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from wsi_assets.cli import main
from wsi_assets.orchestration.artefact import level_artefacts
from wsi_assets_tests.parameters_page import PAGE, page

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PLATFORM = (ROOT / "docs" / "dagster.md").read_text(encoding="utf-8")


def test_the_page_of_parameters_is_that_of_the_code():
    text = PAGE.read_text(encoding="utf-8")
    assert text == page(text), "write it again: python -m wsi_assets_tests.parameters_page"


@pytest.mark.parametrize("command", sorted(main.commands))
def test_every_command_is_described(command):
    assert f"| `wsi-assets {command}" in PLATFORM


def test_every_option_of_a_command_exists():
    options = {
        name: {option for parameter in command.params for option in parameter.opts}
        for name, command in main.commands.items()
    }
    shown = re.findall(r"wsi-assets (\w+)([^`\n|]*)", README + PLATFORM)
    for name, arguments in shown:
        if isinstance(main.commands.get(name), click.Command):
            assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", arguments)) <= options[name]


def test_every_artefact_of_a_level_is_named():
    for artefact in level_artefacts():
        if artefact.name != "patch_store":
            assert artefact.path.format(level="level_4").removeprefix("level_4/") in README


def test_links_between_pages_lead_somewhere():
    for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text(encoding="utf-8")):
            assert (path.parent / target).is_file(), f"{path.name}: {target}"
