"""A small cohort and a graph on it, with a real Dagster instance."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from shapely import box

from wsi_assets.demo.writing import write_asap
from wsi_assets.orchestration.build import build_definitions
from wsi_assets.orchestration.partitions import LEVELS, SLIDES
from wsi_assets.orchestration.settings import Settings
from wsi_assets.orchestration.storage import StorageResource
from wsi_assets_tests.slides.made import halved, picture, write_pyramid

QUICK = {
    "slide_index": {"patch_size": 32},
    "trained_model": {
        "model_name": "resnet10t",
        "weights": "none",
        "max_epochs": 1,
        "batch_size": 16,
        "num_workers": 0,
    },
    "test_predictions": {"num_workers": 0},
    "evaluation": {"bootstrap_samples": 20, "heatmap_side": 200},
}
"""Parameters with which a level is made in seconds, for tests that do not depend on its metrics."""


def write_cohort(
    home: Path, names: tuple[str, ...] = ("normal_001", "tumor_001", "tumor_002", "test_001")
) -> None:
    """Write small slides, with an annotation for each whose name is not normal."""
    for folder in ("images", "annotations"):
        (home / folder).mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(names):
        write_slide(home, name, seed)
        if not name.startswith("normal"):
            annotate(home, name)


def write_slide(home: Path, name: str, seed: int) -> None:
    whole = picture(256, 224, seed)
    write_pyramid(home / "images" / f"{name}.tif", [whole, halved(whole, 1)], tile=64, mpp=0.25)


def annotate(home: Path, name: str, size: int = 130) -> None:
    write_asap(home / "annotations" / f"{name}.xml", [("_0", box(10, 20, size, 150))])


class Graph:
    """The asset graph on the folders below ``home``, run in this process."""

    def __init__(self, home: Path, instance: dg.DagsterInstance):
        self.home, self.instance = home, instance
        self.settings = Settings(home / "images", home / "annotations", home / "storage")
        self.storage = StorageResource(storage_dir=str(home / "storage"))

    def slides(self) -> list[str]:
        return list(self.instance.get_dynamic_partitions(SLIDES.name))

    def make(
        self, *assets: str, partition: str | None = None, slides: tuple[str, str] | None = None, **config: Any
    ) -> dg.ExecuteInProcessResult:
        """Materialize assets of one partition, or of the slides from the first to the last."""
        if partition is not None and partition.isdigit():
            self.instance.add_dynamic_partitions(LEVELS.name, [partition])
        tags = {}
        if slides is not None:
            tags = {
                "dagster/asset_partition_range_start": slides[0],
                "dagster/asset_partition_range_end": slides[1],
            }
        job = build_definitions(self.settings).resolve_implicit_global_asset_job_def()
        return job.execute_in_process(
            instance=self.instance,
            partition_key=partition,
            asset_selection=[dg.AssetKey(asset) for asset in assets],
            run_config={
                "ops": {asset: {"config": values} for asset, values in config.items()},
                "loggers": {"console": {"config": {"log_level": "CRITICAL"}}},
            },
            tags=tags,
            raise_on_error=False,
        )


def fault_of(result: dg.ExecuteInProcessResult) -> str:
    """The message of the failed step of a run; asserts that it is one line without a traceback."""
    (failed,) = [event for event in result.all_events if event.is_step_failure][:1]
    failure = failed.step_failure_data.user_failure_data
    assert failure is not None, failed.step_failure_data.error
    assert "\n" not in failure.description
    return failure.description


@pytest.fixture
def graph(tmp_path) -> Iterator[Graph]:
    """An empty cohort and an instance of its own."""
    write_cohort(tmp_path, ())
    with dg.instance_for_test() as instance:
        yield Graph(tmp_path, instance)
