"""What a look at the slide folder leads to: never a removal, never a half-copied slide, seldom any work."""

from __future__ import annotations

import json
import os
from pathlib import Path

import dagster as dg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi_assets.files import digest
from wsi_assets.orchestration.partitions import SLIDES
from wsi_assets.orchestration.registry import NO_ANNOTATION, Sighting, not_believable
from wsi_assets.orchestration.resources.library import SlideLibrary
from wsi_assets.orchestration.sensors import (
    Memory,
    build_slide_folder,
    held_still,
    read_settled,
    take_look,
)
from wsi_assets.slides import SlideFile, find_slides


class Watched:
    """A slide folder, an instance, and the sensor between them; a look is applied as the daemon does."""

    def __init__(self, home: Path):
        self.images, self.annotations = home / "images", home / "annotations"
        self.images.mkdir()
        self.annotations.mkdir()
        self.instance = dg.DagsterInstance.ephemeral()
        self.cursor: str | None = None
        self.library = SlideLibrary(images_dir=str(self.images), annotations_dir=str(self.annotations))

    def put(self, name: str, content: str = "pixels") -> None:
        (self.images / name).write_text(content)

    def look(self) -> list[str]:
        """Look once; slide ids that were reported."""
        result = self.evaluate()
        if isinstance(result, dg.SkipReason):
            return []
        for event in result.asset_events:
            self.instance.report_runless_asset_event(event)
        for request in result.dynamic_partitions_requests:
            self.instance.add_dynamic_partitions(SLIDES.name, list(request.partition_keys))
        self.cursor = result.cursor
        return [event.partition for event in result.asset_events]

    def evaluate(self) -> dg.SensorResult | dg.SkipReason:
        context = dg.build_sensor_context(
            instance=self.instance, cursor=self.cursor, resources={"library": self.library}
        )
        return build_slide_folder(30)(context)

    def settle(self) -> None:
        for _ in range(3):
            self.look()

    @property
    def registered(self) -> set[str]:
        return set(self.instance.get_dynamic_partitions(SLIDES.name))


@pytest.fixture
def watched(tmp_path) -> Watched:
    return Watched(tmp_path)


def test_a_new_slide_is_registered_at_the_second_look(watched):
    watched.put("tumor_001.tif")
    assert watched.look() == []
    assert watched.registered == set()
    assert watched.look() == ["tumor_001"]
    assert watched.registered == {"tumor_001"}


def test_a_growing_slide_waits_until_it_holds_still(watched):
    for size in range(1, 4):
        watched.put("tumor_001.tif", "pixels" * size)
        assert watched.look() == []
    assert watched.look() == ["tumor_001"]


def test_a_slide_without_outline_is_reported_as_such(watched):
    watched.put("normal_001.tif")
    watched.look()
    (event,) = watched.evaluate().asset_events
    assert event.tags["dagster/data_version"].endswith(f"-{NO_ANNOTATION}")


@pytest.mark.parametrize("content", ["<ASAP_Annotations/>", "<other/>"])
def test_an_outline_that_arrives_changes_only_its_half_of_the_version(watched, content):
    watched.put("tumor_001.tif")
    watched.look()
    (before,) = watched.evaluate().asset_events
    watched.settle()
    (watched.annotations / "tumor_001.xml").write_text(content)
    watched.look()
    (after,) = watched.evaluate().asset_events
    slide, _, outline = after.tags["dagster/data_version"].partition("-")
    assert slide == before.tags["dagster/data_version"].partition("-")[0]
    assert outline != NO_ANNOTATION


def test_a_touched_slide_with_the_same_bytes_keeps_its_version(watched):
    watched.put("tumor_001.tif")
    watched.look()
    (before,) = watched.evaluate().asset_events
    watched.settle()

    os.utime(watched.images / "tumor_001.tif", (1, 1))
    watched.look()
    (after,) = watched.evaluate().asset_events
    assert after.tags["dagster/data_version"] == before.tags["dagster/data_version"]


def test_nothing_new_asks_the_instance_for_no_records(watched, monkeypatch):
    watched.put("tumor_001.tif")
    watched.settle()

    def refuse(*arguments, **options):
        raise AssertionError("a look with nothing new read the event log")

    monkeypatch.setattr(watched.instance, "fetch_observations", refuse)
    assert watched.look() == []


