"""Heatmaps as files other viewers open over the slide: GeoJSON for QuPath, a pyramidal TIFF for ASAP."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wsi_assets.annotations.geojson import PREDICTION
from wsi_assets.drawing import TUMOR, rgb
from wsi_assets.evaluation.heatmap import Detection, Heatmap

TILE = 256


def regions_geojson(heatmap: Heatmap | None, detections: Sequence[Detection], threshold: float) -> str:
    """What a detector found, for QuPath, (x, y) in level-0 pixels: regions of cells from ``threshold`` on, of
    the class Tumor, and detections as points. Unlocked there, a region is one that somebody accepted."""
    import shapely

    features = []
    if heatmap is not None:
        kind = (f"{PREDICTION} from {threshold:.2f}", "Tumor", rgb(TUMOR))
        found = shapely.get_parts(_polygons(heatmap, heatmap.probability >= threshold))
        features = [_feature(one, kind, {}) for one in found]
    for one in detections:
        kind = (f"{PREDICTION} {one.probability:.2f}", "Detection", (0, 0, 0))
        features.append(_feature(shapely.Point(one.x, one.y), kind, {"Probability": one.probability}))
    return json.dumps({"type": "FeatureCollection", "features": features}, separators=(",", ":")) + "\n"


def _feature(geometry: Any, kind: tuple[str, str, Sequence[int]], measured: dict) -> dict[str, Any]:
    """A locked QuPath annotation of a shapely geometry; ``kind`` is its name, class and color."""
    import shapely

    name, group, color = kind
    properties = {
        "objectType": "annotation",
        "name": name,
        "classification": {"name": group, "color": list(color)},
        "isLocked": True,
        "measurements": measured,
    }
    return {"type": "Feature", "geometry": json.loads(shapely.to_geojson(geometry)), "properties": properties}


def _polygons(heatmap: Heatmap, inside: np.ndarray) -> Any:
    """Shapely geometry of the cells ``inside`` (rows, cols) bool."""
    import shapely

    # Neighbors in a row are joined first: a union of ten thousand strips is quicker than of a million cells.
    edges = np.diff(np.pad(inside.astype(np.int8), ((0, 0), (1, 1))), axis=1)
    (rows, starts), stops = np.nonzero(edges == 1), np.nonzero(edges == -1)[1]
    if heatmap.cell < heatmap.step:  # patches leave gaps
        rows, starts = np.nonzero(inside)
        stops = starts + 1
    x0 = heatmap.left + starts * heatmap.step
    x1 = heatmap.left + (stops - 1) * heatmap.step + heatmap.cell
    y0 = heatmap.top + rows * heatmap.step
    return shapely.union_all(shapely.box(x0, y0, x1, y0 + heatmap.cell))


def write_likelihood_tiff(path: Path, heatmap: Heatmap, size: tuple[int, int], mpp: float | None) -> None:
    """A tiled float32 pyramid of probabilities, 0 where nothing was predicted, that ASAP lays over the slide.

    ASAP wants an image smaller than the slide by one whole number in both directions, which decides the
    resolution; named ``<slide>_likelihood_map.tif`` beside the slide, it opens by itself.

    Args:
        size: (height, width) of the slide's level 0.
        mpp: level-0 pixel size in um, None if unknown.
    """
    import tifffile

    # The largest power of two, within a cell, that ASAP finds again as the ratio of both sides.
    scale = next(
        scale
        for scale in (64, 32, 16, 8, 4, 2, 1)
        if scale <= max(heatmap.cell, 1) and all(n >= scale and n // (n // scale) == scale for n in size)
    )
    row, on_row = heatmap.cells_at((np.arange(size[0] // scale) + 0.5) * scale, axis=0)
    col, on_col = heatmap.cells_at((np.arange(size[1] // scale) + 0.5) * scale, axis=1)
    image = np.nan_to_num(heatmap.probability[np.ix_(row, col)]) * (on_row[:, None] & on_col[None, :])
    levels = [image]
    while max(levels[-1].shape) > TILE:
        levels.append(_halved(levels[-1]))
    with tifffile.TiffWriter(path, bigtiff=image.nbytes > 2**31) as writer:
        for number, pixels in enumerate(levels):
            resolution = {}
            if mpp:
                per_cm = 1e4 / (mpp * scale * 2**number)
                resolution = {"resolution": (per_cm, per_cm), "resolutionunit": "CENTIMETER"}
            writer.write(
                pixels,
                tile=(TILE, TILE),
                compression="zlib",
                photometric="minisblack",
                subfiletype=int(number > 0),
                metadata=None,
                **resolution,
            )


def _halved(image: np.ndarray) -> np.ndarray:
    """Half the size by the larger neighbor, so that a small hot spot shows from afar."""
    rows, cols = image.shape
    image = np.pad(image, ((0, rows % 2), (0, cols % 2)))
    return image.reshape(image.shape[0] // 2, 2, image.shape[1] // 2, 2).max(axis=(1, 3))
