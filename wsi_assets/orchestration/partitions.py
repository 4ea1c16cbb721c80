"""How the data is cut: by slide, by level or magnification, or by both."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import dagster as dg

SLIDES = dg.DynamicPartitionsDefinition(name="slides")
"""One key a slide id, added by the sensor or the command line, removed by ``wsi-assets retire`` alone."""

LEVELS = dg.DynamicPartitionsDefinition(name="levels")
"""Pyramid levels (4), magnifications (10x) and pixel sizes (0.5um) in use, as
:class:`wsi_assets.slides.Resolution` reads them; ``wsi-assets run`` or "Add partition" in the UI adds one."""

SLIDES_AND_LEVELS = dg.MultiPartitionsDefinition({"slide": SLIDES, "level": LEVELS})
"""Any slide at any level: of these only what somebody asks for is ever made."""

OF_ITS_SLIDE, OF_ITS_LEVEL = (
    dg.MultiToSingleDimensionPartitionMapping(dimension) for dimension in ("slide", "level")
)
"""What a partition of both takes of an asset of slides, and of one of levels."""


def both(slide_id: str, level: str) -> dg.MultiPartitionKey:
    """The partition of a slide at a level."""
    return dg.MultiPartitionKey({"slide": slide_id, "level": level})


def parts_of(partition: str | None) -> tuple[str, str]:
    """Slide and level of a partition; the key of one of slides alone, or of levels alone, stands for both."""
    if isinstance(partition, dg.MultiPartitionKey):
        return partition.keys_by_dimension["slide"], partition.keys_by_dimension["level"]
    return partition or "", partition or ""


def stretches(order: Sequence[str], wanted: Collection[str], at_most: int) -> Iterator[list[str]]:
    """The stretches of ``order`` that are all wanted, none longer than ``at_most``."""
    stretch: list[str] = []
    for key in [*order, None]:
        if stretch and (key not in wanted or len(stretch) == at_most):
            yield stretch
            stretch = []
        if key in wanted:
            stretch.append(str(key))


def range_tags(stretch: Sequence[str]) -> dict[str, str]:
    """The tags of one run of many partitions, as `dagster asset materialize --partition-range` gives them."""
    return {
        "dagster/asset_partition_range_start": stretch[0],
        "dagster/asset_partition_range_end": stretch[-1],
    }
