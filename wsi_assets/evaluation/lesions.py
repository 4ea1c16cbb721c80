"""Lesions of a slide as the CAMELYON16 challenge counts them, measured by the slide's own pixel size.

A tumor mask with pixels of about 8 um is widened by half of 75 um (five tumor cells) on all sides, its holes
are filled, and its 8-connected components are the lesions. A lesion whose major axis is under 275 um counts
as isolated tumor cells (ITC; under 200 um before widening).

Source: the evaluation of the challenge, B. Ehteshami Bejnordi et al., JAMA 2017;318(22):2199-2210.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import shapely

from wsi_assets.errors import EvaluationError

WIDENING_UM = 75.0
ITC_UM = 275.0
CHALLENGE_MPP = 0.243
"""Level-0 pixel size, in um, that the challenge's script assumes for every slide."""

CHALLENGE_LEVEL = 5
"""Level of the challenge's lesion masks."""
LARGEST_MASK = 100_000_000
"""Largest number of pixels of a lesion mask; finding its lesions takes about 50 bytes per pixel."""


@dataclass(frozen=True)
class Lesion:
    """One lesion; ``area``, ``major_axis`` and ``box`` = (row0, col0, row1, col1) are in mask pixels.

    ``length_um`` is the major axis without the widening: isolated tumor cells are under 200 um.
    """

    label: int
    area: int
    major_axis: float
    length_um: float
    box: tuple[int, int, int, int]
    itc: bool


@dataclass(frozen=True)
class LesionMap:
    """The lesions of a slide.

    Attributes:
        labels: (rows, cols) int32, label of the lesion at each pixel of a window of the mask, 0 for none.
        origin: mask (row, col) of the window's first pixel.
        downsample: level-0 pixels per mask pixel.
    """

    labels: np.ndarray
    origin: tuple[int, int]
    downsample: int
    lesions: tuple[Lesion, ...]

    def label_at(self, x: float, y: float) -> int:
        """The lesion at a level-0 point, 0 for none; coordinates are truncated to whole mask pixels."""
        row, col = int(y / self.downsample) - self.origin[0], int(x / self.downsample) - self.origin[1]
        rows, cols = self.labels.shape
        return int(self.labels[row, col]) if 0 <= row < rows and 0 <= col < cols else 0


def mask_scale(mpp: float) -> int:
    """Downsample of a lesion mask: the power of two with pixels nearest to 7.8 um, as in the challenge."""
    return 2 ** max(0, round(CHALLENGE_LEVEL + math.log2(CHALLENGE_MPP / mpp)))


def lesions_of_mask(mask: np.ndarray, mpp: float, origin: tuple[int, int] = (0, 0)) -> LesionMap:
    """Lesions of a bool mask (rows, cols) of tumor, with the downsample ``mask_scale(mpp)``.

    Args:
        mpp: level-0 pixel size in um.
        origin: (row, col) of the mask's first pixel, if it is a window of the slide's mask. The window must
            have room for the widening, except at the edge of the slide.
    """
    from scipy.ndimage import binary_fill_holes, distance_transform_edt, find_objects, label

    mask, scale = np.asarray(mask, bool), mask_scale(mpp)
    if not mask.any():
        return LesionMap(np.zeros(mask.shape, np.int32), origin, scale, ())
    near = distance_transform_edt(~mask) < WIDENING_UM / (mpp * scale * 2)
    labels, _ = label(binary_fill_holes(near), structure=np.ones((3, 3), int))
    lesions = []
    for number, (rows, cols) in enumerate(find_objects(labels), start=1):
        inside = labels[rows, cols] == number
        axis = major_axis(inside)
        top, left = origin[0] + rows.start, origin[1] + cols.start
        lesions.append(
            Lesion(
                label=number,
                area=int(inside.sum()),
                major_axis=axis,
                length_um=max(axis * mpp * scale - WIDENING_UM, 0.0),
                box=(top, left, top + inside.shape[0], left + inside.shape[1]),
                itc=axis < ITC_UM / (mpp * scale),
            )
        )
    return LesionMap(labels.astype(np.int32), origin, scale, tuple(lesions))


