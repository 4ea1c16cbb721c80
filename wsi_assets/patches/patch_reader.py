"""Many patches of one slide's level, every touched tile read about once and in file order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wsi_assets.errors import SlideError
from wsi_assets.slides.closing import Closing
from wsi_assets.slides.openslide_file import OpenSlideFile
from wsi_assets.slides.tiff_tiles import TileLevel, open_tiles


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

    def read(self, coords: np.ndarray, size: int, *, jpeg: bool = False) -> Iterator[tuple[int, Patch]]:
        """(number, patch) of each of the patches with top-left corners ``coords``, tile after tile.

        ``coords`` are int (n, 2) of (y, x) in pixels of the level. A damaged tile is a fault of the patches
        over it, not of the others.

        Args:
            jpeg: also give the JPEG of patches that are a whole tile.
        """
        tile = (self.tiles.tile_height, self.tiles.tile_width) if self.tiles else (size, size)
        rows, cols = (coords // tile).T
        for number in np.lexsort((cols, rows)).tolist():
            y, x = coords[number].tolist()
            try:
                pixels, missing = self._window(y, x, size)
                is_tile = (
                    jpeg and not missing and self.tiles and tile == (size, size) and y % size == x % size == 0
                )
                own = self.tiles.jpeg_file(y // size, x // size) if is_tile else None
                yield number, Patch(pixels, missing, jpeg=own)
            except SlideError as error:
                yield number, Patch(None, fault=error.fault)

    def close(self) -> None:
        """Let go of the slide."""
        if self.tiles is not None:
            self.tiles.close()
        self._slide.close()

    def _window(self, y: int, x: int, size: int) -> tuple[np.ndarray, int]:
        """A patch that may reach over the level's edges, and how many of its pixels are missing."""
        width, height = self._slide.sizes[self.level]
        top, bottom = max(y, 0), min(y + size, height)
        left, right = max(x, 0), min(x + size, width)
        whole = np.full((size, size, 3), 255, np.uint8)
        if top >= bottom or left >= right:
            return whole, size * size
        window = top, left, bottom - top, right - left
        if self.tiles is not None:
            pixels, present = self.tiles.read_window(*window)
        else:
            pixels, present = self._slide.read(self.level, *window)
        missing = size * size - int(np.count_nonzero(present))
        if pixels.shape == whole.shape:
            return pixels, missing
        whole[top - y : bottom - y, left - x : right - x] = pixels
        return whole, missing
