"""Runs the graph from a script: registers slides, materializes what is missing or out of date.

Every run is a normal Dagster run of the instance, so the UI shows it. What is out of date is decided in
:mod:`.lineage`; how it is made is in the assets. Nothing here prints.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import dagster as dg

from wsi_assets.errors import ConfigError, EvaluationError, ModelError, SlideError, one_line
from wsi_assets.orchestration import catalog
from wsi_assets.orchestration.build import build_definitions
from wsi_assets.orchestration.config import parameters, run_config
from wsi_assets.orchestration.layout import StorageLayout
from wsi_assets.orchestration.level_state import recorded_level
from wsi_assets.orchestration.lineage import (
    Recorded,
    first_out_of_date,
    recorded,
    recorded_metadata,
    version_of,
)
from wsi_assets.orchestration.partitions import LEVELS, SLIDES
from wsi_assets.orchestration.registry import (
    Sighting,
    known_sightings,
    not_believable,
    register,
    slide_states,
)
from wsi_assets.orchestration.resources.library import SlideLibrary
from wsi_assets.orchestration.settings import Settings
from wsi_assets.orchestration.verdicts import failed_checks
from wsi_assets.progress import Progress, silent

if TYPE_CHECKING:
    from wsi_assets.slides import SlideListing


@dataclass
class LevelOutcome:
    """What happened to one level.

    Attributes:
        level: the level.
        made: assets materialized by this run.
        up_to_date: assets that needed no work.
        failure: one line, None when all went well.
        left_out: slide id -> reason.
        failed_checks: of the level's assets as they are now, one line each.
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
        tell: given one line for what is worth knowing before it is done.
    """

    def __init__(
        self,
        instance: dg.DagsterInstance,
        settings: Settings,
        configs: Mapping[str, dg.Config],
        progress: Progress = silent,
        tell: Callable[[str], None] = lambda line: None,
    ):
        self.instance = instance
        self.settings = settings
        self.configs = configs
        self.progress = progress
        self.tell = tell
        self.layout = StorageLayout(settings.storage_dir)
        self.library = SlideLibrary.of(settings)
        self.definitions = build_definitions(settings)

    def run_slides(self, *, outlines_gone: bool = False) -> SlidesOutcome:
        """Register the slides of the folder and make their regions where these are missing or out of date.

        Args:
            outlines_gone: believe that slides which all had outlines have none any more.

        Raises:
            SlideError: the folder cannot be listed, or what it shows looks like a disk that is not mounted.
        """
        outcome = SlidesOutcome()
        listing = self.library.look()
        known = known_sightings(self.instance, [slide.slide_id for slide in listing.slides])
        self._doubt(listing, {} if outlines_gone else known)
        outcome.left_out.update(listing.left_out)
        outcome.notices = list(listing.notices)
        known = register(self.instance, listing.slides, lambda line: None, known)
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
        made = recorded_level(self.instance, str(level))
        to_make = self._to_make(level, chain, made, usable)
        outcome.up_to_date = [asset for asset in chain if asset not in to_make]
        for line in self._changes(level, to_make, made):
            self.tell(line)
        outcome.failure = self._hopeless(to_make)
        if to_make and outcome.failure is None:
            result = self._execute(catalog.LEVEL_PIPELINE, str(level), to_make)
            outcome.made = _materialized_by(result)
            outcome.failure = None if result.success else _failure_of(result)
        outcome.failed_checks = failed_checks(self.instance, str(level), [*outcome.up_to_date, *outcome.made])
        outcome.metadata = {asset: recorded_metadata(self.instance, asset, str(level)) for asset in chain}
        if outcome.failure is None:
            outcome.left_out = dict(outcome.metadata["slide_index"].get("left_out", {}))
        outcome.seconds = time.monotonic() - started
        return outcome

    def compare_levels(self) -> dict[str, Any]:
        """Set all evaluated levels side by side; returns the comparison's metadata.

        Raises:
            EvaluationError: it could not be made.
        """
        result = self._execute(catalog.COMPARE_LEVELS, None, [])
        if not result.success:
            raise EvaluationError(f"the levels cannot be compared: {_failure_of(result)}")
        record = self.instance.get_latest_materialization_event(dg.AssetKey("level_comparison"))
        metadata = record.asset_materialization.metadata if record else {}
        return {name: value.value for name, value in metadata.items()}

    def _doubt(self, listing: SlideListing, known: Mapping[str, Sighting]) -> None:
        slides = [slide.slide_id for slide in listing.slides]
        registered = self.instance.get_dynamic_partitions(SLIDES.name)
        outlined = [slide.slide_id for slide in listing.slides if slide.annotation_path]
        doubt = not_believable(slides, outlined, registered, known.values())
        if doubt:
            raise SlideError(doubt, path=self.settings.images_dir)
        if not slides and not listing.left_out:
            raise SlideError(
                "holds no slides",
                path=self.settings.images_dir,
                remedy="Set --images (WSI_IMAGES_DIR) to the folder of the slide files",
            )

    def _slide_versions(self, sighting: Sighting) -> dict[str, str]:
        tissue = version_of(
            "tissue_regions", parameters(self.configs["tissue_regions"]), sighting.slide_version
        )
        made_from = [sighting.annotation_version, tissue]
        outline = version_of("annotation_regions", parameters(self.configs["annotation_regions"]), made_from)
        return {"tissue_regions": tissue, "annotation_regions": outline}

    def _changes(self, level: int, to_make: list[str], made: Mapping[str, Recorded]) -> Iterator[str]:
        """What was made with other parameters than it is made with now: often one that was left out."""
        for asset in (asset for asset in to_make if asset in made):
            before = made[asset].parameters
            differs = [
                f"{name} from {before[name]} to {value}"
                for name, value in parameters(self.configs[asset]).items()
                if name in before and before[name] != value
            ]
            if differs:
                yield f"level {level}: {asset} is made again, with {', '.join(differs)}"

    def _hopeless(self, to_make: list[str]) -> str | None:
        """Why a training that is still to come cannot start, told before hours are spent on its patches."""
        if "trained_model" not in to_make:
            return None
        from wsi_assets.learning.models import check_start

        config = self.configs["trained_model"]
        try:
            check_start(config.model_name, config.weights)
        except ModelError as error:
            return str(error)
        return None

    def _to_make(
        self, level: int, chain: Sequence[str], made: Mapping[str, Recorded], usable: dict[str, list[str]]
    ) -> list[str]:
        """What is out of date, and what is not there any more.

        Of the same inputs the same is made again, so nothing below a store that was deleted has to follow;
        but for a model, which a GPU does not train twice to the last digit.
        """
        versions = {asset: latest.version for asset, latest in made.items()}
        stale_from = first_out_of_date(chain, versions, self._expected(level, usable))
        cut = len(chain) if stale_from is None else chain.index(stale_from)
        gone = {asset for asset in chain if not self.layout.is_made(asset, level)}
        if "trained_model" in gone:
            cut = min(cut, chain.index("trained_model"))
        return [asset for at, asset in enumerate(chain) if at >= cut or asset in gone]

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
