"""Facts an artefact must satisfy, shown beside it in the UI and kept beside it in a file.

Checks read artefacts and their records, never the event log; what is missing or unreadable fails them. Only
those block whose failure would corrupt what is made next; the rest warn. The checks of an asset share one
step, so that a level costs a handful of process starts and each artefact is read once.
"""

import contextlib
import json
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import dagster as dg

from wsi_assets.errors import WsiAssetsError
from wsi_assets.files import read_plain_pickle, write_json
from wsi_assets.index.curate import CURATION, curate
from wsi_assets.orchestration.artefact import Artefact
from wsi_assets.orchestration.assets.evaluation import EVALUATION
from wsi_assets.orchestration.assets.index import SAMPLED_INDEX, SLIDE_INDEX
from wsi_assets.orchestration.assets.learning import TEST_PREDICTIONS, TRAINED_MODEL
from wsi_assets.orchestration.assets.patches import PATCH_STORE
from wsi_assets.orchestration.config import options_of
from wsi_assets.orchestration.evaluation_metadata import model_card
from wsi_assets.orchestration.level_plan import inputs_of_level, usable_slides
from wsi_assets.orchestration.partitions import LEVELS, SLIDES
from wsi_assets.orchestration.paths import StoragePaths, store_named_by
from wsi_assets.orchestration.provenance import Record, read_record, why_out_of_date
from wsi_assets.orchestration.resources import SlideFolderResource, StorageResource
from wsi_assets.orchestration.slide_folder import known_slides

PIXELS_CHECKED = 32
"""Patches of a store that are read again from their slides; a wrong place or a wrong codec shows in each."""

LONGEST_TEXT = 2000
"""Results are stored with every evaluation; ten thousand slides by name are not read by anyone."""

CHECKS_SUFFIX = ".checks.json"

Result = tuple[bool, str]
"""Whether a fact holds, and why or why not."""


class Level:
    """The artefacts of one level, each read when it is first asked for.

    Raises (where an artefact is asked for):
        WsiAssetsError: it, or its record, is missing or damaged.
    """

    def __init__(
        self, level: str, storage: StorageResource, folder: SlideFolderResource, instance: dg.DagsterInstance
    ):
        self.level, self.storage, self.folder, self.instance = level, storage, folder, instance
        self.paths, self.provenance = storage.paths, storage.provenance

    def record(self, artefact: Artefact) -> Record:
        record = self.provenance.record(artefact, self.level)
        if record is None:
            path = self.paths.record(artefact, self.level)
            raise WsiAssetsError(
                f"{artefact.name} has no provenance record",
                path=path,
                remedy=f"Materialize {artefact.name} again",
            )
        return record

    def slide_record(self, artefact: Artefact, slide_id: str) -> Record | None:
        return self.provenance.record(artefact, slide_id)

    @cached_property
    def index(self) -> dict[str, Any]:
        self.record(SLIDE_INDEX)
        return read_plain_pickle(self.paths.artefact(SLIDE_INDEX, self.level))

    @cached_property
    def sampled(self) -> dict[str, Any]:
        self.record(SAMPLED_INDEX)
        return read_plain_pickle(self.paths.artefact(SAMPLED_INDEX, self.level))

    @cached_property
    def findings(self) -> dict[str, list[tuple[str, str]]]:
        """Curation check -> (slide id, finding)."""

        def load(slide_id: str) -> tuple[Any, Any]:
            tissue, annotation = (
                read_plain_pickle(self.paths.artefact(artefact, slide_id)) for artefact in SLIDE_INDEX.inputs
            )
            return tissue, annotation["regions"]

        return curate(self.index, load)

    @cached_property
    def store(self) -> Any:
        from wsi_assets.patches import open_store

        self.record(PATCH_STORE)
        return open_store(store_named_by(self.paths.artefact(PATCH_STORE, self.level)))

    @cached_property
    def card(self) -> dict[str, Any]:
        self.record(TRAINED_MODEL)
        return model_card(self.paths.artefact(TRAINED_MODEL, self.level) / "best.pt").plain

    @property
    def report(self) -> Path:
        self.record(EVALUATION)
        return self.paths.artefact(EVALUATION, self.level)


@dataclass(frozen=True)
class Check:
    """One check of an asset; a ``blocking`` one stops what follows."""

    name: str
    description: str
    evaluate: Callable[[Level], Result]
    blocking: bool = False


def every_slide_takes_part(level: Level) -> Result:
    left_out = level.record(SLIDE_INDEX).facts.get("left_out", {})
    return nothing_found(left_out.items(), f"all {len(level.index)} slides")


