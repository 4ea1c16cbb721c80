"""Many patches of one slide's level, every touched tile read about once and in file order."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from wsi_assets.errors import SlideError
from wsi_assets.slides.closing import Closing
from wsi_assets.slides.openslide_file import OpenSlideFile
from wsi_assets.slides.reduce import read_averaged
from wsi_assets.slides.tiff_tiles import TileLevel, open_tiles
from wsi_assets.slides.tile_grid import tiles_over

_KEPT_BYTES = 48 << 20

Window = Callable[[int, int, int, int], tuple[np.ndarray, int]]
"""Pixels at top, left, height and width, white where the slide has none, and how many it does not have."""


@dataclass(frozen=True)
class Patch:
    """One patch of a slide.

    Attributes:
        pixels: uint8 (P, P, 3) RGB, white where the slide has none; None if it does not read.
        missing: pixels of it that the slide does not have.
        fault: why it cannot be read, None if it can.
        jpeg: the slide's own JPEG of just these pixels, of a patch that is a whole tile.
    """

    pixels: np.ndarray | None
    missing: int = 0
    fault: str | None = None
    jpeg: bytes | None = None

    def why_unusable(self, max_no_data: float) -> str | None:
        """Why it is no patch to learn from or to predict; None if it is one.

        Args:
            max_no_data: the largest share of it that the slide may not have.
        """
        if self.pixels is None:
            return self.fault
        area = self.pixels.shape[0] * self.pixels.shape[1]
        if self.missing > max_no_data * area or self.missing == area:
            return f"the slide has no pixels for {self.missing / area:.0%} of it"
        return None


class PatchReader(Closing):
    """One level of an open slide, which gives patches; use it in the process and thread that opened it.

    Pixels come straight from the slide's tiles where those are the same as OpenSlide's, else from OpenSlide.

    Args:
        direct: whether tiles may be decoded directly.

    Raises:
        SlideError: the slide does not open, or has no such level.
    """

    def __init__(self, path: str | Path, level: int, *, direct: bool = True):
        self.level = level
        self._slide = OpenSlideFile(Path(path))
        self.tiles: TileLevel | None = None
        try:
            if not 0 <= level < len(self._slide.sizes):
                raise SlideError(f"has levels 0 to {len(self._slide.sizes) - 1}, not {level}", path=path)
            if direct:
                self.tiles = open_tiles(path, level, self._slide)
        except BaseException:
            self._slide.close()
            raise

    def read(
        self, coords: np.ndarray, size: int, step: float = 1.0, *, jpeg: bool = False
    ) -> Iterator[tuple[int, Patch]]:
        """(number, patch) of each of the patches with top-left corners ``coords``, tile after tile.

        ``coords`` are int (n, 2) of (y, x) in pixels that are each ``step`` x ``step`` of the level's.
        A damaged tile is a fault of the patches over it, not of the others.

        Args:
            jpeg: also give the JPEG of patches that are a whole tile.
        """
        corners, span = (coords * step).astype(np.int64), math.ceil(size * step)
        window = self._through_openslide if self.tiles is None else self._from_tiles(corners, span)
        tile = (self.tiles.tile_height, self.tiles.tile_width) if self.tiles else (span, span)
        rows, cols = (corners // tile).T
        for number in np.lexsort((cols, rows)).tolist():
            y, x = coords[number].tolist()
            try:
                pixels, missing = _averaged(window, y, x, size, step)
                aligned = step == 1 and tile == (size, size) and y % size == x % size == 0
                whole_tile = jpeg and not missing and aligned
                own = self.tiles.jpeg_file(y // size, x // size) if whole_tile and self.tiles else None
                yield number, Patch(pixels, missing, jpeg=own)
            except SlideError as error:
                yield number, Patch(None, fault=error.fault)

    def close(self) -> None:
        """Let go of the slide."""
        if self.tiles is not None:
            self.tiles.close()
        self._slide.close()

    def _from_tiles(self, coords: np.ndarray, size: int) -> Window:
        """Cuts patches from tiles, and keeps as many of these as patches in rows go back to."""
        tiles = self.tiles
        high, wide = tiles.tile_height, tiles.tile_width
        first, last = coords // (high, wide), (coords + size - 1) // (high, wide)
        rows, across = (last - first).max(axis=0) + 1, last[:, 1].max() - first[:, 1].min() + 1
        kept = int(min(rows[0] * across if rows.max() > 1 else 1, _KEPT_BYTES // (high * wide * 3)))
        tile_at = lru_cache(max(1, kept))(tiles.read_tile)

        def window(y: int, x: int, height: int, width: int) -> tuple[np.ndarray, int]:
            shape = (height, width, 3)
            patch, missing = None, height * width
            for row, col, target, source in tiles_over(y, x, height, width, high, wide):
                inside = 0 <= row < tiles.rows and 0 <= col < tiles.cols
                tile = tile_at(row, col) if inside else None
                if tile is None:
                    continue
                # Those at the far edges reach over the level.
                found = tile[: tiles.height - row * high, : tiles.width - col * wide][source]
                if found.shape == shape:
                    return found, 0  # most patches lie in one tile: neither filled nor copied
                patch = np.full(shape, 255, np.uint8) if patch is None else patch
                patch[target][: found.shape[0], : found.shape[1]] = found
                missing -= found.shape[0] * found.shape[1]
            return np.full(shape, 255, np.uint8) if patch is None else patch, missing

        return window

    def _through_openslide(self, y: int, x: int, height: int, width: int) -> tuple[np.ndarray, int]:
        wide, high = self._slide.sizes[self.level]
        top, bottom = max(y, 0), min(y + height, high)
        left, right = max(x, 0), min(x + width, wide)
        patch, missing = np.full((height, width, 3), 255, np.uint8), height * width
        if top < bottom and left < right:
            pixels, present = self._slide.read(self.level, top, left, bottom - top, right - left)
            patch[top - y : bottom - y, left - x : right - x] = pixels
            missing -= int(np.count_nonzero(present))
        return patch, missing


def _averaged(window: Window, y: int, x: int, size: int, step: float) -> tuple[np.ndarray, int]:
    """A patch, and how many of its pixels are missing: the share that is missing of what it is made of."""
    if step == 1:
        return window(y, x, size, size)
    gone = whole = 0

    def read(top: int, left: int, height: int, width: int) -> np.ndarray:
        nonlocal gone, whole
        pixels, missing = window(top, left, height, width)
        gone, whole = gone + missing, whole + height * width
        return pixels

    patch = read_averaged(read, y, x, size, step)
    return patch, round(gone / whole * size**2)
