"""What the slide folder holds, against what is known of it: decisions, and the events that report it.

The sensor and the command line share it. Nothing here removes a slide.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dagster as dg

from wsi_assets.errors import SlideError
from wsi_assets.orchestration.artefact import Artefact, all_artefacts, slide_artefacts
from wsi_assets.orchestration.partitions import LEVELS, SLIDES
from wsi_assets.orchestration.storage import Record, StorageResource

if TYPE_CHECKING:
    from wsi_assets.orchestration.resources import SlideFolderResource
    from wsi_assets.slides import SlideFile

SLIDE_IMAGE, SLIDE_ANNOTATION = "slide_image", "slide_annotation"

NO_ANNOTATION = "none"
"""Version of the annotation of a slide that has none."""

RETIRED = "retired"
"""Version of the files of a slide that was retired: unlike any other, so that one put back is news."""

DATA_VERSION_TAG = "dagster/data_version"
"""How an event says the data version of what is not made here."""

PARTITIONS_A_QUERY = 500
"""Few enough for short SQL; each query passes over the newer records of all other partitions."""

RECORDS_A_PAGE = 100


@dataclass(frozen=True)
class FileSeen:
    """One file of a slide.

    Attributes:
        path: of the file, "" for an annotation that is not there.
        signature: size and time; if equal, the contents are taken as unchanged.
        version: fingerprint of its bytes, ``"none"`` for an annotation that is not there.
    """

    path: str
    signature: str
    version: str


def signature_of(slide: SlideFile) -> dict[str, str]:
    """Asset -> path, size and time of the slide's file: cheap, and different when the file changed.

    Raises:
        SlideError: a file is gone or cannot be read.
    """
    from wsi_assets.slides import signature

    found = {SLIDE_ANNOTATION: ""}
    for asset, path in ((SLIDE_IMAGE, slide.path), (SLIDE_ANNOTATION, slide.annotation_path)):
        if path is not None:
            size, time = signature(path)
            found[asset] = f"{path}:{size}:{time}"
    return found


def observe(slide: SlideFile, signatures: Mapping[str, str]) -> dict[str, FileSeen]:
    """Read what identifies the contents of a slide's image and annotation.

    Raises:
        SlideError: a file cannot be read.
    """
    from wsi_assets.slides import fingerprint

    annotation = slide.annotation_path
    version = NO_ANNOTATION if annotation is None else fingerprint(annotation)
    return {
        SLIDE_IMAGE: FileSeen(str(slide.path), signatures[SLIDE_IMAGE], fingerprint(slide.path)),
        SLIDE_ANNOTATION: FileSeen(str(annotation or ""), signatures[SLIDE_ANNOTATION], version),
    }


def changed(
    signatures: Mapping[str, Mapping[str, str]], known: Mapping[str, Mapping[str, FileSeen]]
) -> list[str]:
    """Slide ids that are new, or whose files' sizes or times differ from what is known, in order."""
    return sorted(
        slide_id
        for slide_id, now in signatures.items()
        if {asset: seen.signature for asset, seen in known.get(slide_id, {}).items()} != now
    )


def doubt_slides(found: Collection[str], registered: Collection[str]) -> str | None:
    """Why a listing suggests a disk that is not mounted rather than slides taken away; else None."""
    gone = len(set(registered) - set(found))
    if 2 * gone > len(registered):
        return (
            f"{gone} of {len(registered)} registered slides are gone from the slide folder: "
            "is a disk not mounted?"
        )
    return None


def doubt_missing_annotations(now: int, lost: int) -> str | None:
    """Why slides without annotation suggest a folder that is not mounted; else None.

    Args:
        now: slides that have an annotation.
        lost: slides that had one, and have none.
    """
    if lost > now:
        return (
            f"{lost} slides had an annotation and have none, {now} have one: is the folder of annotations "
            "mounted, and the right one? If they are gone for good, run once with annotations_gone "
            "(wsi-assets run --annotations-gone)"
        )
    return None


def doubt(
    slides: Mapping[str, SlideFile], registered: Collection[str], known: Mapping[str, Mapping[str, FileSeen]]
) -> str | None:
    """Why a listing is not to be believed, else None."""
    annotated = {slide_id for slide_id, slide in slides.items() if slide.annotation_path}
    had = {
        slide_id
        for slide_id, seen in known.items()
        if SLIDE_ANNOTATION in seen and seen[SLIDE_ANNOTATION].version not in ("", NO_ANNOTATION, RETIRED)
    }
    return doubt_slides(slides, registered) or doubt_missing_annotations(
        len(annotated), len((had & slides.keys()) - annotated)
    )


def doubt_annotations(
    slide_ids: Iterable[str], folder: SlideFolderResource, storage: StorageResource, artefact: Artefact
) -> None:
    """Refuse to turn annotated slides into normal ones while most annotations are gone.

    Raises:
        SlideError: most slides that had an annotation have none.
    """
    listing = folder.list()
    without = {slide.slide_id for slide in listing.slides if slide.annotation_path is None}

    def had_one(slide_id: str) -> bool:
        record = storage.record(artefact, slide_id)
        return record is not None and record.inputs.get(SLIDE_ANNOTATION) != NO_ANNOTATION

    if any(had_one(slide_id) for slide_id in set(slide_ids) & without):
        lost = sum(had_one(slide_id) for slide_id in without)
        doubted = doubt_missing_annotations(len(listing.slides) - len(without), lost)
        if doubted:
            raise SlideError(doubted, path=folder.annotations_dir)


