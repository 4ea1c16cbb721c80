"""The two ways the data is cut: by slide and by magnification level."""

from __future__ import annotations

import dagster as dg

from wsi_assets.errors import ConfigError

SLIDES = dg.DynamicPartitionsDefinition(name="slides")
"""One key a slide id, added by the sensor or the command line, removed by ``wsi-assets retire`` alone."""

LEVELS = dg.DynamicPartitionsDefinition(name="levels")
"""Pyramid levels in use; one is added by ``wsi-assets run --level N`` or by "Add partition" in the UI."""

EVERY_PARTITION = {"partition_mapping": dg.AllPartitionMapping(), "metadata": {"load": "mapping"}}
"""For an ``AssetIn`` that takes all upstream partitions (every slide, every level) as a mapping by key."""

HIGHEST_LEVEL = 19
"""2^19 level-0 pixels are wider than any slide."""


def level_of(key: str) -> int:
    """The pyramid level that a partition key names.

    Raises:
        ConfigError: it names none.
    """
    if key.isascii() and key.isdigit() and str(int(key)) == key and int(key) <= HIGHEST_LEVEL:
        return int(key)
    raise ConfigError(
        f"{key!r} is not a level",
        remedy=f"Levels are pyramid levels, 0 to {HIGHEST_LEVEL}; delete the partition and add such a one",
    )
