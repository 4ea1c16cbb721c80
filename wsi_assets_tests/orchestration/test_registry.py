"""Registering, retiring, and runs that lost their process."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import dagster as dg
import pytest

from wsi_assets.errors import ConfigError, SlideError
from wsi_assets.orchestration.dead_runs import GRACE_SECONDS, fail_dead_runs, is_dead, process_of
from wsi_assets.orchestration.layout import StorageLayout
from wsi_assets.orchestration.lineage import DATA_VERSION_TAG, MADE_FROM_TAG, recorded
from wsi_assets.orchestration.partitions import SLIDES
from wsi_assets.orchestration.registry import known_sightings, register, slide_states, to_look_at
from wsi_assets.orchestration.resources.library import SlideLibrary
from wsi_assets.orchestration.retiring import retire_slide
from wsi_assets.orchestration.unfinished import uses_slide
from wsi_assets.slides import find_slides


class Lab:
    def __init__(self, home: Path):
        self.images, self.layout = home / "images", StorageLayout(home / "storage")
        self.images.mkdir()
        self.instance = dg.DagsterInstance.ephemeral()
        self.library = SlideLibrary(images_dir=str(self.images))

    def add(self, *slide_ids: str) -> None:
        for slide_id in slide_ids:
            (self.images / f"{slide_id}.tif").write_text(slide_id)
        known = register(self.instance, find_slides(self.images).slides, pytest.fail)
        for slide_id in slide_ids:
            self.layout.slide_folder(slide_id).mkdir(parents=True)
            self.make(slide_id, known[slide_id].slide_version, "none")

    def make(self, slide_id: str, *made_from: str) -> None:
        for asset, file in zip(("tissue_regions", "annotation_regions"), made_from, strict=True):
            tags = {DATA_VERSION_TAG: f"{asset} of {slide_id}", MADE_FROM_TAG: file}
            self.instance.report_runless_asset_event(
                dg.AssetMaterialization(asset, partition=slide_id, tags=tags)
            )

    def retire(self, slide_id: str) -> None:
        retire_slide(self.instance, self.library, self.layout, slide_id)

    @property
    def registered(self) -> set[str]:
        return set(self.instance.get_dynamic_partitions(SLIDES.name))


@pytest.fixture
def lab(tmp_path) -> Lab:
    return Lab(tmp_path)


def test_registering_again_reports_nothing_new(lab):
    lab.add("a", "b")
    events = lab.instance.fetch_observations(dg.AssetKey("slide_file"), limit=10).records
    register(lab.instance, find_slides(lab.images).slides, pytest.fail)
    assert (
        len(lab.instance.fetch_observations(dg.AssetKey("slide_file"), limit=10).records) == len(events) == 2
    )


def test_what_is_known_of_a_slide_is_what_was_reported(lab):
    lab.add("a")
    (slide,) = find_slides(lab.images).slides
    sighting = known_sightings(lab.instance, ["a", "never seen"])["a"]
    assert sighting.path == str(slide.path)
    assert sighting.annotation_version == "none"
    assert to_look_at({"a": sighting.seen}, {"a": sighting}) == []
    assert to_look_at({"a": sighting.seen + "!", "b": ""}, {"a": sighting}) == ["a", "b"]


def test_a_slide_gone_from_the_folder_is_left_out_by_name(lab):
    lab.add("a", "b")
    (lab.images / "a.tif").unlink()
    usable, left_out = slide_states(lab.instance, find_slides(lab.images))
    assert set(usable) == {"b"}
    assert "not in the slide folder" in left_out["a"]
    assert set(slide_states(lab.instance, None, as_last_seen=True)[0]) == {"a", "b"}


def test_a_retired_slide_is_gone_and_its_file_is_the_users_own(lab):
    lab.add("a", "b")
    (lab.images / "a.tif").unlink()
    lab.retire("a")
    assert lab.registered == {"b"}
    assert not lab.layout.slide_folder("a").exists()
    assert lab.layout.slide_folder("b").exists()
    assert (lab.images / "b.tif").exists()


def test_a_retired_slide_put_back_is_made_anew(lab):
    lab.add("a", "b")
    before = recorded(lab.instance, "tissue_regions", ["a"])["a"]
    content = (lab.images / "a.tif").read_bytes()
    (lab.images / "a.tif").unlink()
    lab.retire("a")
    (lab.images / "a.tif").write_bytes(content)
    known = register(lab.instance, find_slides(lab.images).slides, pytest.fail)
    now = recorded(lab.instance, "tissue_regions", ["a"])["a"]
    assert known["a"].slide_version == before.made_from
    assert now.made_from != before.made_from
    assert "a" in slide_states(lab.instance, find_slides(lab.images))[1]


def test_a_slide_whose_file_is_still_there_is_not_retired(lab):
    lab.add("a", "b")
    with pytest.raises(ConfigError, match=r"still in"):
        lab.retire("a")
    assert lab.registered == {"a", "b"}


def test_a_slide_that_is_there_under_two_names_is_not_retired(lab):
    lab.add("a", "b")
    (lab.images / "A.svs").write_text("another")
    with pytest.raises(ConfigError, match=r"still in"):
        lab.retire("a")


def test_nothing_is_retired_while_the_folder_is_empty_or_gone(lab):
    lab.add("a")
    (lab.images / "a.tif").unlink()
    with pytest.raises(ConfigError, match=r"mounted"):
        lab.retire("a")
    lab.images.rmdir()
    with pytest.raises(SlideError):
        lab.retire("a")
    assert lab.registered == {"a"}


def test_an_unknown_slide_is_one_clear_line(lab):
    lab.add("a")
    with pytest.raises(ConfigError, match=r"no slide 'b'"):
        lab.retire("b")


@pytest.mark.parametrize("tags", [{"dagster/partition": "a"}, {"dagster/partition": "4"}])
def test_a_slide_in_use_is_not_retired(lab, some_job, tags):
    lab.add("a", "b")
    (lab.images / "a.tif").unlink()

    run = lab.instance.create_run_for_job(some_job, tags=tags, status=dg.DagsterRunStatus.STARTED)
    with pytest.raises(ConfigError, match=run.run_id):
        lab.retire("a")
    lab.instance.report_run_failed(run)
    lab.retire("a")


def test_which_runs_use_a_slide():
    registered = ["a", "b", "c", "d"]

    def uses(tags, *assets):
        return uses_slide(tags, [dg.AssetKey(asset) for asset in assets], registered, "b")

    def stretch(first, last):
        return {"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last}

    assert uses({"dagster/partition": "b"}, "tissue_regions")
    assert not uses({"dagster/partition": "c"}, "tissue_regions")
    assert uses(stretch("a", "c"))
    assert not uses(stretch("c", "d"))
    assert uses({"dagster/partition": "4"}, "slide_index", "sampled_index")
    assert not uses({"dagster/partition": "4"}, "patch_store", "trained_model")
    assert not uses({})


def test_a_process_is_dead_when_it_is_gone_or_is_another_one():
    now = time.time()
    long_ago = now - 10 * GRACE_SECONDS
    finished = subprocess.Popen(["true"])
    finished.wait()
    assert is_dead(finished.pid, long_ago, now)
    assert is_dead(None, long_ago, now)
    assert is_dead(os.getpid(), 1.0, now), "a process younger than the run has only its number"
    assert not is_dead(os.getpid(), now - GRACE_SECONDS - 1, now)
    assert not is_dead(None, now, now), "a run that has just begun"
    assert is_dead(None, now + 10 * GRACE_SECONDS, now), "a run from before the clock was put back"


def test_a_colleague_s_run_in_a_shared_home_is_not_taken_for_dead(monkeypatch):
    def belongs_to_another(pid, signal):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "kill", belongs_to_another)
    assert not is_dead(os.getpid(), time.time() - GRACE_SECONDS - 1, time.time())
    assert is_dead(os.getpid(), 1.0, time.time()), "a process younger than the run has only its number"


def test_a_run_whose_process_is_gone_is_marked_as_failed(tmp_path, some_job, monkeypatch):
    monkeypatch.setattr("wsi_assets.orchestration.dead_runs.GRACE_SECONDS", 0)

    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        finished = some_job.execute_in_process(instance=instance)
        assert process_of(instance, finished.run_id) == os.getpid()
        lost = instance.create_run_for_job(some_job, status=dg.DagsterRunStatus.STARTED)
        told = []
        assert fail_dead_runs(instance, told.append) == [lost.run_id]
        assert instance.get_run_by_id(lost.run_id).status == dg.DagsterRunStatus.FAILURE
        assert len(told) == 1
        assert fail_dead_runs(instance, told.append) == []
