"""Takes a slide out of the platform for good: the one place that removes anything, and only when asked."""

from __future__ import annotations

import shutil

import dagster as dg

from wsi_assets.errors import ConfigError
from wsi_assets.orchestration import catalog
from wsi_assets.orchestration.layout import StorageLayout
from wsi_assets.orchestration.lineage import DATA_VERSION_TAG, MADE_FROM_TAG
from wsi_assets.orchestration.partitions import SLIDES
from wsi_assets.orchestration.resources.library import SlideLibrary
from wsi_assets.orchestration.unfinished import UNFINISHED, uses_slide
from wsi_assets.slides.naming import normalize_id

RETIRED = "retired"
"""Version of what a retired slide had: unlike any other, so that a slide put back is made anew."""


def retire_slide(
    instance: dg.DagsterInstance, library: SlideLibrary, layout: StorageLayout, slide_id: str
) -> list[str]:
    """Remove a slide's partition and its folder of regions; its file and outline are the user's to remove.

    Levels keep what they were made from until they are made again; the nightly index leaves the slide out.

    Returns:
        levels that have an index, in which the slide may still be.

    Raises:
        ConfigError: the slide is not registered, its file is still there, or a run is using it.
        SlideError: the slide folder does not list.
    """
    registered = instance.get_dynamic_partitions(SLIDES.name)
    if slide_id not in registered:
        raise ConfigError(f"there is no slide {slide_id!r}", remedy="Slides are named as in the Dagster UI")
    listing = library.look()
    if not listing.slides and not listing.left_out:
        raise ConfigError(
            f"the slide folder {library.images_dir} is empty, which looks like a disk that is not mounted",
            remedy="Mount it, or put back any one slide",
        )
    there = {
        normalize_id(name) for name in (*(slide.slide_id for slide in listing.slides), *listing.left_out)
    }
    if normalize_id(slide_id) in there:
        raise ConfigError(
            f"the file of {slide_id} is still in {library.images_dir}",
            remedy="Take it away first, or it would be registered again",
        )
    runs = instance.get_runs(dg.RunsFilter(statuses=UNFINISHED))
    # A run that only compares records reads no slide.
    runs = [run for run in runs if run.job_name != catalog.LEVEL_LINEAGE]
    busy = [
        run.run_id for run in runs if uses_slide(run.tags, run.asset_selection or (), registered, slide_id)
    ]
    if busy:
        raise ConfigError(
            f"{slide_id} is in use by run {busy[0]}", remedy="Wait until it is done, or cancel it"
        )
    _record(instance, slide_id)
    instance.delete_dynamic_partition(SLIDES.name, slide_id)
    shutil.rmtree(layout.slide_folder(slide_id), ignore_errors=True)
    return [path.name for path in sorted(layout.root.glob("level_[0-9]"))]


def _record(instance: dg.DagsterInstance, slide_id: str) -> None:
    # Dagster keeps the records of a deleted partition; without these a slide put back would look made.
    instance.report_runless_asset_event(
        dg.AssetObservation("slide_file", partition=slide_id, tags={DATA_VERSION_TAG: RETIRED})
    )
    for asset in catalog.SLIDE_ASSETS:
        instance.report_runless_asset_event(
            dg.AssetMaterialization(
                asset, partition=slide_id, tags={DATA_VERSION_TAG: RETIRED, MADE_FROM_TAG: RETIRED}
            )
        )
