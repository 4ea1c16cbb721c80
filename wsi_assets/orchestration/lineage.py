"""What an artefact was made from, as one version; what is therefore out of date.

The computations are deterministic, so an artefact's data version is the digest of its code version, its
parameters and the versions of what it was made from. The command line, the checks and Dagster's own
staleness view all compare these versions. Reading them from an instance is here too; nothing writes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import dagster as dg

from wsi_assets.files import digest
from wsi_assets.slides.fingerprints import fingerprint

DATA_VERSION_TAG = "dagster/data_version"
MADE_FROM_TAG = "wsi_assets/made_from"
"""On a slide asset: fingerprint of the file it was made from, to tell a slide replaced since."""

CODE_VERSIONS = {
    "tissue_regions": "2",
    "annotation_regions": "2",
    "slide_index": "3",
    "sampled_index": "1",
    "patch_store": "3",
    "trained_model": "1",
    "test_predictions": "1",
    "evaluation": "4",
    "level_comparison": "2",
}
"""Raise one when a change of code changes what its asset holds: it is then out of date everywhere."""

WITHOUT_EFFECT = frozenset(
    {"extraction_workers", "num_workers", "prediction_batch_size", "device", "max_quarantined"}
)
"""Parameters that change how fast or on what an artefact is made, or what is checked, not what it holds."""

MAY_NAME_A_FILE = frozenset({"scale_table", "incomplete_slides", "weights"})
"""Parameters whose value may be a file: what it holds counts, not where it lies."""

PARTITIONS_A_QUERY = 500
"""Few enough for short SQL; each query passes over the newer records of all other partitions."""

RECORDS_A_PAGE = 100
"""Records hold pictures, 80 KB a slide: so many are in memory at a time."""

T = TypeVar("T")


def version_of(asset: str, parameters: Mapping[str, Any], made_from: Any) -> str:
    """The data version of ``asset`` made with ``parameters`` from ``made_from``, plain values or versions.

    Raises:
        SlideError: a file that a parameter names is there and cannot be read.
    """
    effective = {
        name: fingerprint(value) if name in MAY_NAME_A_FILE and value and Path(value).is_file() else value
        for name, value in parameters.items()
        if name not in WITHOUT_EFFECT
    }
    return digest(asset, CODE_VERSIONS[asset], effective, made_from)


def usable_slides(
    on_disk: Collection[str],
    registered: Iterable[str],
    current: Mapping[str, tuple[str, str]],
    tissue: Mapping[str, Recorded],
    annotation: Mapping[str, Recorded],
) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Which slides a level can be made from, and why the others are left out.

    Args:
        on_disk: slide ids found now.
        registered: slide ids that have a partition.
        current: slide id -> (fingerprint of slide, fingerprint of outline), as last observed.
        tissue: slide id -> its latest ``tissue_regions``.
        annotation: slide id -> its latest ``annotation_regions``.

    Returns:
        slide id -> [tissue version, annotation version]; slide id -> reason. Where a file lies is not part of
        what an index is made from: the slides may move, and nothing is to be made again.
    """
    usable, left_out = {}, {}
    for slide_id in sorted(registered):
        seen = current.get(slide_id)
        if slide_id not in on_disk:
            left_out[slide_id] = "its file is not in the slide folder; put it back, or retire the slide"
        elif slide_id not in tissue:
            left_out[slide_id] = "it has no tissue_regions; see why they failed, or materialize them"
        elif slide_id not in annotation:
            left_out[slide_id] = "it has no annotation_regions; see why they failed, or materialize them"
        elif seen and tissue[slide_id].made_from not in (None, seen[0]):
            left_out[slide_id] = "its file changed since its tissue_regions were made; materialize them again"
        elif seen and annotation[slide_id].made_from not in (None, seen[1]):
            left_out[slide_id] = (
                "its outline changed since its annotation_regions were made; materialize them"
            )
        else:
            usable[slide_id] = [tissue[slide_id].version, annotation[slide_id].version]
    return usable, left_out


def first_out_of_date(
    chain: Sequence[str], recorded: Mapping[str, str | None], expected: Callable[[str, str | None], str]
) -> str | None:
    """The first asset of ``chain`` that must be made again, or None when all of it is up to date.

    Args:
        chain: asset names, each made from the one before.
        recorded: asset -> the version it has now, None where it was never made.
        expected: (asset, version of the one before) -> the version it would get if it were made now.
    """
    before = None
    for asset in chain:
        current = recorded.get(asset)
        if current is None or current != expected(asset, before):
            return asset
        before = current
    return None


