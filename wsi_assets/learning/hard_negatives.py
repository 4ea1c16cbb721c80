"""Hard negatives: normal patches of training slides with the highest predicted tumor probabilities."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_assets.errors import SlideError
from wsi_assets.index.sampling import ranks
from wsi_assets.index.slide_index import PER_PATCH, classes
from wsi_assets.learning.options import HardNegativeOptions
from wsi_assets.learning.slide_prediction import slide_probabilities
from wsi_assets.progress import Progress, silent

if TYPE_CHECKING:
    from wsi_assets.index import Entry, Index
    from wsi_assets.learning.checkpoints import LoadedModel

Patches = dict[str, list[tuple[int, int, float]]]
"""Slide id -> (y, x, tumor probability) of patches, most probable first."""


def find_hard_negatives(
    index: Index,
    sampled: Index,
    model: LoadedModel,
    options: HardNegativeOptions,
    *,
    max_no_data: float = 0.5,
    progress: Progress = silent,
) -> tuple[Patches, dict[str, str]]:
    """Predict the normal patches of training slides that the model was not trained on, and keep the hardest.

    Validation and test slides are skipped, and so are slides from which sampling takes no normal patches,
    such as incompletely annotated ones.

    Args:
        index: the index with all patches.
        sampled: the index with the patches that the model was trained on, and ``split``.
        max_no_data: as in :class:`wsi_assets.patches.ExtractionOptions`.

    Returns:
        Slide id -> its patches of the highest tumor probability, at most ``hard_negatives_per_slide``, with
        ties in a random order from ``seed``; and slide id -> why it could not be predicted.

    Raises:
        ModelError: the model was trained on another patch size or level.
    """
    found: Patches = {}
    faults: dict[str, str] = {}
    rest = {name: _not_trained_on(index[name], entry) for name, entry in sampled.items()}
    rest = {name: entry for name, entry in rest.items() if entry["patches"]}
    total, before = sum(len(entry["patches"]) for entry in rest.values()), 0
    for slide_id, entry in rest.items():

        def counted(done: int, _: int, what: str, before: int = before) -> None:
            progress(before + done, total, what)

        try:
            probs = slide_probabilities(entry, model, options, max_no_data=max_no_data, progress=counted)
            found[slide_id] = _hardest(slide_id, entry, probs, options)
        except SlideError as error:
            faults[slide_id] = str(error)
        before += len(entry["patches"])
    return {slide_id: patches for slide_id, patches in found.items() if patches}, faults


def joined(*rounds: Mapping[str, list[tuple[int, int, float]]]) -> Patches:
    """Join the patches of several rounds; a patch in more than one of them keeps its latest probability."""
    together: dict[str, dict[tuple[int, int], float]] = {}
    for one in rounds:
        for slide_id, patches in one.items():
            together.setdefault(slide_id, {}).update({(y, x): p for y, x, p in patches})
    return {
        slide_id: sorted(((y, x, p) for (y, x), p in places.items()), key=lambda patch: (-patch[2], patch))
        for slide_id, places in sorted(together.items())
    }


def _not_trained_on(entry: Entry, sampled: Mapping[str, Any]) -> Entry:
    """The entry with only its normal patches that were not sampled; with no patches if it is skipped."""
    _, normal = classes(entry)
    learned = {tuple(patch[:2]) for patch in sampled["patches"]}
    if sampled.get("split") != "train" or not classes(sampled)[1].any():
        normal[:] = False
    chosen = [i for i in np.flatnonzero(normal).tolist() if tuple(entry["patches"][i][:2]) not in learned]
    return {**entry, **{key: [entry[key][i] for i in chosen] for key in PER_PATCH if key in entry}}


def _hardest(
    slide_id: str, entry: Entry, probs: np.ndarray, options: HardNegativeOptions
) -> list[tuple[int, int, float]]:
    places = np.array(entry["patches"], np.int64)[:, :2]
    wrong = np.flatnonzero(probs >= options.hard_negative_threshold)  # NaN is never at least the threshold
    order = np.lexsort((ranks(slide_id, places[wrong], options.seed), -probs[wrong]))
    chosen = wrong[order[: options.hard_negatives_per_slide]].tolist()
    return [(int(places[i, 0]), int(places[i, 1]), float(probs[i])) for i in chosen]
