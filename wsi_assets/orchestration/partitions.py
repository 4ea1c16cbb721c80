"""The two ways the data is cut: by slide and by level or magnification."""

from __future__ import annotations

import dagster as dg

SLIDES = dg.DynamicPartitionsDefinition(name="slides")
"""One key a slide id, added by the sensor or the command line, removed by ``wsi-assets retire`` alone."""

LEVELS = dg.DynamicPartitionsDefinition(name="levels")
"""Pyramid levels (4), magnifications (10x) and pixel sizes (0.5um) in use, as
:class:`wsi_assets.slides.Resolution` reads them; ``wsi-assets run`` or "Add partition" in the UI adds one."""

EVERY_PARTITION = {"partition_mapping": dg.AllPartitionMapping(), "metadata": {"load": "mapping"}}
"""For an ``AssetIn`` that takes all upstream partitions (every slide, every level) as a mapping by key."""
