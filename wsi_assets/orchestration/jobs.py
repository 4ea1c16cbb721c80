"""Jobs: what a user launches by name."""

from __future__ import annotations

import dagster as dg

from wsi_assets.orchestration.artefact import Artefact

LEVEL_PIPELINE = "level_pipeline"
SLIDE_REGIONS = "slide_regions"
COMPARE_LEVELS = "compare_levels"

step_processes = dg.multiprocess_executor.configured(
    {"start_method": {"forkserver": {"preload_modules": ["wsi_assets.definitions"]}}}
)
"""A process for every step, so that a step that takes the machine down takes only itself; forked from one
that has the graph loaded, because a level has a dozen steps and a fresh process takes seconds to start."""


def build_jobs(artefacts: tuple[Artefact, ...]) -> list:
    """The jobs over these assets."""

    def of(chosen: list[Artefact]) -> dg.AssetSelection:
        return dg.AssetSelection.assets(*(artefact.key for artefact in chosen))

    return [
        dg.define_asset_job(
            SLIDE_REGIONS,
            selection=of([one for one in artefacts if one.by_slide]),
            description="Tissue and annotation of slides: run it again after mending a slide that failed.",
        ),
        dg.define_asset_job(
            LEVEL_PIPELINE,
            selection=of([one for one in artefacts if one.by_level]),
            description="One level from index to evaluation. Add a level in the dialog, or choose levels in "
            "use.",
        ),
        dg.define_asset_job(
            COMPARE_LEVELS,
            selection=of([one for one in artefacts if one.partitions_def is None]),
            description="All evaluated levels side by side, from the reports that are there.",
        ),
    ]
