"""Run the asset graph from a script: register slides, make what is missing or out of date.

Every run is a normal Dagster run in the instance, so the UI shows it. :mod:`.level_plan` decides from files
alone what is out of date. This module does not print; :mod:`wsi_assets.console` does.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import dagster as dg

from wsi_assets.errors import ConfigError, EvaluationError, SlideError, WsiAssetsError, one_line
from wsi_assets.orchestration.artefact import Artefact, all_artefacts, level_artefacts, slide_artefacts
from wsi_assets.orchestration.asset_checks import CHECKS, Level, evaluate_checks_of
from wsi_assets.orchestration.assets.index import SLIDE_INDEX
from wsi_assets.orchestration.assets.learning import TRAINED_MODEL
from wsi_assets.orchestration.assets.patches import PATCH_STORE
from wsi_assets.orchestration.assets.slide_prediction import (
    PREDICT_SLIDES,
    RULES,
    SLIDE_PREDICTION,
    SUMMARY,
    find_detector,
    unpredicted,
)
from wsi_assets.orchestration.assets.slides import TISSUE_REGIONS
from wsi_assets.orchestration.build import (
    COMPARE_LEVELS,
    CROSS_VALIDATED_LEVEL,
    LEVEL_PIPELINE,
    SLIDE_REGIONS,
    build_definitions,
)
from wsi_assets.orchestration.config import ParameterSet, options_of
from wsi_assets.orchestration.instance import LOCATION
from wsi_assets.orchestration.level_plan import stale_artefacts, stale_slides, usable_slides
from wsi_assets.orchestration.mlflow import MlflowResource
from wsi_assets.orchestration.partitions import LEVELS, SLIDES, both, range_tags, stretches
from wsi_assets.orchestration.resources import SlideFolderResource
from wsi_assets.orchestration.settings import Settings
from wsi_assets.orchestration.slide_folder import (
    SLIDE_ANNOTATION,
    SLIDE_IMAGE,
    Seen,
    doubt,
    known_slides,
    observe_all,
    register,
)
from wsi_assets.orchestration.storage import StorageResource
from wsi_assets.running import stop_requested
from wsi_assets.slides.resolution import words_of

if TYPE_CHECKING:
    from wsi_assets.orchestration.storage import Record

SLIDES_A_RUN = 200
"""Largest number of slides in one run; a killed run keeps the slides that it finished."""


@dataclass
class SlidesOutcome:
    """Result of :meth:`CommandLineRun.run_slides`.

    Attributes:
        made: ids of the slides whose regions were made.
        up_to_date: ids of the slides that needed no work.
        left_out: slide id -> reason.
        notices: lines for the user, each with its slide id if it is about one slide.
    """

    made: list[str] = field(default_factory=list)
    up_to_date: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)


@dataclass
class LevelOutcome:
    """Result of :meth:`CommandLineRun.run_level`.

    Attributes:
        made: assets materialized by this run.
        up_to_date: assets that needed no work.
        failure: one line; None if the run succeeded.
        left_out: slide id -> reason.
        failed_checks: one line for each failed check on the current artefacts.
        seconds: duration.
        records: asset -> provenance record of its current artefact.
    """

    level: str
    made: list[str] = field(default_factory=list)
    up_to_date: list[str] = field(default_factory=list)
    failure: str | None = None
    left_out: dict[str, str] = field(default_factory=dict)
    failed_checks: list[str] = field(default_factory=list)
    seconds: float = 0.0
    records: dict[str, Record] = field(default_factory=dict)


@dataclass
class PredictionOutcome:
    """Result of :meth:`CommandLineRun.predict_slides`.

    Attributes:
        slides: slide id -> contents of its ``prediction.json``.
        made: number of these slides that this run predicted.
        left_out: slide id -> reason.
        notices: lines for the user.
        failure: one line if a run failed for another reason than single slides, else None.
    """

    slides: dict[str, dict[str, Any]] = field(default_factory=dict)
    made: int = 0
    left_out: dict[str, str] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)
    failure: str | None = None


class CommandLineRun:
    """Runs slides and levels in one Dagster instance, on one set of folders.

    Args:
        given: parameters that override those in ``parameters.yaml``.
        say: is called with one line for each parameter change and each reason to make an asset again.
    """

    def __init__(
        self,
        instance: dg.DagsterInstance,
        settings: Settings,
        given: ParameterSet,
        say: Callable[[str], None] = lambda line: None,
    ):
        self.instance, self.settings, self.given, self.say = instance, settings, given, say
        self.folder = SlideFolderResource.of(settings)
        self.storage = StorageResource.of(settings)
        self.definitions = build_definitions(settings)

    def plan(self, levels: Sequence[str], upto: str = "evaluation") -> list[str]:
        """One line for everything that a run would make, with the reason; changes nothing.

        Raises:
            ConfigError: ``upto`` is not an asset of levels.
            SlideError: the folder of slides cannot be listed, or most registered slides are gone.
        """
        parameters, lines = (self.storage.parameters.read(), self.given), []
        seen, _, _ = self._observe(annotations_gone=False)
        stale: dict[str, str] = {}
        for artefact in slide_artefacts():
            lines += self.storage.parameters.changes(artefact, None, self._given_for(artefact, None))
            found = stale_slides(self.storage, artefact, seen, *parameters)
            if artefact.inputs:
                found = dict.fromkeys(stale, "its inputs are made again") | found
            stale |= found
            for why, count in Counter(found.values()).items():
                lines.append(f"{artefact.name} of {count} slides: {why}")
        versions = {
            slide_id: [self.storage.version(artefact, slide_id) for artefact in slide_artefacts()]
            for slide_id in sorted(seen)
        }
        # A slide that will be made again has no version yet, so this differs from every recorded one.
        usable = {
            slide_id: ["to be made"] if slide_id in stale else found for slide_id, found in versions.items()
        }
        for level in levels:
            chain = chain_upto(upto)
            for artefact in chain:
                lines += self.storage.parameters.changes(artefact, level, self._given_for(artefact, level))
            for name, why in stale_artefacts(self.storage, chain, level, usable, *parameters).items():
                lines.append(f"{name} of {words_of(level)}: {why}")
        return lines

    def check_sides(self, levels: Sequence[str], *, no_test: bool = False) -> None:
        """Check that there are slides to train and to test on, before anything is made.

        Args:
            no_test: accept that there are no test slides.

        Raises:
            ConfigError: no slide is a test slide, no training slide has an annotation, or the name of a slide
                contradicts its annotation and the slide is not accepted.
        """
        from wsi_assets.index.curation import name_contradiction
        from wsi_assets.slides import is_test_slide

        slides, cohort = self.folder.slides(), self.folder.cohort()
        slides = {one: slide for one, slide in slides.items() if slide.cohort_row.label != "unknown"}
        options: Any = options_of(SLIDE_INDEX, None, self.storage.parameters.read(), self.given)
        accepted = accepted_slides(self.settings, levels, self.given)
        sides = cohort.sides(cohort.patients(slides, options.patient_pattern))
        named = {one: "test" for one in slides if is_test_slide(one, options.test_pattern)}
        test = {one for one, side in {**named, **sides}.items() if side == "test"}
        annotated = {one for one, slide in slides.items() if slide.annotation_path or slide.correction_path}
        if slides and not test and not no_test:
            raise ConfigError(
                f"none of {len(slides)} slides is a test slide (test_pattern {options.test_pattern!r})",
                path=self.settings.images_dir,
                remedy="Name them in cohort.csv (`wsi-assets doctor --write-cohort` writes a first one), or "
                "train without test slides (--no-test)",
            )
        if slides and not annotated - test:
            raise ConfigError(
                f"none of {len(slides.keys() - test)} training slides has an annotation",
                path=self.settings.annotations_dir or self.settings.images_dir,
                remedy="Set --annotations to the folder of annotations",
            )
        for one, slide in slides.items():
            if one not in accepted and (why := name_contradiction(slide)):
                raise ConfigError(f"{one} is {why}", path=slide.path)

    def check_weights(self, levels: Sequence[str]) -> None:
        """Check network and initial weights of the models to be trained, before any patch is extracted.

        Raises:
            ModelError: timm has no such network, or the weights are neither on this machine nor online.
        """
        from wsi_assets.learning.models import check_weights

        wanted: set[tuple[str, str]] = set()
        for level in levels:
            options: Any = options_of(TRAINED_MODEL, level, self.storage.parameters.read(), self.given)
            start, record = (options.model_name, options.weights), self.storage.record(TRAINED_MODEL, level)
            before = record and (record.parameters.get("model_name"), record.parameters.get("weights"))
            if start != before:  # else there is a model, and the weights that it began with may be gone
                wanted.add(start)
        for name, weights in wanted:
            check_weights(name, weights)

    def run_slides(
        self,
        artefacts: Sequence[Artefact] | None = None,
        only: Collection[str] = (),
        *,
        annotations_gone: bool = False,
    ) -> SlidesOutcome:
        """Register the slides of the folder and make regions that are missing or out of date.

        Args:
            artefacts: artefacts to make, by default all artefacts of slides.
            only: ids of the slides, by default all slides of the folder.
            annotations_gone: accept that most annotations were removed; by default that is an error.

        Raises:
            ConfigError: an id in ``only`` has no slide in the folder.
            SlideError: the folder cannot be listed, or so many files are gone that a disk may not be mounted.
            WsiAssetsError: a run failed for another reason than single slides, e.g. a full disk; what it made
                before is kept.
        """
        self.storage.parameters.read()
        regions = artefacts or slide_artefacts()
        seen, outcome, known = self._observe(annotations_gone, only)
        register(self.instance, self.storage, known, seen, known)
        made: set[str] = set()
        # First all regions in one run for slides that lack all, then each asset for the remaining slides.
        for some in (regions, *((one,) for one in regions if len(regions) > 1)):
            made |= self._make_slides(some, seen, outcome, annotations_gone)
        outcome.made = sorted(made - outcome.left_out.keys())
        for slide_id in outcome.made:
            records = [self.storage.record(artefact, slide_id) for artefact in regions]
            notices = [line for record in records if record for line in record.facts.get("notices", [])]
            outcome.notices += [f"{slide_id}: {line}" for line in notices]
        outcome.up_to_date = sorted(seen.keys() - made - outcome.left_out.keys())
        return outcome

    def run_level(self, level: str, upto: str = "evaluation") -> LevelOutcome:
        """Make the assets of a level up to ``upto`` that are missing or out of date, in one run.

        A failed run is reported in the result, not raised.

        Raises:
            ConfigError: ``upto`` is not an asset of levels.
            SlideError: the folder of slides cannot be listed.
        """
        chain, outcome, started = chain_upto(upto), LevelOutcome(level), time.monotonic()
        self.instance.add_dynamic_partitions(LEVELS.name, [level])
        usable, outcome.left_out = usable_slides(self.storage, self.folder, self.instance)
        parameters = (self.storage.parameters.read(), self.given)
        stale = stale_artefacts(self.storage, chain, level, usable, *parameters)
        outcome.up_to_date = [artefact.name for artefact in chain if artefact.name not in stale]
        for name, why in stale.items():
            if why != "is not made":
                self.say(f"{words_of(level)}: {name} is made again ({why})")
        self._keep(chain, level)
        self._evaluate_open_checks([artefact for artefact in chain if artefact.name not in stale], level)
        if stale:
            job = CROSS_VALIDATED_LEVEL if chain[-1].optional else LEVEL_PIPELINE
            result = self._execute(job, stale, partition_key=level)
            outcome.made = [e.asset_key.to_user_string() for e in result.get_asset_materialization_events()]
            if not result.success:
                outcome.failure = self._failure(result, chain, level, stale.keys() - outcome.made)
        outcome.records = {
            artefact.name: record
            for artefact in chain
            if (record := self.storage.record(artefact, level)) is not None
        }
        outcome.failed_checks = self.storage.failed_checks(chain, level)
        if outcome.failure is None:
            outcome.left_out = dict(outcome.records[chain[0].name].facts.get("left_out", {}))
        outcome.seconds = time.monotonic() - started
        return outcome

    def _failure(
        self, result: dg.ExecuteInProcessResult, chain: Sequence[Artefact], key: str, unmade: Collection[str]
    ) -> str | None:
        """Why the assets in ``unmade`` were not made; None if only checks failed and all assets were made."""
        for artefact in chain:
            for name, (passed, text) in self.storage.check_results(artefact, key).items():
                if name in artefact.must_pass and not passed:
                    return f"nothing is made from {artefact.name}: {name}: {text}" if unmade else None
        return failure_of(result)

    def compare_levels(self) -> dict[str, Any]:
        """Make the page that compares all evaluated levels.

        Returns:
            ``path`` of the page and ``left_out``, level -> reason.

        Raises:
            EvaluationError: the run failed.
        """
        (comparison,) = (one for one in all_artefacts() if one.partitions_def is None)
        result = self._execute(COMPARE_LEVELS, [comparison.name])
        if not result.success:
            raise EvaluationError(f"the levels cannot be compared: {failure_of(result)}")
        record = self.storage.record(comparison)
        path = self.storage.artefact(comparison) / str(comparison.main_file)
        return {"path": str(path), "left_out": record.facts.get("left_out", {}) if record else {}}

    def predict_slides(self, level: str, slide_ids: Sequence[str] = ()) -> PredictionOutcome:
        """Predict slides whose prediction is missing or out of date.

        Args:
            level: key of the level whose model predicts.
            slide_ids: ids of the slides, by default all slides of the folder.

        Raises:
            SlideError: the folder cannot be listed.
            ConfigError: an id has no slide in the folder.
            ModelError: the model does not exist or was trained on another level.
        """
        options: Any = options_of(SLIDE_PREDICTION, level, self.storage.parameters.read(), self.given)
        mlflow = MlflowResource.of(self.settings)
        parameters = (self.storage.parameters.read(), self.given)
        detector = find_detector(self.storage, mlflow, level, options.model, *parameters)
        slides = self.run_slides((TISSUE_REGIONS,), slide_ids, annotations_gone=True)
        wanted = sorted({*slides.made, *slides.up_to_date})
        outcome = PredictionOutcome(left_out=slides.left_out, notices=slides.notices)
        self.instance.add_dynamic_partitions(LEVELS.name, [level])
        images = {
            one: files[SLIDE_IMAGE].version for one, files in known_slides(self.instance, wanted).items()
        }
        stale = unpredicted(self.storage, level, detector, images, *parameters)
        self._keep((SLIDE_PREDICTION, *RULES), level)
        order = self.instance.get_dynamic_partitions(SLIDES.name)
        for stretch in stretches(order, stale, SLIDES_A_RUN):
            ends = [str(both(slide_id, level)) for slide_id in (stretch[0], stretch[-1])]
            result = self._execute(PREDICT_SLIDES, [SLIDE_PREDICTION.name], range_of=ends)
            if not result.success:
                failed = {one.partition("|")[2]: why for one, why in failed_slides(result).items()}
                outcome.left_out.update(failed)
                if not failed:  # e.g. a full disk, which the next slides would find full too
                    outcome.failure = failure_of(result)
                    break
        for slide_id in wanted:
            where = self.storage.artefact(SLIDE_PREDICTION, both(slide_id, level))
            if slide_id not in outcome.left_out and (where / SUMMARY).is_file():
                outcome.slides[slide_id] = json.loads((where / SUMMARY).read_text(encoding="utf-8"))
                outcome.notices += [f"{slide_id}: {line}" for line in outcome.slides[slide_id]["notices"]]
        outcome.made = len(stale.keys() & outcome.slides.keys())
        return outcome

    def _observe(
        self, annotations_gone: bool, only: Collection[str] = ()
    ) -> tuple[dict[str, Seen], SlidesOutcome, dict[str, dict[str, Any]]]:
        """Slide id -> its files now, a first outcome, and slide id -> its files as last reported."""
        listing = self.folder.list()
        if not listing.slides and not listing.left_out:
            raise SlideError(
                "holds no slides",
                path=self.settings.images_dir,
                remedy="Set --images (WSI_IMAGES_DIR) to the folder of the slide files",
            )
        registered = self.instance.get_dynamic_partitions(SLIDES.name)
        doubt(self.folder, registered, self.storage, annotations=not annotations_gone)
        slides, left_out = list(listing.slides), dict(listing.left_out)
        if only:
            slides = [one for one in slides if one.slide_id in only]
            left_out = {name: why for name, why in left_out.items() if name in only}
            if lost := sorted(set(only) - {one.slide_id for one in slides} - left_out.keys()):
                raise ConfigError(
                    f"{self.settings.images_dir} has no slide {', '.join(lost)}",
                    remedy="The id of a slide is the name of its file without the extension",
                )
        known = known_slides(self.instance, [slide.slide_id for slide in slides])
        seen, unread = observe_all(slides, known)
        outcome = SlidesOutcome(left_out={**left_out, **unread}, notices=list(listing.notices))
        return seen, outcome, known

    def _evaluate_open_checks(self, artefacts: Sequence[Artefact], key: str) -> None:
        """Evaluate the checks of up-to-date artefacts if results are missing or a blocking check failed.

        A killed run leaves checks without a result. The cause of a failed check, such as a parameter or a
        missing file, may have been corrected meanwhile.
        """
        level = Level(key, self.storage, self.folder, self.instance)
        for artefact in artefacts:
            results = self.storage.check_results(artefact, key)
            blocked = not all(results.get(name, (False,))[0] for name in artefact.must_pass)
            if blocked or results.keys() != CHECKS.get(artefact, {}).keys():
                evaluate_checks_of(artefact, level)

    def _make_slides(
        self,
        artefacts: Sequence[Artefact],
        seen: Mapping[str, Seen],
        outcome: SlidesOutcome,
        annotations_gone: bool,
    ) -> set[str]:
        """Make ``artefacts`` for the slides for which each of them is out of date; returns these slides."""
        slides = {slide_id: files for slide_id, files in seen.items() if slide_id not in outcome.left_out}
        parameters = (self.storage.parameters.read(), self.given)
        stale = set(slides)
        for artefact in artefacts:
            stale &= stale_slides(self.storage, artefact, slides, *parameters).keys()
        if stale:
            self._keep(artefacts, None)
        annotated = [one.name for one in artefacts if annotations_gone and SLIDE_ANNOTATION in one.sources]
        config = {name: {"annotations_gone": True} for name in annotated}
        order = self.instance.get_dynamic_partitions(SLIDES.name)
        names = [artefact.name for artefact in artefacts]
        for stretch in stretches(order, stale, SLIDES_A_RUN):
            result = self._execute(SLIDE_REGIONS, names, range_of=stretch, config=config)
            if not result.success:
                failed = failed_slides(result)
                if not failed:
                    raise WsiAssetsError(failure_of(result))
                outcome.left_out.update(failed)
        return stale

    def _given_for(self, artefact: Artefact, level: str | None) -> dict[str, Any]:
        return {name: value for name, (_, value) in self.given.values(artefact, level).items()}

    def _keep(self, artefacts: Sequence[Artefact], level: str | None) -> None:
        """Write the given parameters of these artefacts to ``parameters.yaml``."""
        for artefact in artefacts:
            given = self._given_for(artefact, level)
            for line in self.storage.parameters.remember(artefact, level, given):
                self.say(line)

    def _execute(
        self,
        job: str,
        assets: Collection[str],
        *,
        partition_key: str | None = None,
        range_of: Sequence[str] = (),
        config: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> dg.ExecuteInProcessResult:
        # The UI needs this tag to list the run on the page of its job.
        tags = {".dagster/repository": f"__repository__@{LOCATION}"}
        if range_of:
            tags |= range_tags(range_of)
        result = self.definitions.resolve_job_def(job).execute_in_process(
            instance=self.instance,
            partition_key=partition_key,
            asset_selection=[dg.AssetKey(asset) for asset in assets],
            run_config={
                "ops": {asset: {"config": dict(values)} for asset, values in (config or {}).items()},
                # The terminal shows progress and one line per fault; the full log is in the UI.
                "loggers": {"console": {"config": {"log_level": "CRITICAL"}}},
            },
            tags=tags,
            raise_on_error=False,
        )
        if stop_requested():  # Dagster reports an interrupted run as a failed one
            raise KeyboardInterrupt
        return result


def accepted_slides(settings: Settings, levels: Sequence[str | None], *given: ParameterSet) -> list[str]:
    """Slides that any of the levels accepts although their names contradict their annotations."""
    parameters = (StorageResource.of(settings).parameters.read(), *given)
    each: list[Any] = [options_of(PATCH_STORE, level, *parameters) for level in levels]
    return sorted({slide_id for options in each for slide_id in options.accepted_slides})


def chain_upto(upto: str) -> tuple[Artefact, ...]:
    """The assets of a level from the index to ``upto``, in order; optional ones only if they are ``upto``.

    Raises:
        ConfigError: ``upto`` is not an asset of levels.
    """
    assets = level_artefacts()
    names = [artefact.name for artefact in assets]
    if upto not in names:
        raise ConfigError(f"there is no level asset {upto!r}", remedy=f"Choose one of {', '.join(names)}")
    return tuple(
        artefact
        for artefact in assets[: names.index(upto) + 1]
        if not artefact.optional or artefact.name == upto
    )


def failed_slides(result: dg.ExecuteInProcessResult) -> dict[str, str]:
    """Slide id -> fault, for each slide that failed in a run of many slides."""
    for event in result.all_events:
        failure = event.step_failure_data.user_failure_data if event.is_step_failure else None
        if failure is not None and "failed" in failure.metadata:
            return dict(failure.metadata["failed"].value)
    return {}


def failure_of(result: dg.ExecuteInProcessResult) -> str:
    """Why a run failed, in one line."""
    for event in result.all_events:
        if event.is_step_failure:
            data = event.step_failure_data
            if data.user_failure_data and data.user_failure_data.description:
                return data.user_failure_data.description
            error = data.error.cause or data.error
            return one_line(f"{event.step_key}: {error.message}")
    return "the run did not finish"
