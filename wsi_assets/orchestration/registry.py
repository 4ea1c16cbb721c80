"""Which slides there are, what is known of them, what changed: pure decisions, and the one place that
reports them to a Dagster instance.

The sensor and the command line share it. Nothing here removes a slide.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import dagster as dg

from wsi_assets.errors import SlideError
from wsi_assets.orchestration.lineage import (
    DATA_VERSION_TAG,
    latest_observations,
    recorded,
    usable_slides,
)
from wsi_assets.orchestration.partitions import SLIDES

if TYPE_CHECKING:
    from wsi_assets.slides import SlideFile, SlideListing

NO_ANNOTATION = "none"
_SEEN = "seen"


@dataclass(frozen=True)
class Sighting:
    """One slide at one look.

    Attributes:
        slide_id: the partition key.
        path: the slide file.
        annotation_path: its outline, or None.
        seen: sizes and times of both files; if equal, the contents are taken as unchanged.
        slide_version: fingerprint of the slide's bytes.
        annotation_version: fingerprint of the outline's bytes, or ``"none"``.
    """

    slide_id: str
    path: str
    annotation_path: str | None
    seen: str
    slide_version: str
    annotation_version: str

    @property
    def data_version(self) -> str:
        return f"{self.slide_version}-{self.annotation_version}"


def quick_look(slide: SlideFile) -> str:
    """Names, sizes and times of a slide and its outline: cheap, and different when either changed.

    Raises:
        SlideError: a file is gone or cannot be looked at.
    """
    from wsi_assets.slides import signature

    files = [slide.path] + ([slide.annotation_path] if slide.annotation_path else [])
    return ";".join(f"{file}:{size}:{time}" for file in files for size, time in [signature(file)])


def sight(slide: SlideFile, seen: str) -> Sighting:
    """Read what identifies a slide's and its outline's contents.

    Raises:
        SlideError: a file cannot be read.
    """
    from wsi_assets.slides import fingerprint

    outline = slide.annotation_path
    return Sighting(
        slide_id=slide.slide_id,
        path=str(slide.path),
        annotation_path=None if outline is None else str(outline),
        seen=seen,
        slide_version=fingerprint(slide.path),
        annotation_version=NO_ANNOTATION if outline is None else fingerprint(outline),
    )


def to_look_at(looks: Mapping[str, str], known: Mapping[str, Sighting]) -> list[str]:
    """Slide ids that are new, or whose files' sizes or times differ from what is known, in order."""
    return sorted(key for key, seen in looks.items() if key not in known or known[key].seen != seen)


def not_believable(
    slides: Collection[str], outlined: Collection[str], registered: Collection[str], known: Iterable[Sighting]
) -> str | None:
    """Why a listing looks like a disk that is not mounted, and not like slides taken away; else None.

    Args:
        slides: ids of the slides found.
        outlined: those of them with an outline.
        registered: ids that have a partition.
        known: what was last reported of the slides found.
    """
    if registered and not slides:
        return (
            f"the slide folder is empty, but {len(registered)} slides are registered: is its disk mounted? "
            "Nothing was changed"
        )
    had_outlines = sum(sighting.annotation_version != NO_ANNOTATION for sighting in known)
    if had_outlines and not outlined:
        return (
            f"no slide has an outline any more, {had_outlines} had one: is the folder of outlines mounted, "
            "and the right one? Nothing was changed. If they are gone for good, say so once with "
            "wsi-assets run --outlines-gone"
        )
    return None


def known_sightings(instance: dg.DagsterInstance, slide_ids: Iterable[str]) -> dict[str, Sighting]:
    """What was last reported of each slide."""
    found = {}
    for slide_id, observation in latest_observations(instance, "slide_file", slide_ids).items():
        values = {name: value.value for name, value in observation.metadata.items()}
        version = (observation.tags or {}).get(DATA_VERSION_TAG, "")
        slide_version, _, annotation_version = version.partition("-")
        found[slide_id] = Sighting(
            slide_id=slide_id,
            path=str(values.get("path", "")),
            annotation_path=values.get("annotation") or None,
            seen=str(values.get(_SEEN, "")),
            slide_version=slide_version,
            annotation_version=annotation_version,
        )
    return found


def observation(sighting: Sighting) -> dg.AssetObservation:
    """The event that tells Dagster what a slide's files hold now."""
    return dg.AssetObservation(
        "slide_file",
        partition=sighting.slide_id,
        metadata={
            "path": dg.MetadataValue.path(sighting.path),
            "annotation": sighting.annotation_path or "",
            _SEEN: sighting.seen,
        },
        tags={DATA_VERSION_TAG: sighting.data_version},
    )


def register(
    instance: dg.DagsterInstance,
    slides: Iterable[SlideFile],
    warn: Callable[[str], None],
    known: Mapping[str, Sighting] | None = None,
) -> dict[str, Sighting]:
    """Add partitions of new slides, report what is new or changed, and return what is known of each.

    A file that cannot be read at all is told to ``warn`` and keeps its partition, so that the failure shows.

    Args:
        known: what was last reported of the slides, if it was asked for already.
    """
    slides = {slide.slide_id: slide for slide in slides}
    instance.add_dynamic_partitions(SLIDES.name, sorted(slides))
    known = dict(known_sightings(instance, sorted(slides)) if known is None else known)
    for slide_id, slide in slides.items():
        try:
            seen = quick_look(slide)
            if to_look_at({slide_id: seen}, known):
                known[slide_id] = sight(slide, seen)
                instance.report_runless_asset_event(observation(known[slide_id]))
        except SlideError as error:
            warn(str(error))
    return known


def slide_states(
    instance: dg.DagsterInstance, listing: SlideListing | None, *, as_last_seen: bool = False
) -> tuple[dict[str, list[str]], dict[str, str]]:
    """:func:`usable_slides` of what this instance has recorded and this folder listing shows.

    Args:
        listing: None where no look is taken.
        as_last_seen: count a slide that is not in the listing as if it were still where it was last seen.
    """
    registered = sorted(instance.get_dynamic_partitions(SLIDES.name))
    known = known_sightings(instance, registered)
    gone = set(known) if as_last_seen else set()
    return usable_slides(
        on_disk=gone | {slide.slide_id for slide in (listing.slides if listing else ())},
        registered=registered,
        current={key: (seen.slide_version, seen.annotation_version) for key, seen in known.items()},
        tissue=recorded(instance, "tissue_regions", registered),
        annotation=recorded(instance, "annotation_regions", registered),
    )
