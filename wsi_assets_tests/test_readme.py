"""The README is true: parameters, defaults, commands and variables are those of the code."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from wsi_assets.cli import main
from wsi_assets.orchestration.artefact import all_artefacts

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def shown(default: object) -> str:
    if default is None:
        return "not set"
    if isinstance(default, list):
        return ", ".join(default)
    return str(default).lower() if isinstance(default, bool) else str(default)


ARTEFACTS = {artefact.name: artefact for artefact in all_artefacts()}


@pytest.mark.parametrize("asset", [name for name, one in ARTEFACTS.items() if one.options.model_fields])
def test_every_parameter_stands_in_the_table_of_its_asset(asset):
    section = README.split(f"**`{asset}`**")[1].split("\n**`")[0].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| `")]
    fields = ARTEFACTS[asset].options.model_fields
    expected = [
        f"| `{name}` | `{shown(field.get_default(call_default_factory=True))}` | {field.description} |"
        for name, field in fields.items()
    ]
    assert rows == expected


@pytest.mark.parametrize("command", sorted(main.commands))
def test_every_command_is_named(command):
    assert f"wsi-assets {command}" in README


def test_every_option_the_readme_shows_exists():
    known = {
        option
        for command in main.commands.values()
        for parameter in command.params
        if isinstance(parameter, click.Option)
        for option in parameter.opts
    }
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", README)) <= known | {"--help"}


def test_every_artefact_of_a_level_is_named():
    for name, artefact in ARTEFACTS.items():
        if artefact.by_level and name != "patch_store":
            assert artefact.path.format(level=4).removeprefix("level_4/") in README
