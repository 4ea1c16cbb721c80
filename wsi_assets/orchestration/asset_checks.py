"""Asset checks of the artefacts of a level. Results are shown in the UI and stored beside the artefact.

Checks read artefacts and their records, not the event log; a missing or unreadable file is a failed check.
Only checks whose failure would make downstream results wrong are blocking; the others warn. All checks of an
asset run in one step, which starts fewer processes and reads each artefact once.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import dagster as dg

from wsi_assets.errors import WsiAssetsError
from wsi_assets.files import read_plain_pickle
from wsi_assets.index.curation import curate
from wsi_assets.orchestration.artefact import Artefact, slide_artefacts
from wsi_assets.orchestration.assets.evaluation import EVALUATION
from wsi_assets.orchestration.assets.index import SAMPLED_INDEX, SLIDE_INDEX
from wsi_assets.orchestration.assets.learning import TEST_PREDICTIONS, TRAINED_MODEL
from wsi_assets.orchestration.assets.patches import PATCH_STORE
from wsi_assets.orchestration.config import options_of
from wsi_assets.orchestration.evaluation_metadata import model_card
from wsi_assets.orchestration.level_plan import inputs_of_level, usable_slides
from wsi_assets.orchestration.partitions import LEVELS
from wsi_assets.orchestration.resources import SlideFolderResource
from wsi_assets.orchestration.storage import Record, Result, StorageResource, store_named_by

PIXELS_CHECKED = 32
"""Number of patches compared with their slides; a wrong position or codec would show in every one."""

LONGEST_TEXT = 2000
"""Longest text of a result in characters: it is stored with every evaluation and may list many slides."""


class Level:
    """The artefacts of one level, each read on first use.

    Raises (on access to an artefact):
        WsiAssetsError: the artefact or its record is missing or damaged.
    """

    def __init__(
        self, level: str, storage: StorageResource, folder: SlideFolderResource, instance: dg.DagsterInstance
    ):
        self.level, self.storage, self.folder, self.instance = level, storage, folder, instance

    def record(self, artefact: Artefact) -> Record:
        record = self.storage.record(artefact, self.level)
        if record is None:
            raise WsiAssetsError(
                f"{artefact.name} has no provenance record",
                path=self.storage.record_path(artefact, self.level),
                remedy=f"Materialize {artefact.name} again",
            )
        return record

    def path(self, artefact: Artefact) -> Path:
        self.record(artefact)
        return self.storage.artefact(artefact, self.level)

    def slide_records(self, slide_id: str) -> list[Record | None]:
        return [self.storage.record(artefact, slide_id) for artefact in slide_artefacts()]

    @cached_property
    def index(self) -> dict[str, Any]:
        return read_plain_pickle(self.path(SLIDE_INDEX))

    @cached_property
    def sampled(self) -> dict[str, Any]:
        return read_plain_pickle(self.path(SAMPLED_INDEX))

    @cached_property
    def store(self) -> Any:
        from wsi_assets.patches import open_store

        return open_store(store_named_by(self.path(PATCH_STORE)))

    @cached_property
    def accepted(self) -> list[str]:
        """Slides whose names may contradict their annotations."""
        return options_of(PATCH_STORE, self.level, self.storage.parameters.read()).accepted_slides

    @cached_property
    def findings(self) -> dict[str, list[tuple[str, str]]]:
        """Name of a curation check -> list of (slide id, finding)."""

        def load(slide_id: str) -> tuple[Any, Any]:
            tissue, annotation = (
                read_plain_pickle(self.storage.artefact(artefact, slide_id)) for artefact in slide_artefacts()
            )
            return tissue, annotation["regions"]

        return curate(self.index, load)


Check = Callable[[Level], Result]

CHECKS: dict[Artefact, dict[str, Check]] = {
    artefact: {}
    for artefact in (SLIDE_INDEX, SAMPLED_INDEX, PATCH_STORE, TRAINED_MODEL, TEST_PREDICTIONS, EVALUATION)
}
"""Artefact -> name of a check -> its function. The names in ``must_pass`` of the artefact are blocking."""


def check(artefact: Artefact) -> Callable[[Check], Check]:
    """Decorator that registers a function as a check of an asset.

    The function's name is the name of the check, and its docstring the description shown in the UI.
    """

    def add(evaluate: Check) -> Check:
        CHECKS[artefact][evaluate.__name__] = evaluate
        return evaluate

    return add


@check(SLIDE_INDEX)
def every_slide_takes_part(level: Level) -> Result:
    """Every registered slide is part of this level. Lists the slides that are left out, with the reason."""
    left_out = level.record(SLIDE_INDEX).facts.get("left_out", {})
    return nothing_found(left_out.items(), f"all {len(level.index)} slides")


@check(SLIDE_INDEX)
def nothing_assumed(level: Level) -> Result:
    """No property of a slide or annotation file had to be assumed, and nothing in the files was ignored or
    contradictory. Lists the notices by slide."""
    notices = [
        (slide_id, line)
        for slide_id in level.index
        for record in level.slide_records(slide_id)
        for line in (record.facts.get("notices", []) if record else ["has no provenance record"])
    ]
    return nothing_found(notices, f"{len(level.index)} slides checked")


@check(SLIDE_INDEX)
def slides_made_as_parameters_say(level: Level) -> Result:
    """The regions of all slides were made with the parameters in parameters.yaml. Lists the slides that were
    not."""
    parameters_file = level.storage.parameters.read()
    wanted = [
        options_of(artefact, None, parameters_file).model_dump(mode="json") for artefact in slide_artefacts()
    ]
    differing = [
        (slide_id, f"its {record.asset} were made with other parameters")
        for slide_id in level.index
        for record, parameters in zip(level.slide_records(slide_id), wanted, strict=True)
        if record and record.parameters != parameters
    ]
    return nothing_found(differing, f"{len(level.index)} slides, one set of parameters")


def _curation(level: Level, *names: str) -> Result:
    findings = [finding for name in names for finding in level.findings[name]]
    return nothing_found(findings, f"{len(level.index)} slides checked")


@check(SLIDE_INDEX)
def annotations_fit_their_slides(level: Level) -> Result:
    """Annotations lie inside their slides and on tissue, and each gives at least one tumor patch at this
    level. Slides in accepted_slides may be named as tumor slides and have no annotation."""
    found = [*level.findings["annotation_outside"], *level.findings["annotation_off_tissue"]]
    found += [
        (slide_id, why)
        for slide_id, why in level.findings["no_tumor_patches"]
        if level.index[slide_id]["annotation_path"] or slide_id not in level.accepted
    ]
    return nothing_found(found, f"{len(level.index)} slides checked")


@check(SLIDE_INDEX)
def tissue_is_plausible(level: Level) -> Result:
    """No slide is almost entirely tissue or almost without tissue, and a patch is wider than one pixel of the
    tissue mask."""
    return _curation(level, "tissue_share_out_of_range", "tissue_mask_too_coarse")


@check(SLIDE_INDEX)
def slides_are_distinct_and_alike(level: Level) -> Result:
    """No slide is in the folder under two names, and all slides have about the same magnification."""
    return _curation(level, "duplicate_slides", "mixed_magnifications")


@check(SLIDE_INDEX)
def test_slides_are_meant(level: Level) -> Result:
    """No slide is a test slide by accident, because its name contains a word such as intestine or testis."""
    return _curation(level, "longer_word_holds_test")


@check(SAMPLED_INDEX)
def sample_is_of_index(level: Level) -> Result:
    """Every sampled patch is in the slide index with the same label, and test slides keep all patches."""
    from wsi_assets.index import is_test

    faults = {}
    chosen = {slide_id: entry["patches"] for slide_id, entry in level.sampled.items()}
    for slide_id, entry in level.index.items():
        whole = {tuple(patch) for patch in entry["patches"]}
        part = {tuple(patch) for patch in chosen.pop(slide_id, [])}
        if not part <= whole:
            faults[slide_id] = f"{len(part - whole)} patches are not in the index"
        elif is_test(slide_id, entry) and part != whole:
            faults[slide_id] = f"a test slide, and {len(whole - part)} of its patches are left out"
    faults.update({slide_id: "is not in the index" for slide_id, patches in chosen.items() if patches})
    return nothing_found(faults.items(), "every patch is of the index, test slides are whole")


@check(SAMPLED_INDEX)
def some_slides_are_test_slides(level: Level) -> Result:
    """There are test slides, by name or by cohort.csv, so that the detector can be evaluated."""
    from wsi_assets.index import is_test

    tests = sum(is_test(slide_id, entry) for slide_id, entry in level.sampled.items())
    return tests > 0, f"{tests} of {len(level.sampled)} slides are test slides"


@check(SAMPLED_INDEX)
def incomplete_slides_known(level: Level) -> Result:
    """Every slide listed as incompletely annotated is in the index. The unannotated tumor of a slide with a
    mistyped name would be labeled normal."""
    from wsi_assets.index import unknown_incomplete

    options = SAMPLED_INDEX.options(**level.record(SAMPLED_INDEX).parameters)
    fault = "is in the list of incompletely annotated slides and not in this index"
    unknown = unknown_incomplete(level.index, options)
    return nothing_found([(slide_id, fault) for slide_id in unknown], "every listed slide is in the index")


@check(PATCH_STORE)
def store_equals_its_index(level: Level) -> Result:
    """The store contains exactly the patches of the sampled index with their labels, except those listed as
    unreadable."""
    from wsi_assets.patches import plan_patches

    options = PATCH_STORE.options(**level.record(PATCH_STORE).parameters)
    plan, info = plan_patches(level.sampled, options), level.store.info
    lost, stored = len(info.get("quarantined") or []), info.get("patches", len(level.store))
    text = f"{stored} stored + {lost} unreadable of {len(plan)} in the index"
    same = info.get("plan_digest") == plan.digest(options.backend)
    if not same:
        text += "; the store was built from another index, other slides or other parameters"
    return same and stored + lost == len(plan), text


@check(PATCH_STORE)
def names_agree_with_annotations(level: Level) -> Result:
    """The names of slides (tumor or normal) agree with their annotations. Exceptions are accepted in
    cohort.csv or with the parameter accepted_slides."""
    level.record(PATCH_STORE)
    found = [one for one in level.findings["name_contradicts_annotation"] if one[0] not in level.accepted]
    passed, text = nothing_found(found, f"{len(level.index)} slides checked")
    return passed, text if passed else f"{text}. Say in cohort.csv what it is, or accept it (--accept SLIDE)"


@check(PATCH_STORE)
def few_patches_unreadable(level: Level) -> Result:
    """At most the share max_quarantined of the patches is unreadable; a small store may lose a few more."""
    wanted = sum(len(entry["patches"]) for entry in level.sampled.values())
    lost = len(level.store.info.get("quarantined") or [])
    most = options_of(PATCH_STORE, level.level, level.storage.parameters.read()).allowed_unreadable(wanted)
    return lost <= most, f"{lost} of {wanted} patches unreadable, at most {most} may be"


@check(PATCH_STORE)
def patches_show_their_slides(level: Level) -> Result:
    """A sample of the stored patches equals the pixels of their slides."""
    from wsi_assets.patches import verify_store

    fraction = min(1.0, PIXELS_CHECKED / max(1, len(level.store)))
    report = verify_store(level.store, level.folder.with_present_paths(level.sampled), fraction)
    return nothing_found(report.problems, f"{report.checked} patches equal their slides")


@check(TRAINED_MODEL)
def no_patient_on_two_sides(level: Level) -> Result:
    """No patient is in more than one of training, validation and test. Lists the patients that are."""
    split = model_card(level.path(TRAINED_MODEL) / "best.pt").get("split") or {}
    if not split.get("rows"):
        return False, "the model does not say how its patches were split"
    sides: dict[str, set[str]] = defaultdict(set)
    for row in split["rows"]:
        sides[str(row["patient"])].add(str(row["side"]))
    both = [(patient, " and ".join(sorted(found))) for patient, found in sides.items() if len(found) > 1]
    passed, text = nothing_found(both, f"{len(sides)} patients, each on one side")
    if both and split.get("unit") != "patient":
        text += f". Too few patients to split by, so it was by {split.get('unit')}: the metrics flatter"
    return passed, text


@check(TRAINED_MODEL)
def better_than_majority(level: Level) -> Result:
    """At its best epoch the model is more accurate than always predicting the larger class, and its AUC is
    above 0.5."""
    facts = level.record(TRAINED_MODEL).facts
    names = {"validation accuracy": "val_acc", "always the larger class": "majority_share", "AUC": "val_auc"}
    known = [f"{name} {facts[key]:.3f}" for name, key in names.items() if facts.get(key) is not None]
    return facts.get("better_than_majority") is True, ", ".join(known)


@check(TRAINED_MODEL)
def every_strategy_acts(level: Level) -> Result:
    """Every strategy against class imbalance that is switched on changes the training."""
    idle = level.record(TRAINED_MODEL).facts["idle_strategies"]
    return not idle, "; ".join(idle) or "every strategy that is switched on changes the training"


@check(EVALUATION)
def better_than_chance(level: Level) -> Result:
    """The whole confidence interval of the test patches' ROC AUC is above 0.5."""
    auc = _metrics(level)["patch"]["overall"]["roc_auc"]
    if auc["value"] is None:
        return False, f"there is no AUC: {auc.get('reason') or 'nothing was evaluated'}"
    low = auc["low"]
    interval = "no interval" if low is None else f"95 % interval from {low:.3f}"
    least = auc["value"] if low is None else low
    return least > 0.5, f"AUC {auc['value']:.3f} ({interval}), chance is 0.5"


