"""Read a level by another way than the readers of patches and regions do, to check what they read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tifffile

from wsi_assets.errors import SlideError, one_line
from wsi_assets.slides.openslide_file import OpenSlideFile, blends
from wsi_assets.slides.tiff_tiles import is_ycbcr, open_tiles, rgb_of


class ReferenceReader:
    """One level of a slide, a context manager.

    Where readers decode tiles themselves, this one asks OpenSlide, or tifffile where OpenSlide would blend
    pixels or has no such level. Where they ask OpenSlide, this one asks tifffile, or OpenSlide for a larger
    window that begins elsewhere.

    Raises:
        SlideError: the slide does not open, or has no such level.
    """

    def __init__(self, path: str | Path, level: int):
        self.level = level
        self._slide = OpenSlideFile(Path(path))
        if not 0 <= level < len(self._slide.sizes):
            self._slide.close()
            raise SlideError(f"has levels 0 to {len(self._slide.sizes) - 1}, not {level}", path=path)
        tiles = open_tiles(path, level, self._slide)
        direct = tiles is not None
        if tiles is not None:
            tiles.close()
        seen = self._slide.has_level(level)
        self._blends = blends(self._slide.downsamples[level], max(self._slide.sizes[level]))
        exact = seen and not self._blends
        page = self._slide.page_of(level)
        self._page = page if direct and not exact else None
        self._margin = 0 if direct else 128

    def read(self, y: int, x: int, height: int, width: int) -> np.ndarray:
        """A window of the level, uint8 (h, w, 3) RGB; white where the slide has no pixels.

        Raises:
            SlideError: it does not read.
        """
        width_there, height_there = self._slide.sizes[self.level]
        y0, x0, y1, x1 = max(0, y), max(0, x), min(height_there, y + height), min(width_there, x + width)
        pixels = np.full((height, width, 3), 255, np.uint8)
        if y0 < y1 and x0 < x1:
            pixels[y0 - y : y1 - y, x0 - x : x1 - x] = self._inside(y0, x0, y1 - y0, x1 - x0)
        return pixels

    def _inside(self, y: int, x: int, height: int, width: int) -> np.ndarray:
        if self._page is not None:
            return self._by_tifffile(self._page, y, x, height, width)
        top, left = max(0, y - self._margin), max(0, x - self._margin)
        pixels, _ = self._slide.read(self.level, top, left, y - top + height, x - left + width)
        return pixels[y - top :, x - left :]

    def close(self) -> None:
        """Let go of the slide."""
        self._slide.close()

    def __enter__(self) -> ReferenceReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _by_tifffile(self, page: tifffile.TiffPage, y: int, x: int, height: int, width: int) -> np.ndarray:
        """The window from tiles that tifffile decodes and places."""
        pixels = np.full((height, width, 3), 255, np.uint8)
        across = -(-page.imagewidth // page.tilewidth)
        with self._slide.path.open("rb") as stream:
            for row in range(y // page.tilelength, (y + height - 1) // page.tilelength + 1):
                for col in range(x // page.tilewidth, (x + width - 1) // page.tilewidth + 1):
                    number = row * across + col
                    if min(page.dataoffsets[number], page.databytecounts[number]) <= 0:
                        continue
                    stream.seek(page.dataoffsets[number])
                    data = stream.read(page.databytecounts[number])
                    try:
                        tile, place, _ = page.decode(data, number, jpegtables=page.jpegtables)
                    except Exception as error:  # the codecs' error types differ between their versions
                        raise SlideError(
                            f"does not read ({one_line(error)})", path=self._slide.path
                        ) from error
                    tile = np.asarray(tile)[0]
                    _paste(pixels, rgb_of(tile) if is_ycbcr(page) else tile, place[2] - y, place[3] - x)
        return pixels


def _paste(pixels: np.ndarray, tile: np.ndarray, top: int, left: int) -> None:
    """Copy into ``pixels`` what of the tile, whose corner is at (top, left) of it, lies in it."""
    y0, x0 = max(0, top), max(0, left)
    y1, x1 = min(pixels.shape[0], top + tile.shape[0]), min(pixels.shape[1], left + tile.shape[1])
    pixels[y0:y1, x0:x1] = tile[y0 - top : y1 - top, x0 - left : x1 - left]
