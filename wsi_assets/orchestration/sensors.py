"""The sensor that watches the slide folder.

It adds partitions and reports what changed; it never removes a slide. Regions of what is new or changed
follow by their automation conditions.
"""

import json
from collections.abc import Mapping

import dagster as dg

from wsi_assets.errors import SlideError
from wsi_assets.orchestration.partitions import SLIDES
from wsi_assets.orchestration.registry import (
    known_sightings,
    observation,
    quick_look,
    sight,
    to_look_at,
)
from wsi_assets.orchestration.resources.library import SlideLibrary

LOOK_EVERY_SECONDS = 30


def held_still(now: Mapping[str, str], before: Mapping[str, str]) -> dict[str, str]:
    """Slides whose files have the size and time they had one look ago: no longer being copied."""
    return {slide_id: seen for slide_id, seen in now.items() if before.get(slide_id) == seen}


@dg.sensor(
    minimum_interval_seconds=LOOK_EVERY_SECONDS,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Looks at the slide folder every 30 s. A new or changed slide whose size and time held still "
    "over two looks gets its partition and an observation; nothing is ever removed. Costs a directory "
    "listing a look, and some megabytes of reading for each slide that changed.",
)
def slide_folder(
    context: dg.SensorEvaluationContext, library: SlideLibrary
) -> dg.SensorResult | dg.SkipReason:
    try:
        listing = library.look()
    except SlideError as error:
        return dg.SkipReason(str(error))
    slides = {slide.slide_id: slide for slide in listing.slides}
    registered = set(context.instance.get_dynamic_partitions(SLIDES.name))
    known = known_sightings(context.instance, registered & slides.keys())
    now = {}
    for slide_id, slide in slides.items():
        try:
            now[slide_id] = quick_look(slide)
        except OSError as error:
            context.log.warning(f"{slide.path}: cannot be read ({error.strerror or error})")
    changed = to_look_at(now, known)
    settled = held_still({key: now[key] for key in changed}, json.loads(context.cursor or "{}"))
    sightings = [sight(slides[slide_id], seen) for slide_id, seen in settled.items()]
    waiting = {slide_id: now[slide_id] for slide_id in changed if slide_id not in settled}
    return dg.SensorResult(
        dynamic_partitions_requests=[SLIDES.build_add_request(sorted(settled.keys() - registered))],
        asset_events=[observation(sighting) for sighting in sightings],
        cursor=json.dumps(waiting),
        skip_reason=f"{len(waiting)} slides must hold still for one more look" if waiting else None,
    )


ALL_SENSORS = [slide_folder]
