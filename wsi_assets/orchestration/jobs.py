"""Jobs: what a user launches by name."""

from __future__ import annotations

import dagster as dg

from wsi_assets.orchestration import catalog

level_pipeline = dg.define_asset_job(
    catalog.LEVEL_PIPELINE,
    selection=dg.AssetSelection.assets(*catalog.LEVEL_ASSETS),
    description="One magnification level from index to evaluation. A new level is a backfill of this job.",
)

slide_regions = dg.define_asset_job(
    catalog.SLIDE_REGIONS,
    selection=dg.AssetSelection.assets(*catalog.SLIDE_ASSETS),
    description="Tissue and outline of one slide: run it again after mending a slide that failed.",
)

compare_levels = dg.define_asset_job(
    catalog.COMPARE_LEVELS,
    selection=dg.AssetSelection.assets("level_comparison"),
    description="All evaluated levels side by side, from the reports that are there.",
)

ALL_JOBS = [slide_regions, level_pipeline, compare_levels]
