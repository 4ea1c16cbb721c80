"""Jobs: what a user launches by name."""

from __future__ import annotations

import dagster as dg

from wsi_assets.orchestration import catalog
from wsi_assets.orchestration.checks import lineage_gates

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

level_lineage = dg.define_asset_job(
    catalog.LEVEL_LINEAGE,
    selection=dg.AssetSelection.checks(lineage_gates),
    description="Says of a level's assets which are older than what they were made from. Makes nothing.",
)

step_processes = dg.multiprocess_executor.configured(
    {"start_method": {"forkserver": {"preload_modules": ["wsi_assets.definitions"]}}}
)
"""A process for every step, so that a step that takes the machine down takes only itself; forked from one
that has the graph loaded, because a level has a dozen steps and a fresh process takes seconds to start."""

ALL_JOBS = [slide_regions, level_pipeline, compare_levels, level_lineage]
