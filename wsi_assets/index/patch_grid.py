"""The grid of patches of a level, and exact area sums over patches.

Patch (i, j) has its top-left corner (y, x) at (i * stride, j * stride) and covers ``patch_size`` pixels each
way. Only patches that lie wholly inside the level are on the grid.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def starts(length: int, patch_size: int, stride: int) -> NDArray[np.int64]:
    """Coordinates of patch corners along one axis of ``length`` pixels; empty if no whole patch fits."""
    return np.arange(0, max(length - patch_size + 1, 0), stride, dtype=np.int64)


def grid(height: int, width: int, patch_size: int, stride: int) -> NDArray[np.int64]:
    """Top-left corners (y, x) of all patches of a level, row by row: (n, 2), in pixels of the level."""
    ys, xs = starts(height, patch_size, stride), starts(width, patch_size, stride)
    return np.stack(np.meshgrid(ys, xs, indexing="ij"), axis=-1).reshape(-1, 2)


def box_lines(corners: NDArray[np.int64], patch_size: int) -> NDArray[np.int64]:
    """Sorted distinct coordinates at which patches along one axis begin or end."""
    return np.unique(np.concatenate([corners, corners + patch_size]))


def box_sums(
    cells: NDArray[np.float64], ys: NDArray[np.int64], xs: NDArray[np.int64], patch_size: int
) -> NDArray[np.float64]:
    """Sum of cells over each patch: (len(ys), len(xs)).

    Args:
        cells: values of the mesh between the :func:`box_lines` of ``ys`` and of ``xs``.
        ys, xs: patch corners.
    """
    for corners in (ys, xs):
        lines = box_lines(corners, patch_size)
        # Adjacent patches are a cell each; without a sum a zero stays exactly zero.
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
    """Share of each patch's area that the mask covers, exact for any ratio of pixel sizes: (len(ys),
    len(xs)).

    The integral image of a mask is bilinear inside a mask pixel, so linear interpolation along each axis
    gives the exact area up to any coordinate. Outside the mask the share is 0.

    Args:
        mask: bool (rows, columns).
        ys, xs: patch corners, in pixels of the target level; patches are ys x xs.
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
    """Clip fractions to 0 to 1 and round them to nine decimals, which removes rounding noise."""
    # "+ 0.0" turns a negative zero into zero.
    return np.round(np.clip(fractions, 0.0, 1.0), 9) + 0.0


def _integral(values: NDArray[np.float64], at: NDArray[np.float64]) -> NDArray[np.float64]:
    """Integral of ``values`` along axis 0 from 0 to each of ``at``; values are constant within a pixel."""
    total = np.concatenate([np.zeros((1, values.shape[1])), np.cumsum(values, axis=0)])
    at = np.clip(at, 0, len(values))
    whole = np.minimum(at.astype(np.int64), len(values) - 1)
    return total[whole] + (at - whole)[:, None] * values[whole]
