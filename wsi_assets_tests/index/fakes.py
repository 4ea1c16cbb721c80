"""Slides made of arrays, with the interface of a reader, and tissue made of masks."""

from __future__ import annotations

import hashlib
from pathlib import Path

import cv2
import numpy as np
from shapely import MultiPolygon, box

from wsi_assets.annotations import TumorRegions
from wsi_assets.index import TissueRegions
from wsi_assets.slides import Level, Region, Scale, slide_id_of


class ArraySlide:
    """A slide whose pixels are an array; ``no_data`` marks what was not scanned."""

    def __init__(self, path: str, pixels: np.ndarray, no_data: np.ndarray | None = None):
        self.path, self.pixels = Path(path), pixels
        self.slide_id = slide_id_of(self.path)
        self.no_data = np.zeros(pixels.shape[:2], bool) if no_data is None else no_data
        height, width = pixels.shape[:2]
        self.levels = tuple(Level(i, width >> i, height >> i, float(2**i)) for i in range(4))
        self.scale = Scale(40.0, "test", 0.25, "test")
        self.bounds, self.notices = None, ()

    def reduced(self, downsample: float) -> Region:
        height, width = self.pixels.shape[:2]
        size = (-(-width // int(downsample)), -(-height // int(downsample)))
        pixels = cv2.resize(self.pixels, size, interpolation=cv2.INTER_AREA)
        missing = cv2.resize(self.no_data.astype(np.float32), size, interpolation=cv2.INTER_AREA)
        return Region(pixels, missing > 0.5)

    def thumbnail(self, max_side: int) -> np.ndarray:
        return self.reduced(max(1, -(-max(self.pixels.shape) // max_side))).pixels


def tissue_of(
    slide_id: str,
    mask: np.ndarray,
    downsample: float = 8.0,
    *,
    levels: int = 3,
    base: float = 40.0,
    **changes,
) -> TissueRegions:
    """Tissue with a given mask; the slide's size is a whole number of mask pixels."""
    rows, columns = mask.shape
    height, width = int(rows * downsample), int(columns * downsample)
    fields = {
        "slide_id": slide_id,
        "slide_path": f"/slides/{slide_id}.tif",
        "fingerprint": hashlib.md5(slide_id.encode()).hexdigest(),
        "work_level": 3,
        "work_downsample": downsample,
        "mask": mask,
        "threshold": 12.0,
        "levels": tuple(Level(i, width >> i, height >> i, float(2**i)) for i in range(levels)),
        "scale": Scale(base, "test", 0.25, "test"),
        "tissue_share": float(mask.mean()),
    }
    return TissueRegions(**{**fields, **changes})


def tumor_of(geometry) -> TumorRegions:
    """Annotations from any polygon."""
    parts = geometry if isinstance(geometry, MultiPolygon) else MultiPolygon([geometry])
    return TumorRegions(geometry=parts, excluded=MultiPolygon(), audit=())


def tumor_box(y: float, x: float, height: float, width: float) -> TumorRegions:
    return tumor_of(box(x, y, x + width, y + height))


def index_of(*sizes: tuple[str, int, int]) -> dict:
    """An index of slides given as (slide id, tumor patches, normal patches)."""
    return {slide_id: entry_of(slide_id, tumor, normal) for slide_id, tumor, normal in sizes}


def entry_of(slide_id: str, tumor: int, normal: int) -> dict:
    """An index entry with so many patches, tumor first, on one row."""
    patches = [(0, 256 * i, i < tumor) for i in range(tumor + normal)]
    return {
        "slide_path": f"/slides/{slide_id}.tif",
        "label": slide_id,
        "annotation_path": None,
        "level": 0,
        "magnification": 40.0,
        "mpp": 0.25,
        "patches": patches,
        "visualisation_coords": [(0, 2 * i, t) for i, (_, _, t) in enumerate(patches)],
        "tissue_fraction": [1.0] * len(patches),
        "tumor_fraction": [float(t) for _, _, t in patches],
        "config": {"patch_size": 256},
    }
