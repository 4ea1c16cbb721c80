"""Read a level by another way than the readers of patches and regions do, to check what they read."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from wsi_assets.errors import SlideError
from wsi_assets.slides.closing import Closing
from wsi_assets.slides.openslide_file import OpenSlideFile, blends
from wsi_assets.slides.tiff_tiles import open_tiles

_MARGIN = 128


class ReferenceReader(Closing):
    """One level of a slide, a context manager.

    Where readers decode tiles themselves, this one asks OpenSlide, or tifffile where OpenSlide would blend
    pixels or has no such level. Where they ask OpenSlide, this one asks it for a larger window that begins
    elsewhere.

    Raises:
        SlideError: the slide does not open, or has no such level.
    """

    def __init__(self, path: str | Path, level: int):
        self.level = level
        self._slide = slide = OpenSlideFile(Path(path))
        if not 0 <= level < len(slide.sizes):
            slide.close()
            raise SlideError(f"has levels 0 to {len(slide.sizes) - 1}, not {level}", path=path)
        self._tiles = open_tiles(path, level, slide)
        self._by_openslide = self._tiles is None or (
            slide.has_level(level) and not blends(slide.downsamples[level], max(slide.sizes[level]))
        )
        if self._tiles is not None:
            self._tiles.by_tifffile = True

    def read(self, y: int, x: int, height: int, width: int) -> np.ndarray:
        """A window of the level, uint8 (h, w, 3) RGB; white where the slide has no pixels.

        Raises:
            SlideError: it does not read.
        """
        wide, high = self._slide.sizes[self.level]
        y0, x0, y1, x1 = max(0, y), max(0, x), min(high, y + height), min(wide, x + width)
        pixels = np.full((height, width, 3), 255, np.uint8)
        if y0 < y1 and x0 < x1:
            margin = 0 if self._tiles else _MARGIN
            top, left = max(0, y0 - margin), max(0, x0 - margin)
            window = top, left, y1 - top, x1 - left
            if self._by_openslide:
                found, _ = self._slide.read(self.level, *window)
            else:
                found, _ = self._tiles.read_window(*window)
            pixels[y0 - y : y1 - y, x0 - x : x1 - x] = found[y0 - top :, x0 - left :]
        return pixels

    def close(self) -> None:
        """Let go of the slide."""
        if self._tiles is not None:
            self._tiles.close()
        self._slide.close()
