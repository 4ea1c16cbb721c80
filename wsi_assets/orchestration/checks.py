"""Gates: facts an artefact must satisfy, shown beside it in the UI; :mod:`.gates` decides them.

Only those block whose failure would corrupt what is made next; the rest warn. The gates of an asset share one
step, so that a level costs a handful of process starts and each artefact is read once.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import dagster as dg

from wsi_assets.orchestration import catalog, gates
from wsi_assets.orchestration.curation import CURATION, curate
from wsi_assets.orchestration.gates import Verdict
from wsi_assets.orchestration.io_managers.patch_stores import current_store
from wsi_assets.orchestration.level_state import LevelState
from wsi_assets.orchestration.lineage import recorded
from wsi_assets.orchestration.partitions import LEVELS, SLIDES
from wsi_assets.orchestration.resources.library import SlideLibrary
from wsi_assets.orchestration.resources.storage import Storage

# Checks by partition are what a level needs; that Dagster calls them a preview is no news to a user.
warnings.filterwarnings("ignore", category=dg.PreviewWarning)

PIXELS_CHECKED = 32
"""Patches of a store that are read again from their slides; a wrong place or a wrong codec shows in each."""

LINEAGE = "fits_its_level"

Gate = Callable[[], Verdict]


def _spec(asset: str, name: str, description: str, blocking: bool = False) -> dg.AssetCheckSpec:
    return dg.AssetCheckSpec(
        name, asset=asset, description=description, blocking=blocking, partitions_def=LEVELS
    )


def _judge(judged: Mapping[str, tuple[Gate, bool]]) -> Iterator[dg.AssetCheckResult]:
    """Evaluate gates by name; those that may block are errors when they fail."""
    for name, (gate, blocks) in judged.items():
        verdict = gate()
        yield dg.AssetCheckResult(
            passed=verdict.passed,
            check_name=name,
            description=verdict.text,
            severity=dg.AssetCheckSeverity.ERROR if blocks else dg.AssetCheckSeverity.WARN,
            metadata=dict(verdict.figures),
        )


@dg.multi_asset_check(
    name="slide_index_gates",
    specs=[
        _spec(
            "slide_index",
            "every_slide_takes_part",
            "Every registered slide takes part in this level; names those left out and why.",
        ),
        _spec(
            "slide_index",
            "slides_made_alike",
            "The regions of all slides were made with the same parameters; names the odd ones out.",
        ),
        *(_spec("slide_index", name, description) for name, description in CURATION.items()),
    ],
)
def slide_index_gates(
    context: dg.AssetCheckExecutionContext, storage: Storage, library: SlideLibrary
) -> Iterator[dg.AssetCheckResult]:
    level = LevelState(context.instance, storage.layout, library, _level_of(context))
    left_out = level.metadata("slide_index").get("left_out", {})
    entries = level.load("slide_index")
    findings = curate(entries, level.load_slide)
    judged: dict[str, tuple[Gate, bool]] = {
        "every_slide_takes_part": (
            partial(gates.nothing_found, left_out, f"all {len(entries)} slides"),
            False,
        ),
        "slides_made_alike": (partial(_made_alike, context.instance), False),
    }
    for name in CURATION:
        judged[name] = (
            partial(gates.nothing_found, findings[name], f"{len(entries)} slides looked at"),
            False,
        )
    yield from _judge(judged)


@dg.multi_asset_check(
    name="sampled_index_gates",
    specs=[
        _spec(
            "sampled_index",
            "sample_is_of_index",
            "Every sampled patch is in the slide index with the same label, and test slides are whole.",
            blocking=True,
        ),
        _spec(
            "sampled_index",
            "training_has_both_classes",
            "The slides to learn from hold tumour and normal patches. With one class only the store is still "
            "made; training then stops with a clear error.",
        ),
        _spec(
            "sampled_index",
            "incomplete_slides_known",
            "Every slide of the list of incompletely annotated ones is in the index: a mistyped one would "
            "give normal patches.",
        ),
    ],
)
def sampled_index_gates(
    context: dg.AssetCheckExecutionContext, storage: Storage, library: SlideLibrary
) -> Iterator[dg.AssetCheckResult]:
    level = LevelState(context.instance, storage.layout, library, _level_of(context))
    sampled = level.load("sampled_index")
    judged = {
        "sample_is_of_index": (
            partial(gates.sample_is_of_index, level.load("slide_index"), sampled),
            True,
        ),
        "training_has_both_classes": (partial(gates.has_both_classes, sampled), False),
        "incomplete_slides_known": (
            partial(
                gates.nothing_found,
                dict.fromkeys(
                    level.metadata("sampled_index").get("incomplete_unknown", ()),
                    "is in the list of incompletely annotated slides and not in this index",
                ),
                "every listed slide is in the index",
            ),
            False,
        ),
    }
    yield from _judge(judged)


@dg.multi_asset_check(
    name="patch_store_gates",
    specs=[
        _spec(
            "patch_store",
            "store_equals_its_index",
            "The store is complete and holds exactly the patches of the sampled index, with their labels, "
            "but for those listed as unreadable.",
            blocking=True,
        ),
        _spec(
            "patch_store",
            "few_patches_unreadable",
            "At most max_quarantined of the patches could not be read.",
            blocking=True,
        ),
        _spec(
            "patch_store",
            "patches_show_their_slides",
            f"{PIXELS_CHECKED} patches read again from their slides are what the store holds.",
            blocking=True,
        ),
    ],
)
def patch_store_gates(
    context: dg.AssetCheckExecutionContext, storage: Storage, library: SlideLibrary
) -> Iterator[dg.AssetCheckResult]:
    from wsi_assets.patches import ExtractionOptions, open_store, plan_patches

    level = LevelState(context.instance, storage.layout, library, _level_of(context))
    sampled, about = level.load("sampled_index"), level.metadata("patch_store")
    options = ExtractionOptions(**about["parameters"])
    plan = plan_patches(sampled, options)
    with open_store(current_store(level.layout, level.level)) as store:
        lost = len(store.info["quarantined"])
        judged: dict[str, tuple[Gate, bool]] = {
            "store_equals_its_index": (
                partial(
                    gates.store_equals_index,
                    *(
                        store.info["plan_digest"],
                        plan.digest(store.info["backend"]),
                        store.info["patches"],
                        lost,
                        len(plan),
                    ),
                ),
                True,
            ),
            "few_patches_unreadable": (
                partial(gates.few_quarantined, lost, len(plan), options.max_quarantined),
                True,
            ),
            "patches_show_their_slides": (partial(_pixels, store, library.at_home(sampled)), True),
        }
        yield from _judge(judged)


@dg.multi_asset_check(
    name="trained_model_gates",
    specs=[
        _spec(
            "trained_model",
            "no_patient_on_two_sides",
            "No patient is in two of training, validation and test; names those that are.",
        ),
        _spec(
            "trained_model",
            "better_than_majority",
            "At its best epoch the model beats always answering the larger class, and its AUC is above 0.5.",
        ),
    ],
)
def trained_model_gates(
    context: dg.AssetCheckExecutionContext, storage: Storage, library: SlideLibrary
) -> Iterator[dg.AssetCheckResult]:
    level = LevelState(context.instance, storage.layout, library, _level_of(context))
    about = level.metadata("trained_model")
    judged: dict[str, tuple[Gate, bool]] = {
        "no_patient_on_two_sides": (
            partial(gates.no_leakage, about.get("split", []), about.get("split_unit")),
            False,
        ),
        "better_than_majority": (partial(gates.beats_majority, about), False),
    }
    yield from _judge(judged)


@dg.multi_asset_check(
    name="evaluation_gates",
    specs=[
        _spec("evaluation", "report_is_complete", "The report is there and speaks of every test slide."),
        _spec(
            "evaluation", "better_than_chance", "The test patches' AUC is above 0.5 by its whole interval."
        ),
    ],
)
def evaluation_gates(
    context: dg.AssetCheckExecutionContext, storage: Storage, library: SlideLibrary
) -> Iterator[dg.AssetCheckResult]:
    level = LevelState(context.instance, storage.layout, library, _level_of(context))
    predicted = list(level.load("test_predictions"))
    folder = level.layout.level_artefact("evaluation", level.level)
    judged: dict[str, tuple[Gate, bool]] = {
        "report_is_complete": (partial(gates.report_is_complete, folder, predicted), False),
        "better_than_chance": (
            partial(gates.beats_chance, level.metadata("evaluation").get("figures", [])),
            False,
        ),
    }
    yield from _judge(judged)


@dg.multi_asset_check(
    name="lineage_gates",
    can_subset=True,
    specs=[
        _spec(
            asset,
            LINEAGE,
            "Made from what there is now: fails where an asset above was made again since, e.g. with other "
            "parameters, and says from where to materialize.",
        )
        for asset in catalog.LEVEL_ASSETS
    ],
)
def lineage_gates(
    context: dg.AssetCheckExecutionContext, storage: Storage, library: SlideLibrary
) -> Iterator[dg.AssetCheckResult]:
    level = LevelState(context.instance, storage.layout, library, _level_of(context))
    verdicts = level.lineage()
    for check in sorted(context.selected_asset_check_keys, key=lambda check: check.asset_key):
        verdict = verdicts.get(check.asset_key.to_user_string(), Verdict(True, "not made yet"))
        yield dg.AssetCheckResult(
            passed=verdict.passed,
            asset_key=check.asset_key,
            check_name=LINEAGE,
            description=verdict.text,
            severity=dg.AssetCheckSeverity.WARN,
        )


def _level_of(context: dg.AssetCheckExecutionContext) -> str:
    return context.op_execution_context.partition_key


def _made_alike(instance: dg.DagsterInstance) -> Verdict:
    slides = instance.get_dynamic_partitions(SLIDES.name)
    made = {asset: recorded(instance, asset, slides) for asset in catalog.SLIDE_ASSETS}
    # A slide that lacks one of its regions takes no part, and is named for that.
    whole = set.intersection(*(set(latest) for latest in made.values()))
    return gates.made_alike(
        {s: {k: v for latest in made.values() for k, v in latest[s].parameters.items()} for s in whole}
    )


def _pixels(store: Any, sampled: dict[str, Any]) -> Verdict:
    from wsi_assets.patches import verify_store

    report = verify_store(store, sampled, min(1.0, PIXELS_CHECKED / max(1, len(store))))
    return gates.nothing_found(report.problems, f"{report.checked} patches equal their slides")


ALL_CHECKS = [
    slide_index_gates,
    sampled_index_gates,
    patch_store_gates,
    trained_model_gates,
    evaluation_gates,
    lineage_gates,
]