def made(
    asset: str,
    value: Any,
    *,
    config: dg.Config,
    made_from: Any,
    metadata: Mapping[str, Any] | None = None,
    file: str | None = None,
) -> dg.MaterializeResult:
    """What an asset returns: its value, with the version and the parameters that tell how it was made.

    Args:
        made_from: versions of the inputs, or plain values that identify them.
        file: fingerprint of the user's file it was made from, for slide assets.
    """
    parameters = config.model_dump(mode="json")
    return dg.MaterializeResult(
        value=value,
        metadata={**(metadata or {}), "parameters": parameters},
        data_version=dg.DataVersion(version_of(asset, parameters, made_from)),
        tags=None if file is None else {MADE_FROM_TAG: file},
    )


@dataclass(frozen=True)
class Recorded:
    """What the latest materialization of one partition says of itself.

    Attributes:
        version: its data version.
        made_from: the fingerprint of the user's file it was made from, for slide assets.
        parameters: those it was made with.
    """

    version: str
    made_from: str | None
    parameters: Mapping[str, Any] = field(default_factory=dict)


def recorded(instance: dg.DagsterInstance, asset: str, partitions: Iterable[str]) -> dict[str, Recorded]:
    """Partition -> its latest materialization; partitions never made are absent."""

    def take(record: dg.EventLogRecord) -> Recorded | None:
        event = record.asset_materialization
        tags = event.tags or {}
        if DATA_VERSION_TAG not in tags:
            return None
        made_with = event.metadata.get("parameters")
        return Recorded(tags[DATA_VERSION_TAG], tags.get(MADE_FROM_TAG), made_with.value if made_with else {})

    found = _latest(instance.fetch_materializations, asset, partitions, take)
    return {partition: latest for partition, latest in found.items() if latest}


def recorded_version(instance: dg.DagsterInstance, asset: str, partition: str) -> str | None:
    """The data version of one partition, None if it was never made."""
    latest = recorded(instance, asset, [partition]).get(partition)
    return latest.version if latest else None


def recorded_metadata(instance: dg.DagsterInstance, asset: str, partition: str) -> dict[str, Any]:
    """Metadata of the latest materialization of one partition as plain values, {} if there is none.

    Tables come back as lists of rows.
    """

    def take(record: dg.EventLogRecord) -> dict[str, Any]:
        return {name: _plain(value) for name, value in record.asset_materialization.metadata.items()}

    return _latest(instance.fetch_materializations, asset, [partition], take).get(partition, {})


def times_made(instance: dg.DagsterInstance, level: str, assets: Iterable[str]) -> dict[str, float]:
    """Asset -> when it was last made at a level, seconds since 1970; never made ones are absent."""
    fetch = instance.fetch_materializations
    found = {asset: _latest(fetch, asset, [level], lambda record: record.timestamp) for asset in assets}
    return {asset: time[level] for asset, time in found.items() if time}


def latest_observations(
    instance: dg.DagsterInstance, asset: str, partitions: Iterable[str]
) -> dict[str, dg.AssetObservation]:
    """Partition -> its latest observation; partitions never observed are absent."""
    return _latest(
        instance.fetch_observations,
        asset,
        partitions,
        lambda record: record.event_log_entry.asset_observation,
    )


def _plain(value: dg.MetadataValue) -> Any:
    if isinstance(value, dg.TableMetadataValue):
        # Stored records are sorted by name; the schema keeps the order they were given in.
        names = [column.name for column in value.schema.columns]
        return [{name: record.data.get(name) for name in names} for record in value.records]
    return value.value


def _latest(
    fetch: Callable[..., Any], asset: str, partitions: Iterable[str], take: Callable[[dg.EventLogRecord], T]
) -> dict[str, T]:
    """Partition -> what ``take`` takes of its latest record."""
    wanted = list(partitions)
    found: dict[str, T] = {}
    for start in range(0, len(wanted), PARTITIONS_A_QUERY):
        missing = set(wanted[start : start + PARTITIONS_A_QUERY])
        cursor = None
        while missing:
            page = fetch(
                dg.AssetRecordsFilter(dg.AssetKey(asset), asset_partitions=sorted(missing)),
                limit=RECORDS_A_PAGE,
                cursor=cursor,
            )
            # Newest first, so the first record seen of a partition is its latest.
            for record in page.records:
                if record.partition_key not in found:
                    found[record.partition_key] = take(record)
            missing -= found.keys()
            if not page.has_more:
                break
            cursor = page.cursor
    return found
