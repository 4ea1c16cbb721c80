"""Hard negatives: normal patches that the model takes for tumor, for use in the next training.

One round is: train, find the hard negatives, train with them (``use_hard_negatives``), evaluate. An asset
graph cannot have a cycle, so the sampled index reads the stored hard negatives of the last round as feedback
(see ``Artefact``); its record contains their version.
"""

from pathlib import Path
from typing import Any

import dagster as dg

from wsi_assets.files import read_plain_pickle
from wsi_assets.learning.options import HardNegativeOptions
from wsi_assets.orchestration.artefact import Artefact
from wsi_assets.orchestration.assets.evaluation import EVALUATION
from wsi_assets.orchestration.assets.index import HARD_NEGATIVES_NAME, SAMPLED_INDEX, SLIDE_INDEX
from wsi_assets.orchestration.assets.learning import POOL, TEST_PREDICTIONS, TRAINED_MODEL
from wsi_assets.orchestration.assets.patches import PATCH_STORE
from wsi_assets.orchestration.config import launchpad_config
from wsi_assets.orchestration.making import Making
from wsi_assets.orchestration.metadata import progress_to, table, user_errors_as_failures
from wsi_assets.orchestration.resources import SlideFolderResource
from wsi_assets.orchestration.storage import StorageResource

HARD_NEGATIVES = Artefact(
    name=HARD_NEGATIVES_NAME,
    code_version="1",
    path="{level}/hard_negatives.pkl",
    options=HardNegativeOptions,
    inputs=(SLIDE_INDEX, SAMPLED_INDEX, TRAINED_MODEL),
    without_effect=frozenset({"num_workers", "device", "prediction_batch_size"}),
    optional=True,
    shown=("round", "new_patches", "patches", "slides"),
)

HardNegativesConfig = launchpad_config(HARD_NEGATIVES)


@dg.asset(
    **HARD_NEGATIVES.asset_arguments(),
    kinds={"pytorch", "pickle"},
    pool=POOL,
    description="Normal patches of training slides to which the model gives the highest tumor "
    "probabilities, from the whole index. With `use_hard_negatives` the next sampled index includes them, "
    "and the next report compares the metrics before and after. Made only on request.",
)
def hard_negatives(
    context: dg.AssetExecutionContext,
    config: HardNegativesConfig,
    folder: SlideFolderResource,
    storage: StorageResource,
    slide_index: dict[str, Any],
    sampled_index: dict[str, Any],
    trained_model: Path,
) -> dg.MaterializeResult:
    from wsi_assets.learning import find_hard_negatives, joined, load_model

    level = context.partition_key
    with user_errors_as_failures():
        making = Making(context, storage, HARD_NEGATIVES, config)
        store = storage.record(PATCH_STORE, level)
        found, faults = find_hard_negatives(
            folder.with_present_paths(slide_index),
            sampled_index,
            load_model(trained_model),
            making.options,
            **({"max_no_data": store.parameters["max_no_data"]} if store else {}),
            progress=progress_to(context.log),
        )
        learned = storage.record(SAMPLED_INDEX, level)
        earlier, number = {}, (learned and learned.facts.get("hard_negatives", {}).get("round")) or 0
        if number:
            # Patches of earlier rounds are kept: without them, the model may take them for tumor again.
            earlier = read_plain_pickle(storage.artefact(HARD_NEGATIVES, level))["patches"]
    together = joined(earlier, found)
    rows = [
        {"slide": slide_id, "new": len(patches), "highest probability": patches[0][2]}
        for slide_id, patches in found.items()
    ]
    return making.result(
        {"round": number + 1, "patches": together, "before": _before(storage, level)},
        facts={
            "round": number + 1,
            "new_patches": sum(map(len, found.values())),
            "patches": sum(map(len, together.values())),
            "slides": len(together),
            "left_out": faults,
        },
        metadata={"hard_negatives": table(rows)},
    )


def _before(storage: StorageResource, level: str) -> dict[str, Any] | None:
    """Metrics of the current model and slide id -> number of test patches; None if it was not evaluated."""
    evaluated, predicted = storage.record(EVALUATION, level), storage.record(TEST_PREDICTIONS, level)
    model = storage.version(TRAINED_MODEL, level)
    if not evaluated or not predicted or evaluated.inputs.get(TRAINED_MODEL.name) != model:
        return None
    tested = read_plain_pickle(storage.artefact(TEST_PREDICTIONS, level))
    return {
        "metrics": {name: value for name, value in evaluated.facts.items() if name != "seconds"},
        "tested": {slide_id: len(entry["patches"]) for slide_id, entry in tested.items()},
    }
