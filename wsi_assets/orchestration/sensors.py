"""The sensor that watches the slide folder.

It adds partitions and reports what changed; it never removes a slide. Regions of what is new or changed
follow by their automation conditions.
"""

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import dagster as dg

from wsi_assets.errors import SlideError
from wsi_assets.files import digest
from wsi_assets.orchestration.partitions import LEVELS, SLIDES
from wsi_assets.orchestration.resources import SlideFolderResource
from wsi_assets.orchestration.slide_folder import (
    RETIRED,
    SLIDE_IMAGE,
    FileSeen,
    changed,
    doubt,
    known_slides,
    news,
    observe,
    signature_of,
    stored_levels,
)
from wsi_assets.orchestration.storage import StorageResource

if TYPE_CHECKING:
    from wsi_assets.slides import SlideFile

READ_FOR_SECONDS = 20
MOST_A_POLL = 1000
"""A poll reads no new slides for longer, and no more of them; the rest wait, so no poll holds up the others.

To store the news of a thousand slides takes the daemon ten seconds."""

Signatures = dict[str, dict[str, str]]


@dataclass(frozen=True)
class SensorCursor:
    """What one poll leaves for the next. It is stored with every poll, so it stays small.

    Attributes:
        settled: digest of everything seen when there was nothing left to do, or "".
        waiting: slide id -> digest of what was seen of it, for slides that are new or changed.
    """

    settled: str = ""
    waiting: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, cursor: str | None) -> "SensorCursor":
        """Read a cursor; a damaged one counts as none."""
        try:
            return cls(**json.loads(cursor or "{}"))
        except (ValueError, TypeError):
            return cls()

    def dump(self) -> str:
        return json.dumps({"settled": self.settled, "waiting": self.waiting})


def held_still(now: Mapping[str, Any], before: Mapping[str, str]) -> list[str]:
    """Slides whose files have the sizes and times they had one poll ago: no longer being copied."""
    return sorted(slide_id for slide_id, seen in now.items() if before.get(slide_id) == digest(seen))


def read_signatures(slides: Iterable["SlideFile"]) -> tuple[Signatures, list[str]]:
    """Slide id -> sizes and times of its files, and one line for each slide that cannot be read."""
    seen, faults = {}, []
    for slide in slides:
        try:
            seen[slide.slide_id] = signature_of(slide)
        except SlideError as error:
            faults.append(str(error))
    return seen, faults


def read_settled(
    slides: Mapping[str, "SlideFile"], settled: Iterable[str], now: Signatures, until: float
) -> tuple[dict[str, dict[str, FileSeen]], list[str]]:
    """Read what identifies the contents of slides that held still, until the clock says ``until``.

    Returns:
        what was read; one line for each slide whose bytes cannot be read.
    """
    found, faults = {}, []
    for slide_id in settled:
        if len(found) >= MOST_A_POLL or (found and time.monotonic() > until):
            break
        try:
            found[slide_id] = observe(slides[slide_id], now[slide_id])
        except SlideError as error:
            faults.append(str(error))
    return found, faults


def build_slide_folder_sensor(poll_seconds: int) -> dg.SensorDefinition:
    """The sensor, polling as often as the slide folder's disk can bear."""

    @dg.sensor(
        name="slide_folder",
        minimum_interval_seconds=poll_seconds,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=f"Lists the slide folder every {poll_seconds} s (WSI_POLL_SECONDS). A new or changed "
        "slide or annotation whose size and time held still over two polls gets its partition and an "
        "observation. Nothing is ever removed: an empty or unreachable folder is reported and waited for. "
        "Costs a listing of the folder, and some megabytes of reading for each slide that changed.",
    )
    def slide_folder(
        context: dg.SensorEvaluationContext, folder: SlideFolderResource, storage: StorageResource
    ) -> dg.SensorResult | dg.SkipReason:
        try:
            listing = folder.list()
        except SlideError as error:
            context.log.warning(str(error))
            return dg.SkipReason(f"{error}. Nothing was changed")
        slides = {slide.slide_id: slide for slide in listing.slides}
        now, faults = read_signatures(listing.slides)
        faults += [f"{name}: {why}" for name, why in listing.left_out.items()]
        registered = set(context.instance.get_dynamic_partitions(SLIDES.name))
        cursor = SensorCursor.load(context.cursor)
        everything = digest(now, sorted(registered))
        if everything == cursor.settled:
            return dg.SkipReason("; ".join([f"{len(now)} slides, nothing new", *faults[:5]]))
        known = known_slides(context.instance, slides)
        doubted = doubt(slides, registered, known)
        if doubted:
            context.log.warning(doubted)
            return dg.SkipReason(f"{doubted}. Nothing was changed")
        return _news(context, storage, slides, now, known, registered, cursor, everything, faults)

    return slide_folder


def _news(
    context: dg.SensorEvaluationContext,
    storage: StorageResource,
    slides: Mapping[str, "SlideFile"],
    now: Signatures,
    known: Mapping[str, Mapping[str, FileSeen]],
    registered: set[str],
    cursor: SensorCursor,
    everything: str,
    faults: list[str],
) -> dg.SensorResult:
    """The partitions and events of one poll."""
    changes = changed(now, known)
    settled = held_still({slide_id: now[slide_id] for slide_id in changes}, cursor.waiting)
    # A slide put back after it was retired is registered first: news of a partition that is not there are
    # lost.
    back = [
        slide_id
        for slide_id in settled
        if slide_id not in registered and known.get(slide_id, {}).get(SLIDE_IMAGE, _NEW).version == RETIRED
    ]
    until = time.monotonic() + READ_FOR_SECONDS
    seen, unread = read_settled(slides, [one for one in settled if one not in back], now, until)
    for fault in faults + unread:
        context.log.warning(fault)
    new = sorted((set(seen) | set(back) | (now.keys() - set(changes))) - registered)
    waiting = {slide_id: digest(now[slide_id]) for slide_id in changes if slide_id not in seen}
    events: list[Any] = []
    for slide_id, files in seen.items():
        events += news(storage, slide_id, files, known.get(slide_id, {}), is_new=slide_id not in registered)
    requests = [SLIDES.build_add_request(new)] if new else []
    if not waiting and not context.instance.get_dynamic_partitions(LEVELS.name):
        levels = stored_levels(storage)
        requests += [LEVELS.build_add_request(list(levels))] if levels else []
        events += [event for found in levels.values() for event in found]
    parts = [f"{len(now)} slides, {len(seen)} new or changed"]
    if waiting:
        parts.append(f"{len(waiting)} wait for one more poll: {', '.join(sorted(waiting)[:5])}")
    return dg.SensorResult(
        dynamic_partitions_requests=requests,
        asset_events=events,
        cursor=SensorCursor("" if waiting or new else everything, waiting).dump(),
        skip_reason="; ".join(parts + (faults + unread)[:5]),
    )


_NEW = FileSeen("", "", "")
