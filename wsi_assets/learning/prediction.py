"""Tumor probabilities of the patches of test slides, or of any patches in a store."""

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
    """Predict the patches of the test slides.

    Args:
        index: the whole index that the store was built from, since the keys number the patches of all slides.
        model: ``best.pt``, its folder, or the loaded model, which is then moved to the chosen device.
        slides: ids of the slides to predict; None for the test slides.

    Returns:
        Copies of the slides' index entries with two lists in the order of ``patches``: ``probs``, the tumor
        probabilities as ``best.json`` explains them, and ``preds``, 1 at or above ``prediction_threshold``,
        else 0. A patch that could not be read has NaN and -1.

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
    wanted = np.array([slide_id in slides for slide_id in table.slide_ids])[table.slides]
    rows = np.flatnonzero(wanted & (table.positions >= 0))
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
    """Check that patches have the size and level that the model was trained on, as far as both are known.

    Args:
        what: where the patches come from, for the error.

    Raises:
        ModelError: they differ.
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
    """Tumor probability of each patch at ``positions`` (n,) of a store, (n,) float64."""
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
    """Tumor probability of each patch in ``batches``, (n,) float64.

    Args:
        classifier: on ``device``.
        batches: each uint8 (n, size, size, 3) RGB.
        total: the largest number of patches that all batches may hold.
    """
    classifier.eval()
    # One array: small ones, kept from each batch, would fragment the memory in which batches are allocated.
    found, done = torch.empty(total, device=device), 0
    for patches in batches:
        patches = patches.to(device, non_blocking=True)
        with autocast(device, precision):
            found[done : done + len(patches)] = classifier(patches)[:, 1]
        done += len(patches)
        progress(done, total, "predicting patches")
    return found[:done].double().cpu().numpy()
