"""Slides and index entries made for tests and benchmarks of patches: JPEG tiles with tissue-like texture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import imagecodecs
import numpy as np
import tifffile

from wsi_assets.patches import ExtractionOptions
from wsi_assets.slides import fingerprint, slide_id_of

TILE = 512

ONE = ExtractionOptions(codec="png", extraction_workers=1)
"""Lossless, and all in this process."""


def texture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """uint8 (h, w, 3): stain-like blobs with fine grain, about as dense to code as H&E at 40x."""
    random = np.random.default_rng(seed)
    picture = np.empty((height, width, 3), np.float32)
    picture[:] = (205, 150, 190)
    for scale, strength in ((64, 40), (16, 45), (4, 30)):
        small = random.standard_normal((height // scale + 2, width // scale + 2)).astype(np.float32)
        field = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
        picture -= field[..., None] * np.array([0.8, 1.0, 0.5], np.float32) * strength
    picture += random.standard_normal((height, width, 3)).astype(np.float32) * 5
    return np.clip(picture, 0, 254).astype(np.uint8)


def write_slide(
    path: Path, pixels: np.ndarray, *, tile: int = TILE, quality: int = 85, levels: int = 1
) -> Path:
    """A pyramid of JPEG tiles, each level half of the one before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        for level in range(levels):
            file.write(
                pixels,
                tile=(tile, tile),
                photometric="ycbcr",
                compression="jpeg",
                compressionargs={"level": quality},
                subfiletype=1 if level else 0,
                resolution=(40000, 40000),
                resolutionunit="CENTIMETER",
                metadata=None,
            )
            pixels = cv2.resize(pixels, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    return path


def write_mosaic_slide(
    path: Path,
    rows: int,
    columns: int,
    *,
    tile: int = TILE,
    variants: int = 12,
    written: np.ndarray | None = None,
    levels: int = 1,
) -> Path:
    """A slide of any size in no time: ``rows`` x ``columns`` tiles out of a few coded once.

    ``written``: bool (rows, columns), tiles that are False are missing, as scanners leave unscanned glass.
    ``levels``: each has half the tiles of the one before, of other tissue.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    source = texture(tile, tile * variants, seed=rows * 7919 + columns)
    coded = [
        imagecodecs.jpeg8_encode(
            np.ascontiguousarray(source[:, i * tile : (i + 1) * tile]),
            level=85,
            colorspace="RGB",
            outcolorspace="YCBCR",
        )
        for i in range(variants)
    ]

    def tiles(high: int, wide: int):
        for row in range(high):
            for column in range(wide):
                here = written is None or written[row, column]
                yield coded[(row * 5 + column) % variants] if here else b""

    with tifffile.TiffWriter(path, bigtiff=True) as file:
        for level in range(levels):
            shape = tuple(max(1, side * tile >> level) for side in (rows, columns))
            high, wide = (-(-side // tile) for side in shape)
            file.write(
                tiles(high, wide),
                shape=(*shape, 3),
                dtype=np.uint8,
                tile=(tile, tile),
                photometric="ycbcr",
                compression="jpeg",
                subfiletype=1 if level else 0,
                metadata=None,
            )
    return path


def grid(height: int, width: int, size: int, stride: int | None = None) -> list[tuple[int, int, bool]]:
    """Every whole patch, row by row; every third is tumor."""
    stride = stride or size
    places = [(y, x) for y in range(0, height - size + 1, stride) for x in range(0, width - size + 1, stride)]
    return [(y, x, i % 3 == 0) for i, (y, x) in enumerate(places)]


def entry(
    path: Path, patches: Sequence[tuple[int, int, bool]], size: int, *, level: int = 0, **fields: Any
) -> dict[str, Any]:
    """An index entry of plain values."""
    return {
        "slide_path": str(path),
        "label": path.stem,
        "annotation_path": None,
        "level": level,
        "work_level": level,
        "magnification": 40.0 / 2**level,
        "visualisation_coords": [],
        "patches": list(patches),
        "patch_size": size,
        "stride": size,
        "downsample": float(2**level),
        "mpp": 0.25 * 2**level,
        "fingerprint": fingerprint(path),
        "config": {},
        **fields,
    }


def index_of(*entries: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The slide index of entries, by the names of their files."""
    return {slide_id_of(entry["slide_path"]): entry for entry in entries}
