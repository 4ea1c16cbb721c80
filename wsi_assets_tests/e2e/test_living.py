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
from wsi_assets.orchestration.dead_runs import process_of
from wsi_assets.orchestration.io_managers.patch_stores import current_store
from wsi_assets.orchestration.layout import StorageLayout
from wsi_assets.orchestration.resources.library import SlideLibrary
from wsi_assets.orchestration.retiring import retire_slide
from wsi_assets_tests.e2e.platform import Platform

NORMAL, SLOW, BROKEN, LATER = "test_073_node_1", "tumor_001_node_1", "unreadable", "test_073_node_2"
LEVELS = ["0", "1", "2"]
UPTO_STORE = ["slide_index", "sampled_index", "patch_store"]
DONE = ("COMPLETED", "COMPLETED_SUCCESS", "COMPLETED_FAILED", "FAILED")
ENDED = ("SUCCESS", "FAILURE")
SMALL_PATCHES = {"slide_index": {"patch_size": 64}}


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
        made = platform.wait(lambda: platform.materializations("annotation_regions", NORMAL), "the slide")
        assert platform.slides() == {NORMAL}, "the slide that is still being copied must wait"
    finally:
        arrived.set()
        copying.join()
    assert made[0]["metadata"]["annotation"].startswith("none"), "without XML it is a normal slide"
    platform.wait(lambda: platform.made_by("annotation_regions", SLOW), "the slow slide")


@pytest.fixture(scope="module")
def backfill(platform) -> str:
    """Three levels nobody has made, launched together. Dagster begins a backfill after up to 30 s."""
    return platform.backfill(UPTO_STORE, LEVELS, ops(SMALL_PATCHES))


def test_a_broken_slide_fails_alone(platform, real_data, backfill):
    shutil.copy(real_data / "slides" / "unreadable.svs", platform.images)
    platform.wait(lambda: BROKEN in platform.slides(), "the broken slide's partition")
    platform.wait(lambda: any(run["status"] == "FAILURE" for run in platform.runs()), "its failure")
    failed = [run for run in platform.runs() if run["status"] == "FAILURE"]
    assert [run["tags"]["dagster/partition"] for run in failed] == [BROKEN]


def test_an_outline_that_arrives_re_does_the_outline_only(platform, cohort_files, backfill):
    assert len(platform.made_by("annotation_regions", NORMAL)) == 1
    shutil.copy(cohort_files / "annotations" / f"{NORMAL}.xml", platform.annotations)
    platform.wait(lambda: len(platform.made_by("annotation_regions", NORMAL)) == 2, "the outline")
    assert len(platform.made_by("tissue_regions", NORMAL)) == 1
    (newest, *_) = platform.materializations("annotation_regions", NORMAL)
    assert newest["metadata"]["annotation"].endswith(f"{NORMAL}.xml")


def test_three_new_levels_launched_together_make_each_asset_once_and_one_store_at_a_time(platform, backfill):
    platform.wait(lambda: platform.backfill_status(backfill) in DONE, "the backfill")
    assert platform.backfill_status(backfill) in ("COMPLETED", "COMPLETED_SUCCESS")
    extracting = []
    for level in LEVELS:
        runs = [platform.made_by(asset, level) for asset in UPTO_STORE]
        assert [len(made) for made in runs] == [1, 1, 1]
        (run,) = set.union(*runs)
        times = [platform.seconds_of(run, asset) for asset in UPTO_STORE]
        assert all(before[1] <= after[0] for before, after in pairwise(times)), "in order"
        extracting.append(times[-1])
        assert platform.check("patch_store", "store_equals_its_index", level)["success"]
    for before, after in pairwise(sorted(extracting)):
        assert before[1] <= after[0], "the pool admits one extraction at a time"


def test_what_lies_below_an_edited_parameter_is_shown_as_out_of_date(platform):
    platform.make("level_pipeline", ["slide_index"], "2", ops({"slide_index": {"patch_size": 48}}))
    assert platform.why_stale("slide_index", "2") == []
    assert "slide_index" in platform.why_stale("sampled_index", "2")
    remedy = "Materialize level 2 from sampled_index on"
    for asset in ("sampled_index", "patch_store"):
        platform.wait(
            lambda a=asset: remedy in platform.check(a, "fits_its_level", "2")["description"], remedy
        )
        assert not platform.check(asset, "fits_its_level", "2")["success"]
    assert platform.check("slide_index", "fits_its_level", "2")["success"]


def test_a_mended_slide_is_one_click_away_also_when_the_daemon_is_killed(platform, real_data, instance):
    shutil.copy(real_data / "slides" / "CMU-1-Small-Region.svs", platform.images / f"{BROKEN}.svs")
    run = platform.launch("slide_regions", ["tissue_regions", "annotation_regions"], BROKEN)
    platform.wait(lambda: process_of(instance, run), "the run's process")
    killed = platform.server("dagster._daemon")
    os.kill(killed, signal.SIGKILL)
    platform.wait(lambda: platform.status(run) in ENDED, "the run")
    assert platform.status(run) == "SUCCESS", "runs have processes of their own"
    platform.wait(lambda: platform.server("dagster._daemon") != killed, "another daemon")
    assert "The daemon was killed (SIGKILL) and is started again" in platform.told()


def test_after_that_a_dropped_slide_is_made(platform, cohort_files):
    shutil.copy(cohort_files / "images" / f"{LATER}.tif", platform.images)
    shutil.copy(cohort_files / "annotations" / f"{LATER}.xml", platform.annotations)
    platform.wait(lambda: platform.made_by("annotation_regions", LATER), "the slide")
    assert len(platform.made_by("tissue_regions", LATER)) == 1


