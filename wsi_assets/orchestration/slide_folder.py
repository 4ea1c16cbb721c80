"""Compare the slide folder with what Dagster knows of it, and report changes as Dagster events.

Used by the sensor and by the command line. Nothing here removes a slide.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dagster as dg

from wsi_assets.errors import SlideError
from wsi_assets.orchestration.artefact import Artefact, all_artefacts, slide_artefacts
from wsi_assets.orchestration.partitions import LEVELS, SLIDES, both
from wsi_assets.orchestration.storage import Record, StorageResource
from wsi_assets.slides.fingerprints import CORRECTED, NO_ANNOTATION

if TYPE_CHECKING:
    from pathlib import Path

    from wsi_assets.orchestration.resources import SlideFolderResource
    from wsi_assets.slides import SlideFile

SLIDE_IMAGE, SLIDE_ANNOTATION = "slide_image", "slide_annotation"

RETIRED = "retired"
"""Data version of the files of a retired slide. It differs from every fingerprint, so that a slide counts as
changed when it is put back."""

DATA_VERSION_TAG = "dagster/data_version"
"""Dagster's tag for the data version in an observation or materialization event."""

PARTITIONS_A_QUERY = 500
"""Partitions in one query for events: few enough for the length of an SQL statement, but not fewer, since
each query scans the newer events of all partitions."""


@dataclass(frozen=True)
class FileSeen:
    """One file of a slide.

    Attributes:
        path: path of the file, for an annotation joined with that of its correction; "" if there is no file.
        signature: path, size and time; if equal, the contents are assumed to be unchanged.
        version: fingerprint of the contents; ``"none"`` if there is no annotation.
    """

    path: str
    signature: str
    version: str


Seen = Mapping[str, FileSeen]
"""The files of a slide, by the names ``slide_image`` and ``slide_annotation``."""


def signature_of(slide: SlideFile) -> dict[str, str]:
    """Signatures of the files of a slide, by ``slide_image`` and ``slide_annotation``, without reading them.

    That of the image also depends on the slide's row in the cohort table.

    Raises:
        SlideError: a file does not exist or cannot be accessed.
    """
    from wsi_assets.slides import signature

    def of(*paths: Path | None) -> str:
        return " + ".join("{}:{}:{}".format(path, *signature(path)) for path in paths if path)

    return {
        SLIDE_IMAGE: image_version(of(slide.path), slide),
        SLIDE_ANNOTATION: of(slide.annotation_path, slide.correction_path),
    }


def image_version(contents: str, slide: SlideFile) -> str:
    """Data version of a slide: ``contents``, followed by a digest of its row in the cohort table, if any."""
    from wsi_assets.slides.cohort import EMPTY_ROW

    return contents if slide.cohort_row == EMPTY_ROW else f"{contents}, cohort {slide.cohort_row.digest[:16]}"


def observe(slide: SlideFile, signatures: Mapping[str, str]) -> dict[str, FileSeen]:
    """Read the files of a slide and return them with their fingerprints.

    Args:
        signatures: result of :func:`signature_of`.

    Raises:
        SlideError: a file cannot be read.
    """
    from wsi_assets.slides import annotation_version, fingerprint

    paths = " + ".join(str(path) for path in (slide.annotation_path, slide.correction_path) if path)
    return {
        SLIDE_IMAGE: FileSeen(
            str(slide.path), signatures[SLIDE_IMAGE], image_version(fingerprint(slide.path), slide)
        ),
        SLIDE_ANNOTATION: FileSeen(paths, signatures[SLIDE_ANNOTATION], annotation_version(slide)),
    }


def is_changed(signatures: Mapping[str, str], known: Seen) -> bool:
    """Whether a slide is new, or the signature of one of its files differs from the last reported one."""
    return {asset: seen.signature for asset, seen in known.items()} != signatures


def doubt(
    folder: SlideFolderResource,
    registered: Collection[str],
    storage: StorageResource,
    *,
    annotations: bool = True,
) -> None:
    """Raise an error if so many files are gone that a disk may not be mounted.

    Args:
        registered: ids of all registered slides.
        annotations: whether to check annotations and corrections too.

    Raises:
        SlideError: more than half of the registered slides are gone, or of the annotations (or corrections)
            that were read before, more are gone than there are annotations (or corrections) now.
    """
    slides = folder.slides()
    gone = len(set(registered) - slides.keys())
    if 2 * gone > len(registered):
        raise SlideError(
            f"{gone} of {len(registered)} registered slides are gone from the slide folder: "
            "is a disk not mounted?",
            path=folder.images_dir,
            remedy="Mount it, or take the slides out for good (wsi-assets retire SLIDE_ID)",
        )
    if not annotations:
        return
    registered, now, before = set(registered), Counter(), Counter()
    for slide_id, slide in slides.items():
        paths = {"annotation": slide.annotation_path, "correction": slide.correction_path}
        now.update(what for what, path in paths.items() if path)
        if slide_id in registered and not all(paths.values()):
            before.update(what for what in _read_before(storage, slide_id) if not paths[what])
    for what, lost in before.items():
        if lost > now[what]:
            raise SlideError(
                f"{what}s that were read are gone ({lost}; {now[what]} are left): is the folder of "
                "annotations mounted, and the right one?",
                path=folder.annotations_dir,
                remedy="If they are gone for good, run once with annotations_gone "
                "(wsi-assets run --annotations-gone)",
            )