def known_slides(instance: dg.DagsterInstance, slide_ids: Iterable[str]) -> dict[str, dict[str, FileSeen]]:
    """Slide id -> what was last reported of its image and its annotation."""
    wanted = list(slide_ids)
    known: dict[str, dict[str, FileSeen]] = {}
    for asset in (SLIDE_IMAGE, SLIDE_ANNOTATION):
        for slide_id, metadata in _latest_observations(instance, asset, wanted):
            values = {name: str(value.value) for name, value in metadata.items()}
            seen = FileSeen(
                values.get("path", ""), values.get("signature", "?"), values.get("fingerprint", "")
            )
            known.setdefault(slide_id, {})[asset] = seen
    return known


def news(
    storage: StorageResource,
    slide_id: str,
    seen: Mapping[str, FileSeen],
    known: Mapping[str, FileSeen],
    *,
    is_new: bool,
) -> list[Any]:
    """The events that report what a slide's files hold now, of those that differ from what is known.

    Of a new slide also the regions that the storage folder holds of it, made from just these files: an
    instance that was lost or is new learns from them that nothing has to be made.
    """
    events: list[Any] = [
        observation(asset, slide_id, file) for asset, file in seen.items() if known.get(asset) != file
    ]
    for artefact in slide_artefacts() if is_new else ():
        record = storage.record(artefact, slide_id)
        if record is None or any(
            record.inputs.get(asset, file.version) != file.version for asset, file in seen.items()
        ):
            break
        events.append(_found(storage, artefact, record))
    return events


def observation(asset: str, slide_id: str, file: FileSeen) -> dg.AssetObservation:
    """The event that reports what a file of a slide holds."""
    return dg.AssetObservation(
        asset,
        partition=slide_id,
        metadata={"path": file.path, "signature": file.signature, "fingerprint": file.version},
        tags={DATA_VERSION_TAG: file.version},
    )


def stored_levels(storage: StorageResource) -> dict[str, list[dg.AssetMaterialization]]:
    """Level -> events for what the storage folder holds of it, for an instance that knows no level."""
    levels = {}
    for level in storage.levels():
        assets = [artefact for artefact in all_artefacts() if artefact.by_level]
        records = [(artefact, storage.record(artefact, level)) for artefact in assets]
        events = [_found(storage, artefact, record) for artefact, record in records if record]
        if events:
            levels[level] = events
    return levels


def register(
    instance: dg.DagsterInstance,
    slides: Iterable[SlideFile],
    storage: StorageResource,
    known: Mapping[str, Mapping[str, FileSeen]],
) -> tuple[dict[str, dict[str, FileSeen]], dict[str, str]]:
    """Add partitions of new slides and report what is new or changed.

    A slide whose file cannot be read at all keeps its partition, so that the failure shows.

    Returns:
        slide id -> what its files hold; slide id -> why they cannot be read.
    """
    slides = {slide.slide_id: slide for slide in slides}
    new = slides.keys() - set(instance.get_dynamic_partitions(SLIDES.name))
    instance.add_dynamic_partitions(SLIDES.name, sorted(slides))
    latest = {slide_id: dict(seen) for slide_id, seen in known.items()}
    unread: dict[str, str] = {}
    for slide_id, slide in slides.items():
        try:
            signatures = signature_of(slide)
            if changed({slide_id: signatures}, latest):
                latest[slide_id] = observe(slide, signatures)
        except SlideError as error:
            unread[slide_id] = str(error)
            continue
        before = known.get(slide_id, {})
        for event in news(storage, slide_id, latest[slide_id], before, is_new=slide_id in new):
            instance.report_runless_asset_event(event)
    if not instance.get_dynamic_partitions(LEVELS.name):
        for level, events in stored_levels(storage).items():
            instance.add_dynamic_partitions(LEVELS.name, [level])
            for event in events:
                instance.report_runless_asset_event(event)
    return {slide_id: seen for slide_id, seen in latest.items() if slide_id not in unread}, unread


def _found(storage: StorageResource, artefact: Artefact, record: Record) -> dg.AssetMaterialization:
    return dg.AssetMaterialization(
        artefact.key,
        partition=record.partition,
        description="Found in the storage folder, with its provenance",
        metadata={
            "path": dg.MetadataValue.path(str(storage.artefact(artefact, record.partition))),
            "parameters": record.parameters,
        },
        # Of slides made in batches Dagster computes the version by itself.
        tags={DATA_VERSION_TAG: record.version} if artefact.by_level else None,
    )


def _latest_observations(
    instance: dg.DagsterInstance, asset: str, partitions: list[str]
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(partition, metadata) of the latest observation of each partition that was observed."""
    for start in range(0, len(partitions), PARTITIONS_A_QUERY):
        missing = set(partitions[start : start + PARTITIONS_A_QUERY])
        cursor = None
        while missing:
            page = instance.fetch_observations(
                dg.AssetRecordsFilter(dg.AssetKey(asset), asset_partitions=sorted(missing)),
                limit=RECORDS_A_PAGE,
                cursor=cursor,
            )
            # Newest first, so the first record seen of a partition is its latest.
            for record in page.records:
                if record.partition_key in missing:
                    missing.discard(record.partition_key)
                    yield record.partition_key, record.asset_observation.metadata
            if not page.has_more:
                break
            cursor = page.cursor
