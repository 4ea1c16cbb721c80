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
        now: Signatures = {}
        faults = [f"{name}: {why}" for name, why in listing.left_out.items()]
        for slide in listing.slides:
            try:
                now[slide.slide_id] = signature_of(slide)
            except SlideError as error:
                faults.append(str(error))
        registered = set(context.instance.get_dynamic_partitions(SLIDES.name))
        if digest(now, sorted(registered)) == SensorCursor.load(context.cursor).settled:
            return dg.SkipReason("; ".join([f"{len(now)} slides, nothing new", *faults[:5]]))
        slides = folder.slides()
        known = known_slides(context.instance, slides)
        doubted = doubt(slides, registered, known)
        if doubted:
            context.log.warning(doubted)
            return dg.SkipReason(f"{doubted}. Nothing was changed")
        poll = Poll(slides, now, known, registered, SensorCursor.load(context.cursor))
        return _news(context, storage, poll, faults)

    return slide_folder


@dataclass(frozen=True)
class Poll:
    """What a poll found, and what was known before."""

    slides: Mapping[str, "SlideFile"]
    now: Signatures
    known: Mapping[str, Mapping[str, FileSeen]]
    registered: set[str]
    cursor: SensorCursor

    def version(self, slide_id: str) -> str | None:
        """What was last reported of the slide's image."""
        seen = self.known.get(slide_id, {}).get(SLIDE_IMAGE)
        return seen and seen.version


def _news(
    context: dg.SensorEvaluationContext, storage: StorageResource, poll: Poll, faults: list[str]
) -> dg.SensorResult:
    """The partitions and events of one poll."""
    now, known, registered = poll.now, poll.known, poll.registered
    waiting = {slide_id: digest(now[slide_id]) for slide_id in changed(now, known)}
    # Sizes and times are those of one poll ago: no longer being copied.
    still = [slide_id for slide_id, seen in waiting.items() if poll.cursor.waiting.get(slide_id) == seen]
    # A slide put back after it was retired is registered first: news of a partition that is not there are
    # lost.
    back = {one for one in still if one not in registered and poll.version(one) == RETIRED}
    seen = _read_contents(poll, [one for one in still if one not in back], faults)
    new = sorted((seen.keys() | back | (now.keys() - waiting.keys())) - registered)
    waiting = {slide_id: said for slide_id, said in waiting.items() if slide_id not in seen}
    events: list[Any] = []
    for slide_id, files in seen.items():
        is_new = slide_id not in registered
        events += news(storage, slide_id, files, known.get(slide_id, {}), is_new=is_new)
    requests = [SLIDES.build_add_request(new)] if new else []
    if not waiting and not context.instance.get_dynamic_partitions(LEVELS.name):
        levels = stored_levels(storage)
        requests += [LEVELS.build_add_request(list(levels))] if levels else []
        events += [event for found in levels.values() for event in found]
    for fault in faults:
        context.log.warning(fault)
    parts = [f"{len(now)} slides, {len(seen)} new or changed"]
    if waiting:
        parts.append(f"{len(waiting)} wait for one more poll: {', '.join(sorted(waiting)[:5])}")
    settled = "" if waiting or new else digest(now, sorted(registered))
    return dg.SensorResult(
        dynamic_partitions_requests=requests,
        asset_events=events,
        cursor=SensorCursor(settled, waiting).dump(),
        skip_reason="; ".join(parts + faults[:5]),
    )


def _read_contents(poll: Poll, slide_ids: Iterable[str], faults: list[str]) -> dict[str, dict[str, FileSeen]]:
    """What the files of slides hold, of as many as a poll may take; those unreadable go to ``faults``."""
    until, found = time.monotonic() + READ_FOR_SECONDS, {}
    for slide_id in slide_ids:
        if len(found) >= MOST_A_POLL or (found and time.monotonic() > until):
            break
        try:
            found[slide_id] = observe(poll.slides[slide_id], poll.now[slide_id])
        except SlideError as error:
            faults.append(str(error))
    return found
