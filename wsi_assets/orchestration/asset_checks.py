"""Facts an artefact must satisfy, shown beside it in the UI and kept beside it in a file.

Checks read artefacts and their records, never the event log; what is missing or unreadable fails them. Only
those block whose failure would corrupt what is made next; the rest warn. The checks of an asset share one
step, so that a level costs a handful of process starts and each artefact is read once.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import dagster as dg

from wsi_assets.errors import WsiAssetsError
from wsi_assets.files import read_plain_pickle
from wsi_assets.index.curation import CURATION, curate
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
"""Patches of a store that are read again from their slides; a wrong place or a wrong codec shows in each."""

LONGEST_TEXT = 2000
"""Results are stored with every evaluation; ten thousand slides by name are not read by anyone."""


class Level:
    """The artefacts of one level, each read when it is first asked for.

    Raises (where an artefact is asked for):
        WsiAssetsError: it, or its record, is missing or damaged.
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
    def findings(self) -> dict[str, list[tuple[str, str]]]:
        """Curation check -> (slide id, finding)."""

        def load(slide_id: str) -> tuple[Any, Any]:
            tissue, annotation = (
                read_plain_pickle(self.storage.artefact(artefact, slide_id)) for artefact in slide_artefacts()
            )
            return tissue, annotation["regions"]

        return curate(self.index, load)


@dataclass(frozen=True)
class Check:
    """One check of an asset; those of its ``must_pass`` stop what follows."""

    name: str
    description: str
    evaluate: Callable[[Level], Result]


CHECKS: dict[Artefact, list[Check]] = {
    artefact: []
    for artefact in (SLIDE_INDEX, SAMPLED_INDEX, PATCH_STORE, TRAINED_MODEL, TEST_PREDICTIONS, EVALUATION)
}
"""The checks of every asset; :func:`check` adds to them."""


def check(artefact: Artefact) -> Callable[[Callable[[Level], Result]], Any]:
    """Makes a function a check of an asset, by its name, with its docstring as the description."""

    def add(evaluate: Callable[[Level], Result]) -> Callable[[Level], Result]:
        description = " ".join((evaluate.__doc__ or "").split())
        CHECKS[artefact].append(Check(evaluate.__name__, description, evaluate))
        return evaluate

    return add


@check(SLIDE_INDEX)
def every_slide_takes_part(level: Level) -> Result:
    """Every registered slide takes part in this level; names those left out and why."""
    left_out = level.record(SLIDE_INDEX).facts.get("left_out", {})
    return nothing_found(left_out.items(), f"all {len(level.index)} slides")


@check(SLIDE_INDEX)
def nothing_assumed(level: Level) -> Result:
    """Nothing had to be assumed of slide and annotation files, and nothing in them was ignored or
    contradicts itself; says what, by slide."""
    notices = [
        (slide_id, line)
        for slide_id in level.index
        for record in level.slide_records(slide_id)
        for line in (record.facts.get("notices", []) if record else ["has no provenance record"])
    ]
    return nothing_found(notices, f"{len(level.index)} slides checked")


@check(SLIDE_INDEX)
def slides_made_alike(level: Level) -> Result:
    """The regions of all slides were made with the same parameters; names the odd ones out."""
    made_with = {
        slide_id: {
            name: repr(value)
            for record in level.slide_records(slide_id)
            for name, value in (record.parameters if record else {"record": "none"}).items()
        }
        for slide_id in level.index
    }
    usual = {
        name: Counter(values.get(name) for values in made_with.values()).most_common(1)[0][0]
        for name in {name for values in made_with.values() for name in values}
    }
    odd = [
        (slide_id, f"{name}={values.get(name)} instead of {usual[name]}")
        for slide_id, values in made_with.items()
        for name in usual
        if values.get(name) != usual[name]
    ]
    return nothing_found(odd, f"{len(made_with)} slides, one set of parameters")


for _name, _description in CURATION.items():
    CHECKS[SLIDE_INDEX].append(
        Check(
            _name,
            _description,
            lambda level, name=_name: nothing_found(
                level.findings[name], f"{len(level.index)} slides checked"
            ),
        )
    )


@check(SAMPLED_INDEX)
def sample_is_of_index(level: Level) -> Result:
    """Every sampled patch is in the slide index with the same label, and test slides are whole."""
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
def incomplete_slides_known(level: Level) -> Result:
    """Every slide of the list of incompletely annotated ones is in the index: a mistyped one would give
    normal patches."""
    from wsi_assets.index import unknown_incomplete

    options = SAMPLED_INDEX.options(**level.record(SAMPLED_INDEX).parameters)
    fault = "is in the list of incompletely annotated slides and not in this index"
    unknown = unknown_incomplete(level.index, options)
    return nothing_found([(slide_id, fault) for slide_id in unknown], "every listed slide is in the index")


@check(PATCH_STORE)
def store_equals_its_index(level: Level) -> Result:
    """The store is complete and holds exactly the patches of the sampled index, with their labels, but for
    those listed as unreadable."""
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
def few_patches_unreadable(level: Level) -> Result:
    """At most max_quarantined of the patches could not be read; in small stores a few are no fault."""
    wanted = sum(len(entry["patches"]) for entry in level.sampled.values())
    lost = len(level.store.info.get("quarantined") or [])
    most = options_of(PATCH_STORE, level.level, level.storage.parameters.read()).allowed_unreadable(wanted)
    return lost <= most, f"{lost} of {wanted} patches unreadable, at most {most} may be"


