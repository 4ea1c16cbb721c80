"""The validation patches, and what is computed from them: loss, AUC, threshold and calibration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from wsi_assets.learning.data import PatchTable, Split

MOST_VALIDATED = 20_000
"""Largest number of validation patches of a class; of more, a seeded random sample represents all."""
CLIP = 1e-7
"""Probabilities are kept this far from 0 and 1 where their logarithm is taken."""


@dataclass(frozen=True)
class Validation:
    """The validation patches, weighted to the prevalence of their slides.

    Attributes:
        positions: (n,) in the store.
        truth: (n,) 1 for tumor, 0 for normal.
        weights: (n,) number of patches that each represents.
    """

    positions: np.ndarray
    truth: np.ndarray
    weights: np.ndarray

    @classmethod
    def of(cls, split: Split, table: PatchTable, seed: int) -> Validation:
        """The validation patches of a split, sampled where a class has too many."""
        rng = np.random.default_rng([seed, 3])
        rows, weights = [], []
        for label in (0, 1):
            found = split.validation[table.labels[split.validation] == label]
            chosen = np.sort(rng.permutation(found)[:MOST_VALIDATED])
            rows.append(chosen)
            weights.append(np.full(len(chosen), len(found) / len(chosen)))
        together = np.concatenate(rows)
        return cls(table.positions[together], table.labels[together], np.concatenate(weights))

    def scores(self, probabilities: np.ndarray) -> dict[str, Any]:
        """The fields of an ``EpochRecord`` that concern validation."""
        return {
            "val_loss": validation_loss(self.truth, probabilities),
            "val_acc": float(np.average((probabilities >= 0.5) == self.truth, weights=self.weights)),
            "val_auc": roc_auc(self.truth, probabilities),
            "confusion": confusion(self.truth, probabilities),
        }

    def choose(self, probabilities: np.ndarray, specificity: float) -> dict[str, Any]:
        """Threshold and calibration for ``best.json``."""
        threshold = threshold_at(self.truth, probabilities, specificity)
        return {
            "thresholds": {"preds": 0.5, "validation": threshold},
            "calibration": fit_calibration(self.truth, probabilities, self.weights),
        }


def validation_loss(truth: np.ndarray, probabilities: np.ndarray) -> float:
    """Cross-entropy averaged over each class and then over the classes, after a fit of temperature and shift.

    It depends neither on the prevalence nor on how focal loss, class weights or the class ratio in training
    shift and scale the outputs, so trainings with any options can be compared. Without the fit, the loss
    would favor the first epochs, in which all probabilities are moderate. If tumor patches have the lower
    probabilities, the loss is that of a constant; a negative slope would make such an epoch the best.
    """
    slope, shift = _fit(truth, probabilities, None)
    if slope <= 0:
        return float(np.log(2))
    logits = slope * _logits(probabilities) + shift
    losses = np.logaddexp(0, np.where(truth == 1, -logits, logits))
    return float(np.mean([losses[truth == label].mean() for label in (0, 1)]))


def roc_auc(truth: np.ndarray, probabilities: np.ndarray) -> float:
    """Area under the ROC curve."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(truth, probabilities))


def confusion(truth: np.ndarray, probabilities: np.ndarray, threshold: float = 0.5) -> tuple[int, ...]:
    """Numbers of (true normal, false tumor, false normal, true tumor); >= threshold is tumor."""
    predicted = (probabilities >= threshold).astype(np.int64)
    return tuple(np.bincount(2 * truth + predicted, minlength=4).tolist())


def threshold_at(truth: np.ndarray, probabilities: np.ndarray, specificity: float) -> dict[str, float]:
    """The lowest threshold with at least this specificity, and its specificity and sensitivity.

    It lies halfway between two neighboring probabilities, or above all of them.
    """
    from sklearn.metrics import roc_curve

    probabilities = np.asarray(probabilities, np.float64)
    false_rate, _, at = roc_curve(truth, probabilities, drop_intermediate=False)
    last = int(np.flatnonzero(false_rate <= 1 - specificity + 1e-12)[-1])
    upper = min(float(at[last]), np.nextafter(1.0, 2.0))
    lower = float(at[last + 1]) if last + 1 < len(at) else 0.0
    threshold = float(max((upper + lower) / 2, np.nextafter(lower, 2.0)))
    true_normal, false_tumor, false_normal, true_tumor = confusion(truth, probabilities, threshold)
    return {
        "threshold": threshold,
        "specificity": true_normal / (true_normal + false_tumor),
        "sensitivity": true_tumor / (true_tumor + false_normal),
    }


def fit_calibration(
    truth: np.ndarray, probabilities: np.ndarray, weights: np.ndarray
) -> dict[str, float] | None:
    """Temperature and shift that calibrate probabilities at the prevalence of these patches.

    Logistic regression of the truth on the logits (Platt 1999): ``logit / temperature + shift``. It corrects
    for the class ratio in training and for the moderate probabilities that focal loss causes. None if tumor
    patches have the lower probabilities.

    Args:
        weights: (n,) number of patches that each represents.
    """
    slope, shift = _fit(truth, probabilities, weights)
    if slope <= 0:
        return None
    prevalence = float(np.average(truth, weights=weights))
    return {"temperature": 1 / slope, "shift": shift, "prevalence": prevalence}


def _fit(truth: np.ndarray, probabilities: np.ndarray, weights: np.ndarray | None) -> tuple[float, float]:
    """Slope and shift of a logistic regression of truth on logits; without weights, with balanced classes."""
    from sklearn.linear_model import LogisticRegression

    logits = _logits(probabilities)[:, None]
    scale = (
        float(logits.std()) or 1.0
    )  # for the regularization, which keeps the slope of separable classes finite
    model = LogisticRegression(C=10.0, class_weight="balanced" if weights is None else None)
    model.fit(logits / scale, truth, sample_weight=weights)
    return float(model.coef_[0, 0]) / scale, float(model.intercept_[0])


def _logits(probabilities: np.ndarray) -> np.ndarray:
    p = np.clip(np.asarray(probabilities, np.float64), CLIP, 1 - CLIP)
    return np.log(p) - np.log1p(-p)
