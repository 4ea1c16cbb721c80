"""Runs the graph from a script: registers slides, materializes what is missing or out of date.

Every run is a normal Dagster run of the instance, so the UI shows it. What is out of date is decided in
:mod:`.lineage`; how it is made is in the assets. Nothing here prints.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import dagster as dg

from wsi_assets.errors import ConfigError, one_line
from wsi_assets.orchestration import catalog
from wsi_assets.orchestration.build import build_definitions
from wsi_assets.orchestration.config import parameters, run_config
from wsi_assets.orchestration.layout import StorageLayout
from wsi_assets.orchestration.lineage import (
    first_out_of_date,
    recorded,
    recorded_metadata,
    version_of,
)
from wsi_assets.orchestration.partitions import LEVELS
from wsi_assets.orchestration.registry import Sighting, register, slide_states
from wsi_assets.orchestration.resources.library import SlideLibrary
from wsi_assets.orchestration.settings import Settings
from wsi_assets.progress import Progress, silent


@dataclass
class LevelOutcome:
    """What happened to one level.

    Attributes:
        level: the level.
        made: assets materialized by this run.
        up_to_date: assets that needed no work.
        failure: one line, None when all went well.
        left_out: slide id -> reason.
        failed_checks: of the assets made by this run, one line each.
        seconds: wall time.
        metadata: asset -> the metadata of its latest materialization.
    """

    level: int
    made: list[str] = field(default_factory=list)
    up_to_date: list[str] = field(default_factory=list)
    failure: str | None = None
    left_out: dict[str, str] = field(default_factory=dict)
    failed_checks: list[str] = field(default_factory=list)
    seconds: float = 0.0
    metadata: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass
class SlidesOutcome:
    """What happened to the slides.

    Attributes:
        made: slide ids whose regions were made by this run.
        up_to_date: slide ids that needed no work.
        left_out: slide id -> reason.
        notices: one line each on what cost no slide.
    """

    made: list[str] = field(default_factory=list)
    up_to_date: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)


class Runner:
    """One instance, one set of folders, one set of parameters.

    Args:
        instance: the Dagster instance that records the runs.
        settings: the folders and the patch backend.
        configs: asset -> its configuration.
        progress: told how many slides are done.
    """

    def __init__(
        self,
        instance: dg.DagsterInstance,
        settings: Settings,
        configs: Mapping[str, dg.Config],
        progress: Progress = silent,
    ):
        self.instance = instance
        self.settings = settings
        self.configs = configs
        self.progress = progress
        self.layout = StorageLayout(settings.storage_dir)
        self.library = SlideLibrary.of(settings)
        self.definitions = build_definitions(settings)

    def run_slides(self) -> SlidesOutcome:
        """Register the slides of the folder and make their regions where these are missing or out of date.

        Raises:
            SlideError: the folder cannot be listed.
        """
        outcome = SlidesOutcome()
        listing = self.library.look()
        outcome.left_out.update(listing.left_out)
        outcome.notices = list(listing.notices)
        known = register(self.instance, listing.slides, lambda line: None)
        versions = {asset: recorded(self.instance, asset, known) for asset in catalog.SLIDE_ASSETS}
        for done, (slide_id, sighting) in enumerate(sorted(known.items())):
            self.progress(done, len(known), "slides: tissue and outlines")
            expected = self._slide_versions(sighting)
            stale = [
                asset
                for asset in catalog.SLIDE_ASSETS
                if slide_id not in versions[asset]
                or versions[asset][slide_id].version != expected[asset]
                or not self.layout.slide_artefact(asset, slide_id).is_file()
            ]
            if not stale:
                outcome.up_to_date.append(slide_id)
                continue
            result = self._execute(catalog.SLIDE_REGIONS, slide_id, stale)
            if result.success:
                outcome.made.append(slide_id)
            else:
                outcome.left_out[slide_id] = _failure_of(result)
        self.progress(len(known), len(known), "slides: tissue and outlines")
        return outcome

    def run_level(self, level: int, upto: str = "evaluation") -> LevelOutcome:
        """Make a level's assets up to ``upto``, from the first that is out of date.

        Raises:
            ConfigError: there is no such level or asset.
        """
        chain = level_chain(level, upto)
        outcome = LevelOutcome(level)
        started = time.monotonic()
        usable, outcome.left_out = slide_states(self.instance, self.library.look())
        stale_from = first_out_of_date(
            chain, {asset: self._current(asset, level) for asset in chain}, self._expected(level, usable)
        )
        cut = len(chain) if stale_from is None else chain.index(stale_from)
        outcome.up_to_date = list(chain[:cut])
        if stale_from is not None:
            result = self._execute(catalog.LEVEL_PIPELINE, str(level), list(chain[cut:]))
            outcome.made = _materialized_by(result)
            outcome.failure = None if result.success else _failure_of(result)
            outcome.failed_checks = _failed_checks(result)
        outcome.metadata = {asset: recorded_metadata(self.instance, asset, str(level)) for asset in chain}
        if outcome.failure is None:
            outcome.left_out = dict(outcome.metadata["slide_index"].get("left_out", {}))
        outcome.seconds = time.monotonic() - started
        return outcome

    def compare_levels(self) -> dict[str, Any]:
        """Set all evaluated levels side by side; returns the comparison's metadata."""
        self._execute(catalog.COMPARE_LEVELS, None, [])
        record = self.instance.get_latest_materialization_event(dg.AssetKey("level_comparison"))
        metadata = record.asset_materialization.metadata if record else {}
        return {name: value.value for name, value in metadata.items()}

    def _slide_versions(self, sighting: Sighting) -> dict[str, str]:
        tissue = version_of(
            "tissue_regions", parameters(self.configs["tissue_regions"]), sighting.slide_version
        )
        made_from = [sighting.annotation_version, tissue]
        outline = version_of("annotation_regions", parameters(self.configs["annotation_regions"]), made_from)
        return {"tissue_regions": tissue, "annotation_regions": outline}

    def _current(self, asset: str, level: int) -> str | None:
        latest = recorded(self.instance, asset, [str(level)]).get(str(level))
        return latest.version if latest and self.layout.level_artefact(asset, level).exists() else None

    def _expected(self, level: int, usable: dict[str, list[str]]) -> Callable[[str, str | None], str]:
        def expected(asset: str, before: str | None) -> str:
            made_from: Any = before
            if asset == "slide_index":
                made_from = [level, usable]
            elif asset == "patch_store":
                made_from = [before, self.settings.patch_backend]
            return version_of(asset, parameters(self.configs[asset]), made_from)

        return expected

    def _execute(self, job: str, partition: str | None, assets: list[str]) -> dg.ExecuteInProcessResult:
        return self.definitions.resolve_job_def(job).execute_in_process(
            instance=self.instance,
            partition_key=partition,
            asset_selection=[dg.AssetKey(asset) for asset in assets] or None,
            run_config={
                **run_config(self.configs, assets),
                # The terminal shows progress and one line a fault; the whole log is in the UI.
                "loggers": {"console": {"config": {"log_level": "CRITICAL"}}},
            },
            tags={catalog.LAUNCHED_BY: "command line"},
            raise_on_error=False,
        )