def slides_made_alike(level: Level) -> Result:
    """Whether the regions of all slides were made with the same parameters; names the odd ones out."""
    groups: dict[str, list[str]] = defaultdict(list)
    for slide_id in level.index:
        values: dict[str, Any] = {}
        for artefact in SLIDE_INDEX.inputs:
            record = level.slide_record(artefact, slide_id)
            values.update(record.parameters if record else {artefact.name: "no record"})
        groups[json.dumps(values, sort_keys=True)].append(slide_id)
    if len(groups) < 2:
        return bool(groups), f"{len(level.index)} slides, one set of parameters"
    usual = max(groups, key=lambda key: len(groups[key]))
    normal = json.loads(usual)
    odd = []
    for key in groups.keys() - {usual}:
        values = json.loads(key)
        names = sorted(name for name in values | normal if values.get(name) != normal.get(name))
        differs = ", ".join(f"{name}={values.get(name)!r} instead of {normal.get(name)!r}" for name in names)
        odd += [(slide_id, differs) for slide_id in groups[key]]
    return nothing_found(odd, "")


def finding(name: str, level: Level) -> Result:
    return nothing_found(level.findings[name], f"{len(level.index)} slides checked")


def sample_is_of_index(level: Level) -> Result:
    """Whether the sample takes its patches and labels from the index, all of them on test slides."""
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


def training_has_both_classes(level: Level) -> Result:
    from wsi_assets.index import is_test

    tumor = normal = 0
    for slide_id, entry in level.sampled.items():
        if not is_test(slide_id, entry):
            positive = sum(bool(patch[2]) for patch in entry["patches"])
            tumor += positive
            normal += len(entry["patches"]) - positive
    text = f"{tumor} tumor and {normal} normal patches on slides that are not test slides"
    if not (tumor and normal):
        text += ": nothing can be learned from one class. Add slides, or their annotations"
    return bool(tumor and normal), text


def incomplete_slides_known(level: Level) -> Result:
    from wsi_assets.index import SamplingOptions, unknown_incomplete

    options = SamplingOptions(**level.record(SAMPLED_INDEX).parameters)
    unknown = unknown_incomplete(level.index, options)
    fault = "is in the list of incompletely annotated slides and not in this index"
    return nothing_found([(slide_id, fault) for slide_id in unknown], "every listed slide is in the index")


def store_equals_its_index(level: Level) -> Result:
    """Whether the store holds exactly the patches of the sampled index, but for the unreadable ones."""
    from wsi_assets.patches import plan_patches

    options = PATCH_STORE.options(**level.record(PATCH_STORE).parameters)
    plan, info = plan_patches(level.sampled, options), level.store.info
    lost, stored = len(info.get("quarantined") or []), info.get("patches", len(level.store))
    text = f"{stored} stored + {lost} unreadable of {len(plan)} in the index"
    same = info.get("plan_digest") == plan.digest(options.backend)
    if not same:
        text += "; the store was built from another index, other slides or other parameters"
    return same and stored + lost == len(plan), text


def few_patches_unreadable(level: Level) -> Result:
    wanted = sum(len(entry["patches"]) for entry in level.sampled.values())
    lost = len(level.store.info.get("quarantined") or [])
    most = level.record(PATCH_STORE).parameters["max_quarantined"]
    share = lost / wanted if wanted else 0.0
    return share <= most, f"{lost} of {wanted} patches unreadable ({share:.2%}), at most {most:.2%} may be"


def patches_show_their_slides(level: Level) -> Result:
    from wsi_assets.patches import verify_store

    fraction = min(1.0, PIXELS_CHECKED / max(1, len(level.store)))
    report = verify_store(level.store, level.folder.with_present_paths(level.sampled), fraction)
    return nothing_found(report.problems, f"{report.checked} patches equal their slides")


def no_patient_on_two_sides(level: Level) -> Result:
    split = level.card.get("split") or {}
    return no_leakage(split.get("rows") or [], split.get("unit"))


def better_than_majority(level: Level) -> Result:
    facts = level.record(TRAINED_MODEL).facts
    text = (
        f"validation accuracy {_number(facts.get('val_acc'))}, {_number(facts.get('majority_share'))} for "
        f"always the larger class, AUC {_number(facts.get('val_auc'))}"
    )
    return facts.get("better_than_majority") is True, text


def every_strategy_acts(level: Level) -> Result:
    idle = level.record(TRAINED_MODEL).facts["idle_strategies"]
    return not idle, "; ".join(idle)[
        :LONGEST_TEXT
    ] or "every strategy that is switched on changes the training"


