"""The sensor that watches the slide folder.

It adds partitions and reports what changed; it never removes a slide. Regions of what is new or changed
follow by their automation conditions. What to make of a look is decided by pure functions.
"""

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import dagster as dg

from wsi_assets.errors import SlideError
from wsi_assets.files import digest
from wsi_assets.orchestration.partitions import SLIDES
from wsi_assets.orchestration.registry import (
    Sighting,
    known_sightings,
    not_believable,
    observation,
    quick_look,
    sight,
    to_look_at,
)
from wsi_assets.orchestration.resources.library import SlideLibrary

if TYPE_CHECKING:
    from wsi_assets.slides import SlideFile

READ_FOR_SECONDS = 20
MOST_A_LOOK = 1000
"""A look reads no new slides for longer, and no more of them; the rest wait, so no look holds up the others.

To store the news of a thousand slides takes the daemon ten seconds."""


@dataclass(frozen=True)
class Memory:
    """What one look leaves for the next. It is stored with every look, so it stays small.

    Attributes:
        settled: digest of everything seen when there was nothing left to do, or "".
        waiting: slide id -> digest of what was seen of it, for slides that are new or changed.
    """

    settled: str = ""
    waiting: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_cursor(cls, cursor: str | None) -> "Memory":
        """Read a cursor; one that another version wrote counts as none."""
        try:
            return cls(**json.loads(cursor or "{}"))
        except (ValueError, TypeError):
            return cls()

    def to_cursor(self) -> str:
        return json.dumps({"settled": self.settled, "waiting": self.waiting})


def held_still(now: Mapping[str, str], before: Mapping[str, str]) -> list[str]:
    """Slides whose files have the sizes and times they had one look ago: no longer being copied."""
    return sorted(slide_id for slide_id, seen in now.items() if before.get(slide_id) == digest(seen))


def take_look(slides: Iterable["SlideFile"]) -> tuple[dict[str, str], list[str]]:
    """Slide id -> sizes and times of its files, and one line for each slide that cannot be read."""
    seen, faults = {}, []
    for slide in slides:
        try:
            seen[slide.slide_id] = quick_look(slide)
        except SlideError as error:
            faults.append(str(error))
    return seen, faults


def read_settled(
    slides: Mapping[str, "SlideFile"], settled: Iterable[str], now: Mapping[str, str], until: float
) -> tuple[list[Sighting], list[str]]:
    """Read what identifies the contents of slides that held still, until the clock says ``until``.

    Returns:
        what was read; one line for each slide whose bytes cannot be read.
    """
    sightings, faults = [], []
    for slide_id in settled:
        if len(sightings) >= MOST_A_LOOK or (sightings and time.monotonic() > until):
            break
        try:
            sightings.append(sight(slides[slide_id], now[slide_id]))
        except SlideError as error:
            faults.append(str(error))
    return sightings, faults


def build_slide_folder(look_every_seconds: int) -> dg.SensorDefinition:
    """The sensor, looking as often as the slide folder's disk can bear."""

    @dg.sensor(
        name="slide_folder",
        minimum_interval_seconds=look_every_seconds,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=f"Looks at the slide folder every {look_every_seconds} s (WSI_LOOK_EVERY_SECONDS). A new "
        "or changed slide or outline whose size and time held still over two looks gets its partition and "
        "an observation. Nothing is ever removed: an empty or unreachable folder is reported and waited for. "
        "Costs a listing of the folder, and some megabytes of reading for each slide that changed.",
    )
    def slide_folder(
        context: dg.SensorEvaluationContext, library: SlideLibrary
    ) -> dg.SensorResult | dg.SkipReason:
        try:
            listing = library.look()
        except SlideError as error:
            context.log.warning(str(error))
            return dg.SkipReason(f"{error}. Nothing was changed")
        slides = {slide.slide_id: slide for slide in listing.slides}
        now, faults = take_look(listing.slides)
        faults += [f"{name}: {why}" for name, why in listing.left_out.items()]
        registered = set(context.instance.get_dynamic_partitions(SLIDES.name))
        memory = Memory.from_cursor(context.cursor)
        everything = digest(now, sorted(registered))
        if everything == memory.settled:
            return dg.SkipReason(_nothing_new(len(now), faults))
        known = known_sightings(context.instance, slides)
        outlined = [slide.slide_id for slide in listing.slides if slide.annotation_path]
        doubt = not_believable(slides, outlined, registered, known.values())
        if doubt:
            context.log.warning(doubt)
            return dg.SkipReason(doubt)
        changed = to_look_at(now, known)
        settled = held_still({key: now[key] for key in changed}, memory.waiting)
        sightings, unread = read_settled(slides, settled, now, time.monotonic() + READ_FOR_SECONDS)
        for fault in faults + unread:
            context.log.warning(fault)
        done = {sighting.slide_id for sighting in sightings}
        # A slide put back after it was retired is known, but has no partition.
        new = sorted((done | (now.keys() - set(changed))) - registered)
        waiting = {slide_id: digest(now[slide_id]) for slide_id in changed if slide_id not in done}
        return dg.SensorResult(
            dynamic_partitions_requests=[SLIDES.build_add_request(new)] if new else [],
            asset_events=[observation(sighting) for sighting in sightings],
            cursor=Memory("" if waiting or new else everything, waiting).to_cursor(),
            skip_reason=_summary(len(now), sightings, waiting, faults + unread),
        )

    return slide_folder


def _nothing_new(slides: int, faults: list[str]) -> str:
    return "; ".join([f"{slides} slides, nothing new", *faults[:5]])


def _summary(slides: int, sightings: list[Sighting], waiting: Mapping[str, str], faults: list[str]) -> str:
    parts = [f"{slides} slides, {len(sightings)} new or changed"]
    if waiting:
        parts.append(f"{len(waiting)} wait for one more look: {', '.join(sorted(waiting)[:5])}")
    return "; ".join(parts + faults[:5])
