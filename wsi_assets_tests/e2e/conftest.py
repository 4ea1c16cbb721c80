"""The command line as a user runs it: a process of its own, in an empty folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from wsi_assets_tests.e2e.platform import Platform, mounted

QUICK_TRAINING = (
    "model_name=resnet10t",
    "max_epochs=1",
    "batch_size=16",
    "num_workers=0",
    "save_interval=1",
    "weights=none",
)
"""A training that takes seconds: its scores mean nothing, its files everything."""


@pytest.fixture(scope="session")
def command_line():
    """Run ``wsi-assets`` and return the finished process; output is wide, so that no line is folded."""

    def call(*arguments: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
        clean = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("WSI_", "DAGSTER_", "MLFLOW"))
        }
        return subprocess.run(
            [sys.executable, "-m", "wsi_assets.cli", *map(str, arguments)],
            cwd=cwd,
            env={**clean, "COLUMNS": "250", **environment},
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )

    return call


@pytest.fixture(scope="session")
def platform(real_data, tmp_path_factory) -> Iterator[Platform]:
    """The running platform the stories share; its storage is a small disk of its own where that may be."""
    running = Platform(tmp_path_factory.mktemp("running"))
    with mounted(running.storage, "size=512m"):
        try:
            running.start()
            yield running
        finally:
            running.stop()


@pytest.fixture(scope="session")
def cohort(real_data) -> list[str]:
    """Options that name the real cohort."""
    folder = real_data / "cohort"
    return ["--images", str(folder / "images"), "--annotations", str(folder / "annotations")]


@pytest.fixture(scope="session")
def truth(real_data) -> dict[str, list[tuple[int, int, int]]]:
    """Slide id -> (y, x, is_tumor) of its patches."""
    stored = json.loads((real_data / "cohort" / "truth.json").read_text())
    return {slide: sorted(tuple(patch) for patch in patches) for slide, patches in stored.items()}


def settings(*pairs: str) -> list[str]:
    """``--set`` options."""
    return [part for pair in pairs for part in ("--set", pair)]