def level_chain(level: int, upto: str) -> tuple[str, ...]:
    """The assets that make a level up to ``upto``, in order.

    Raises:
        ConfigError: there is no such level or asset.
    """
    if str(level) not in LEVELS.get_partition_keys():
        raise ConfigError(f"there is no level {level}", remedy="Levels are 0 to 9")
    if upto not in catalog.LEVEL_ASSETS:
        raise ConfigError(
            f"there is no level asset {upto!r}", remedy=f"Choose one of {', '.join(catalog.LEVEL_ASSETS)}"
        )
    return catalog.LEVEL_ASSETS[: catalog.LEVEL_ASSETS.index(upto) + 1]


def _failed_checks(result: dg.ExecuteInProcessResult) -> list[str]:
    return [
        f"{check.asset_key.to_user_string()} {check.check_name}: {check.description or 'failed'}"
        for check in result.get_asset_check_evaluations()
        if not check.passed
    ]


def _materialized_by(result: dg.ExecuteInProcessResult) -> list[str]:
    return [event.asset_key.to_user_string() for event in result.get_asset_materialization_events()]


def _failure_of(result: dg.ExecuteInProcessResult) -> str:
    for event in result.all_events:
        if event.is_step_failure:
            data = event.step_failure_data
            if data.user_failure_data and data.user_failure_data.description:
                return data.user_failure_data.description
            error = data.error.cause or data.error
            return one_line(f"{event.step_key}: {error.message}")
    return "the run did not finish"
