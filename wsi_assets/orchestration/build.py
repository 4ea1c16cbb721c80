"""Build the Dagster definitions from assets, checks, jobs, sensors and resources.

Assets are found in the package ``assets``: to add one, put a module there.
"""

from __future__ import annotations

from collections.abc import Callable

import dagster as dg

from wsi_assets.orchestration import assets
from wsi_assets.orchestration.artefact import Artefact, all_artefacts, level_chain, slide_artefacts
from wsi_assets.orchestration.asset_checks import ALL_CHECKS
from wsi_assets.orchestration.assets import cross_validation, index, slide_prediction
from wsi_assets.orchestration.automation import build_automation_sensors, follow_index
from wsi_assets.orchestration.io_managers import (
    ModelIOManager,
    PatchStoreIOManager,
    PickleIOManager,
    ReportIOManager,
)
from wsi_assets.orchestration.mlflow import MlflowResource
from wsi_assets.orchestration.partitions import LEVELS
from wsi_assets.orchestration.resources import SlideFolderResource, WorkersResource
from wsi_assets.orchestration.sensors import build_prediction_sensor, build_slide_folder_sensor
from wsi_assets.orchestration.settings import Settings
from wsi_assets.orchestration.storage import StorageResource

LEVEL_PIPELINE, CROSS_VALIDATED_LEVEL = "level_pipeline", "cross_validated_level"
SLIDE_REGIONS, COMPARE_LEVELS, LEVEL_CHECKS = "slide_regions", "compare_levels", "level_checks"

STEP_PROCESSES = dg.multiprocess_executor.configured(
    {"start_method": {"forkserver": {"preload_modules": ["wsi_assets.definitions"]}}}
)
"""Each step runs in its own process, so that a crash ends only that step. The processes are forked from one
that has imported the definitions, because a level has a dozen steps and each import takes seconds."""


def build_definitions(settings: Settings | None = None) -> dg.Definitions:
    """The Dagster definitions for the folders in ``settings``, by default those of the environment.

    Raises:
        ConfigError: an environment variable has an impossible value.
    """
    settings = settings or Settings.from_environment()
    storage_dir = str(settings.storage_dir)
    automated = [artefact for artefact in all_artefacts() if artefact.automation]
    conditions = {artefact.key: artefact.automation(settings.timezone) for artefact in automated}
    definitions = dg.map_asset_specs(
        lambda spec: (
            spec.replace_attributes(automation_condition=conditions[spec.key])
            if spec.key in conditions
            else spec
        ),
        dg.load_assets_from_package_module(assets),
    )
    stores = [artefact.name for artefact in automated if artefact.automation is follow_index]
    others = [artefact.name for artefact in automated if artefact.automation is not follow_index]
    return dg.Definitions(
        assets=definitions,
        asset_checks=ALL_CHECKS,
        jobs=_jobs(),
        executor=STEP_PROCESSES,
        sensors=[
            build_slide_folder_sensor(settings.poll_seconds),
            build_prediction_sensor(settings.poll_seconds),
            *build_automation_sensors(settings.poll_seconds, others, stores),
        ],
        resources={
            "folder": SlideFolderResource.of(settings),
            "storage": StorageResource.of(settings),
            "workers": WorkersResource(scheduler=settings.scheduler),
            "mlflow": MlflowResource.of(settings),
            "pickle_io": PickleIOManager(storage_dir=storage_dir),
            "patch_io": PatchStoreIOManager(storage_dir=storage_dir),
            "model_io": ModelIOManager(storage_dir=storage_dir),
            "report_io": ReportIOManager(storage_dir=storage_dir),
        },
    )


def _jobs() -> list:
    """The jobs that a user launches in the UI."""

    def assets_where(wanted: Callable[[Artefact], bool]) -> dg.AssetSelection:
        return dg.AssetSelection.assets(*(one.key for one in all_artefacts() if wanted(one)))

    crossed = cross_validation.CROSS_VALIDATION
    return [
        dg.define_asset_job(
            SLIDE_REGIONS,
            assets_where(lambda one: one in slide_artefacts()),
            description="Tissue and annotation of slides. Run it again after repairing a slide that failed.",
        ),
        dg.define_asset_job(
            LEVEL_PIPELINE,
            assets_where(lambda one: one in level_chain()),
            description="One level from index to evaluation. Choose levels in the dialog, or add one: a "
            "pyramid level (4), a magnification (10x) or a pixel size (0.5um).",
        ),
        dg.define_asset_job(
            CROSS_VALIDATED_LEVEL,
            assets_where(lambda one: one in (index.SLIDE_INDEX, *crossed.inputs, crossed)),
            description="One level from index to cross-validation.",
        ),
        dg.define_asset_job(
            COMPARE_LEVELS,
            assets_where(lambda one: one.partitions_def is None),
            description="A page that compares all evaluated levels, from their reports.",
        ),
        dg.define_asset_job(
            slide_prediction.PREDICT_SLIDES,
            assets_where(lambda one: one is slide_prediction.SLIDE_PREDICTION),
            description="Predicts slides with the model of a level. Choose one level and the slides.",
        ),
        dg.define_asset_job(
            LEVEL_CHECKS,
            dg.AssetSelection.all_asset_checks(),
            partitions_def=LEVELS,
            description="Evaluates every check of a level, for example to see what is out of date after "
            "parameters.yaml was edited. Changes no artefact.",
        ),
    ]
