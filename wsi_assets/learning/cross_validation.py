"""Cross-validation by patient: each fold is predicted by a model trained on none of its patients."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_assets.errors import WsiAssetsError
from wsi_assets.files import digest, read_plain_pickle, write_json, write_plain_pickle
from wsi_assets.index.slide_index import classes, save_index
from wsi_assets.index.split import fold_slides, split_slides
from wsi_assets.learning.options import PredictionOptions, TrainingOptions
from wsi_assets.learning.prediction import predict
from wsi_assets.learning.training import train
from wsi_assets.learning.validation import confusion, roc_auc
from wsi_assets.progress import Progress, silent

if TYPE_CHECKING:
    from wsi_assets.index import Index
    from wsi_assets.patches import PatchStore

PREDICTIONS_NAME, SUMMARY_NAME = "out_of_fold.pkl", "folds.json"
METRICS = ("roc_auc", "average_precision", "sensitivity", "specificity")


def cross_validate(
    store: PatchStore,
    index: Index,
    options: TrainingOptions,
    folder: str | Path,
    *,
    folds: int = 5,
    progress: Progress = silent,
) -> tuple[Index, dict[str, Any]]:
    """Train a model for each fold, in ``folder/fold_K``, on the other folds and predict the fold with it.

    All slides of a patient are in one fold, and tumor slides are spread evenly over the folds. Each training
    takes its validation patients from its own folds. An interrupted cross-validation resumes in the fold it
    had reached.

    Returns:
        The content of ``out_of_fold.pkl`` and of ``folds.json``, which are written into ``folder``. The first
        holds the entries of all slides except test slides, with ``probs``, ``preds`` and ``fold``. The second
        holds ``folds`` (for each ``fold`` its ``slides`` and the :func:`metrics` of its sampled patches) and
        ``mean`` and ``spread`` (standard deviation, n - 1) of the metrics over folds that have both classes.

    Raises:
        SlideIndexError: there are fewer patients than folds.
        ModelError, ConfigError, StoreError: as for :func:`wsi_assets.learning.train`.
    """
    folder, predicted, rows = Path(folder), {}, []
    fold_of = fold_slides(index, folds, options.seed)
    for fold in range(folds):
        held_out = [name for name, number in fold_of.items() if number == fold]

        def in_fold(done: int, total: int, what: str, fold: int = fold) -> None:
            progress(done, total, f"fold {fold + 1} of {folds}, {what}")

        found = _predicted_fold(store, index, options, folder / f"fold_{fold}", held_out, in_fold)
        predicted |= {name: {**entry, "fold": fold} for name, entry in found.items()}
        rows.append({"fold": fold, "slides": held_out, **metrics(found)})
    values = {name: [row[name] for row in rows if row[name] is not None] for name in METRICS}
    mean = {name: float(np.mean(found)) for name, found in values.items() if found}
    spread = {name: float(np.std(found, ddof=1)) for name, found in values.items() if len(found) > 1}
    predictions, summary = dict(sorted(predicted.items())), {"folds": rows, "mean": mean, "spread": spread}
    save_index(folder / PREDICTIONS_NAME, predictions)
    write_json(folder / SUMMARY_NAME, summary)
    return predictions, summary


def _predicted_fold(
    store: PatchStore,
    index: Index,
    options: TrainingOptions,
    folder: Path,
    held_out: list[str],
    progress: Progress,
) -> Index:
    """The held-out entries with ``probs`` and ``preds``; those of an earlier run if nothing has changed."""
    sizes = {name: len(entry["patches"]) for name, entry in index.items()}
    recipe = digest(held_out, sizes, store.info.get("digest"), options.model_dump())
    path = folder / "predictions.pkl"
    if path.is_file():
        try:
            kept = read_plain_pickle(path)
            if kept["recipe"] == recipe:
                return kept["predictions"]
        except (WsiAssetsError, KeyError, TypeError):
            pass  # damaged: the fold is trained again
    rest = {name: entry for name, entry in index.items() if name not in held_out}
    sides = dict.fromkeys(held_out, "test") | split_slides(rest, options.val_size, options.seed)
    part = {name: {**entry, "split": sides[name]} for name, entry in index.items()}
    result = train(store, part, options, folder, progress=progress)
    settings = PredictionOptions(
        prediction_batch_size=options.batch_size, num_workers=options.num_workers, device=options.device
    )
    found = predict(store, index, result.best_path, settings, slides=held_out, progress=progress)
    write_plain_pickle(path, {"recipe": recipe, "predictions": found})
    return found


def metrics(predictions: Index) -> dict[str, Any]:
    """Counts of the patches that were read, and their ``METRICS`` (at 0.5), None if a class is missing."""
    from sklearn.metrics import average_precision_score

    truth, probs = [], []
    for entry in predictions.values():
        tumor, normal = classes(entry)
        found = np.asarray(entry["probs"], np.float64)
        known = (tumor | normal) & np.isfinite(found)
        truth.append(tumor[known].astype(np.int64))
        probs.append(found[known])
    truth, probs = np.concatenate(truth), np.concatenate(probs)
    counts = {"tumor": int(truth.sum()), "normal": int((truth == 0).sum())}
    if not min(counts.values()):
        return {**counts, **dict.fromkeys(METRICS)}
    true_normal, false_tumor, false_normal, true_tumor = confusion(truth, probs)
    found = (
        roc_auc(truth, probs),
        float(average_precision_score(truth, probs)),
        true_tumor / (true_tumor + false_normal),
        true_normal / (true_normal + false_tumor),
    )
    return {**counts, **dict(zip(METRICS, found, strict=True))}
