"""The patch grid of a level and exact area sums over its boxes.

Patch (i, j) has its top-left corner at (i * stride, j * stride) and covers the half-open box up to, not
including, that corner plus ``patch_size``. Only patches that lie wholly inside the level are on the grid.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def starts(length: int, patch_size: int, stride: int) -> NDArray[np.int64]:
    """Corner coordinates along one axis of ``length`` pixels; empty where no whole patch fits."""
    return np.arange(0, max(length - patch_size + 1, 0), stride, dtype=np.int64)


def grid(height: int, width: int, patch_size: int, stride: int) -> NDArray[np.int64]:
    """Top-left corners (y, x) of every whole patch of a level, row by row: (n, 2), pixels of that level."""
    ys, xs = starts(height, patch_size, stride), starts(width, patch_size, stride)
    return np.stack(np.meshgrid(ys, xs, indexing="ij"), axis=-1).reshape(-1, 2)


def box_lines(corners: NDArray[np.int64], patch_size: int) -> NDArray[np.int64]:
    """Sorted distinct coordinates at which boxes along one axis begin or end."""
    return np.unique(np.concatenate([corners, corners + patch_size]))


def box_sums(
    cells: NDArray[np.float64], ys: NDArray[np.int64], xs: NDArray[np.int64], patch_size: int
) -> NDArray[np.float64]:
    """Sum cells between the :func:`box_lines` of ``ys`` and of ``xs`` over the boxes: (len(ys), len(xs))."""
    for corners in (ys, xs):
        lines = box_lines(corners, patch_size)
        # Boxes side by side are a cell each, and no sum can blur a zero.
        if len(lines) > len(corners) + 1:
            total = np.concatenate([np.zeros((1, cells.shape[1])), np.cumsum(cells, axis=0)])
            first, last = np.searchsorted(lines, corners), np.searchsorted(lines, corners + patch_size)
            cells = total[last] - total[first]
        cells = cells.T
    return cells


def mask_fractions(
    mask: NDArray[np.bool_],
    ys: NDArray[np.int64],
    xs: NDArray[np.int64],
    patch_size: int,
    scale: float,
) -> NDArray[np.float64]:
    """Share of each box's area that the mask covers, exact for any ratio of pixel sizes: (len(ys), len(xs)).

    The integral image of a mask is bilinear inside a mask pixel, so linear interpolation of it along each
    axis gives the exact area up to any coordinate. Outside the mask there is nothing.

    Args:
        ys, xs: box corners, pixels of the target level; boxes are ys x xs.
        scale: mask pixels per pixel of the target level.
    """
    if not len(ys) or not len(xs):
        return np.zeros((len(ys), len(xs)))
    area = mask.astype(np.float64)
    for corners in (ys, xs):
        lines = box_lines(corners, patch_size)
        up_to = _integral(area, lines * scale)
        first, last = np.searchsorted(lines, corners), np.searchsorted(lines, corners + patch_size)
        area = (up_to[last] - up_to[first]).T
    return clean(area / (patch_size * scale) ** 2)


def clean(fractions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Bring fractions into 0 to 1 and free them of rounding noise: nine decimals."""
    # "+ 0.0" turns a negative zero into zero.
    return np.round(np.clip(fractions, 0.0, 1.0), 9) + 0.0


def _integral(values: NDArray[np.float64], at: NDArray[np.float64]) -> NDArray[np.float64]:
    """Integral along axis 0 of ``values``, constant over each row of pixels, from 0 up to each of ``at``."""
    total = np.concatenate([np.zeros((1, values.shape[1])), np.cumsum(values, axis=0)])
    at = np.clip(at, 0, len(values))
    whole = np.minimum(at.astype(np.int64), len(values) - 1)
    return total[whole] + (at - whole)[:, None] * values[whole]
