"""Automation conditions, evaluated by Dagster tick by tick, without a daemon."""

from __future__ import annotations

import datetime

import dagster as dg
import pytest

from wsi_assets.orchestration.artefact import all_artefacts
from wsi_assets.orchestration.build import build_definitions
from wsi_assets.orchestration.partitions import LEVELS, SLIDES
from wsi_assets.orchestration.settings import Settings
from wsi_assets.orchestration.slide_folder import SLIDE_ANNOTATION, SLIDE_IMAGE, FileSeen, observation

TISSUE, ANNOTATION, INDEX = "tissue_regions", "annotation_regions", "slide_index"
NOON = datetime.datetime(2026, 1, 1, 12, tzinfo=datetime.UTC)


class Ticks:
    """An instance with events of observed files and made assets; a tick returns the requested partitions."""

    def __init__(self, home):
        self.instance = dg.DagsterInstance.ephemeral()
        self.definitions = build_definitions(Settings(home / "images", None, home / "storage"))
        self.cursor, self.time = None, NOON

    def see(self, slide_id: str, image: str, annotation: str = "none") -> None:
        self.instance.add_dynamic_partitions(SLIDES.name, [slide_id])
        self.observe(slide_id, image, annotation)

    def observe(self, slide_id: str, image: str, annotation: str = "none") -> None:
        files = {
            SLIDE_IMAGE: FileSeen(f"{slide_id}.tif", image, image),
            SLIDE_ANNOTATION: FileSeen("", annotation, annotation),
        }
        for asset, file in files.items():
            self.instance.report_runless_asset_event(observation(asset, slide_id, file))

    def make(self, asset: str, partition: str) -> None:
        self.instance.report_runless_asset_event(dg.AssetMaterialization(asset, partition=partition))

    def make_both(self, slide_id: str) -> None:
        self.make(TISSUE, slide_id)
        self.make(ANNOTATION, slide_id)

    def tick(self, hours: float = 0) -> dict[str, set[str]]:
        self.time += datetime.timedelta(hours=hours, minutes=1)
        result = dg.evaluate_automation_conditions(
            self.definitions, self.instance, cursor=self.cursor, evaluation_time=self.time
        )
        self.cursor = result.cursor
        requested = {
            artefact.name: set(result.get_requested_partitions(artefact.key))
            for artefact in all_artefacts()
            if artefact.automation
        }
        return {asset: partitions for asset, partitions in requested.items() if partitions}


@pytest.fixture
def ticks(tmp_path) -> Ticks:
    return Ticks(tmp_path)


def test_a_new_slide_gets_tissue_then_annotation_and_only_once(ticks):
    assert ticks.tick() == {}
    ticks.see("tumor_001", "s1")
    assert ticks.tick() == {TISSUE: {"tumor_001"}}
    assert ticks.tick() == {}
    ticks.make(TISSUE, "tumor_001")
    assert ticks.tick() == {ANNOTATION: {"tumor_001"}}
    ticks.make(ANNOTATION, "tumor_001")
    assert ticks.tick() == {}


def test_annotation_is_requested_when_tissue_is_made_before_the_next_tick(ticks):
    ticks.see("tumor_001", "s1")
    assert ticks.tick() == {TISSUE: {"tumor_001"}}
    ticks.make(TISSUE, "tumor_001")
    assert ticks.tick() == {ANNOTATION: {"tumor_001"}}


def test_slides_observed_before_the_first_tick_are_requested(ticks):
    ticks.see("tumor_001", "s1")
    assert ticks.tick() == {TISSUE: {"tumor_001"}}


def test_slides_found_in_the_storage_folder_are_not_requested(ticks):
    ticks.tick()
    ticks.observe("tumor_001", "s1")
    ticks.make_both("tumor_001")
    ticks.tick()
    ticks.instance.add_dynamic_partitions(SLIDES.name, ["tumor_001"])
    assert [ticks.tick() for _ in range(3)] == [{}, {}, {}]


def test_a_changed_annotation_requests_only_annotation_regions(ticks):
    ticks.see("tumor_001", "s1")
    ticks.make_both("tumor_001")
    ticks.tick()
    for annotation in ("a1", "a2", "none"):
        ticks.observe("tumor_001", "s1", annotation)
        assert ticks.tick() == {ANNOTATION: {"tumor_001"}}
        ticks.make(ANNOTATION, "tumor_001")
        assert ticks.tick() == {}


def test_an_unchanged_file_observed_again_requests_nothing(ticks):
    ticks.see("tumor_001", "s1")
    ticks.make_both("tumor_001")
    ticks.tick()
    ticks.observe("tumor_001", "s1")
    assert ticks.tick() == {}


def test_a_replaced_slide_requests_tissue_then_annotation(ticks):
    ticks.see("tumor_001", "s1")
    ticks.make_both("tumor_001")
    ticks.tick()
    ticks.observe("tumor_001", "s2")
    assert ticks.tick() == {TISSUE: {"tumor_001"}}
    ticks.make(TISSUE, "tumor_001")
    assert ticks.tick() == {ANNOTATION: {"tumor_001"}}


def test_a_failed_slide_is_requested_again_when_its_file_changes(ticks):
    ticks.see("tumor_001", "s1")
    ticks.tick()
    assert [ticks.tick() for _ in range(3)] == [{}, {}, {}]
    ticks.observe("tumor_001", "s2")
    assert ticks.tick() == {TISSUE: {"tumor_001"}}


def test_an_existing_index_is_requested_at_night_if_slides_changed(ticks):
    ticks.see("tumor_001", "s1")
    ticks.make_both("tumor_001")
    ticks.instance.add_dynamic_partitions(LEVELS.name, ["2", "4"])
    ticks.make(INDEX, "2")
    ticks.tick()
    assert INDEX not in ticks.tick(hours=15), "nothing changed since"
    ticks.observe("tumor_001", "s2")
    ticks.make_both("tumor_001")
    assert INDEX not in ticks.tick(), "by day nothing"
    assert ticks.tick(hours=24)[INDEX] == {"2"}, "level 4 has no index"
    ticks.make(INDEX, "2")
    assert INDEX not in ticks.tick(hours=24)


def test_an_existing_store_is_requested_with_its_index_and_no_model_is(ticks):
    ticks.instance.add_dynamic_partitions(LEVELS.name, ["2", "4"])
    for asset in (INDEX, "sampled_index", "patch_store", "trained_model"):
        ticks.make(asset, "2")
    ticks.make(INDEX, "4")
    ticks.tick()
    ticks.make(INDEX, "2")
    assert ticks.tick() == {"sampled_index": {"2"}, "patch_store": {"2"}}
    ticks.make("sampled_index", "2")
    ticks.make("patch_store", "2")
    assert ticks.tick() == {}


def test_the_time_zone_of_automations_is_read_from_the_environment(tmp_path):
    settings = Settings.from_environment({"WSI_TIMEZONE": "Asia/Tokyo"}, tmp_path)
    assert settings.timezone == "Asia/Tokyo"
    assert Settings.from_environment(settings.to_environment(), tmp_path).timezone == "Asia/Tokyo"
    assert build_definitions(settings)


def test_the_comparison_is_requested_although_other_levels_have_no_evaluation(ticks):
    ticks.instance.add_dynamic_partitions(LEVELS.name, ["2", "4"])
    ticks.tick()
    ticks.make("evaluation", "2")
    assert ticks.tick() == {"level_comparison": {None}}
    assert ticks.tick() == {}
