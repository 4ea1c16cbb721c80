"""A day in the life of the platform: real servers, real slides, steered through GraphQL alone.

The tests are one story and run in order; each step leaves the platform as the next one finds it.
"""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml

from wsi_assets.errors import ConfigError
from wsi_assets.orchestration.artefact import level_chain
from wsi_assets.orchestration.orphaned_runs import process_of
from wsi_assets.orchestration.resources import SlideFolderResource
from wsi_assets.orchestration.retire_slide import retire_slide
from wsi_assets.orchestration.storage import StorageResource, store_named_by
from wsi_assets_tests.e2e.platform import Platform

NORMAL, SLOW, BROKEN = "test_073_node_1", "tumor_001_node_1", "unreadable"
LEVELS = ["1", "2"]
UPTO_STORE = ["slide_index", "sampled_index", "patch_store"]
REGIONS = ["tissue_regions", "annotation_regions"]
DONE = ("COMPLETED", "COMPLETED_SUCCESS", "COMPLETED_FAILED", "FAILED")


@pytest.fixture(scope="module")
def cohort_files(real_data) -> Path:
    return real_data / "cohort"


@pytest.fixture(autouse=True)
def _how_long(request) -> Iterator[None]:
    began = time.monotonic()
    yield
    print(f"\n{time.monotonic() - began:6.1f} s  {request.node.name}")


@pytest.fixture
def instance(platform, monkeypatch) -> Iterator[dg.DagsterInstance]:
    monkeypatch.setenv("DAGSTER_HOME", str(platform.storage / "dagster_home"))
    with dg.DagsterInstance.get() as found:
        yield found


def test_a_dropped_slide_is_made_and_one_still_growing_waits(platform, cohort_files):
    # Its name says tumor, and it has no annotation here.
    (platform.storage / "parameters.yaml").write_text(f"accepted_slides: [{SLOW}]\n")
    bytes_of_slow = (cohort_files / "images" / f"{SLOW}.tif").read_bytes()
    arrived = threading.Event()

    def copy_slowly() -> None:
        half = len(bytes_of_slow) // 2
        with (platform.images / f"{SLOW}.tif").open("wb", buffering=0) as file:
            file.write(bytes_of_slow[:half])
            rest = half
            while not arrived.wait(0.4):
                file.write(bytes_of_slow[rest : rest + 1])
                rest += 1
            file.write(bytes_of_slow[rest:])

    copying = threading.Thread(target=copy_slowly)
    copying.start()
    try:
        shutil.copy(cohort_files / "images" / f"{NORMAL}.tif", platform.images)
        made = platform.wait(lambda: platform.materializations("annotation_regions", NORMAL), "the slide")
        assert platform.slides() == {NORMAL}, "the slide that is still being copied must wait"
    finally:
        arrived.set()
        copying.join()
    assert made[0]["metadata"]["annotation"].startswith("none"), "without XML it is a normal slide"
    platform.wait(lambda: platform.made_by("annotation_regions", SLOW), "the slow slide")


@pytest.fixture(scope="module")
def backfill(platform) -> str:
    """Two levels added and launched together. Dagster begins a backfill after up to 30 s."""
    for level in LEVELS:
        platform.add_level(level)
    return platform.backfill(UPTO_STORE, LEVELS, ops(slide_index={"patch_size": 64}))


def test_a_broken_slide_fails_alone_and_a_new_annotation_re_does_the_annotation_only(
    platform, cohort_files, real_data, backfill
):
    assert len(platform.made_by("annotation_regions", NORMAL)) == 1
    shutil.copy(real_data / "slides" / "unreadable.svs", platform.images)
    shutil.copy(cohort_files / "annotations" / f"{NORMAL}.xml", platform.annotations)
    platform.wait(lambda: len(platform.made_by("annotation_regions", NORMAL)) == 2, "the annotation")
    platform.wait(lambda: BROKEN in platform.slides(), "the broken slide's partition")
    platform.wait(lambda: any(run["status"] == "FAILURE" for run in platform.runs()), "its failure")
    assert len(platform.made_by("tissue_regions", NORMAL)) == 1
    (newest, *_) = platform.materializations("annotation_regions", NORMAL)
    assert newest["metadata"]["annotation"].endswith(f"{NORMAL}.xml")


def test_two_new_levels_launched_together_make_each_asset_once_and_one_store_at_a_time(platform, backfill):
    platform.wait(lambda: platform.backfill_status(backfill) in DONE, "the backfill")
    assert platform.backfill_status(backfill) in ("COMPLETED", "COMPLETED_SUCCESS")
    extracting = []
    for level in LEVELS:
        runs = [platform.made_by(asset, level) for asset in UPTO_STORE]
        assert [len(made) for made in runs] == [1, 1, 1]
        (run,) = set.union(*runs)
        extracting.append(platform.seconds_of(run, "patch_store"))
        assert platform.check("patch_store", "store_equals_its_index", level)["success"]
    for before, after in pairwise(sorted(extracting)):
        assert before[1] <= after[0], "the pool admits one extraction at a time"
    assert set(parameters(platform)["levels"]) == set(LEVELS)


def test_a_value_given_in_the_launchpad_is_kept_by_a_later_plain_materialization(platform):
    platform.make("level_pipeline", ["slide_index"], "2", ops(slide_index={"patch_size": 48}))
    assert parameters(platform)["levels"]["2"]["slide_index"] == {"patch_size": 48}
    assert parameters(platform)["levels"]["1"]["slide_index"] == {"patch_size": 64}
    assert platform.why_stale("slide_index", "2") == []
    assert "slide_index" in platform.why_stale("sampled_index", "2")
    platform.make("level_pipeline", UPTO_STORE, "2")
    assert {entry["patch_size"] for entry in stored_index(platform, "2").values()} == {48}
    assert platform.check("patch_store", "up_to_date", "2")["success"]


