"""Predictions as columns: the test slides' index entries, checked once so that nothing below checks again.

No metric belongs here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from wsi_assets.errors import EvaluationError, SlideIndexError
from wsi_assets.index.slide_index import check_index

_NEEDED = ("slide_path", "label", "level", "patches", "patch_size", "stride", "downsample", "probs")


@dataclass(frozen=True)
class SlidePredictions:
    """One test slide's patches and their tumour probabilities.

    ``y`` and ``x`` (n,) are top-left corners in pixels of ``level``; ``probs`` (n,) is nan where a patch
    could not be read. ``downsample`` turns pixels of ``level`` into level-0 pixels; ``mpp`` is the level-0
    pixel size in um, None if unknown. ``patch_size`` and ``stride`` are in pixels of ``level``.
    """

    slide_id: str
    patient: str
    slide_path: str
    level: int
    y: np.ndarray
    x: np.ndarray
    is_tumor: np.ndarray
    probs: np.ndarray
    patch_size: int
    stride: int
    downsample: float
    mpp: float | None
    magnification: float | None

    @property
    def seen(self) -> np.ndarray:
        """(n,) bool: the patches that have a probability."""
        return ~np.isnan(self.probs)

    @property
    def quarantined(self) -> int:
        return int(np.isnan(self.probs).sum())


def read_predictions(predictions: Mapping[str, Mapping[str, Any]]) -> list[SlidePredictions]:
    """The slides of the test index, sorted by id.

    Raises:
        EvaluationError: it is no index, an entry lacks a field, or its probabilities do not fit its patches
            or are no probabilities.
    """
    try:
        check_index(predictions)
    except SlideIndexError as error:
        raise EvaluationError(error.fault, remedy=_AGAIN) from error
    return [_read_entry(slide_id, predictions[slide_id]) for slide_id in sorted(predictions)]


_AGAIN = "Materialize test_predictions again"


def _read_entry(slide_id: str, entry: Mapping[str, Any]) -> SlidePredictions:
    missing = [name for name in _NEEDED if name not in entry]
    if missing:
        raise EvaluationError(f"a prediction lacks {', '.join(missing)}", remedy=_AGAIN)
    patches = np.asarray(entry["patches"], dtype=np.int64).reshape(-1, 3)
    probs = np.asarray(entry["probs"], dtype=np.float64).reshape(-1)
    if len(patches) != len(probs):
        raise EvaluationError(
            f"slide {slide_id} has {len(patches)} patches and {len(probs)} probabilities", remedy=_AGAIN
        )
    if ((probs < 0) | (probs > 1)).any():
        raise EvaluationError(f"slide {slide_id} has a probability outside 0 to 1", remedy=_AGAIN)
    downsample, mpp = float(entry["downsample"]), entry.get("mpp")
    return SlidePredictions(
        slide_id=slide_id,
        patient=str(entry["label"]),
        slide_path=str(entry["slide_path"]),
        level=int(entry["level"]),
        y=patches[:, 0],
        x=patches[:, 1],
        is_tumor=patches[:, 2].astype(bool),
        probs=probs,
        patch_size=int(entry["patch_size"]),
        stride=int(entry["stride"]),
        downsample=downsample,
        # An entry tells the pixel size of its level; lesions, detections and pictures are in level-0 pixels.
        mpp=None if mpp is None else mpp / downsample,
        magnification=entry.get("magnification"),
    )
