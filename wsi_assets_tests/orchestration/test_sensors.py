"""The sensor of the slide folder: new, changed, unfinished and removed files."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path

import dagster as dg
import pytest

from wsi_assets.errors import ConfigError, SlideError
from wsi_assets.files import write_json
from wsi_assets.orchestration.assets.slides import ANNOTATION_REGIONS
from wsi_assets.orchestration.partitions import LEVELS, SLIDES
from wsi_assets.orchestration.resources import SlideFolderResource
from wsi_assets.orchestration.retire_slide import retire_slide
from wsi_assets.orchestration.sensors import build_slide_folder_sensor
from wsi_assets.orchestration.slide_folder import (
    NO_ANNOTATION,
    SLIDE_ANNOTATION,
    SLIDE_IMAGE,
    doubt,
    known_slides,
)
from wsi_assets.orchestration.storage import Record, StorageResource, record_beside


class Watched:
    """A slide folder, an instance, and the sensor between them; a poll is applied as the daemon does."""

    def __init__(self, home: Path):
        self.images, self.annotations = home / "images", home / "annotations"
        self.images.mkdir()
        self.annotations.mkdir()
        self.instance = dg.DagsterInstance.ephemeral()
        self.cursor: str | None = None
        self.folder = SlideFolderResource(images_dir=str(self.images), annotations_dir=str(self.annotations))
        self.storage = StorageResource(storage_dir=str(home / "storage"))

    def put(self, name: str, content: str = "pixels") -> None:
        (self.images / name).write_text(content)

    def annotate(self, name: str, content: str = "<ASAP_Annotations/>") -> None:
        (self.annotations / f"{name}.xml").write_text(content)

    def make(self, slide_id: str, version: str = "x") -> None:
        """Write the record that reading its annotation would write."""
        path = self.storage.artefact(ANNOTATION_REGIONS, slide_id)
        path.parent.mkdir(parents=True)
        path.touch()
        record = Record(ANNOTATION_REGIONS.name, slide_id, "1", {}, {SLIDE_ANNOTATION: version}, "r", "v")
        write_json(record_beside(path), asdict(record))

    def poll(self) -> list[tuple[str, str]]:
        """Poll once; returns the reported (asset, slide id) pairs."""
        result = self.evaluate()
        if isinstance(result, dg.SkipReason):
            return []
        for event in result.asset_events:
            self.instance.report_runless_asset_event(event)
        for request in result.dynamic_partitions_requests:
            self.instance.add_dynamic_partitions(request.partitions_def_name, list(request.partition_keys))
        self.cursor = result.cursor
        return [(event.asset_key.to_user_string(), event.partition) for event in result.asset_events]

    def evaluate(self) -> dg.SensorResult | dg.SkipReason:
        context = dg.build_sensor_context(
            instance=self.instance,
            cursor=self.cursor,
            resources={"folder": self.folder, "storage": self.storage},
        )
        return build_slide_folder_sensor(30)(context)

    def settle(self) -> list[tuple[str, str]]:
        return [event for _ in range(4) for event in self.poll()]

    def version(self, asset: str, slide_id: str) -> str:
        return known_slides(self.instance, [slide_id])[slide_id][asset].version

    @property
    def registered(self) -> set[str]:
        return set(self.instance.get_dynamic_partitions(SLIDES.name))


@pytest.fixture
def watched(tmp_path) -> Watched:
    return Watched(tmp_path)


BOTH = [(SLIDE_IMAGE, "tumor_001"), (SLIDE_ANNOTATION, "tumor_001")]


def test_a_new_slide_is_registered_at_the_second_poll(watched):
    watched.put("tumor_001.tif")
    assert watched.poll() == []
    assert watched.registered == set()
    assert watched.poll() == BOTH
    assert watched.registered == {"tumor_001"}
    assert watched.settle() == []


def test_a_growing_slide_is_reported_once_its_size_is_stable(watched):
    for size in range(1, 4):
        watched.put("tumor_001.tif", "pixels" * size)
        assert watched.poll() == []
    assert watched.poll() == BOTH


def test_a_new_or_removed_annotation_is_reported_for_the_annotation_only(watched):
    for name in ("tumor_001", "tumor_002", "tumor_003"):
        watched.put(f"{name}.tif", name)
        watched.annotate(name)
    watched.put("tumor_004.tif")
    watched.settle()
    assert watched.version(SLIDE_ANNOTATION, "tumor_004") == NO_ANNOTATION
    watched.annotate("tumor_004")
    assert watched.settle() == [(SLIDE_ANNOTATION, "tumor_004")]
    (watched.annotations / "tumor_004.xml").unlink()
    assert watched.settle() == [(SLIDE_ANNOTATION, "tumor_004")]
    assert watched.version(SLIDE_ANNOTATION, "tumor_004") == NO_ANNOTATION


def test_a_touched_slide_with_the_same_bytes_keeps_its_version(watched):
    watched.put("tumor_001.tif")
    watched.settle()
    before = watched.version(SLIDE_IMAGE, "tumor_001")
    os.utime(watched.images / "tumor_001.tif", (1, 1))
    watched.settle()
    assert watched.version(SLIDE_IMAGE, "tumor_001") == before
    watched.put("tumor_001.tif", "other pixels")
    assert watched.settle() == [(SLIDE_IMAGE, "tumor_001")]
    assert watched.version(SLIDE_IMAGE, "tumor_001") != before


def test_a_removed_slide_stays_registered(watched):
    for number in (1, 2, 3):
        watched.put(f"tumor_00{number}.tif", str(number))
    watched.settle()
    (watched.images / "tumor_002.tif").unlink()
    assert watched.settle() == []
    assert watched.registered == {"tumor_001", "tumor_002", "tumor_003"}


def test_folders_that_lose_most_of_their_files_change_nothing(watched):
    for number in range(4):
        watched.put(f"tumor_00{number}.tif", str(number))
        watched.annotate(f"tumor_00{number}")
        watched.make(f"tumor_00{number}")
    watched.settle()
    kept = {file: file.read_text() for file in (*watched.images.iterdir(), *watched.annotations.iterdir())}
    for folder in (watched.annotations, watched.images):
        for file in sorted(folder.iterdir())[1:]:
            file.unlink()
        assert isinstance(watched.evaluate(), dg.SkipReason)
        for file, content in kept.items():
            file.write_text(content)
    watched.settle()
    assert {watched.version(SLIDE_ANNOTATION, slide_id) for slide_id in watched.registered} != {NO_ANNOTATION}


def test_a_correction_is_reported_for_the_annotation_and_a_removed_one_is_an_error(watched):
    for name in ("tumor_001", "tumor_002"):
        watched.put(f"{name}.tif", name)
        watched.annotate(name)
    watched.settle()
    before = watched.version(SLIDE_ANNOTATION, "tumor_001")
    folder = watched.annotations / "corrections"
    folder.mkdir()
    assert watched.settle() == []
    (folder / "tumor_001.geojson").write_text("{}")
    (folder / "tumor_009.geojson").write_text("{}")
    assert watched.settle() == [(SLIDE_ANNOTATION, "tumor_001")]
    version = watched.version(SLIDE_ANNOTATION, "tumor_001")
    assert version.startswith(before)
    assert version != before
    watched.make("tumor_001", version)
    watched.make("tumor_002", before)
    folder.rename(watched.annotations.parent / "away")
    skipped = watched.evaluate()
    assert isinstance(skipped, dg.SkipReason)
    assert "corrections that were read are gone" in skipped.skip_message
    assert watched.version(SLIDE_ANNOTATION, "tumor_001") == version
    doubt(watched.folder, watched.registered, watched.storage, annotations=False)


def test_a_missing_folder_is_listed_again_at_the_next_poll(watched):
    watched.images.rmdir()
    assert isinstance(watched.evaluate(), dg.SkipReason)


def test_it_is_an_error_if_more_than_half_of_the_slides_are_gone(watched):
    for name in ("tumor_001", "tumor_002"):
        watched.put(f"{name}.tif", name)
    doubt(watched.folder, ["tumor_001", "tumor_002", "away_1", "away_2"], watched.storage)
    with pytest.raises(SlideError):
        doubt(watched.folder, ["tumor_001", "away_1", "away_2"], watched.storage)


def test_a_retired_slide_that_is_put_back_is_reported_once_it_is_registered(watched):
    for name in ("tumor_001", "tumor_002"):
        watched.put(f"{name}.tif", name)
    watched.settle()
    paths = watched.storage
    with pytest.raises(ConfigError):
        retire_slide(watched.instance, watched.folder, paths, "tumor_001")
    with pytest.raises(ConfigError):
        retire_slide(watched.instance, watched.folder, paths, "nobody")
    content = (watched.images / "tumor_001.tif").read_text()
    (watched.images / "tumor_001.tif").unlink()
    paths.slide_folder("tumor_001").mkdir(parents=True)
    assert retire_slide(watched.instance, watched.folder, paths, "tumor_001") == []
    assert watched.registered == {"tumor_002"}
    assert not paths.slide_folder("tumor_001").exists()
    watched.put("tumor_001.tif", content)
    assert watched.poll() == []
    assert watched.poll() == [], "first its partition"
    assert watched.registered == {"tumor_001", "tumor_002"}
    assert watched.settle() == BOTH, "then what it holds"


def test_levels_of_the_storage_folder_are_not_added_to_an_instance_with_levels(watched):
    watched.instance.add_dynamic_partitions(LEVELS.name, ["3"])
    (watched.storage.level_folder("2")).mkdir(parents=True)
    watched.put("tumor_001.tif")
    watched.settle()
    assert list(watched.instance.get_dynamic_partitions(LEVELS.name)) == ["3"]
