"""Write ``docs/parameters.md``: every parameter of every asset with its default, as the code has them.

python -m wsi_assets_tests.parameters_page
"""

from __future__ import annotations

from pathlib import Path

from wsi_assets.orchestration.artefact import all_artefacts

PAGE = Path(__file__).parents[1] / "docs" / "parameters.md"
MARK = "<!-- generated from here on -->"


def page(text: str) -> str:
    """The page: the text before the mark, then a table for each asset."""
    tables = []
    for artefact in all_artefacts():
        fields = artefact.options.model_fields
        if fields:
            defaults = [_shown(field.get_default(call_default_factory=True)) for field in fields.values()]
            rows = [
                f"| `{name}` | `{default}` | {field.description} |"
                for (name, field), default in zip(fields.items(), defaults, strict=True)
            ]
            head = [f"## `{artefact.name}`", "", "| parameter | default | what it does |", "|---|---|---|"]
            tables.append("\n".join([*head, *rows]))
    return "\n\n".join([text.split(MARK)[0] + MARK, *tables]) + "\n"


def _shown(default: object) -> str:
    if default is None:
        return "none"
    if isinstance(default, list):
        return ", ".join(default)
    text = str(default).lower() if isinstance(default, bool) else str(default)
    return text.replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
