"""Whole slides: a suspicion score each, how well the scores rank tumour slides first, and the ranking.

A slide without an outline is a normal slide. Two scores: ``maximum``, the highest patch probability, and
``top_mean``, the mean of the ``slide_top_fraction`` most suspicious patches (at least one patch), which one
odd patch cannot carry on a slide of thousands. The share is rounded up to whole patches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from wsi_assets.evaluation.bootstrap import Resamples, ranking_samples, with_interval
from wsi_assets.evaluation.figures import Figure
from wsi_assets.evaluation.options import EvaluationOptions
from wsi_assets.evaluation.patch_metrics import one_class_reason
from wsi_assets.evaluation.predictions import SlidePredictions


@dataclass(frozen=True)
class SlideScore:
    """One slide's truth and scores; the scores are None when none of its patches has a probability."""

    slide_id: str
    patient: str
    is_tumor: bool
    patches: int
    tumor_patches: int
    quarantined: int
    maximum: float | None
    top_mean: float | None
    detections: int


@dataclass(frozen=True)
class SlideMetrics:
    """``ranking``: by ``top_mean``, then ``maximum``, most suspicious first; slides without scores last."""

    slides: int
    tumor_slides: int
    patients: int
    auc_maximum: Figure
    auc_top_mean: Figure
    ranking: tuple[SlideScore, ...]

    def to_plain(self) -> dict[str, Any]:
        return {
            "slides": self.slides,
            "tumor_slides": self.tumor_slides,
            "patients": self.patients,
            "auc_maximum": self.auc_maximum.to_plain(),
            "auc_top_mean": self.auc_top_mean.to_plain(),
            "ranking": [vars(score) for score in self.ranking],
        }


def score_slide(
    slide: SlidePredictions, is_tumor: bool, detections: int, options: EvaluationOptions
) -> SlideScore:
    """The scores of one slide; see the module's docstring for the two."""
    probs = np.sort(slide.probs[slide.seen])[::-1]
    # Rounded first: 0.07 of 100 is 7.000000000000001 in floating point.
    top = probs[: max(1, math.ceil(round(options.slide_top_fraction * len(probs), 6)))]
    return SlideScore(
        slide_id=slide.slide_id,
        patient=slide.patient,
        is_tumor=is_tumor,
        patches=len(probs),
        tumor_patches=int(slide.is_tumor.sum()),
        quarantined=slide.quarantined,
        maximum=float(probs[0]) if len(probs) else None,
        top_mean=float(top.mean()) if len(probs) else None,
        detections=detections,
    )


def slide_metrics(scores: Sequence[SlideScore], options: EvaluationOptions) -> SlideMetrics:
    """AUC of both scores over the slides that have them, with 95 % intervals over patients."""
    ranked = sorted(scores, key=lambda one: (one.maximum is None, -(one.top_mean or 0), -(one.maximum or 0)))
    scored = [one for one in scores if one.maximum is not None]
    return SlideMetrics(
        slides=len(scores),
        tumor_slides=sum(one.is_tumor for one in scores),
        patients=len({one.patient for one in scores}),
        auc_maximum=_auc(scored, [one.maximum for one in scored], options),
        auc_top_mean=_auc(scored, [one.top_mean for one in scored], options),
        ranking=tuple(ranked),
    )


def _auc(scored: Sequence[SlideScore], values: Sequence[float], options: EvaluationOptions) -> Figure:
    from sklearn.metrics import roc_auc_score

    labels = np.array([one.is_tumor for one in scored], bool)
    reason = one_class_reason(labels, "test slide")
    if reason:
        return Figure.missing(reason)
    patients, group = np.unique([one.patient for one in scored], return_inverse=True)
    resamples = Resamples(len(patients), options.bootstrap_samples, options.seed)
    resampled, _ = ranking_samples(resamples, np.asarray(values, float), labels, group)
    return with_interval(float(roc_auc_score(labels, values)), resampled, len(patients), "patients")