def test_a_replaced_slide_is_made_again(platform, cohort_files):
    before = {asset: len(platform.made_by(asset, SLOW)) for asset in REGIONS}
    shutil.copy(cohort_files / "images" / "tumor_001_node_2.tif", platform.images / f"{SLOW}.tif")
    for asset in REGIONS:
        platform.wait(
            lambda asset=asset: len(platform.made_by(asset, SLOW)) > before[asset], f"{asset} of {SLOW}"
        )


def test_killed_as_a_whole_it_comes_back_fails_the_orphaned_run_and_goes_on(platform, instance, cohort_files):
    orphan = platform.launch("level_pipeline", UPTO_STORE, "1", ops(slide_index={"stride": 16}))
    platform.wait(lambda: process_of(instance, orphan), "the run's process")
    platform.kill()
    platform.process = None
    later = "test_073_node_2"
    shutil.copy(cohort_files / "images" / f"{later}.tif", platform.images)
    platform.start()
    line = f"Run {orphan[:8]} of level_pipeline had lost its process"
    platform.wait(lambda: line in platform.printed(), "the failure of the orphaned run")
    assert platform.status(orphan) == "FAILURE"
    platform.make("level_pipeline", UPTO_STORE, "1")
    assert platform.check("patch_store", "store_equals_its_index", "1")["success"]
    platform.wait(lambda: platform.made_by("annotation_regions", later), "the slide that came meanwhile")
    assert len(platform.made_by("tissue_regions", later)) == 1


def test_a_slide_taken_away_is_retired_and_made_anew_when_it_is_put_back(platform, instance):
    file, kept = platform.images / f"{NORMAL}.tif", platform.home / "kept.tif"
    file.rename(kept)
    folder = SlideFolderResource(images_dir=str(platform.images), annotations_dir=str(platform.annotations))

    def is_retired() -> bool:
        try:
            retire_slide(instance, folder, StorageResource(storage_dir=str(platform.storage)), NORMAL)
        except ConfigError:  # while runs go on
            return False
        return True

    platform.wait(is_retired, "the end of the runs")
    assert NORMAL not in platform.slides()
    assert not (platform.storage / "slides" / NORMAL).exists()
    before = platform.made_by("annotation_regions", NORMAL)
    kept.rename(file)
    platform.wait(lambda: platform.made_by("annotation_regions", NORMAL) - before, "the slide put back")


def test_a_slide_folder_that_goes_away_and_comes_back_changes_nothing(platform):
    platform.settle()
    runs, slides = run_ids(platform), platform.slides()
    unplugged = platform.images.with_name("unplugged")
    platform.images.rename(unplugged)
    platform.wait(lambda: _slide_folder_says(platform, "does not exist"), "the warning")
    platform.images.mkdir()
    platform.wait(lambda: _slide_folder_says(platform, "not mounted"), "the other warning")
    platform.images.rmdir()
    unplugged.rename(platform.images)
    platform.settle()
    assert platform.slides() == slides
    assert run_ids(platform) == runs


def test_one_server_that_dies_stops_the_others_and_a_lost_dagster_home_makes_nothing_again(platform):
    slides, levels = platform.slides(), platform.levels()
    storage = StorageResource(storage_dir=str(platform.storage))
    versions = {
        (artefact.name, level): record.version
        for artefact in level_chain()
        for level in levels
        if (record := storage.record(artefact, level))
    }
    os.kill(platform.server("dagster._daemon"), signal.SIGKILL)
    assert platform.process.wait(60) == 1
    platform.process = None
    shutil.rmtree(platform.storage / "dagster_home")
    platform.start()
    platform.wait(lambda: platform.slides() == slides, "the slides")
    platform.wait(lambda: platform.levels() == levels, "the levels")
    for (asset, level), version in versions.items():
        platform.wait(lambda a=asset, n=level: platform.materializations(a, n), f"{asset} of level {level}")
        newest = platform.materializations(asset, level)[0]
        assert newest["tags"]["dagster/data_version"] == version
    time.sleep(8)  # several ticks of the automations
    # The broken slide, of which nothing is stored, is tried once.
    assert {run["tags"].get("dagster/partition") for run in platform.runs()} <= {BROKEN}


def ops(**parameters: dict[str, Any]) -> dict[str, Any]:
    """Parameters by asset as a run takes them."""
    return {"ops": {asset: {"config": values} for asset, values in parameters.items()}}


def parameters(platform: Platform) -> dict[str, Any]:
    return yaml.safe_load(StorageResource(storage_dir=str(platform.storage)).parameters.path.read_text())


def run_ids(platform: Platform) -> set[str]:
    return {run["run_id"] for run in platform.runs()}


def stored_index(platform: Platform, level: str) -> dict[str, Any]:
    from wsi_assets.index import load_index

    pointer = StorageResource(storage_dir=str(platform.storage)).level_folder(level) / "patch_store.json"
    assert store_named_by(pointer).exists()
    return load_index(platform.storage / f"level_{level}" / f"index_level_{level}.pkl")


def _slide_folder_says(platform: Platform, what: str) -> bool:
    return what in (platform.skip_reason("slide_folder") or "")
