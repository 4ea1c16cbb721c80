"""What the probabilities of labelled patches say: area under the curve, confusion, a threshold.

Small figures that training needs after each epoch. Intervals, curves and anything of slides or lesions are
``evaluation``'s.
"""

from __future__ import annotations

import numpy as np


def roc_auc(truth: np.ndarray, probabilities: np.ndarray) -> float | None:
    """Area under the ROC curve; None where a class is missing or a probability is not a number.

    Args:
        truth: (n,), 1 for tumour, 0 for normal.
        probabilities: (n,) of tumour.
    """
    if not _comparable(truth, probabilities):
        return None
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(truth, probabilities))


def confusion(truth: np.ndarray, probabilities: np.ndarray, threshold: float = 0.5) -> tuple[int, ...]:
    """Patches as (true normal, false tumor, false normal, true tumor), tumour at or above the threshold."""
    called = (probabilities >= threshold).astype(np.int64)
    return tuple(np.bincount(2 * truth + called, minlength=4).tolist())


def youden_threshold(truth: np.ndarray, probabilities: np.ndarray) -> float | None:
    """The threshold of highest sensitivity + specificity - 1 (Youden 1950, Cancer 3:32-35).

    It lies halfway between two neighbouring probabilities, not on one, so that it does not hang on the last
    digit of a single patch; 0.5 itself is tried too, and among equally good thresholds the one nearest to
    0.5 wins.

    Args:
        truth: (n,), 1 for tumour, 0 for normal; a patch is called tumour at or above the threshold.
        probabilities: (n,) of tumour.

    Returns:
        None where a class is missing, a probability is not a number, or no threshold does better than calling
        every patch the same.
    """
    if not _comparable(truth, probabilities):
        return None
    probabilities = np.asarray(probabilities, dtype=np.float64)
    distinct = np.unique(probabilities)
    candidates = np.append((distinct[:-1] + distinct[1:]) / 2, 0.5)
    tumor, normal = np.sort(probabilities[truth == 1]), np.sort(probabilities[truth == 0])
    hits = len(tumor) - np.searchsorted(tumor, candidates)
    false_alarms = len(normal) - np.searchsorted(normal, candidates)
    # Whole numbers, so that equally good thresholds are equal.
    index = hits * len(normal) - false_alarms * len(tumor)
    if index.max() <= 0:
        return None
    best = candidates[index == index.max()]
    return float(best[np.argmin(np.abs(best - 0.5))])


def _comparable(truth: np.ndarray, probabilities: np.ndarray) -> bool:
    return truth.min() != truth.max() and bool(np.isfinite(probabilities).all())
