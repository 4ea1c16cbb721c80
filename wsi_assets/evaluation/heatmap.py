"""The probability map of a slide: its grid, and where each cell lies on level 0.

Files and pictures of it are in ``heatmap_files`` and ``slide_pictures``; peaks are in ``detections``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wsi_assets.errors import EvaluationError
from wsi_assets.evaluation.predictions import SlidePredictions


@dataclass(frozen=True)
class Heatmap:
    """Tumour probabilities on the slide's own grid of patches.

    Attributes:
        probability: (rows, cols) float32, nan where there is no patch or the patch could not be read.
        left, top: level-0 x and y of the top-left corner of cell (0, 0).
        step: level-0 pixels from one cell to the next, the stride; may be a fraction.
        cell: side of a cell in level-0 pixels: the stride, or the patch where patches leave gaps. Where
            patches overlap, a cell is the middle of its patch, so that the map is not shifted.
    """

    slide_id: str
    probability: np.ndarray
    left: float
    top: float
    step: float
    cell: float

    def centers(self, rows: np.ndarray, cols: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Level-0 x and y of the centres of cells."""
        half = self.cell / 2
        return self.left + cols * self.step + half, self.top + rows * self.step + half

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """Level-0 (x0, y0, x1, y1) of all cells."""
        rows, cols = self.probability.shape
        reach = self.cell - self.step
        return (
            self.left,
            self.top,
            self.left + cols * self.step + reach,
            self.top + rows * self.step + reach,
        )


def heatmap_of(slide: SlidePredictions) -> Heatmap | None:
    """The probability map of a slide, None if it has no patches.

    Raises:
        EvaluationError: the patches do not lie on a grid of the slide's stride.
    """
    if not len(slide.y):
        return None
    y0, x0 = int(slide.y.min()), int(slide.x.min())
    rows, off_row = np.divmod(slide.y - y0, slide.stride)
    cols, off_col = np.divmod(slide.x - x0, slide.stride)
    if off_row.any() or off_col.any():
        raise EvaluationError(
            f"patches of slide {slide.slide_id} do not lie on a grid of stride {slide.stride}",
            remedy="Materialize slide_index and what follows it again",
        )
    probability = np.full((int(rows.max()) + 1, int(cols.max()) + 1), np.nan, np.float32)
    probability[rows, cols] = slide.probs
    shown = min(slide.stride, slide.patch_size)
    inset = (slide.patch_size - shown) / 2
    return Heatmap(
        slide_id=slide.slide_id,
        probability=probability,
        left=(x0 + inset) * slide.downsample,
        top=(y0 + inset) * slide.downsample,
        step=slide.stride * slide.downsample,
        cell=shown * slide.downsample,
    )