@check(PATCH_STORE)
def patches_show_their_slides(level: Level) -> Result:
    """Patches read again from their slides, a few dozen, are what the store holds."""
    from wsi_assets.patches import verify_store

    fraction = min(1.0, PIXELS_CHECKED / max(1, len(level.store)))
    report = verify_store(level.store, level.folder.with_present_paths(level.sampled), fraction)
    return nothing_found(report.problems, f"{report.checked} patches equal their slides")


@check(TRAINED_MODEL)
def no_patient_on_two_sides(level: Level) -> Result:
    """No patient is in two of training, validation and test; names those that are."""
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
    """At its best epoch the model beats always answering the larger class, and its AUC is above 0.5."""
    facts = level.record(TRAINED_MODEL).facts
    names = {"validation accuracy": "val_acc", "always the larger class": "majority_share", "AUC": "val_auc"}
    known = [f"{name} {facts[key]:.3f}" for name, key in names.items() if facts.get(key) is not None]
    return facts.get("better_than_majority") is True, ", ".join(known)


@check(TRAINED_MODEL)
def every_strategy_acts(level: Level) -> Result:
    """Every strategy against imbalance that is switched on has something to do."""
    idle = level.record(TRAINED_MODEL).facts["idle_strategies"]
    return not idle, "; ".join(idle) or "every strategy that is switched on changes the training"


@check(EVALUATION)
def report_is_complete(level: Level) -> Result:
    """The report is there and covers every test slide."""
    evaluated = set(_metrics(level)["patch"]["per_slide"])
    predicted = read_plain_pickle(level.path(TEST_PREDICTIONS))
    absent = [(slide_id, "is not in the report") for slide_id in set(predicted) - evaluated]
    return nothing_found(absent, f"all {len(evaluated)} test slides are in it")


@check(EVALUATION)
def better_than_chance(level: Level) -> Result:
    """The test patches' ROC AUC is above 0.5 by its whole interval."""
    auc = _metrics(level)["patch"]["overall"]["roc_auc"]
    if auc["value"] is None:
        return False, f"there is no AUC: {auc.get('reason') or 'nothing was evaluated'}"
    low = auc["low"]
    interval = "no interval" if low is None else f"95 % interval from {low:.3f}"
    least = auc["value"] if low is None else low
    return least > 0.5, f"AUC {auc['value']:.3f} ({interval}), chance is 0.5"


def up_to_date(artefact: Artefact, level: Level) -> Result:
    """Made with the parameters of parameters.yaml from what there is now; says what differs."""
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
    why = storage.why_out_of_date(artefact, level.level, parameters, inputs_of_level(artefact, usable, above))
    if why is None:
        return True, "made from what there is now"
    return False, f"out of date: {why}. Materialize it again"


for _artefact, _checks in CHECKS.items():
    _checks.append(Check("up_to_date", str(up_to_date.__doc__), partial(up_to_date, _artefact)))


def build_checks(artefact: Artefact, checks: Sequence[Check]) -> dg.AssetChecksDefinition:
    """The step that evaluates an asset's checks."""

    @dg.multi_asset_check(
        name=f"{artefact.name}_checks",
        specs=[
            dg.AssetCheckSpec(
                one.name,
                asset=artefact.key,
                description=one.description,
                blocking=one.name in artefact.must_pass,
                partitions_def=LEVELS,
            )
            for one in checks
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


@dg.op
def evaluate_all_checks(
    context: dg.OpExecutionContext, storage: StorageResource, folder: SlideFolderResource
) -> None:
    """Evaluate every check of every level in use; what fails is named, and kept beside the artefacts."""
    failed: list[str] = []
    for key in context.instance.get_dynamic_partitions(LEVELS.name):
        level = Level(key, storage, folder, context.instance)
        for artefact in CHECKS:
            if storage.is_there(artefact, key):
                evaluate_checks_of(artefact, level)
        failed += [f"level {key}: {line}" for line in storage.failed_checks(CHECKS, key)]
    for line in failed:
        context.log.warning(line)
    if failed:
        raise dg.Failure("; ".join(failed)[:LONGEST_TEXT], allow_retries=False)


@dg.job(
    description="Evaluates every check of every level in use and fails naming those that fail, e.g. what is "
    "out of date after parameters.yaml was edited. Makes nothing."
)
def level_checks() -> None:
    evaluate_all_checks()


def evaluate_checks_of(artefact: Artefact, level: Level) -> dict[str, Result]:
    """Evaluate the checks of an artefact and keep the results beside it."""
    results = {one.name: evaluate(one, level) for one in CHECKS[artefact]}
    level.storage.keep_check_results(artefact, level.level, results)
    return results


def evaluate(one: Check, level: Level) -> Result:
    """A check's result; what cannot be read fails it."""
    try:
        passed, text = one.evaluate(level)
        return passed, text[:LONGEST_TEXT]
    except WsiAssetsError as error:
        return False, str(error)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        return False, f"an artefact is damaged ({error!r:.200}). Materialize it again"


def nothing_found(faults: Iterable[tuple[str, str]], else_text: str) -> Result:
    """Passed if there are no faults, (slide id, what is wrong); else it names them."""
    pairs = sorted(faults)
    return not pairs, "; ".join(f"{slide_id}: {fault}" for slide_id, fault in pairs) or else_text


def _metrics(level: Level) -> dict[str, Any]:
    path = level.path(EVALUATION) / "metrics.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WsiAssetsError(f"does not read ({error})", path=path) from error


ALL_CHECKS = [build_checks(artefact, checks) for artefact, checks in CHECKS.items()]