def test_the_night_makes_the_index_again_and_with_the_switch_on_the_store_follows(platform):
    (before,) = platform.materializations("patch_store", "0")
    due = platform.wait(lambda: _due(platform), "the change")
    assert set(due) == set(LEVELS)
    assert all(
        [key["path"] for key in request["assetSelection"]] == [["slide_index"]] for request in due.values()
    )
    config = yaml.safe_load(due["0"]["runConfigYaml"])
    assert config["ops"]["slide_index"]["config"]["patch_size"] == 64, "with the level's own parameters"
    platform.switch_on("store_follows_index")
    platform.launch("level_pipeline", ["slide_index"], "0", config)
    platform.wait(lambda: len(platform.made_by("patch_store", "0")) == 2, "the store")
    platform.reset("store_follows_index")
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
    os.kill(platform.wait(lambda: process_of(instance, killed), "the run's process"), signal.SIGKILL)
    platform.wait(lambda: platform.status(run) in ENDED, "the index")
    found = platform.check("slide_index", "every_slide_takes_part", "0")
    assert not found["success"]
    assert NORMAL in found["description"]
    assert NORMAL in platform.slides()
    platform.wait(lambda: platform.status(killed) == "FAILURE", "the failure of the killed run")


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

    platform.wait(is_retired, "the end of the runs that use the slide")
    assert platform.slides() == {SLOW, BROKEN, LATER}
    assert not (platform.storage / "slides" / NORMAL).exists()


def test_killed_as_a_whole_it_comes_back_tells_the_dead_run_and_goes_on(platform, instance):
    def extracts(run: str) -> bool:
        slots = instance.event_log_storage.get_concurrency_info("extraction").claimed_slots
        return run in {slot.run_id for slot in slots}

    dead = platform.launch("level_pipeline", UPTO_STORE, "1")
    platform.wait(lambda: extracts(dead), "the extraction")
    platform.kill()
    assert extracts(dead), "nobody was there to give the slot back"
    platform.start()
    platform.wait(lambda: platform.status(dead) == "FAILURE", "the failure of the dead run")
    assert f"Run {dead[:8]} of level_pipeline had lost its process" in platform.told()
    platform.make("level_pipeline", ["patch_store"], "1")
    assert platform.check("patch_store", "store_equals_its_index", "1")["success"]


def test_a_slide_folder_that_goes_away_and_comes_back_changes_nothing(platform):
    platform.wait(platform.is_idle, "the end of all runs")
    runs = {run["run_id"] for run in platform.runs() if run["assets"]}
    slides = platform.slides()
    unplugged = platform.images.with_name("unplugged")
    platform.images.rename(unplugged)
    platform.wait(lambda: _slide_folder_says(platform, "does not exist"), "the warning")
    platform.images.mkdir()
    platform.wait(lambda: _slide_folder_says(platform, "is its disk mounted?"), "the other warning")
    assert _due(platform) == {}, "no index is made without the slides"
    assert platform.slides() == slides
    platform.images.rmdir()
    unplugged.rename(platform.images)
    platform.wait(lambda: _slide_folder_says(platform, "nothing new"), "that nothing changed")
    assert platform.slides() == slides
    assert {run["run_id"] for run in platform.runs() if run["assets"]} == runs


@pytest.fixture
def filler(platform) -> Iterator[Path]:
    """A file that leaves 12 MiB on the disk of the storage folder."""
    if not os.path.ismount(platform.storage):
        pytest.skip("a disk can only be filled where mounting one is permitted")
    file = platform.storage / "something_large"
    with file.open("wb", buffering=0) as stream:
        while shutil.disk_usage(platform.storage).free > 12 << 20:
            stream.write(bytes(1 << 20))
    yield file
    file.unlink(missing_ok=True)


def test_a_full_disk_is_told_loses_nothing_and_is_followed_by_work(platform, filler):
    layout = StorageLayout(platform.storage)
    before = {level: _store_keys(layout, level) for level in LEVELS}
    # Some sixty megabytes: too much for what is left, and little for the disk.
    larger = {"slide_index": {"patch_size": 64, "stride": 32}, "patch_store": {"codec": "raw"}}
    run = platform.launch("level_pipeline", UPTO_STORE, "0", ops(larger))
    platform.wait(lambda: platform.status(run) in ENDED, "the run's end")
    assert platform.status(run) == "FAILURE"
    (why,) = platform.failures(run)
    assert "the disk is full" in why
    assert "\n" not in why
    platform.wait(lambda: "the disk is full" in platform.told(), "a line of the servers")
    assert {level: _store_keys(layout, level) for level in LEVELS} == before
    filler.unlink()
    platform.wait(lambda: "there is room again" in platform.told(), "the other line")
    platform.make("level_pipeline", ["patch_store"], "0", ops(larger, "patch_store"))
    assert len(_store_keys(layout, "0")) > len(before["0"])


def ops(parameters: dict[str, dict[str, Any]], *only: str) -> dict[str, Any]:
    """Parameters by asset as a run takes them."""
    chosen = {asset: values for asset, values in parameters.items() if not only or asset in only}
    return {"ops": {asset: {"config": values} for asset, values in chosen.items()}}


def _store_keys(layout: StorageLayout, level: str) -> list[str]:
    from wsi_assets.patches import open_store

    with open_store(current_store(layout, level)) as store:
        return list(store.keys)


def _slide_folder_says(platform: Platform, what: str) -> bool:
    return what in (platform.last_words("slide_folder") or "")


def _due(platform: Platform) -> dict[str, dict[str, Any]]:
    """Level -> what the nightly schedule would ask for now."""
    requests = platform.evaluate_schedule("nightly_index")["runRequests"]
    return {
        tag["value"]: request
        for request in requests
        for tag in request["tags"]
        if tag["key"] == "dagster/partition"
    }
