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
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml

from wsi_assets.errors import ConfigError
from wsi_assets.orchestration.dead_runs import process_of
from wsi_assets.orchestration.layout import StorageLayout
from wsi_assets.orchestration.resources.library import SlideLibrary
from wsi_assets.orchestration.retiring import retire_slide
from wsi_assets_tests.e2e.platform import Platform

NORMAL, SLOW, BROKEN = "test_073_node_1", "tumor_001_node_1", "unreadable"
UPTO_STORE = ["slide_index", "sampled_index", "patch_store"]
DONE = ("COMPLETED", "COMPLETED_SUCCESS", "COMPLETED_FAILED", "FAILED")


@pytest.fixture(scope="module")
def platform(real_data, tmp_path_factory) -> Iterator[Platform]:
    home = tmp_path_factory.mktemp("living")
    living = Platform(home)
    living.start()
    yield living
    living.stop()


@pytest.fixture(scope="module")
def cohort_files(real_data) -> Path:
    return real_data / "cohort"


@pytest.fixture(autouse=True)
def _how_long(request, record_property) -> Iterator[None]:
    began = time.monotonic()
    yield
    seconds = time.monotonic() - began
    record_property("seconds", round(seconds, 1))
    print(f"\n{seconds:6.1f} s  {request.node.name}")


@pytest.fixture
def instance(platform, monkeypatch) -> Iterator[dg.DagsterInstance]:
    monkeypatch.setenv("DAGSTER_HOME", str(platform.storage / "dagster_home"))
    with dg.DagsterInstance.get() as found:
        yield found


def test_a_dropped_slide_is_made_and_one_still_growing_waits(platform, cohort_files):
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
        made = platform.wait(lambda: platform.materializations("annotation_regions", NORMAL), 90, "the slide")
        assert platform.slides() == {NORMAL}, "the slide that is still being copied must wait"
    finally:
        arrived.set()
        copying.join()
    assert made[0]["metadata"]["annotation"].startswith("none"), "without XML it is a normal slide"
    platform.wait(lambda: platform.made_by("annotation_regions", SLOW), 90, "the slow slide")


@pytest.fixture(scope="module")
def backfill(platform) -> str:
    """Two levels nobody has made, launched together. Dagster begins a backfill after up to 30 s."""
    return platform.backfill(UPTO_STORE, ["0", "1"])


def test_a_broken_slide_fails_alone(platform, real_data, backfill):
    shutil.copy(real_data / "slides" / "unreadable.svs", platform.images)
    platform.wait(lambda: BROKEN in platform.slides(), 60, "the broken slide's partition")
    platform.wait(lambda: any(run["status"] == "FAILURE" for run in platform.runs()), 60, "its failure")
    failed = [run for run in platform.runs() if run["status"] == "FAILURE"]
    assert [run["tags"]["dagster/partition"] for run in failed] == [BROKEN]


def test_an_outline_that_arrives_re_does_the_outline_only(platform, cohort_files, backfill):
    assert len(platform.made_by("annotation_regions", NORMAL)) == 1
    shutil.copy(cohort_files / "annotations" / f"{NORMAL}.xml", platform.annotations)
    platform.wait(lambda: len(platform.made_by("annotation_regions", NORMAL)) == 2, 60, "the outline")
    assert len(platform.made_by("tissue_regions", NORMAL)) == 1
    (newest, *_) = platform.materializations("annotation_regions", NORMAL)
    assert newest["metadata"]["annotation"].endswith(f"{NORMAL}.xml")


def test_two_new_levels_launched_together_make_each_asset_once(platform, backfill):
    platform.wait(lambda: platform.backfill_status(backfill) in DONE, 150, "the backfill")
    assert platform.backfill_status(backfill) in ("COMPLETED", "COMPLETED_SUCCESS")
    for level in ("0", "1"):
        runs = [platform.made_by(asset, level) for asset in UPTO_STORE]
        assert [len(made) for made in runs] == [1, 1, 1]
        assert platform.check("patch_store", "store_equals_its_index", level)["success"]