def up_to_date(artefact: Artefact, level: Level) -> Result:
    """The artefact was made from the current inputs with the parameters in parameters.yaml. Lists what
    differs."""
    storage = level.storage
    parameters = options_of(artefact, level.level, storage.parameters.read()).model_dump(mode="json")
    above = {
        one.name: storage.version(one, level.level) if one.optional else level.record(one).version
        for one in artefact.inputs
        if one.by_level
    }
    usable: dict[str, list[str]] = {}
    if artefact.gathers_slides:
        usable, _ = usable_slides(storage, level.folder, level.instance)
    level.record(artefact)
    above = inputs_of_level(artefact, usable, above) | storage.feedback(artefact, level.level, parameters)
    why = storage.why_out_of_date(artefact, level.level, parameters, above)
    if why is None:
        return True, "made from the current inputs"
    return False, f"out of date: {why}. Materialize it again"


for _artefact, _checks in CHECKS.items():
    _checks["up_to_date"] = partial(up_to_date, _artefact)


def build_checks(artefact: Artefact, checks: Mapping[str, Check]) -> dg.AssetChecksDefinition:
    """The step that evaluates all checks of an asset."""

    @dg.multi_asset_check(
        name=f"{artefact.name}_checks",
        specs=[
            dg.AssetCheckSpec(
                name,
                asset=artefact.key,
                description=" ".join(str(getattr(one, "func", one).__doc__).split()),
                blocking=name in artefact.must_pass,
                partitions_def=LEVELS,
            )
            for name, one in checks.items()
        ],
    )
    def evaluate_checks(
        context: dg.AssetCheckExecutionContext, storage: StorageResource, folder: SlideFolderResource
    ) -> Iterator[dg.AssetCheckResult]:
        level = Level(context.partition_key, storage, folder, context.instance)
        for name, (passed, text) in evaluate_checks_of(artefact, level).items():
            blocks = name in artefact.must_pass
            yield dg.AssetCheckResult(
                passed=passed,
                check_name=name,
                description=text,
                severity=dg.AssetCheckSeverity.ERROR if blocks else dg.AssetCheckSeverity.WARN,
            )

    return evaluate_checks


