"""Read a level by another way than the readers of patches and regions do, to check what they read."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from wsi_assets.errors import SlideError, one_line
from wsi_assets.slides.closing import Closing
from wsi_assets.slides.openslide_file import OpenSlideFile, blends
from wsi_assets.slides.tiff_tiles import is_ycbcr, open_tiles, rgb_of
from wsi_assets.slides.tile_grid import tiles_over

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
        tiles = open_tiles(path, level, slide)
        self._direct = tiles is not None
        if tiles is not None:
            tiles.close()
        exact = slide.has_level(level) and not blends(slide.downsamples[level], max(slide.sizes[level]))
        self._page = slide.page_of(level) if self._direct and not exact else None

    def read(self, y: int, x: int, height: int, width: int) -> np.ndarray:
        """A window of the level, uint8 (h, w, 3) RGB; white where the slide has no pixels.

        Raises:
            SlideError: it does not read.
        """
        wide, high = self._slide.sizes[self.level]
        y0, x0, y1, x1 = max(0, y), max(0, x), min(high, y + height), min(wide, x + width)
        pixels = np.full((height, width, 3), 255, np.uint8)
        if y0 < y1 and x0 < x1:
            inside = self._by_openslide if self._page is None else self._by_tifffile
            pixels[y0 - y : y1 - y, x0 - x : x1 - x] = inside(y0, x0, y1 - y0, x1 - x0)
        return pixels

    def close(self) -> None:
        """Let go of the slide."""
        self._slide.close()

    def _by_openslide(self, y: int, x: int, height: int, width: int) -> np.ndarray:
        top, left = (y, x) if self._direct else (max(0, y - _MARGIN), max(0, x - _MARGIN))
        pixels, _ = self._slide.read(self.level, top, left, y - top + height, x - left + width)
        return pixels[y - top :, x - left :]

    def _by_tifffile(self, y: int, x: int, height: int, width: int) -> np.ndarray:
        page, pixels = self._page, np.full((height, width, 3), 255, np.uint8)
        across = -(-page.imagewidth // page.tilewidth)
        stream = page.parent.filehandle
        stream.open()  # closed since the pages were listed, and tifffile looks into the file as it decodes
        with stream:
            for row, col, target, source in tiles_over(y, x, height, width, page.tilelength, page.tilewidth):
                number = row * across + col
                offset, length = page.dataoffsets[number], page.databytecounts[number]
                if min(offset, length) <= 0:
                    continue
                stream.seek(offset)
                data = stream.read(length)
                try:
                    tile = page.decode(data, number, jpegtables=page.jpegtables)[0]
                except Exception as error:  # the codecs' error types differ between their versions
                    raise SlideError(f"does not read ({one_line(error)})", path=self._slide.path) from error
                pixels[target] = (rgb_of(tile[0]) if is_ycbcr(page) else tile[0])[source]
        return pixels
