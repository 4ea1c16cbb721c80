"""Hard negatives: the normal patches of training slides that a model takes most surely for tumor."""

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
    """Predict the normal patches of the training slides that were not learned from, and keep the falsest.

    Validation and test slides are not looked at, nor slides from which sampling takes no normal patch at all,
    as those that are incompletely annotated.

    Args:
        index: all patches; sampled: those the model learned from, with ``split``.
        max_no_data: as in :class:`wsi_assets.patches.ExtractionOptions`.

    Returns:
        Slide id -> its falsest patches, at most ``hard_negatives_per_slide``, equal ones by a seeded draw;
        and slide id -> why it could not be predicted.

    Raises:
        ModelError: the model is of another patch size or level.
    """
    found: Patches = {}
    faults: dict[str, str] = {}
    rest = {name: _unlearned(index[name], entry) for name, entry in sampled.items()}
    rest = {name: entry for name, entry in rest.items() if entry["patches"]}
    total, before = sum(len(entry["patches"]) for entry in rest.values()), 0
    for slide_id, entry in rest.items():

        def counted(done: int, _: int, what: str, before: int = before) -> None:
            progress(before + done, total, what)

        try:
            probs = slide_probabilities(entry, model, options, max_no_data=max_no_data, progress=counted)
            found[slide_id] = _falsest(slide_id, entry, probs, options)
        except SlideError as error:
            faults[slide_id] = str(error)
        before += len(entry["patches"])
    return {slide_id: patches for slide_id, patches in found.items() if patches}, faults


def joined(*rounds: Mapping[str, list[tuple[int, int, float]]]) -> Patches:
    """The patches of several rounds; one that is in two keeps its latest probability."""
    together: dict[str, dict[tuple[int, int], float]] = {}
    for one in rounds:
        for slide_id, patches in one.items():
            together.setdefault(slide_id, {}).update({(y, x): p for y, x, p in patches})
    return {
        slide_id: sorted(((y, x, p) for (y, x), p in places.items()), key=lambda patch: (-patch[2], patch))
        for slide_id, places in sorted(together.items())
    }


def _unlearned(entry: Entry, sampled: Mapping[str, Any]) -> Entry:
    """The entry with its normal patches that are not sampled; with none if the slide does not train."""
    _, normal = classes(entry)
    learned = {tuple(patch[:2]) for patch in sampled["patches"]}
    if sampled.get("split") != "train" or not classes(sampled)[1].any():
        normal[:] = False
    chosen = [i for i in np.flatnonzero(normal).tolist() if tuple(entry["patches"][i][:2]) not in learned]
    return {**entry, **{key: [entry[key][i] for i in chosen] for key in PER_PATCH if key in entry}}


def _falsest(
    slide_id: str, entry: Entry, probs: np.ndarray, options: HardNegativeOptions
) -> list[tuple[int, int, float]]:
    places = np.array(entry["patches"], np.int64)[:, :2]
    wrong = np.flatnonzero(probs >= options.hard_negative_threshold)  # never a nan
    order = np.lexsort((ranks(slide_id, places[wrong], options.seed), -probs[wrong]))
    chosen = wrong[order[: options.hard_negatives_per_slide]].tolist()
    return [(int(places[i, 0]), int(places[i, 1]), float(probs[i])) for i in chosen]