def evaluate_checks_of(artefact: Artefact, level: Level) -> dict[str, Result]:
    """Evaluate the checks of an artefact and store the results beside it."""
    results = {name: evaluate(one, level) for name, one in CHECKS[artefact].items()}
    level.storage.keep_check_results(artefact, level.level, results)
    return results


def evaluate(one: Check, level: Level) -> Result:
    """The result of a check; a file that cannot be read is a failure."""
    try:
        passed, text = one(level)
        return passed, text[:LONGEST_TEXT]
    except WsiAssetsError as error:
        return False, str(error)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        return False, f"an artefact is damaged ({error!r:.200}). Materialize it again"


def nothing_found(faults: Iterable[tuple[str, str]], else_text: str) -> Result:
    """Passed with the text ``else_text`` if there are no faults, else failed with a list of them.

    Args:
        faults: pairs of slide id (or patient or patch key) and fault.
    """
    pairs = sorted(faults)
    return not pairs, "; ".join(f"{slide_id}: {fault}" for slide_id, fault in pairs) or else_text


def _metrics(level: Level) -> dict[str, Any]:
    path = level.path(EVALUATION) / "metrics.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WsiAssetsError(f"does not read ({error})", path=path) from error


ALL_CHECKS = [build_checks(artefact, checks) for artefact, checks in CHECKS.items()]
