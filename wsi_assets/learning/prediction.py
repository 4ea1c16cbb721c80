"""Tumor probabilities for the patches of test slides, or of any patches of a store."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from wsi_assets.errors import ModelError
from wsi_assets.index.slide_index import is_test, resolution_of
from wsi_assets.learning.checkpoints import LoadedModel, load_model
from wsi_assets.learning.data import BatchReader, locate, ordered_batches
from wsi_assets.learning.devices import autocast, in_use, resolve_device, resolve_precision
from wsi_assets.learning.models import PatchClassifier
from wsi_assets.learning.options import PredictionOptions
from wsi_assets.progress import Progress, silent

if TYPE_CHECKING:
    from wsi_assets.index import Index
    from wsi_assets.patches import PatchStore


def predict(
    store: PatchStore,
    index: Index,
    model: str | Path | LoadedModel,
    options: PredictionOptions | None = None,
    *,
    slides: Collection[str] | None = None,
    progress: Progress = silent,
) -> Index:
    """The test slides' index entries with ``probs`` and ``preds`` in the order of ``patches``.

    Args:
        index: the whole index that the store was built from: a patch's key counts over all slides.
        model: ``best.pt``, its folder, or the loaded model, which is then moved to the chosen device.
        slides: ids of the slides to predict; the test slides without.

    Returns:
        Copies of these slides' entries with ``probs`` (tumor probability as ``best.json`` explains it; NaN
        for a patch that could not be read), ``preds`` (1 at or above ``prediction_threshold``, else 0; -1
        for such a patch).

    Raises:
        ModelError: the model is damaged, or was trained on another patch size or level.
        StoreError: the store was not built from this index, or a patch cannot be read.
    """
    options = options or PredictionOptions()
    loaded = model if isinstance(model, LoadedModel) else load_model(model)
    if slides is None:
        slides = {slide_id for slide_id, entry in index.items() if is_test(slide_id, entry)}
    if not slides:
        return {}
    table = locate(store, index)
    first = next(iter(index.values()))
    level = store.info.get("level", resolution_of(first) if "level" in first else None)
    check_fits(loaded, store.info.get("patch_size"), level, f"the store {store.path}")
    asked = np.array([slide_id in slides for slide_id in table.slide_ids])[table.slides]
    rows = np.flatnonzero(asked & (table.positions >= 0))
    probs = np.full(len(table.positions), np.nan)
    probs[rows] = patch_probabilities(loaded.classifier(), store, table.positions[rows], options, progress)
    preds = np.where(np.isnan(probs), -1, probs >= options.prediction_threshold).astype(int)
    found = {}
    for number, slide_id in enumerate(table.slide_ids):
        if slide_id in slides:
            here = table.slides == number
            values = {"probs": probs[here].tolist(), "preds": preds[here].tolist()}
            found[slide_id] = {**index[slide_id], **values}
    return found


def check_fits(loaded: LoadedModel, patch_size: int | None, level: int | str | None, what: str) -> None:
    """Refuse patches of another size or level than the model was trained on, as far as both are known.

    Raises:
        ModelError: it was trained on others than those of ``what``.
    """
    for name, trained, found in (
        ("patch_size", loaded.patch_size, patch_size),
        ("level", loaded.card.get("level"), level),
    ):
        if trained is not None and found is not None and str(found) != str(trained):
            raise ModelError(
                f"was trained on {name} {trained}, and {what} has {found}",
                path=loaded.path,
                remedy="Use a model of the level that is predicted",
            )


def patch_probabilities(
    classifier: PatchClassifier,
    store: PatchStore,
    positions: np.ndarray,
    options: PredictionOptions,
    progress: Progress = silent,
) -> np.ndarray:
    """Tumor probability of the patches at ``positions`` of a store, float64, in that order."""
    device = resolve_device(options.device)
    precision = resolve_precision(options.prediction_precision, device)
    classifier = classifier.to(device, memory_format=torch.channels_last)
    size = options.prediction_batch_size
    with (
        in_use(device, "prediction_batch_size"),
        BatchReader(store, workers=options.num_workers, pin=device.type == "cuda") as reader,
    ):
        batches = reader.read(ordered_batches(positions, size))
        return tumor_probabilities(classifier, batches, len(positions), device, precision, progress)


@torch.inference_mode()
def tumor_probabilities(
    classifier: PatchClassifier,
    batches: Iterable[Tensor],
    total: int,
    device: torch.device,
    precision: str,
    progress: Progress = silent,
) -> np.ndarray:
    """Tumor probability of patches in batches, (n,) float64, by a classifier on ``device``.

    Args:
        batches: uint8 (n, size, size, 3) RGB each; total: patches of all of them, at most.
    """
    classifier.eval()
    # One array: small ones kept from each batch would cut up the memory that batches come and go in.
    found, done = torch.empty(total, device=device), 0
    for patches in batches:
        patches = patches.to(device, non_blocking=True)
        with autocast(device, precision):
            found[done : done + len(patches)] = classifier(patches)[:, 1]
        done += len(patches)
        progress(done, total, "predicting patches")
    return found[:done].double().cpu().numpy()
