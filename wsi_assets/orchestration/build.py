"""Puts the parts together; a test builds itself a fresh graph with its own folders."""

from __future__ import annotations

import dagster as dg

from wsi_assets.orchestration.assets.evaluation import evaluation, level_comparison
from wsi_assets.orchestration.assets.index import sampled_index, slide_index
from wsi_assets.orchestration.assets.learning import test_predictions, trained_model
from wsi_assets.orchestration.assets.patches import patch_store
from wsi_assets.orchestration.assets.slides import annotation_regions, slide_file, tissue_regions
from wsi_assets.orchestration.automation import build_slides_follow
from wsi_assets.orchestration.checks import ALL_CHECKS
from wsi_assets.orchestration.io_managers.models import ModelIOManager
from wsi_assets.orchestration.io_managers.patch_stores import PatchStoreIOManager
from wsi_assets.orchestration.io_managers.plain_pickle import PlainPickleIOManager
from wsi_assets.orchestration.io_managers.reports import ReportIOManager
from wsi_assets.orchestration.jobs import ALL_JOBS, step_processes
from wsi_assets.orchestration.resources.cluster import Cluster
from wsi_assets.orchestration.resources.library import SlideLibrary
from wsi_assets.orchestration.resources.storage import Storage
from wsi_assets.orchestration.resources.tracking import ModelTracking
from wsi_assets.orchestration.schedules import ALL_SCHEDULES, build_level_sensors
from wsi_assets.orchestration.sensors import build_slide_folder
from wsi_assets.orchestration.settings import Settings


def build_definitions(settings: Settings | None = None) -> dg.Definitions:
    """The asset graph on the given folders, by default those the environment names.

    Raises:
        ConfigError: an environment variable has an impossible value.
    """
    settings = settings or Settings.from_environment()
    storage_dir = str(settings.storage_dir)
    return dg.Definitions(
        assets=[
            slide_file,
            tissue_regions,
            annotation_regions,
            slide_index,
            sampled_index,
            patch_store,
            trained_model,
            test_predictions,
            evaluation,
            level_comparison,
        ],
        asset_checks=ALL_CHECKS,
        jobs=ALL_JOBS,
        executor=step_processes,
        sensors=[
            build_slide_folder(settings.look_every_seconds),
            build_slides_follow(settings.look_every_seconds),
            *build_level_sensors(settings.look_every_seconds),
        ],
        schedules=ALL_SCHEDULES,
        resources={
            "library": SlideLibrary(
                images_dir=str(settings.images_dir),
                annotations_dir=None if settings.annotations_dir is None else str(settings.annotations_dir),
            ),
            "storage": Storage(storage_dir=storage_dir),
            "cluster": Cluster(scheduler=settings.scheduler),
            "tracking": ModelTracking(storage_dir=storage_dir, tracking_uri=settings.tracking_uri),
            "pickle_io": PlainPickleIOManager(storage_dir=storage_dir),
            "patch_io": PatchStoreIOManager(
                storage_dir=storage_dir, backend=settings.patch_backend, scheduler=settings.scheduler
            ),
            "model_io": ModelIOManager(storage_dir=storage_dir),
            "report_io": ReportIOManager(storage_dir=storage_dir),
        },
    )