def report_is_complete(level: Level) -> Result:
    """Whether the report's files are all there and its metrics cover every test slide."""
    folder = level.report
    missing = [
        name
        for name in ("report.html", "metrics.json")
        if not (folder / name).is_file() or not (folder / name).stat().st_size
    ]
    if missing:
        return False, f"{', '.join(missing)} missing in {folder}"
    evaluated = set(_metrics(folder)["patch"]["per_slide"])
    level.record(TEST_PREDICTIONS)
    predicted = read_plain_pickle(level.paths.artefact(TEST_PREDICTIONS, level.level))
    absent = sorted(set(predicted) - evaluated)
    text = f"without {', '.join(absent)}" if absent else f"all {len(evaluated)} test slides are in it"
    return not absent, text[:LONGEST_TEXT]


def better_than_chance(level: Level) -> Result:
    """Whether the test patches' ROC AUC lies above 0.5 by its whole interval."""
    auc = _metrics(level.report)["patch"]["overall"]["roc_auc"]
    if auc["value"] is None:
        return False, f"there is no AUC: {auc.get('reason') or 'nothing was evaluated'}"
    low = auc["low"]
    interval = "no interval" if low is None else f"95 % interval from {low:.3f}"
    least = auc["value"] if low is None else low
    return least > 0.5, f"AUC {auc['value']:.3f} ({interval}), chance is 0.5"


def up_to_date(artefact: Artefact, level: Level) -> Result:
    """Whether an artefact is what would be made now, with ``parameters.yaml`` and what there is above it."""
    record = level.record(artefact)
    parameters = options_of(artefact, level.level, level.storage.parameters.read()).model_dump(mode="json")
    usable: dict[str, list[str]] = {}
    if artefact.gathers_slides:
        registered = level.instance.get_dynamic_partitions(SLIDES.name)
        found = {slide.slide_id: str(slide.path) for slide in level.folder.list().slides}
        known = known_slides(level.instance, registered)
        usable, _ = usable_slides(level.provenance, artefact.inputs, registered, found, known)
    above = {one.name: level.record(one).version for one in artefact.inputs if one.by_level}
    why = why_out_of_date(record, True, artefact, parameters, inputs_of_level(artefact, usable, above))
    return (
        why is None,
        "made from what there is now" if why is None else f"out of date: {why}. Materialize it again",
    )


CHECKS: dict[Artefact, list[Check]] = {
    SLIDE_INDEX: [
        Check(
            "every_slide_takes_part",
            "Every registered slide takes part in this level; names those left out and why.",
            every_slide_takes_part,
        ),
        Check(
            "slides_made_alike",
            "The regions of all slides were made with the same parameters; names the odd ones out.",
            slides_made_alike,
        ),
        *(Check(name, description, partial(finding, name)) for name, description in CURATION.items()),
    ],
    SAMPLED_INDEX: [
        Check(
            "sample_is_of_index",
            "Every sampled patch is in the slide index with the same label, and test slides are whole.",
            sample_is_of_index,
            blocking=True,
        ),
        Check(
            "training_has_both_classes",
            "The slides to learn from hold tumor and normal patches. With one class only the store is still "
            "made; training then stops with a clear error.",
            training_has_both_classes,
        ),
        Check(
            "incomplete_slides_known",
            "Every slide of the list of incompletely annotated ones is in the index: a mistyped one would "
            "give normal patches.",
            incomplete_slides_known,
        ),
    ],
    PATCH_STORE: [
        Check(
            "store_equals_its_index",
            "The store is complete and holds exactly the patches of the sampled index, with their labels, "
            "but for those listed as unreadable.",
            store_equals_its_index,
            blocking=True,
        ),
        Check(
            "few_patches_unreadable",
            "At most max_quarantined of the patches could not be read.",
            few_patches_unreadable,
            blocking=True,
        ),
        Check(
            "patches_show_their_slides",
            f"{PIXELS_CHECKED} patches read again from their slides are what the store holds.",
            patches_show_their_slides,
            blocking=True,
        ),
    ],
    TRAINED_MODEL: [
        Check(
            "no_patient_on_two_sides",
            "No patient is in two of training, validation and test; names those that are.",
            no_patient_on_two_sides,
        ),
        Check(
            "better_than_majority",
            "At its best epoch the model beats always answering the larger class, and its AUC is above 0.5.",
            better_than_majority,
        ),
        Check(
            "every_strategy_acts",
            "Every strategy against imbalance that is switched on has something to do.",
            every_strategy_acts,
        ),
    ],
    TEST_PREDICTIONS: [],
    EVALUATION: [
        Check("report_is_complete", "The report is there and covers every test slide.", report_is_complete),
        Check(
            "better_than_chance",
            "The test patches' AUC is above 0.5 by its whole interval.",
            better_than_chance,
        ),
    ],
}