def lesions_of_geometry(geometry, mpp: float, size: tuple[int, int] | None = None) -> LesionMap:
    """Lesions of annotated tumor.

    Args:
        geometry: shapely Polygon or MultiPolygon, (x, y) in level-0 pixels, valid.
        mpp: level-0 pixel size in um.
        size: (height, width) of level 0, None if unknown; widening stops at the slide's edge.

    Raises:
        EvaluationError: the mask would not fit in memory.
    """
    scale = mask_scale(mpp)
    reach = math.ceil(WIDENING_UM / (mpp * scale * 2)) + 1
    x0, y0, x1, y1 = (edge / scale for edge in geometry.bounds)
    top, left = max(math.floor(y0) - reach, 0), max(math.floor(x0) - reach, 0)
    bottom, right = math.ceil(y1) + reach, math.ceil(x1) + reach
    if size is not None:
        bottom, right = min(bottom, math.ceil(size[0] / scale)), min(right, math.ceil(size[1] / scale))
    rows, cols = max(bottom - top, 0), max(right - left, 0)
    if rows * cols > LARGEST_MASK:
        raise EvaluationError(
            f"lesions span {rows * scale} x {cols * scale} pixels of {mpp} um, more than any slide has",
            remedy="Correct the slide's mpp in cohort.csv, or its annotation",
        )
    return lesions_of_mask(corner_mask(geometry, scale, (top, left), (rows, cols)), mpp, (top, left))


def corner_mask(geometry, scale: int, origin: tuple[int, int], shape: tuple[int, int]) -> np.ndarray:
    """Mask pixels whose top-left corner lies in ``geometry``, as in the masks the challenge published.

    Along each row of corners, every crossed edge of the geometry switches between outside and inside.

    Args:
        geometry: shapely Polygon or MultiPolygon, (x, y) in level-0 pixels, valid.
        scale: level-0 pixels per mask pixel.
        origin: mask (row, col) of the first pixel.
        shape: (rows, cols) of the bool mask that is returned.
    """
    rows, cols = shape
    if not rows or not cols:
        return np.zeros(shape, bool)
    rings = [shapely.get_coordinates(ring) for ring in shapely.get_rings(shapely.get_parts(geometry))]
    edges = np.concatenate([np.hstack([ring[:-1], ring[1:]]) for ring in rings])
    x0, y0, x1, y1 = (edges / scale - np.tile(origin[::-1], 2)).T
    first, stop = (np.clip(np.ceil(pick(y0, y1)), 0, rows).astype(int) for pick in (np.minimum, np.maximum))
    crossed = stop - first
    edge = np.repeat(np.arange(len(edges)), crossed)
    row = np.arange(crossed.sum()) - np.repeat(np.cumsum(crossed) - crossed - first, crossed)
    x = x0[edge] + (row - y0[edge]) * ((x1 - x0)[edge] / (y1 - y0)[edge])
    col = np.clip(np.ceil(x), 0, cols).astype(int)
    crossings = np.bincount(row * (cols + 1) + col, minlength=rows * (cols + 1)).reshape(rows, cols + 1)
    return np.cumsum(crossings[:, :cols], axis=1) % 2 == 1


def major_axis(mask: np.ndarray) -> float:
    """Length of the major axis of the ellipse with the second moments of a bool mask, in its pixels.

    4 sqrt(l), l the larger eigenvalue of the covariance of pixel centers (as scikit-image's regionprops).
    """
    rows, cols = np.nonzero(mask)
    row, col = rows - rows.mean(), cols - cols.mean()
    yy, xx, xy = (row * row).mean(), (col * col).mean(), (row * col).mean()
    return float(4 * math.sqrt((yy + xx) / 2 + math.sqrt(4 * xy**2 + (yy - xx) ** 2) / 2))
