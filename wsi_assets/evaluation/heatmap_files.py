"""Heatmaps as files that other viewers show over the slide: GeoJSON for QuPath, a pyramidal TIFF for ASAP."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wsi_assets.annotations.geojson import PREDICTION
from wsi_assets.drawing import TUMOR, rgb
from wsi_assets.evaluation.heatmap import Detection, Heatmap

BANDS = tuple(i / 10 for i in range(1, 11))
"""Edges of the probability bands of the GeoJSON; below the first nothing is drawn."""

TILE = 256


def heatmap_geojson(heatmap: Heatmap | None) -> str:
    """GeoJSON for QuPath, (x, y) in level-0 pixels: a locked annotation for the cells of each band."""
    from matplotlib import colormaps

    features = []
    probability = np.zeros((0, 0)) if heatmap is None else np.nan_to_num(heatmap.probability)
    band = np.digitize(probability, BANDS[:-1])
    for number in range(1, len(BANDS)):
        inside = band == number
        if not inside.any():
            continue
        low, high = BANDS[number - 1 : number + 1]
        name = f"{PREDICTION} {low:.1f} to {high:.1f}"
        color = colormaps["viridis"]((low + high) / 2, bytes=True)[:3]
        mean = float(probability[inside].mean(dtype=float))
        measured = {"Patches": int(inside.sum()), "Mean probability": mean}
        features.append(_feature(_plain(_polygons(heatmap, inside)), (name, name, color), measured))
    return _collection(features)


def regions_geojson(heatmap: Heatmap | None, detections: Sequence[Detection], threshold: float) -> str:
    """GeoJSON for QuPath, (x, y) in level-0 pixels: detections as points, and regions of cells at or above
    ``threshold`` with the class Tumor.

    All are locked. By unlocking a region in QuPath a person accepts it as an annotation.
    """
    import shapely

    features, color = [], rgb(TUMOR)
    if heatmap is not None:
        for one in shapely.get_parts(_polygons(heatmap, heatmap.probability >= threshold)):
            kind = (f"{PREDICTION} from {threshold:.2f}", "Tumor", color)
            features.append(_feature(_plain(one), kind, {}))
    for found in detections:
        point = {"type": "Point", "coordinates": [found.x, found.y]}
        kind = (f"{PREDICTION} {found.probability:.2f}", "Detection", (0, 0, 0))
        features.append(_feature(point, kind, {"Probability": found.probability}))
    return _collection(features)


def _feature(geometry: dict, kind: tuple[str, str, Sequence[int]], measured: dict) -> dict[str, Any]:
    """A locked QuPath annotation; ``kind`` is its name, class and color."""
    name, group, color = kind
    properties = {
        "objectType": "annotation",
        "name": name,
        "classification": {"name": group, "color": [int(part) for part in color]},
        "isLocked": True,
        "measurements": measured,
    }
    return {"type": "Feature", "geometry": geometry, "properties": properties}


def _collection(features: list[dict]) -> str:
    return json.dumps({"type": "FeatureCollection", "features": features}, separators=(",", ":")) + "\n"


def _plain(geometry: Any) -> dict:
    """A shapely geometry as a GeoJSON dict."""
    import shapely

    return json.loads(shapely.to_geojson(geometry))


def _polygons(heatmap: Heatmap, inside: np.ndarray) -> Any:
    """Shapely geometry of the cells ``inside`` (rows, cols) bool."""
    import shapely

    # Neighbors in a row are joined first: a union of ten thousand strips is faster than of a million cells.
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
    """Write a tiled float32 pyramid of probabilities, 0 where nothing was predicted, for display in ASAP.

    ASAP needs an image whose size is that of the slide divided by the same whole number in both directions,
    which determines the resolution. It opens a ``<slide>_likelihood_map.tif`` beside the slide by itself.

    Args:
        size: (height, width) of the slide's level 0.
        mpp: level-0 pixel size in um, None if unknown.
    """
    import tifffile

    # The largest power of two, at most a cell, that ASAP computes as the ratio of both widths and heights.
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
    """Half the size by the maximum of 2 x 2 pixels, so that small regions stay visible."""
    rows, cols = image.shape
    image = np.pad(image, ((0, rows % 2), (0, cols % 2)))
    return image.reshape(image.shape[0] // 2, 2, image.shape[1] // 2, 2).max(axis=(1, 3))
