"""Reads and checks the predictions of test slides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from wsi_assets.errors import EvaluationError
from wsi_assets.index.slide_index import partial_tumor

Predictions = Mapping[str, Mapping[str, Any]]
"""Slide id -> index entry with ``probs`` (n,); NaN stands for a patch that could not be read."""


@dataclass(frozen=True)
class SlidePredictions:
    """One test slide's patches and their tumor probabilities.

    ``y`` and ``x`` (n,) are top-left corners in pixels of ``level``, ``patch_size`` and ``stride`` are in
    such pixels too; ``probs`` (n,) is NaN where a patch could not be read; ``partial`` (n,) are patches with
    too little tumor to be of either class. ``downsample`` turns pixels of ``level`` into level-0 pixels;
    ``mpp`` is the level-0 pixel size in um; both are None if unknown.
    """

    slide_id: str
    patient: str
    slide_path: str
    level: int
    y: np.ndarray
    x: np.ndarray
    is_tumor: np.ndarray
    partial: np.ndarray
    probs: np.ndarray
    patch_size: int
    stride: int
    downsample: float | None
    mpp: float | None

    @property
    def seen(self) -> np.ndarray:
        """(n,) bool: the patches that have a probability."""
        return ~np.isnan(self.probs)

    @property
    def counted(self) -> np.ndarray:
        """(n,) bool: the patches that have a probability and are either tumor or normal."""
        return self.seen & ~self.partial


def read_predictions(predictions: Predictions) -> list[SlidePredictions]:
    """Read the predictions of all slides, sorted by id.

    The keys ``slide_path``, ``label``, ``level``, ``patches`` and ``probs`` are enough. Without
    ``patch_size`` and ``stride``, both are taken from the grid of the patches.

    Raises:
        EvaluationError: this is not a dict of slides, an entry lacks a key, or it does not have one
            probability between 0 and 1, or NaN, for each patch.
    """
    slides = []
    try:
        for slide_id in sorted(predictions):
            slides.append(_read_entry(slide_id, predictions[slide_id]))
    except (LookupError, TypeError, ValueError) as error:
        where = f"slide {slide_id}" if isinstance(predictions, Mapping) else "not a dict of slides"
        reason = f"predictions are damaged: {where}: {error!r:.200}"
        raise EvaluationError(reason, remedy="Materialize test_predictions again") from error
    return slides


def _read_entry(slide_id: str, entry: Mapping[str, Any]) -> SlidePredictions:
    patches = np.asarray(entry["patches"], dtype=np.int64).reshape(-1, 3)
    probs = np.asarray(entry["probs"], dtype=np.float64).reshape(-1)
    if len(patches) != len(probs) or ((probs < 0) | (probs > 1)).any():
        raise ValueError(f"{len(probs)} probabilities for {len(patches)} patches; each needs one from 0 to 1")
    stride = int(entry.get("stride") or _grid_step(patches))
    downsample, mpp = entry.get("downsample"), entry.get("mpp")
    return SlidePredictions(
        slide_id=slide_id,
        patient=str(entry["label"]),
        slide_path=str(entry["slide_path"]),
        level=int(entry["level"]),
        y=patches[:, 0],
        x=patches[:, 1],
        is_tumor=patches[:, 2].astype(bool),
        partial=partial_tumor(entry),
        probs=probs,
        patch_size=int(entry.get("patch_size") or stride),
        stride=stride,
        downsample=float(downsample) if downsample else None,
        # An entry holds the pixel size of its level; lesions, detections and pictures are in level-0 pixels.
        mpp=mpp / downsample if mpp and downsample else None,
    )


def _grid_step(patches: np.ndarray) -> int:
    """The largest step of a grid that holds all corners of patches (n, 3); 256 for fewer than two."""
    places = patches[:, :2]
    return int(np.gcd.reduce((places - places.min(0, initial=0)).ravel(), initial=0)) or 256
