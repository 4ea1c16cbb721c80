"""Which patches are tumor.

Tumor shares are exact areas (:mod:`coverage`); tissue plays no part here.

The rules:

- ``fraction``: the tumor share of the patch's area is at least ``tumor_threshold``.
- ``center``: the center point (y + size / 2, x + size / 2) lies inside the tumor or on its border.
- ``any``: the tumor covers some of the patch. Shares are kept to nine decimals (under a ten-thousandth of a
  pixel in a patch of 256), so a tumor border that only runs along the patch's side does not count.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import shapely
from shapely import affinity

from wsi_assets.index.coverage import cell_areas
from wsi_assets.index.patch_grid import box_lines, box_sums, clean

if TYPE_CHECKING:
    from numpy.typing import NDArray


def to_level(geometry: shapely.Geometry, downsample: float) -> shapely.Geometry:
    """Bring a geometry from level-0 pixels to pixels of a level."""
    if downsample == 1:
        return geometry
    return affinity.scale(geometry, 1 / downsample, 1 / downsample, origin=(0, 0))


def tumor_fractions(
    geometry: shapely.Geometry, ys: NDArray[np.int64], xs: NDArray[np.int64], patch_size: int
) -> NDArray[np.float64]:
    """Tumor share of each patch at ``ys`` x ``xs``: (len(ys), len(xs)), 0 to 1.

    Args:
        geometry: the tumor, (x, y) in pixels of the target level.
        ys, xs: patch corners, pixels of the target level.
    """
    areas = cell_areas(geometry, box_lines(ys, patch_size), box_lines(xs, patch_size))
    return clean(box_sums(areas, ys, xs, patch_size) / patch_size**2)


def is_tumor(
    rule: Literal["fraction", "center", "any"],
    threshold: float,
    fractions: NDArray[np.float64],
    geometry: shapely.Geometry,
    corners: NDArray[np.int64],
    patch_size: int,
) -> NDArray[np.bool_]:
    """Label patches: (n,).

    Args:
        fractions: (n,) tumor shares of the patches.
        geometry: the tumor, (x, y) in pixels of the target level.
        corners: (n, 2) patch corners (y, x) in pixels of the target level.
    """
    if rule == "fraction":
        return fractions >= threshold
    if rule == "any":
        return fractions > 0
    inside = fractions == 1
    # Only patches that the border crosses can go either way.
    crossed = np.flatnonzero((fractions > 0) & ~inside)
    centers = corners[crossed] + patch_size / 2
    shapely.prepare(geometry)
    inside[crossed] = shapely.intersects_xy(geometry, centers[:, 1], centers[:, 0])
    return inside
