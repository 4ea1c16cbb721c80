"""Imports point one way, and only orchestration and the entry points know Dagster and MLflow."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import wsi_assets

PACKAGE = Path(wsi_assets.__file__).parent
PACKAGES = ("slides", "annotations", "index", "patches", "learning", "evaluation")
EVERYBODY_MAY_USE = {"drawing", "errors", "files", "lazy", "progress", "running"}
MODULES = sorted(path for path in PACKAGE.rglob("*.py"))


def imported_by(path: Path) -> set[str]:
    """Names of all modules a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def package_of(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if parts[0] == "wsi_assets" and len(parts) > 1 else None


@pytest.mark.parametrize("name", PACKAGES)
def test_a_package_imports_only_packages_on_its_left(name):
    allowed = {*PACKAGES[: PACKAGES.index(name) + 1], *EVERYBODY_MAY_USE, "__version__"}
    for path in (PACKAGE / name).rglob("*.py"):
        used = {package_of(name) for name in imported_by(path)} - {None}
        assert used <= allowed, f"{path.relative_to(PACKAGE)} imports {used - allowed}"


def test_the_demo_imports_neither_orchestration_nor_learning():
    for path in (PACKAGE / "demo").rglob("*.py"):
        used = {package_of(name) for name in imported_by(path)} - {None}
        assert not used & {"orchestration", "cli", "console", "learning", "evaluation", "patches"}, path


def test_only_orchestration_and_the_entry_points_name_dagster_or_mlflow():
    for path in MODULES:
        if "orchestration" in path.parts or path.name in ("definitions.py", "console.py", "cli.py"):
            continue
        assert not any(name.split(".")[0] in ("dagster", "mlflow") for name in imported_by(path)), path


def test_no_module_imports_dagster_internals():
    for path in MODULES:
        private = {name for name in imported_by(path) if name.startswith(("dagster._", "mlflow._"))}
        assert not private, f"{path} imports {private}"


def test_no_modules_import_each_other_in_a_circle():
    names = {".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path for path in MODULES}
    graph = {name: (imported_by(path) & names.keys()) - {name} for name, path in names.items()}
    TopologicalSorter(graph).prepare()


def loaded_after(statement: str) -> set[str]:
    """Top-level packages in memory after a statement in a fresh interpreter."""
    code = f"import sys\n{statement}\nprint(' '.join({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("name", [*PACKAGES, "demo"])
def test_every_module_of_a_package_loads_without_dagster_and_mlflow(name):
    modules = [
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        for path in (PACKAGE / name).rglob("*.py")
    ]
    loaded = loaded_after("\n".join(f"import {module.removesuffix('.__init__')}" for module in modules))
    assert not loaded & {"dagster", "mlflow"}


def test_loading_the_definitions_loads_nothing_heavy():
    loaded = loaded_after("import wsi_assets.definitions")
    assert "dagster" in loaded
    assert not loaded & {
        "torch",
        "torchvision",
        "openslide",
        "cv2",
        "mlflow",
        "matplotlib",
        "sklearn",
        "h5py",
        "lmdb",
    }


def test_help_on_the_command_line_loads_no_dagster():
    loaded = loaded_after("import wsi_assets.cli")
    assert not loaded & {"dagster", "torch", "numpy", "rich", "mlflow", "pydantic"}
