"""Runs that are queued or running, and what they work on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import dagster as dg

UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


def is_busy(instance: dg.DagsterInstance, partition: str) -> bool:
    """Whether a run of this partition is queued or running."""
    unfinished = dg.RunsFilter(statuses=UNFINISHED, tags={"dagster/partition": partition})
    return bool(instance.get_run_records(unfinished, limit=1))


def slides_in_work(instance: dg.DagsterInstance, registered: Sequence[str]) -> set[str]:
    """Slides that a queued or running run makes something of.

    Args:
        registered: all slide partitions in Dagster's order, which ranges follow.
    """
    runs = instance.get_runs(dg.RunsFilter(statuses=UNFINISHED))
    return {slide_id for run in runs for slide_id in slides_of(run.tags, registered)}


def slides_of(tags: Mapping[str, str], registered: Sequence[str]) -> set[str]:
    """Slides that a run with these tags makes something of: one, or those of a range."""
    if "dagster/partition" in tags:
        return {tags["dagster/partition"]} & set(registered)
    first = tags.get("dagster/asset_partition_range_start")
    last = tags.get("dagster/asset_partition_range_end")
    if first in registered and last in registered:
        return set(registered[registered.index(first) : registered.index(last) + 1])
    return set()


def uses_slide(
    tags: Mapping[str, str], assets: Iterable[dg.AssetKey], registered: Sequence[str], slide_id: str
) -> bool:
    """Whether a run with these tags and assets works on a slide: alone, in a range, or as part of a level.

    Deleting a partition kills runs that work on it.
    """
    if tags.get("dagster/partition", slide_id) in registered:
        return slide_id in slides_of(tags, registered)
    names = {key.to_user_string() for key in assets}
    return not names or bool(names & {"slide_index", "evaluation"})
