"""Remove a slide from the platform at the user's request; nothing else removes slides."""

from __future__ import annotations

import difflib
import shutil

import dagster as dg

from wsi_assets.errors import ConfigError
from wsi_assets.orchestration.partitions import SLIDES
from wsi_assets.orchestration.resources import SlideFolderResource
from wsi_assets.orchestration.slide_folder import (
    RETIRED,
    SLIDE_ANNOTATION,
    SLIDE_IMAGE,
    FileSeen,
    observation,
)
from wsi_assets.orchestration.storage import StorageResource
from wsi_assets.slides.naming import normalize_id

ENDED = (dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED)
UNFINISHED = [status for status in dg.DagsterRunStatus if status not in ENDED]


def retire_slide(
    instance: dg.DagsterInstance, folder: SlideFolderResource, storage: StorageResource, slide_id: str
) -> list[str]:
    """Remove the partition of a slide and its folder in the storage folder.

    The user must have removed the slide file before. Existing artefacts of levels still contain the slide
    until they are made again, which the nightly automation does for the index.

    Returns:
        levels that may still contain the slide.

    Raises:
        ConfigError: the slide is not registered, its file is still there, or a run is in progress.
        SlideError: the slide folder cannot be listed.
    """
    registered = instance.get_dynamic_partitions(SLIDES.name)
    if slide_id not in registered:
        close = difflib.get_close_matches(slide_id, registered, n=1)
        remedy = f"Did you mean {close[0]!r}?" if close else "Slides are named as in the Dagster UI"
        raise ConfigError(f"there is no slide {slide_id!r}", remedy=remedy)
    listing = folder.list()
    if not listing.slides and not listing.left_out:
        raise ConfigError(
            f"the slide folder {folder.images_dir} is empty: its disk may not be mounted",
            remedy="Mount it, or put back any one slide",
        )
    there = {
        normalize_id(name) for name in (*(slide.slide_id for slide in listing.slides), *listing.left_out)
    }
    if normalize_id(slide_id) in there:
        raise ConfigError(
            f"the file of {slide_id} is still in {folder.images_dir}",
            remedy="Remove it first, or it would be registered again",
        )
    # A run that uses the partition, or all slides, would fail if it were deleted.
    busy = instance.get_run_records(dg.RunsFilter(statuses=UNFINISHED), limit=1)
    if busy:
        run_id = busy[0].dagster_run.run_id
        raise ConfigError(f"run {run_id} is going on", remedy="Wait until it is done, or cancel it")
    for asset in (SLIDE_IMAGE, SLIDE_ANNOTATION):
        # Dagster keeps the events of a deleted partition. Without this version, a slide that is put back
        # would count as unchanged, and would not be made.
        instance.report_runless_asset_event(observation(asset, slide_id, FileSeen("", RETIRED, RETIRED)))
    instance.delete_dynamic_partition(SLIDES.name, slide_id)
    shutil.rmtree(storage.slide_folder(slide_id), ignore_errors=True)
    return storage.levels()
