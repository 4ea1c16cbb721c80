"""The probability map of a slide and its peaks, the detections, in the format of the CAMELYON16 challenge.

The map is smoothed with a Gaussian over the cells that have a probability, so that empty cells do not lower
the probabilities at the edge of the tissue. Then the highest cell becomes a detection, all cells within
``detection_radius_um`` of it are excluded, and this is repeated down to ``detection_threshold``. Among equal
cells, the one with the higher surroundings comes first, so that a region of equal probabilities is marked in
its middle.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from wsi_assets.errors import EvaluationError
from wsi_assets.evaluation.lesions import CHALLENGE_MPP
from wsi_assets.evaluation.options import EvaluationOptions
from wsi_assets.evaluation.predictions import SlidePredictions

LARGEST_GRID = 50_000_000
"""Largest number of cells of a map. A whole slide at level 0 with patches of 64 pixels has 10 million."""


@dataclass(frozen=True)
class Heatmap:
    """Tumor probabilities on the slide's own grid of patches.

    Attributes:
        probability: (rows, cols) float32, NaN where there is no patch or the patch could not be read.
        left, top: level-0 x and y of the top-left corner of cell (0, 0).
        step: level-0 pixels from one cell to the next, the stride; may be a fraction.
        cell: side of a cell in level-0 pixels: the stride, or the patch size where patches leave gaps. Where
            patches overlap, a cell is the middle of its patch, so that the map is not shifted.
    """

    probability: np.ndarray
    left: float
    top: float
    step: float
    cell: float

    def centers(self, rows: np.ndarray, cols: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Level-0 x and y of the centers of cells."""
        half = self.cell / 2
        return self.left + cols * self.step + half, self.top + rows * self.step + half

    def cells_at(self, place: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows (axis 0) or columns (axis 1) at level-0 y or x (n,), and (n,) bool whether a cell is there."""
        place = place - (self.top, self.left)[axis]
        number, n = np.floor(place / self.step).astype(int), self.probability.shape[axis]
        inside = (number >= 0) & (number < n) & (place - number * self.step < self.cell)
        return number.clip(0, n - 1), inside

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """Level-0 (x0, y0, x1, y1) of all cells."""
        rows, cols = self.probability.shape
        x1 = self.left + (cols - 1) * self.step + self.cell
        y1 = self.top + (rows - 1) * self.step + self.cell
        return self.left, self.top, x1, y1


def heatmap_of(slide: SlidePredictions) -> Heatmap | None:
    """The probability map of a slide, None if it has no patches or its downsample is unknown.

    Raises:
        EvaluationError: the patches do not lie on a grid of the slide's stride.
    """
    if not len(slide.y) or slide.downsample is None:
        return None
    y0, x0 = int(slide.y.min()), int(slide.x.min())
    rows, off_row = np.divmod(slide.y - y0, slide.stride)
    cols, off_col = np.divmod(slide.x - x0, slide.stride)
    shape = int(rows.max()) + 1, int(cols.max()) + 1
    if off_row.any() or off_col.any() or shape[0] * shape[1] > LARGEST_GRID:
        raise EvaluationError(
            f"patches of slide {slide.slide_id} do not lie on a grid of stride {slide.stride}",
            remedy="Materialize slide_index and the assets after it again",
        )
    probability = np.full(shape, np.nan, np.float32)
    probability[rows, cols] = slide.probs
    shown = min(slide.stride, slide.patch_size)
    inset = (slide.patch_size - shown) / 2
    return Heatmap(
        probability=probability,
        left=(x0 + inset) * slide.downsample,
        top=(y0 + inset) * slide.downsample,
        step=slide.stride * slide.downsample,
        cell=shown * slide.downsample,
    )


@dataclass(frozen=True)
class Detection:
    """A suspected lesion: its probability and its place in level-0 pixels."""

    probability: float
    x: int
    y: int


def find_detections(heatmap: Heatmap, options: EvaluationOptions, mpp: float | None) -> tuple[Detection, ...]:
    """The peaks of ``heatmap``, most probable first.

    Args:
        mpp: level-0 pixel size in um; if None, the challenge's 0.243 is assumed.
    """
    cell_um = heatmap.step * (mpp or CHALLENGE_MPP)
    known, smooth = np.isfinite(heatmap.probability), smoothed(heatmap, options, mpp)
    radius = options.detection_radius_um / cell_um
    rows, cols = np.nonzero(known & (smooth >= options.detection_threshold))
    around = _smoothed(heatmap.probability, known, max(radius / 2, 1.0))
    order = np.lexsort((cols, rows, -around[rows, cols], -smooth[rows, cols]))
    taken = np.zeros(smooth.shape, bool)
    found = []
    for row, col in zip(rows[order], cols[order], strict=True):
        if taken[row, col]:
            continue
        _exclude(taken, row, col, radius)
        x, y = heatmap.centers(row, col)
        found.append(Detection(float(smooth[row, col]), int(x), int(y)))
    return tuple(found)


def smoothed(heatmap: Heatmap, options: EvaluationOptions, mpp: float | None) -> np.ndarray:
    """The map whose peaks are detections, (rows, cols) float64; arguments as of :func:`find_detections`."""
    cell_um = heatmap.step * (mpp or CHALLENGE_MPP)
    known = np.isfinite(heatmap.probability)
    return _smoothed(heatmap.probability, known, options.detection_smoothing_um / cell_um)


def detections_csv(detections: Iterable[Detection]) -> str:
    """Lines ``probability,x,y`` without a header, as the challenge's script reads them; may be empty."""
    return "".join(f"{found.probability!r},{found.x},{found.y}\n" for found in detections)


def _smoothed(probability: np.ndarray, known: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian mean over the known cells, float64; NaN elsewhere. ``sigma`` is in cells."""
    from scipy.ndimage import gaussian_filter

    values = np.where(known, probability, 0).astype(float)
    if sigma > 0:
        # The kernel is cut at the size of the map, because longer tails would only take memory.
        reach = min(int(4 * sigma + 0.5), max(known.shape))
        # Both are filtered alike, so the quotient is a weighted mean over the known cells only.
        weight = gaussian_filter(known.astype(float), sigma, mode="constant", radius=reach)
        values = gaussian_filter(values, sigma, mode="constant", radius=reach)
        values = np.divide(values, weight, out=np.zeros_like(values), where=known)
    # Rounding can move a weighted mean of probabilities out of [0, 1].
    return np.where(known, np.clip(values, 0, 1), np.nan)


def _exclude(taken: np.ndarray, row: int, col: int, radius: float) -> None:
    """Mark the cells within ``radius`` cells of (row, col) as taken."""
    reach = int(radius)
    top, left = max(row - reach, 0), max(col - reach, 0)
    window = taken[top : row + reach + 1, left : col + reach + 1]
    rows = np.arange(top, top + window.shape[0])[:, None] - row
    cols = np.arange(left, left + window.shape[1])[None, :] - col
    window |= rows**2 + cols**2 <= radius**2