def _read_before(storage: StorageResource, slide_id: str) -> set[str]:
    """Which of "annotation" and "correction" a slide had when its regions were made."""
    (artefact,) = (one for one in slide_artefacts() if SLIDE_ANNOTATION in one.sources)
    record = storage.record(artefact, slide_id)
    version = record.inputs.get(SLIDE_ANNOTATION, NO_ANNOTATION) if record else NO_ANNOTATION
    annotation, _, correction = version.partition(CORRECTED)
    had = {"annotation": annotation != NO_ANNOTATION, "correction": bool(correction)}
    return {what for what, it_had in had.items() if it_had}


def known_slides(instance: dg.DagsterInstance, slide_ids: Iterable[str]) -> dict[str, dict[str, FileSeen]]:
    """Slide id -> its files as last reported to Dagster; empty for a slide that was never reported."""
    wanted = sorted(slide_ids)
    known: dict[str, dict[str, FileSeen]] = {slide_id: {} for slide_id in wanted}
    for asset in (SLIDE_IMAGE, SLIDE_ANNOTATION):
        for start in range(0, len(wanted), PARTITIONS_A_QUERY):
            missing, cursor = set(wanted[start : start + PARTITIONS_A_QUERY]), None
            while missing:
                asked = dg.AssetRecordsFilter(dg.AssetKey(asset), asset_partitions=sorted(missing))
                page = instance.fetch_observations(asked, limit=100, cursor=cursor)
                for record in page.records:  # newest first
                    if record.partition_key in missing:
                        missing.discard(record.partition_key)
                        known[record.partition_key][asset] = _seen_in(record.asset_observation.metadata)
                if not page.has_more:
                    break
                cursor = page.cursor
    return known


def news(storage: StorageResource, slide_id: str, seen: Seen, known: Seen, *, is_new: bool) -> list[Any]:
    """Events that report the files of a slide that differ from ``known``.

    For a new slide also its regions in the storage folder, if they were made from the same files. From these
    a new Dagster instance, e.g. after the loss of the old one, knows that they need not be made.

    Args:
        seen: files as they are now.
        known: files as last reported.
        is_new: whether the slide has no partition yet.
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
        events.append(_found(storage, artefact, record, slide_id))
    return events


def observation(asset: str, slide_id: str, file: FileSeen) -> dg.AssetObservation:
    """The event that reports the version of a slide's file."""
    return dg.AssetObservation(
        asset,
        partition=slide_id,
        metadata={"path": file.path, "signature": file.signature, "fingerprint": file.version},
        tags={DATA_VERSION_TAG: file.version},
    )


def news_of_levels(
    instance: dg.DagsterInstance, storage: StorageResource, slide_ids: Iterable[str]
) -> tuple[list[str], list[dg.AssetMaterialization]]:
    """Levels in the storage folder, and events for their artefacts and predictions, for an instance without
    levels; nothing for any other."""
    if instance.get_dynamic_partitions(LEVELS.name):
        return [], []
    keys: dict[str, list[str]] = {level: [level] for level in storage.levels()}
    for slide_id in slide_ids:
        for level in storage.predicted_levels(slide_id):
            keys.setdefault(level, [level]).append(both(slide_id, level))
    events: list[dg.AssetMaterialization] = []
    levels = []
    for level, partitions in keys.items():
        found = [
            _found(storage, artefact, record, key)
            for key in partitions
            for artefact in all_artefacts()
            if artefact.by_level and artefact.by_slide == isinstance(key, dg.MultiPartitionKey)
            if (record := storage.record(artefact, key)) is not None
        ]
        events += found
        levels += [level] if found else []
    return levels, events


def observe_all(
    slides: Iterable[SlideFile], known: Mapping[str, Seen]
) -> tuple[dict[str, Seen], dict[str, str]]:
    """Slide id -> its files, read again only if changed; and slide id -> why its files cannot be read."""
    seen: dict[str, Seen] = {}
    unread: dict[str, str] = {}
    for slide in slides:
        try:
            signatures, before = signature_of(slide), known.get(slide.slide_id, {})
            seen[slide.slide_id] = observe(slide, signatures) if is_changed(signatures, before) else before
        except SlideError as error:
            unread[slide.slide_id] = str(error)
    return seen, unread


def register(
    instance: dg.DagsterInstance,
    storage: StorageResource,
    slide_ids: Collection[str],
    seen: Mapping[str, Seen],
    known: Mapping[str, Seen],
) -> None:
    """Add partitions of new slides, and report new and changed files and new levels to Dagster.

    Args:
        slide_ids: slides that get a partition. A slide whose file cannot be read gets one as well, so that
            the failure is shown.
        seen: slide id -> files as they are now.
        known: slide id -> files as last reported.
    """
    new = set(slide_ids) - set(instance.get_dynamic_partitions(SLIDES.name))
    instance.add_dynamic_partitions(SLIDES.name, sorted(slide_ids))
    for slide_id, files in seen.items():
        for event in news(storage, slide_id, files, known[slide_id], is_new=slide_id in new):
            instance.report_runless_asset_event(event)
    levels, events = news_of_levels(instance, storage, slide_ids)
    instance.add_dynamic_partitions(LEVELS.name, levels)
    for event in events:
        instance.report_runless_asset_event(event)


def _seen_in(metadata: Mapping[str, Any]) -> FileSeen:
    return FileSeen(*(str(metadata[name].value) for name in ("path", "signature", "fingerprint")))


def _found(
    storage: StorageResource, artefact: Artefact, record: Record, partition: str
) -> dg.AssetMaterialization:
    return dg.AssetMaterialization(
        artefact.key,
        partition=partition,
        description="Found in the storage folder, with its provenance",
        metadata={
            "path": dg.MetadataValue.path(str(storage.artefact(artefact, partition))),
            "parameters": record.parameters,
        },
        # For assets of slides Dagster computes the data version by itself.
        tags=None if artefact.by_slide else {DATA_VERSION_TAG: record.version},
    )
