"""Small slides made for tests: pictures with detail, pyramids, paddings, missing tiles."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import tifffile


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A smooth random picture, uint8 (h, w, 3), nowhere pure black, pure white or flat."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(60, 220, (max(2, height // 12), max(2, width // 12), 3)).astype(np.uint8)
    fine = rng.integers(-12, 13, (height, width, 3))
    return np.clip(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC) + fine, 20, 240).astype(
        np.uint8
    )


def halved(image: np.ndarray, times: int) -> np.ndarray:
    """The picture averaged over squares of 2^times pixels; what does not fill a square is dropped."""
    step = 2**times
    height, width = image.shape[0] // step, image.shape[1] // step
    cut = image[: height * step, : width * step].reshape(height, step, width, step, -1)
    return np.rint(cut.mean(axis=(1, 3))).astype(np.uint8)


def padded(image: np.ndarray, unit: int, color: int = 254) -> np.ndarray:
    """The picture with its right and bottom filled up to whole units."""
    high, wide = -image.shape[0] % unit, -image.shape[1] % unit
    return np.pad(image, ((0, high), (0, wide), (0, 0)), constant_values=color)


def write_pyramid(
    path: Path,
    levels: list[np.ndarray],
    *,
    tile: int = 128,
    compression: str | None = "jpeg",
    photometric: str = "ycbcr",
    mpp: float | None = None,
    missing: set[tuple[int, int]] = frozenset(),
) -> Path:
    """Write a tiled TIFF of these levels.

    JPEG is coded in ``photometric``; ``missing`` tiles (row, column) of level 0 get no bytes.
    """
    coding = {"level": 90, "outcolorspace": photometric}
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        for index, image in enumerate(levels):
            holes = missing if index == 0 else frozenset()
            resolution = {} if mpp is None else {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": 3}
            file.write(
                _tiles(image, tile, holes),
                shape=image.shape,
                dtype=np.uint8,
                tile=(tile, tile),
                photometric="rgb",
                extrasamples=["unassalpha"] if image.shape[2] == 4 else None,
                compression=compression,
                compressionargs=coding if compression == "jpeg" else None,
                subfiletype=0 if index == 0 else 1,
                metadata=None,
                **resolution,
            )
    return path


def _tiles(image: np.ndarray, tile: int, missing: frozenset[tuple[int, int]] | set[tuple[int, int]]):
    for row in range(-(-image.shape[0] // tile)):
        for col in range(-(-image.shape[1] // tile)):
            if (row, col) in missing:
                yield None
                continue
            piece = image[row * tile : (row + 1) * tile, col * tile : (col + 1) * tile]
            yield np.pad(piece, ((0, tile - piece.shape[0]), (0, tile - piece.shape[1]), (0, 0)), mode="edge")
