"""Synthetic predictions for tests: index entries with probabilities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import shapely

from wsi_assets.slides import Region
from wsi_assets_tests.index.fakes import ArraySlide


@dataclass(frozen=True)
class Regions:
    """The part of annotated regions that an evaluation uses."""

    geometry: Any


class PictureSlide(ArraySlide):
    """A slide of an array that is also read in windows; what lies beyond its edge is white."""

    def read_region(self, level: int, y: int, x: int, height: int, width: int) -> Region:
        inside = self.pixels[:: 2**level, :: 2**level]
        pixels = np.full((height, width, 3), 255, np.uint8)
        rows, cols = np.arange(y, y + height), np.arange(x, x + width)
        on_rows, on_cols = ((at >= 0) & (at < n) for at, n in zip((rows, cols), inside.shape, strict=False))
        pixels[np.ix_(on_rows, on_cols)] = inside[np.ix_(rows[on_rows], cols[on_cols])]
        return Region(pixels, np.zeros((height, width), bool))


def entry(slide_id: str, patches, probs, **changed) -> dict[str, Any]:
    """A test slide's entry; ``patches`` are (y, x, is_tumor) in pixels of its level."""
    plain = {
        "slide_path": f"/nowhere/{slide_id}.tif",
        "label": slide_id.split("_node")[0],
        "annotation_path": None,
        "level": 0,
        "work_level": 5,
        "magnification": 40.0,
        "patches": [(int(y), int(x), bool(tumor)) for y, x, tumor in patches],
        "patch_size": 256,
        "stride": 256,
        "downsample": 1.0,
        "mpp": 0.243 * changed.get("downsample", 1.0),
        "probs": [float(prob) for prob in probs],
        "preds": [-1 if np.isnan(prob) else int(prob >= 0.5) for prob in probs],
    }
    return {**plain, **changed}


def grid_entry(slide_id: str, probability: np.ndarray, tumor: np.ndarray | None = None, **changed):
    """An entry whose patches fill a grid (rows, cols)."""
    stride = changed.get("stride", 256)
    tumor = np.zeros(probability.shape, bool) if tumor is None else tumor
    rows, cols = np.indices(probability.shape)
    patches = np.stack([rows.ravel() * stride, cols.ravel() * stride, tumor.ravel()], axis=1)
    return entry(slide_id, patches, probability.ravel(), **changed)


def square(x0: float, y0: float, side: float) -> Regions:
    return Regions(shapely.MultiPolygon([shapely.box(x0, y0, x0 + side, y0 + side)]))


def cohort(seed: int = 0, side: int = 12):
    """Four test slides of three patients, two with a tumor of 6 x 6 patches; predictions and regions."""
    generator = np.random.default_rng(seed)
    predictions, regions = {}, {}
    for number, slide_id in enumerate(("test_001_node_1", "test_001_node_2", "test_002", "test_003")):
        tumor = np.zeros((side, side), bool)
        regions[slide_id] = None
        if number in (0, 2):
            tumor[2:8, 3:9] = True
            regions[slide_id] = square(3 * 256, 2 * 256, 6 * 256)
        probability = np.where(tumor, generator.beta(5, 2, tumor.shape), generator.beta(2, 6, tumor.shape))
        predictions[slide_id] = grid_entry(slide_id, probability, tumor)
    return predictions, regions
