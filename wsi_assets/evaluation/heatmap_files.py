"""Heatmaps as files other viewers open over the slide: GeoJSON for QuPath, a pyramidal TIFF for ASAP."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from wsi_assets.evaluation.heatmap import Heatmap

BANDS = tuple(i / 10 for i in range(1, 11))
"""Edges of the probability bands of the GeoJSON; below the first nothing is drawn."""

TILE = 256
MAX_REDUCTION = 64


def heatmap_geojson(heatmap: Heatmap | None) -> str:
    """Cells of equal probability band as one locked QuPath annotation a band, (x, y) in level-0 pixels."""
    features = []
    if heatmap is not None:
        with np.errstate(invalid="ignore"):
            band = np.digitize(heatmap.probability, BANDS[:-1]) * np.isfinite(heatmap.probability)
        for number in range(1, len(BANDS)):
            inside = band == number
            if inside.any():
                features.append(_feature(heatmap, inside, BANDS[number - 1], BANDS[number]))
    return json.dumps({"type": "FeatureCollection", "features": features}, separators=(",", ":")) + "\n"


def write_likelihood_tiff(path: Path, heatmap: Heatmap, size: tuple[int, int], mpp: float | None) -> None:
    """A tiled float32 pyramid of probabilities, 0 where nothing was predicted, that ASAP lays over the slide.

    ASAP wants an image smaller than the slide by one whole number in both directions, which decides the
    resolution; named ``<slide>_likelihood_map.tif`` beside the slide, it opens by itself.

    Args:
        size: (height, width) of the slide's level 0.
        mpp: level-0 pixel size in um, None if unknown.
    """
    import tifffile

    scale = _reduction(size, heatmap.cell)
    image = _paint(heatmap, scale, (size[0] // scale, size[1] // scale))
    with tifffile.TiffWriter(path, bigtiff=image.nbytes > 2**31) as writer:
        first = True
        while first or max(image.shape) > TILE:
            if not first:
                image = _halved(image)
                scale *= 2
            resolution = {}
            if mpp:
                resolution = {"resolution": (1e4 / (mpp * scale),) * 2, "resolutionunit": "CENTIMETER"}
            writer.write(
                image,
                tile=(TILE, TILE),
                compression="zlib",
                photometric="minisblack",
                subfiletype=0 if first else 1,
                metadata=None,
                **resolution,
            )
            first = False


def _feature(heatmap: Heatmap, inside: np.ndarray, low: float, high: float) -> dict[str, Any]:
    import shapely
    from matplotlib import colormaps

    rows, starts, stops = _runs(inside)
    reach = heatmap.cell - heatmap.step
    if reach < 0:
        # Patches leave gaps: every cell is a box of its own.
        rows, starts = np.nonzero(inside)
        stops = starts + 1
    x0 = heatmap.left + starts * heatmap.step
    x1 = heatmap.left + stops * heatmap.step + reach
    y0 = heatmap.top + rows * heatmap.step
    shape = shapely.union_all(shapely.box(x0, y0, x1, y0 + heatmap.cell))
    red, green, blue, _ = colormaps["viridis"]((low + high) / 2, bytes=True)
    mean = float(heatmap.probability[inside].mean(dtype=float))
    name = f"Tumor probability {low:.1f} to {high:.1f}"
    return {
        "type": "Feature",
        "geometry": json.loads(shapely.to_geojson(shape)),
        "properties": {
            "objectType": "annotation",
            "name": name,
            "classification": {"name": name, "color": [int(red), int(green), int(blue)]},
            "isLocked": True,
            "measurements": {"Patches": int(inside.sum()), "Mean probability": mean},
        },
    }


def _runs(inside: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row, first column and column after the last of every horizontal run."""
    edges = np.diff(np.pad(inside.astype(np.int8), ((0, 0), (1, 1))), axis=1)
    rows, starts = np.nonzero(edges == 1)
    return rows, starts, np.nonzero(edges == -1)[1]


def _reduction(size: tuple[int, int], cell: float) -> int:
    """The largest power of two, within a cell, that ASAP finds again as the ratio of both sides."""
    scale = MAX_REDUCTION
    while scale > 1 and (scale > cell or not all(_found_again(scale, side) for side in size)):
        scale //= 2
    return scale


def _found_again(scale: int, side: int) -> bool:
    return side >= scale and side // (side // scale) == scale


def _paint(heatmap: Heatmap, scale: int, shape: tuple[int, int]) -> np.ndarray:
    """The map resampled to ``shape`` (rows, cols) of pixels ``scale`` level-0 pixels wide, float32."""
    row, on_row = heatmap.cells_at((np.arange(shape[0]) + 0.5) * scale, axis=0)
    col, on_col = heatmap.cells_at((np.arange(shape[1]) + 0.5) * scale, axis=1)
    image = np.nan_to_num(heatmap.probability[np.ix_(row, col)])
    return image * (on_row[:, None] & on_col[None, :])


def _halved(image: np.ndarray) -> np.ndarray:
    """Half the size by the larger neighbour, so that a small hot spot shows from afar."""
    rows, cols = image.shape
    image = np.pad(image, ((0, rows % 2), (0, cols % 2)))
    return image.reshape(image.shape[0] // 2, 2, image.shape[1] // 2, 2).max(axis=(1, 3))
