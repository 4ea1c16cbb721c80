"""Dagster partitions: by slide, by level (or magnification), and by both."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import dagster as dg

SLIDES = dg.DynamicPartitionsDefinition(name="slides")
"""Slide ids, added by the sensor or the command line, removed only by ``wsi-assets retire``."""

LEVELS = dg.DynamicPartitionsDefinition(name="levels")
"""Pyramid levels (4), magnifications (10x) and pixel sizes (0.5um) in use, as
:class:`wsi_assets.slides.Resolution` reads them; ``wsi-assets run`` or "Add partition" in the UI adds one."""

SLIDES_AND_LEVELS = dg.MultiPartitionsDefinition({"slide": SLIDES, "level": LEVELS})
"""All combinations of slide and level; they are made only on request."""

OF_ITS_SLIDE, OF_ITS_LEVEL = (
    dg.MultiToSingleDimensionPartitionMapping(dimension) for dimension in ("slide", "level")
)
"""Partition mappings of an asset of slides at levels to its slide and to its level."""


def both(slide_id: str, level: str) -> dg.MultiPartitionKey:
    """Partition key of a slide at a level."""
    return dg.MultiPartitionKey({"slide": slide_id, "level": level})


def parts_of(partition: str | None) -> tuple[str, str]:
    """(slide id, level) of a partition key; a key of only a slide or only a level is returned as both."""
    if isinstance(partition, dg.MultiPartitionKey):
        return partition.keys_by_dimension["slide"], partition.keys_by_dimension["level"]
    return partition or "", partition or ""


def stretches(order: Sequence[str], wanted: Collection[str], at_most: int) -> Iterator[list[str]]:
    """Consecutive keys of ``order`` that are all in ``wanted``, in lists of at most ``at_most`` keys."""
    stretch: list[str] = []
    for key in [*order, None]:
        if stretch and (key not in wanted or len(stretch) == at_most):
            yield stretch
            stretch = []
        if key in wanted:
            stretch.append(str(key))


def range_tags(stretch: Sequence[str]) -> dict[str, str]:
    """Tags of a run of a range of partitions, as `dagster asset materialize --partition-range` sets them."""
    return {
        "dagster/asset_partition_range_start": stretch[0],
        "dagster/asset_partition_range_end": stretch[-1],
    }