def test_a_mended_slide_is_one_click_away(platform, real_data):
    shutil.copy(real_data / "slides" / "CMU-1-Small-Region.svs", platform.images / f"{BROKEN}.svs")
    run = platform.launch("slide_regions", ["tissue_regions", "annotation_regions"], BROKEN)
    platform.wait(lambda: platform.status(run) in ("SUCCESS", "FAILURE"), 60, "the run")
    assert platform.status(run) == "SUCCESS"


def test_the_night_makes_the_index_again_and_with_the_switch_on_the_store_follows(platform):
    (before,) = platform.materializations("patch_store", "0")
    due = platform.wait(lambda: _due(platform), 60, "the change")
    # Level 1 is due as well unless its backfill ended after the change.
    assert {"0"} <= set(due) <= {"0", "1"}
    assert all(
        [key["path"] for key in request["assetSelection"]] == [["slide_index"]] for request in due.values()
    )
    platform.switch_on("store_follows_index")
    platform.launch("level_pipeline", ["slide_index"], "0", yaml.safe_load(due["0"]["runConfigYaml"]))
    platform.wait(lambda: len(platform.made_by("patch_store", "0")) == 2, 120, "the store")
    (after, _) = platform.materializations("patch_store", "0")
    assert after["metadata"]["count"] > before["metadata"]["count"]
    assert after["metadata"]["reused"] > 0
    assert after["metadata"]["decoded"] < after["metadata"]["count"]
    assert platform.made_by("trained_model", "0") == set(), "no model is ever made unasked"
    assert "0" not in _due(platform), "what was made and has not changed is not made again"


def test_what_the_user_mended_by_hand_was_not_made_again(platform):
    assert len(platform.made_by("tissue_regions", BROKEN)) == 1


def test_a_slide_taken_away_is_named_and_a_killed_run_is_told(platform, instance):
    (platform.images / f"{NORMAL}.tif").unlink()
    killed, run = (platform.launch("level_pipeline", ["slide_index"], level) for level in ("1", "0"))
    os.kill(platform.wait(lambda: process_of(instance, killed), 60, "the run's process"), signal.SIGKILL)
    platform.wait(lambda: platform.status(run) in ("SUCCESS", "FAILURE"), 60, "the index")
    found = platform.check("slide_index", "every_slide_takes_part", "0")
    assert not found["success"]
    assert NORMAL in found["description"]
    assert NORMAL in platform.slides()
    platform.wait(lambda: platform.status(killed) == "FAILURE", 60, "the failure of the killed run")


def test_a_slide_is_retired_everywhere_by_one_command(platform, instance):
    library = SlideLibrary(images_dir=str(platform.images), annotations_dir=str(platform.annotations))

    def is_retired() -> bool:
        try:
            retire_slide(instance, library, StorageLayout(platform.storage), NORMAL)
        except ConfigError as error:
            if "in use" not in str(error):
                raise
            return False
        return True

    platform.wait(is_retired, 60, "the end of the runs that use the slide")
    assert platform.slides() == {SLOW, BROKEN}
    assert not (platform.storage / "slides" / NORMAL).exists()


def test_an_empty_folder_is_a_missing_disk_and_not_an_order_to_forget(platform):
    for file in platform.images.iterdir():
        file.unlink()
    platform.wait(lambda: "mounted" in (platform.last_words("slide_folder") or ""), 40, "the warning")
    assert platform.slides() == {SLOW, BROKEN}


def _due(platform: Platform) -> dict[str, dict[str, Any]]:
    """Level -> what the nightly schedule would ask for now."""
    requests = platform.evaluate_schedule("nightly_index")["runRequests"]
    return {
        tag["value"]: request
        for request in requests
        for tag in request["tags"]
        if tag["key"] == "dagster/partition"
    }
