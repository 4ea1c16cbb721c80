"""Detections: the peaks of a slide's heatmap, as the CAMELYON16 challenge wants them.

Whether a detection is right is a matter of ``froc``.

How: the map is smoothed with a Gaussian over the cells that hold a probability (so that the edge of the
tissue pulls nothing down), then the highest cell is taken, all cells within ``detection_radius_um`` of it
are crossed out, and so on down to ``detection_threshold``. Among equal cells the one in the brighter
neighbourhood comes first, so that a saturated region is marked in its middle, not at its corner.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from wsi_assets.evaluation.heatmap import Heatmap
from wsi_assets.evaluation.options import EvaluationOptions


@dataclass(frozen=True)
class Detection:
    """A suspected lesion: its probability and its place in level-0 pixels."""

    probability: float
    x: int
    y: int


def find_detections(heatmap: Heatmap, options: EvaluationOptions, mpp: float | None) -> tuple[Detection, ...]:
    """The peaks of ``heatmap``, most probable first.

    Args:
        mpp: level-0 pixel size in um; unknown, ``options.froc_mpp`` is assumed.
    """
    cell_um = heatmap.step * (mpp or options.froc_mpp)
    known = np.isfinite(heatmap.probability)
    smooth = _smoothed(heatmap.probability, known, options.detection_smoothing_um / cell_um)
    radius = options.detection_radius_um / cell_um
    rows, cols = np.nonzero(known & (smooth >= options.detection_threshold))
    around = _smoothed(heatmap.probability, known, max(radius / 2, 1.0))
    order = np.lexsort((cols, rows, -around[rows, cols], -smooth[rows, cols]))
    taken = np.zeros(smooth.shape, bool)
    found = []
    for row, col in zip(rows[order], cols[order], strict=True):
        if taken[row, col]:
            continue
        _cross_out(taken, row, col, radius)
        x, y = heatmap.centers(row, col)
        found.append(Detection(float(smooth[row, col]), int(x), int(y)))
    return tuple(found)


def detections_csv(detections: Iterable[Detection]) -> str:
    """Lines ``probability,x,y`` without a header, as the challenge's script reads them; may be empty."""
    return "".join(f"{found.probability!r},{found.x},{found.y}\n" for found in detections)


def _smoothed(probability: np.ndarray, known: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian mean over the known cells, float64; nan elsewhere."""
    from scipy.ndimage import gaussian_filter

    values = np.where(known, probability, 0).astype(float)
    if sigma > 0:
        # A kernel that reaches across the map covers all of it; the tails beyond would only take memory.
        reach = min(int(4 * sigma + 0.5), max(known.shape))
        # Both are filtered alike, so the quotient is a weighted mean over the known cells only.
        weight = gaussian_filter(known.astype(float), sigma, mode="constant", radius=reach)
        values = gaussian_filter(values, sigma, mode="constant", radius=reach)
        values = np.divide(values, weight, out=np.zeros_like(values), where=known)
    # A weighted mean of probabilities may leave [0, 1] by rounding.
    return np.where(known, np.clip(values, 0, 1), np.nan)


def _cross_out(taken: np.ndarray, row: int, col: int, radius: float) -> None:
    reach = int(radius)
    top, left = max(row - reach, 0), max(col - reach, 0)
    window = taken[top : row + reach + 1, left : col + reach + 1]
    rows = np.arange(top, top + window.shape[0])[:, None] - row
    cols = np.arange(left, left + window.shape[1])[None, :] - col
    window |= rows**2 + cols**2 <= radius**2
