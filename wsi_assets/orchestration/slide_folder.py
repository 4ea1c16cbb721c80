"""What the slide folder holds, against what is known of it: decisions, and the events that report it.

The sensor and the command line share it. Nothing here removes a slide.
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
"""Version of the files of a slide that was retired: unlike any other, so that one put back is news."""

DATA_VERSION_TAG = "dagster/data_version"
"""How an event says the data version of what is not made here."""

PARTITIONS_A_QUERY = 500
"""Few enough for short SQL; each query passes over the newer records of all other partitions."""


@dataclass(frozen=True)
class FileSeen:
    """One file of a slide.

    Attributes:
        path: of the file, of an annotation with that of its correction; "" for one that is not there.
        signature: size and time; if equal, the contents are taken as unchanged.
        version: fingerprint of its bytes, ``"none"`` for an annotation that is not there.
    """

    path: str
    signature: str
    version: str


Seen = Mapping[str, FileSeen]
"""``slide_image`` and ``slide_annotation`` -> the file of a slide."""


def signature_of(slide: SlideFile) -> dict[str, str]:
    """Asset -> path, size and time of the slide's file: cheap, and different when the file changed.

    The slide's also changes with what the cohort's table says of it.
    """
    from wsi_assets.slides import signature

    def of(*paths: Path | None) -> str:
        return " + ".join("{}:{}:{}".format(path, *signature(path)) for path in paths if path)

    return {
        SLIDE_IMAGE: image_version(of(slide.path), slide),
        SLIDE_ANNOTATION: of(slide.annotation_path, slide.correction_path),
    }


def image_version(contents: str, slide: SlideFile) -> str:
    """A slide's data version: its contents, and what the cohort's table says of it, if it says anything."""
    from wsi_assets.slides.cohort import EMPTY_ROW

    return contents if slide.cohort_row == EMPTY_ROW else f"{contents}, cohort {slide.cohort_row.digest[:16]}"


def observe(slide: SlideFile, signatures: Mapping[str, str]) -> dict[str, FileSeen]:
    """Read what identifies the contents of a slide's image and annotation."""
    from wsi_assets.slides import annotation_version, fingerprint

    paths = " + ".join(str(path) for path in (slide.annotation_path, slide.correction_path) if path)
    return {
        SLIDE_IMAGE: FileSeen(
            str(slide.path), signatures[SLIDE_IMAGE], image_version(fingerprint(slide.path), slide)
        ),
        SLIDE_ANNOTATION: FileSeen(paths, signatures[SLIDE_ANNOTATION], annotation_version(slide)),
    }


def is_changed(signatures: Mapping[str, str], known: Seen) -> bool:
    """Whether a slide is new, or a file's size or time differs from what is known."""
    return {asset: seen.signature for asset, seen in known.items()} != signatures


def doubt(
    folder: SlideFolderResource,
    registered: Collection[str],
    storage: StorageResource,
    *,
    annotations: bool = True,
) -> None:
    """SlideError if most registered slides, annotations or corrections are gone: is a disk not mounted?

    ``annotations=False`` believes that annotations and corrections are gone.
    """
    slides = folder.slides()
    gone = len(set(registered) - slides.keys())
    if 2 * gone > len(registered):
        raise SlideError(
            f"{gone} of {len(registered)} registered slides are gone from the slide folder: "
            "is a disk not mounted?",
            path=folder.images_dir,
            remedy="Mount it, or retire the slides",
        )
    if not annotations:
        return
    registered, now, before = set(registered), Counter(), Counter()
    for slide_id, slide in slides.items():
        paths = {"annotation": slide.annotation_path, "correction": slide.correction_path}
        now.update(what for what, path in paths.items() if path)
        if slide_id in registered and not all(paths.values()):
            before.update(what for what in _had(storage, slide_id) if not paths[what])
    for what, lost in before.items():
        if lost > now[what]:
            raise SlideError(
                f"{what}s that were read are gone ({lost}; {now[what]} are left): is the folder of "
                "annotations mounted, and the right one?",
                path=folder.annotations_dir,
                remedy="If they are gone for good, run once with annotations_gone "
                "(wsi-assets run --annotations-gone)",
            )


def _had(storage: StorageResource, slide_id: str) -> set[str]:
    """Which of annotation and correction a slide had when its regions were made."""
    (artefact,) = (one for one in slide_artefacts() if SLIDE_ANNOTATION in one.sources)
    record = storage.record(artefact, slide_id)
    version = record.inputs.get(SLIDE_ANNOTATION, NO_ANNOTATION) if record else NO_ANNOTATION
    annotation, _, correction = version.partition(CORRECTED)
    had = {"annotation": annotation != NO_ANNOTATION, "correction": bool(correction)}
    return {what for what, it_had in had.items() if it_had}


def known_slides(instance: dg.DagsterInstance, slide_ids: Iterable[str]) -> dict[str, dict[str, FileSeen]]:
    """Slide id -> what was last reported of its image and its annotation."""
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
        events.append(_found(storage, artefact, record, slide_id))
    return events


def observation(asset: str, slide_id: str, file: FileSeen) -> dg.AssetObservation:
    """The event that reports what a file of a slide holds."""
    return dg.AssetObservation(
        asset,
        partition=slide_id,
        metadata={"path": file.path, "signature": file.signature, "fingerprint": file.version},
        tags={DATA_VERSION_TAG: file.version},
    )


def news_of_levels(
    instance: dg.DagsterInstance, storage: StorageResource, slide_ids: Iterable[str]
) -> tuple[list[str], list[dg.AssetMaterialization]]:
    """Levels that the storage folder holds, and events for what is made, also of slides at levels, for an
    instance that knows none."""
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
    """Slide id -> what its files hold, read where they changed; slide id -> why they cannot be read."""
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
    """Add partitions of new slides and report what is new or changed.

    A slide whose file cannot be read at all keeps its partition, so that the failure shows.
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
        # Of slides made in batches Dagster computes the version by itself.
        tags=None if artefact.by_slide else {DATA_VERSION_TAG: record.version},
    )
