"""The patches a model is most wrong about: which they are and where; their pixels are drawn elsewhere."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wsi_assets.evaluation.evaluation import Evaluation
from wsi_assets.evaluation.predictions import SlidePredictions


@dataclass(frozen=True)
class WorstPatch:
    """``y``, ``x``: top-left corner in pixels of the target level; ``y0``, ``x0``: its centre at level 0."""

    slide_id: str
    y: int
    x: int
    y0: int
    x0: int
    probability: float


def worst_patches(evaluation: Evaluation) -> tuple[list[WorstPatch], list[WorstPatch]]:
    """Normal patches called tumour, most probable first; tumour patches not called, least probable first."""
    threshold, most = evaluation.options.prediction_threshold, evaluation.options.worst_patches
    wrong: list[WorstPatch] = []
    missed: list[WorstPatch] = []
    for slide in evaluation.slides:
        part = slide.predictions
        wrong += _chosen(part, np.flatnonzero(~part.is_tumor & (part.probs >= threshold)), most, highest=True)
        missed += _chosen(part, np.flatnonzero(part.is_tumor & (part.probs < threshold)), most, highest=False)
    wrong.sort(key=lambda patch: (-patch.probability, patch.slide_id, patch.y, patch.x))
    missed.sort(key=lambda patch: (patch.probability, patch.slide_id, patch.y, patch.x))
    return wrong[:most], missed[:most]


def _chosen(part: SlidePredictions, which: np.ndarray, most: int, *, highest: bool) -> list[WorstPatch]:
    order = np.argsort(-part.probs[which] if highest else part.probs[which], kind="stable")[:most]
    half = part.patch_size / 2
    return [
        WorstPatch(
            slide_id=part.slide_id,
            y=int(part.y[i]),
            x=int(part.x[i]),
            y0=round((int(part.y[i]) + half) * part.downsample),
            x0=round((int(part.x[i]) + half) * part.downsample),
            probability=float(part.probs[i]),
        )
        for i in which[order]
    ]