def build_checks(artefact: Artefact, checks: Sequence[Check]) -> dg.AssetChecksDefinition:
    """The step that evaluates an asset's checks, and whether it is up to date."""
    checks = with_up_to_date(artefact, checks)

    @dg.multi_asset_check(
        name=f"{artefact.name}_checks",
        specs=[
            dg.AssetCheckSpec(
                check.name,
                asset=artefact.key,
                description=check.description,
                blocking=check.blocking,
                partitions_def=LEVELS,
            )
            for check in checks
        ],
    )
    def evaluate_checks(
        context: dg.AssetCheckExecutionContext, storage: StorageResource, folder: SlideFolderResource
    ) -> Iterator[dg.AssetCheckResult]:
        level = Level(context.partition_key, storage, folder, context.instance)
        results = {check.name: evaluate(check, level) for check in checks}
        keep_results(storage.paths, artefact, level.level, results)
        for check in checks:
            passed, text = results[check.name]
            yield dg.AssetCheckResult(
                passed=passed,
                check_name=check.name,
                description=text,
                severity=dg.AssetCheckSeverity.ERROR if check.blocking else dg.AssetCheckSeverity.WARN,
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
        for artefact, checks in CHECKS.items():
            if level.paths.is_there(artefact, key):
                found = {check.name: evaluate(check, level) for check in with_up_to_date(artefact, checks)}
                keep_results(storage.paths, artefact, key, found)
        failed += [f"level {key}: {line}" for line in failed_checks(storage.paths, key, CHECKS)]
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


def with_up_to_date(artefact: Artefact, checks: Sequence[Check]) -> list[Check]:
    """An asset's checks, and whether it is up to date."""
    current = Check(
        "up_to_date",
        "Made with the parameters of parameters.yaml from what there is now; says what differs.",
        partial(up_to_date, artefact),
    )
    return [*checks, current]


def evaluate(check: Check, level: Level) -> Result:
    """A check's result; what cannot be read fails it."""
    try:
        passed, text = check.evaluate(level)
        return bool(passed), text
    except WsiAssetsError as error:
        return False, str(error)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        return False, f"an artefact is damaged ({error!r:.200}). Materialize it again"


def kept_results(paths: StoragePaths, artefact: Artefact, level: str) -> dict[str, list[Any]]:
    """Check -> [passed, text], of the checks that were evaluated on the artefact as it is."""
    record = read_record(paths.record(artefact, level))
    path = paths.artefact(artefact, level)
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        kept = json.loads(path.with_name(path.name + CHECKS_SUFFIX).read_text(encoding="utf-8"))
        if record is not None and kept["version"] == record.version:
            return dict(kept["results"])
    return {}


def keep_results(paths: StoragePaths, artefact: Artefact, level: str, results: Mapping[str, Result]) -> None:
    """Write what checks of an artefact said beside it, with the version they were about."""
    record = read_record(paths.record(artefact, level))
    path = paths.artefact(artefact, level)
    kept = {**kept_results(paths, artefact, level), **{name: list(one) for name, one in results.items()}}
    write_json(
        path.with_name(path.name + CHECKS_SUFFIX), {"version": record and record.version, "results": kept}
    )


def failed_checks(paths: StoragePaths, level: str, artefacts: Iterable[Artefact]) -> list[str]:
    """One line for each check that failed when it was last evaluated on the artefact as it is."""
    return [
        f"{artefact.name} {name}: {text}"
        for artefact in artefacts
        for name, (passed, text) in kept_results(paths, artefact, level).items()
        if not passed
    ]


def nothing_found(faults: Iterable[tuple[str, str]], else_text: str) -> Result:
    """Passed if there are no faults, (slide id, what is wrong); else it names them."""
    pairs = sorted(faults)
    return not pairs, ("; ".join(f"{slide_id}: {fault}" for slide_id, fault in pairs) or else_text)[
        :LONGEST_TEXT
    ]


def no_leakage(split: Collection[Mapping[str, Any]], unit: str | None) -> Result:
    """Whether no patient is on two sides of the split (training, validation, test).

    Args:
        split: rows with ``patient`` and ``side``; none fails.
        unit: what was split by; anything but ``"patient"`` was chosen because there are too few patients.
    """
    if not split:
        return False, "the model does not say how its patches were split"
    sides: dict[str, set[str]] = defaultdict(set)
    for row in split:
        sides[str(row["patient"])].add(str(row["side"]))
    both = {patient: " and ".join(sorted(found)) for patient, found in sides.items() if len(found) > 1}
    text = "; ".join(f"patient {patient}: {found}" for patient, found in sorted(both.items()))[:LONGEST_TEXT]
    if both and unit != "patient":
        text += f". There are too few patients to split by, so it was by {unit}: the metrics flatter"
    return not both, text or f"{len(sides)} patients, each on one side"


def _metrics(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WsiAssetsError(f"does not read ({error})", path=folder / "metrics.json") from error


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3f}"


ALL_CHECKS = [build_checks(artefact, checks) for artefact, checks in CHECKS.items()]
