"""Tumour probabilities for the patches of test slides. What follows from them is ``evaluation``'s."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from wsi_assets.errors import ModelError, StoreError
from wsi_assets.index.slide_index import check_index, is_test
from wsi_assets.learning.augmentation import dihedral
from wsi_assets.learning.checkpoints import LoadedModel, PatchClassifier, load_model
from wsi_assets.learning.data import BatchReader, ordered_batches
from wsi_assets.learning.devices import (
    autocast,
    clear_memory_errors,
    quiet_randomness,
    resolve_device,
    resolve_precision,
    usable_workers,
)
from wsi_assets.learning.options import PredictionOptions
from wsi_assets.progress import Progress, silent

if TYPE_CHECKING:
    from wsi_assets.index import Index
    from wsi_assets.patches import PatchStore


def predict(
    store: PatchStore,
    index: Index,
    checkpoint: str | Path | LoadedModel,
    options: PredictionOptions | None = None,
    *,
    progress: Progress = silent,
) -> Index:
    """The test slides' index entries with ``probs`` and ``preds`` in the order of ``patches``.

    Patches are read in batches that run on over slide borders, so memory holds a few batches whatever the
    slides' sizes, and small slides cost no more than large ones.

    Args:
        index: the whole sampled index (a patch's key counts over all slides); slides that are not test slides
            are only counted.
        checkpoint: ``best.pt``, or the model loaded from it, which is then moved to the chosen device.

    Returns:
        Copies of the test slides' entries with ``probs`` (tumour probability; NaN for a patch that was
        quarantined when the store was built) and ``preds`` (1 at or above ``prediction_threshold``, else 0;
        -1 for a quarantined patch). Empty if there is no test slide.

    Raises:
        ModelError: the checkpoint is damaged, or was trained on another patch size or level.
        StoreError: the store was not built from these entries, or a patch cannot be read.
    """
    options = options or PredictionOptions()
    loaded = checkpoint if isinstance(checkpoint, LoadedModel) else load_model(checkpoint)
    check_fits(loaded, store.info, store.path)
    quarantined = quarantined_keys(store.info)
    slides = [
        (slide_id, entry, _positions(slide_id, entry, first, store, quarantined))
        for slide_id, entry, first in _test_slides(check_index(index))
    ]
    if not slides:
        return {}
    positions = np.concatenate([found for _, _, found in slides])
    probabilities = np.full(len(positions), np.nan)
    present = np.flatnonzero(positions >= 0)
    probabilities[present] = patch_probabilities(
        loaded.classifier(), store, positions[present], options, progress
    )
    results, start = {}, 0
    for slide_id, entry, found in slides:
        probs = probabilities[start : start + len(found)]
        start += len(found)
        preds = np.where(np.isnan(probs), -1, probs >= options.prediction_threshold).astype(int)
        results[slide_id] = {**entry, "probs": probs.tolist(), "preds": preds.tolist()}
    return results


def check_fits(loaded: LoadedModel, info: dict[str, Any], path: object) -> None:
    """Refuse a store whose patches the model has not learned to read.

    Raises:
        ModelError: patch size or level differ.
    """
    for name, trained, unit in (("patch_size", loaded.patch_size, " pixels"), ("level", loaded.level, "")):
        if int(info[name]) != trained:
            raise ModelError(
                f"was trained on {name} {trained}{unit}, and the store {path} has {info[name]}",
                path=loaded.path,
                remedy="Use the model and the store of one level",
            )


@torch.inference_mode()
def patch_probabilities(
    classifier: PatchClassifier,
    store: PatchStore,
    positions: np.ndarray,
    options: PredictionOptions,
    progress: Progress = silent,
) -> np.ndarray:
    """Tumour probability of the patches at ``positions`` of a store, float64, in that order."""
    device = resolve_device(options.device)
    precision = resolve_precision(options.prediction_precision, device)
    classifier = classifier.to(device, memory_format=torch.channels_last).eval()
    batches = ordered_batches(positions, options.prediction_batch_size)
    workers = usable_workers(options.num_workers)
    parts, done = [], 0
    with (
        quiet_randomness(device),
        clear_memory_errors("prediction_batch_size"),
        BatchReader(store, workers=workers, pin=device.type == "cuda") as reader,
    ):
        for patches in reader.read(batches):
            patches = patches.to(device, non_blocking=True)
            with autocast(device, precision):
                parts.append(_tumor(classifier, patches, options.tta))
            done += len(patches)
            progress(done, len(positions), "predicting patches")
    return torch.cat(parts).double().cpu().numpy() if parts else np.empty(0)


def _tumor(classifier: PatchClassifier, patches: torch.Tensor, tta: bool) -> torch.Tensor:
    if not tta:
        return classifier(patches)[:, 1]
    views = [dihedral(patches, torch.full((len(patches),), code)) for code in range(8)]
    return torch.stack([classifier(view)[:, 1] for view in views]).mean(dim=0)


def _test_slides(index: Index) -> Iterator[tuple[str, dict[str, Any], int]]:
    """Each test slide's id and entry, and the count of its first patch."""
    count = 0
    for slide_id, entry in index.items():
        if is_test(slide_id, entry):
            yield slide_id, entry, count
        count += len(entry["patches"])


def _positions(
    slide_id: str, entry: dict[str, Any], first: int, store: PatchStore, quarantined: set[str]
) -> np.ndarray:
    """Store positions of a slide's patches in order, -1 for quarantined ones."""
    from wsi_assets.patches import patch_key

    places = np.array(entry["patches"], dtype=np.int64).reshape(-1, 3)[:, :2]
    positions = np.empty(len(places), dtype=np.int64)
    for i in range(len(positions)):
        key = patch_key(slide_id, first + i)
        if key in quarantined:
            positions[i] = -1
            continue
        try:
            positions[i] = store.key_index(key)
        except (KeyError, StoreError) as error:
            raise _of_another_index(store, f"has no patch {key}") from error
    stored = np.flatnonzero(positions >= 0)
    # A key counts patches; an index of other patches has the same keys.
    elsewhere = np.any(store.coords[positions[stored]] != places[stored], axis=1)
    if elsewhere.any():
        key = patch_key(slide_id, first + int(stored[elsewhere.argmax()]))
        raise _of_another_index(store, f"has another patch under {key}")
    return positions


def _of_another_index(store: PatchStore, fault: str) -> StoreError:
    return StoreError(
        f"{fault}: it was not built from this index",
        path=store.path,
        remedy="Materialize patch_store again",
    )


def quarantined_keys(info: dict[str, Any]) -> set[str]:
    """Keys of the patches left out of a store because they could not be read."""
    return {row["key"] for row in info["quarantined"]}