def test_an_empty_folder_removes_nothing_and_says_so(watched):
    watched.put("tumor_001.tif")
    watched.settle()
    (watched.images / "tumor_001.tif").unlink()
    result = watched.evaluate()
    assert isinstance(result, dg.SkipReason)
    assert "mounted" in result.skip_message
    assert watched.registered == {"tumor_001"}


def test_a_folder_that_is_gone_removes_nothing_and_says_so(watched):
    watched.put("tumor_001.tif")
    watched.settle()
    (watched.images / "tumor_001.tif").unlink()
    watched.images.rmdir()
    result = watched.evaluate()
    assert isinstance(result, dg.SkipReason)
    assert str(watched.images) in result.skip_message
    assert watched.registered == {"tumor_001"}


def test_all_outlines_gone_at_once_is_a_missing_disk(watched):
    watched.put("tumor_001.tif")
    watched.put("tumor_002.tif")
    outline = watched.annotations / "tumor_001.xml"
    outline.write_text("<ASAP_Annotations/>")
    watched.settle()
    outline.unlink()
    assert watched.look() == watched.look() == []
    assert "mounted" in watched.evaluate().skip_message


def test_one_slide_taken_away_is_not_an_event(watched):
    watched.put("tumor_001.tif")
    watched.put("tumor_002.tif")
    watched.settle()
    (watched.images / "tumor_001.tif").unlink()
    assert watched.look() == watched.look() == []
    assert watched.registered == {"tumor_001", "tumor_002"}


def test_a_slide_whose_partition_was_deleted_is_registered_again(watched):
    watched.put("tumor_001.tif")
    watched.settle()
    watched.instance.delete_dynamic_partition(SLIDES.name, "tumor_001")
    watched.settle()
    assert watched.registered == {"tumor_001"}


def test_a_slide_that_is_left_out_is_named_at_every_look(watched):
    watched.put("tumor_001.tif")
    watched.put("Tumor_001.svs")
    watched.look()
    said = watched.evaluate()
    text = said.skip_message if isinstance(said, dg.SkipReason) else said.skip_reason.skip_message
    assert "umor_001" in text


def test_what_cannot_be_read_now_waits_and_costs_no_other_slide(tmp_path):
    (tmp_path / "good.tif").write_text("pixels")
    good = SlideFile("good", tmp_path / "good.tif", None)
    gone = SlideFile("gone", tmp_path / "gone.tif", None)
    seen, faults = take_look([gone, good])
    assert set(seen) == {"good"}
    assert len(faults) == 1
    assert "gone.tif" in faults[0]
    sightings, faults = read_settled(
        {"good": good, "gone": gone}, ["gone", "good"], {"good": "x", "gone": "x"}, until=float("inf")
    )
    assert [sighting.slide_id for sighting in sightings] == ["good"]
    assert len(faults) == 1


def test_a_look_reads_at_least_one_slide_and_stops_in_time(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.tif").write_text("pixels")
    slides = {slide.slide_id: slide for slide in find_slides(tmp_path).slides}
    sightings, _ = read_settled(slides, ["a", "b"], {"a": "x", "b": "x"}, until=0.0)
    assert [sighting.slide_id for sighting in sightings] == ["a"]


def test_a_cursor_of_another_version_counts_as_none():
    for cursor in (None, "", "not json", '{"old": 1}', "[]"):
        assert Memory.from_cursor(cursor) == Memory()
    memory = Memory("abc", {"tumor_001": "def"})
    assert Memory.from_cursor(memory.to_cursor()) == memory
    assert len(json.loads(memory.to_cursor())) == 2


@given(st.dictionaries(st.text(min_size=1), st.text()), st.dictionaries(st.text(min_size=1), st.text()))
def test_only_what_was_seen_the_same_before_has_held_still(now, before):
    stored = {key: digest(seen) for key, seen in before.items()}
    assert held_still(now, stored) == sorted(key for key in now if before.get(key, object()) == now[key])


@given(st.sets(st.text(min_size=1)), st.sets(st.text(min_size=1)))
def test_a_listing_is_doubted_only_when_it_is_empty(slides, registered):
    doubt = not_believable(slides, slides, registered, [])
    assert (doubt is not None) == (bool(registered) and not slides)


def test_a_first_look_without_outlines_is_believed():
    seen = Sighting("a", "a.tif", None, "x", "f", NO_ANNOTATION)
    assert not_believable(["a"], [], ["a"], [seen]) is None
