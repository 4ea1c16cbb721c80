"""A long life: slides come in one after another, and the process that takes them in does not grow."""

from __future__ import annotations

import gc
import os
import resource
from pathlib import Path

import numpy as np
import pytest

from wsi_assets_tests.slides.made import halved, picture, write_pyramid

SLIDES = int(os.environ.get("WSI_TRIAL_SLIDES", 200))
BEFORE = 20
"""Slides there are before the first look; then one comes before each."""


def held() -> float:
    """MiB of memory this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / (1 << 20)


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


def add_slide(images: Path, number: int) -> None:
    # A new picture for each: equal slides would be found out as one.
    whole = picture(192, 192, number)
    write_pyramid(images / f"s_{number:03d}.tif", [whole, halved(whole, 1)], tile=64, mpp=0.25)


@pytest.mark.trial
def test_two_hundred_slides_one_by_one_leave_memory_and_open_files_flat(tmp_path, monkeypatch):
    import dagster as dg

    from wsi_assets.orchestration.config import build_configs
    from wsi_assets.orchestration.home import open_instance
    from wsi_assets.orchestration.runner import Runner
    from wsi_assets.orchestration.settings import Settings
    from wsi_assets.patches import open_store

    for name in [key for key in os.environ if key.startswith(("WSI_", "DAGSTER_", "MLFLOW"))]:
        monkeypatch.delenv(name)
    images = tmp_path / "images"
    images.mkdir()
    for number in range(BEFORE):
        add_slide(images, number)
    settings = Settings.from_environment({}, home=tmp_path)
    configs = build_configs({"patch_size": 64, "extraction_workers": 1})
    memory, files, decoded = [], [], []
    for name, value in settings.to_environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "storage/dagster_home"))
    with open_instance(settings) as instance:
        assert isinstance(instance, dg.DagsterInstance)
        runner = Runner(instance, settings, configs)
        for number in range(BEFORE, SLIDES):
            add_slide(images, number)
            slides = runner.run_slides()
            level = runner.run_level(0, "patch_store")
            assert level.failure is None
            assert len(slides.up_to_date) == (0 if number == BEFORE else number)
            decoded.append(level.metadata["patch_store"]["decoded"])
            gc.collect()
            memory.append(held())
            files.append(open_files())
    with open_store(settings.storage_dir / "level_0/patches_lmdb") as store:
        assert len(set(store.slide_ids)) == SLIDES
    # A look costs what is new, whatever there is already.
    assert max(decoded[1:]) <= 9
    settled = len(memory) // 3
    slope = np.polyfit(np.arange(settled, len(memory)), memory[settled:], 1)[0]
    print(f"MiB {memory[0]:.0f}, {memory[settled]:.0f}, {memory[-1]:.0f}; {slope * 100:.1f} a hundred slides")
    print(f"open files {files[0]}, {files[settled]}, {files[-1]}")
    assert slope * 100 < 50, f"{slope * 100:.0f} MiB more for every hundred slides: {memory}"
    assert max(files[settled:]) <= max(files[:settled]) + 5, files
