"""The two ways the data is cut: by slide and by magnification level."""

from __future__ import annotations

import dagster as dg

SLIDES = dg.DynamicPartitionsDefinition(name="slides")
"""One key a slide id, added by the sensor or the command line, never removed on its own."""

LEVELS = dg.StaticPartitionsDefinition([str(level) for level in range(10)])
"""Pyramid levels; a level nobody has materialized yet is a backfill away."""

EVERY_PARTITION = {"partition_mapping": dg.AllPartitionMapping(), "metadata": {"load": "mapping"}}
"""For an ``AssetIn`` that takes all upstream partitions (every slide, every level) as a mapping by key."""
