"""Lay out the tissue of a synthetic slide: first the tumors, then the tissue types around them."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import shapely
from shapely import Polygon

from wsi_assets.index.coverage import cell_areas

GLASS, LYMPHOID, FOLLICLE, SINUS, STROMA, NEST, DESMOPLASIA, FAT = range(8)
"""Compartments: glass; dense lymphoid tissue, pale germinal centers and sinuses of the lymph node; capsule
and trabeculae of collagen; nests of tumor cells and the stroma between them; fat."""


@dataclass(frozen=True)
class Layout:
    """The layout of one slide.

    Attributes:
        compartments: uint8 (height, width), one of the constants above for each level-0 pixel.
        tumor: polygons, (x, y) in level-0 pixels, valid and disjoint.
        excluded: islands of normal tissue within the first of them.
    """

    compartments: np.ndarray
    tumor: tuple[Polygon, ...]
    excluded: tuple[Polygon, ...]


def lay_out(rng: np.random.Generator, height: int, width: int, tumors: int, cut_out: bool) -> Layout:
    """Lay out an irregular piece of lymph node with 0, 1 or 2 tumors; ``cut_out``: see :class:`Layout`."""
    unit = min(height, width)
    center = np.array([width, height]) * rng.uniform(0.47, 0.53, 2)
    tumor = _tumors(rng, center, unit, tumors)
    excluded = ()
    if cut_out:
        place = np.array(tumor[0].centroid.coords[0]) + rng.uniform(-0.03, 0.03, 2) * unit
        excluded = (_blob(rng, place, 0.1 * unit, 0.12),)
    in_tumor = _mask(tumor, height, width) & ~_mask(excluded, height, width)
    piece = _blob(rng, center, 0.41 * unit, 0.13, points=200)
    soft = cv2.GaussianBlur(_mask([piece], height, width).astype(np.float32), (0, 0), 12)
    tissue = soft + 0.14 * smooth_noise(rng, height, width, 45) > 0.5
    near_tumor = _dilated(_mask(tumor, height, width), 50)
    tissue = _largest(tissue | near_tumor)
    depth = cv2.distanceTransform(tissue.astype(np.uint8), cv2.DIST_L2, 5)

    compartments = np.where(tissue, LYMPHOID, GLASS).astype(np.uint8)
    for _ in range(rng.integers(2, 5)):
        x, y = center + rng.uniform(-0.3, 0.3, 2) * unit
        follicle = _mask([_blob(rng, (x, y), rng.uniform(0.05, 0.085) * unit, 0.1)], height, width)
        compartments[follicle & tissue] = FOLLICLE
    # Where a smooth random field crosses zero, bands wind through the node like sinuses and trabeculae.
    compartments[tissue & (np.abs(smooth_noise(rng, height, width, 170)) < 0.075)] = SINUS
    compartments[tissue & (np.abs(smooth_noise(rng, height, width, 260)) < 0.035)] = STROMA
    compartments[tissue & (depth < 26 + 9 * smooth_noise(rng, height, width, 70))] = STROMA
    strands = np.abs(smooth_noise(rng, height, width, 95)) < 0.11
    compartments[in_tumor] = np.where(strands, DESMOPLASIA, NEST)[in_tumor]
    _add_fat(rng, compartments, tissue, near_tumor, depth)
    return Layout(compartments, tumor, excluded)


def smooth_noise(
    rng: np.random.Generator, height: int, width: int, cell: float, octaves: int = 2, stretch: float = 1.0
) -> np.ndarray:
    """A smooth random field, float32 (height, width), with mean 0 and standard deviation 1.

    Args:
        cell: distance in pixels over which it varies.
        octaves: number of scales that are added, each half as large as the one before.
        stretch: factor by which features are longer along x.
    """
    total = np.zeros((height, width), np.float32)
    for octave in range(octaves):
        size = cell / 2**octave
        grid = rng.standard_normal(
            (int(height / size) + 4, int(width / size / stretch) + 4), dtype=np.float32
        )
        field = cv2.resize(
            grid, (int(grid.shape[1] * size * stretch), int(grid.shape[0] * size)), 0, 0, 0, cv2.INTER_CUBIC
        )
        total += field[:height, :width] / 2**octave
    return (total - total.mean()) / total.std()


def _tumors(rng: np.random.Generator, center: np.ndarray, unit: int, count: int) -> tuple[Polygon, ...]:
    if count == 0:
        return ()
    if count == 1:
        return (
            _blob(rng, center + rng.uniform(-0.05, 0.05, 2) * unit, rng.uniform(0.25, 0.28) * unit, 0.16),
        )
    angle = rng.uniform(0, np.pi)
    step = np.array([np.cos(angle), np.sin(angle)]) * 0.22 * unit
    return (
        _blob(rng, center + step, 0.185 * unit, 0.1),
        _blob(rng, center - step, 0.165 * unit, 0.1),
    )


def _blob(
    rng: np.random.Generator,
    center: np.ndarray | tuple[float, float],
    radius: float,
    roughness: float,
    points: int = 72,
) -> Polygon:
    """A closed curve around ``center``, rounded to 0.1 pixel; its radius is a random sum of six harmonics."""
    angle = np.linspace(0, 2 * np.pi, points, endpoint=False)
    swing = sum(
        rng.normal() / order * np.cos(order * angle + rng.uniform(0, 2 * np.pi)) for order in range(2, 8)
    )
    reach = radius * np.clip(1 + roughness * swing, 0.6, 1.4)
    ring = np.stack([center[0] + reach * np.cos(angle), center[1] + reach * np.sin(angle)], axis=1)
    return Polygon(np.round(ring, 1))


def _mask(polygons: tuple[Polygon, ...] | list[Polygon], height: int, width: int) -> np.ndarray:
    return cell_areas(shapely.union_all(list(polygons)), np.arange(height + 1), np.arange(width + 1)) > 0.5


def _dilated(mask: np.ndarray, distance: float) -> np.ndarray:
    return cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, 5) < distance


def _largest(mask: np.ndarray) -> np.ndarray:
    """The largest connected piece, and all that have at least a fiftieth of its area."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    areas = stats[1:, cv2.CC_STAT_AREA]
    return np.isin(labels, 1 + np.flatnonzero(areas >= areas.max() / 50))


def _add_fat(
    rng: np.random.Generator,
    compartments: np.ndarray,
    tissue: np.ndarray,
    keep: np.ndarray,
    depth: np.ndarray,
) -> None:
    """Clusters of round adipocytes under the capsule, away from tumor."""
    rows, columns = np.nonzero(tissue & ~_dilated(keep, 90) & (depth > 60) & (depth < 110))
    if not len(rows):
        return
    drawn = np.zeros(tissue.shape, np.uint8)
    for _ in range(2):
        place = rng.integers(len(rows))
        for _ in range(9):
            y, x = (np.array([rows[place], columns[place]]) + rng.normal(0, 48, 2)).astype(int)
            cv2.circle(drawn, (int(x), int(y)), int(rng.integers(22, 40)), 1, -1)
    compartments[(drawn == 1) & tissue & ~keep] = FAT
