"""Open a slide: its levels and true scale, regions in a level's own pixels, and where it has no data."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from wsi_assets.errors import SlideError
from wsi_assets.slides.closing import Closing
from wsi_assets.slides.cohort import EMPTY_ROW, SlideRow
from wsi_assets.slides.naming import slide_id_of
from wsi_assets.slides.no_data import MARGIN, may_lack_data, no_data, padding_colors
from wsi_assets.slides.openslide_file import OpenSlideFile
from wsi_assets.slides.options import ScaleOptions
from wsi_assets.slides.reduce import area_mean
from wsi_assets.slides.scale import Level, Scale, content_size, scale_of, true_downsamples
from wsi_assets.slides.tiff_tiles import TileLevel, open_tiles
from wsi_assets.slides.windows import Window, everywhere, over_edges

_DEFAULT = ScaleOptions()
_BLOCK = 1024
_BAND = 8


@dataclass(frozen=True)
class Region:
    """``pixels``: uint8 (h, w, 3) RGB; ``no_data``: bool (h, w), True where the slide has no data."""

    pixels: np.ndarray
    no_data: np.ndarray


def open_slide(
    path: str | Path, options: ScaleOptions = _DEFAULT, cohort_row: SlideRow = EMPTY_ROW
) -> SlideReader:
    """Open a slide: a file that OpenSlide reads, or the folder of a DICOM slide.

    Args:
        cohort_row: the slide's row of the cohort table, whose scale overrides the file's.

    Raises:
        SlideError: the file is missing, empty, or not a slide.
    """
    return SlideReader(path, options, cohort_row)


class SlideReader(Closing):
    """An open slide, a context manager, for the process that opened it: other processes open it again.

    Attributes:
        path, slide_id, vendor: its file, its id, and OpenSlide's name for its format.
        levels: its levels, the full resolution first.
        scale: magnification and pixel size of level 0, with their sources.
        bounds: (x, y, width, height) of the scanned area in level-0 pixels; None if that is the whole slide.
        notices: lines on what was assumed, contradicted or left out of the file.
    """

    def __init__(self, path: str | Path, options: ScaleOptions = _DEFAULT, cohort_row: SlideRow = EMPTY_ROW):
        self.path = Path(path)
        self.slide_id = slide_id_of(self.path)
        self._file = OpenSlideFile(self.path)
        self.vendor = self._file.vendor
        sizes = self._file.sizes
        downsamples = true_downsamples(sizes, self._file.downsamples)
        self.levels: tuple[Level, ...] = tuple(
            Level(index, *content_size(sizes[0], size, downsample), downsample)
            for index, (size, downsample) in enumerate(zip(sizes, downsamples, strict=True))
        )
        self.scale: Scale = scale_of(
            self._file.properties,
            options.base_mag,
            known_mag=cohort_row.base_mag,
            known_mpp=cohort_row.mpp,
        )
        self.bounds: tuple[int, int, int, int] | None = self._file.bounds
        self.notices: tuple[str, ...] = (*self.scale.notices, *self._file.notices)
        self._tiles: dict[int, TileLevel | None] = {}
        self._paddings: tuple[tuple[int, int, int], ...] | None = None

    def read_region(self, level: int, y: int, x: int, height: int, width: int) -> Region:
        """A window of a level, (y, x) of its top-left corner in that level's own pixels.

        The window may reach over the edges of the level. Pixels outside, missing tiles and transparent pixels
        are white and no-data. Areas of pure white, pure black or padding keep their color and are no-data too
        (:func:`wsi_assets.slides.no_data.no_data`). The result for a pixel does not depend on the window.

        Raises:
            SlideError: the slide cannot be read there.
            IndexError: there is no such level.
        """
        if not 0 <= level < len(self.levels):
            raise IndexError(f"{self.slide_id} has levels 0 to {len(self.levels) - 1}, not {level}")
        limits = self.levels[level]
        read, size = partial(self._read_inside, limits), (limits.width, limits.height)
        return Region(*over_edges(read, size, y, x, height, width, outside=True))

    def reduced(self, downsample: float) -> Region:
        """The whole slide, averaged by area: (ceil(height / downsample), ceil(width / downsample)) pixels.

        ``height`` and ``width`` are those of level 0. The slide is read in blocks from the coarsest level
        that is fine enough, so memory follows the result. No-data pixels are left out of the average; a pixel
        of the result is no-data if most of its area is.

        Raises:
            SlideError: the slide cannot be read.
            ValueError: the downsample is below 1.
        """
        if not 1 <= downsample < math.inf:
            raise ValueError(f"a slide cannot be reduced by {downsample}")
        # The tolerance is for rounding: a level of just the wanted downsample is taken.
        level = max(
            (one for one in self.levels if one.downsample <= downsample * (1 + 1e-9)),
            key=lambda one: one.downsample,
        )
        step = downsample / level.downsample
        base = self.levels[0]
        height, width = math.ceil(base.height / downsample), math.ceil(base.width / downsample)
        pixels, missing = np.full((height, width, 3), 255, np.uint8), np.ones((height, width), bool)
        tiles = self._tiles_of(level.index)
        most = max(1, int((tiles.side if tiles else _BLOCK) / step))
        block = min(range(most, most // 2, -1), key=lambda cells: abs(cells * step - round(cells * step)))
        for top, left in _in_bands(height, width, block):
            bottom, right = min(height, top + block), min(width, left + block)
            y0, x0, y1, x1 = (round(edge * step) for edge in (top, left, bottom, right))
            if y0 < level.height and x0 < level.width:
                inside = min(y1, level.height) - y0, min(x1, level.width) - x0
                found = self._read_inside(level, y0, x0, *inside)
                cells = (bottom - top, right - left)
                window = (slice(top, bottom), slice(left, right))
                pixels[window], missing[window] = area_mean(*found, cells, (y1 - y0, x1 - x0))
        return Region(pixels, missing)

    def thumbnail(self, max_side: int) -> np.ndarray:
        """The whole slide as uint8 (h, w, 3) RGB, its longer side at most ``max_side`` pixels.

        Raises:
            SlideError: the slide cannot be read.
        """
        base = self.levels[0]
        return self.reduced(max(1.0, base.width / max_side, base.height / max_side)).pixels

    def close(self) -> None:
        """Close the file; a later read opens it again."""
        for tiles in self._tiles.values():
            if tiles is not None:
                tiles.close()
        self._tiles.clear()
        self._file.close()
        self._paddings = None

    def _read_inside(self, level: Level, y: int, x: int, height: int, width: int) -> Window:
        """Pixels and no-data of a window inside a level; a margin around it is read to decide no-data."""
        if self._paddings is None:
            # At the first read, because many slides are opened only to know their levels. If the border is
            # damaged the rest is still read; a read of the border itself fails.
            self._paddings = ()
            with contextlib.suppress(SlideError):
                base = self.levels[0]
                self._paddings = padding_colors(partial(self._read_window, 0), base.height, base.width)
        pixels, present = self._read_window(level.index, y, x, height, width)
        if not may_lack_data(pixels, present, self._paddings):
            return pixels, everywhere(False, height, width)
        y0, y1 = max(0, y - MARGIN), min(level.height, y + height + MARGIN)
        x0, x1 = max(0, x - MARGIN), min(level.width, x + width + MARGIN)
        pixels, present = self._read_window(level.index, y0, x0, y1 - y0, x1 - x0)
        inner = np.s_[y - y0 : y - y0 + height, x - x0 : x - x0 + width]
        return pixels[inner], no_data(pixels, present, self._paddings)[inner]

    def _read_window(self, level: int, y: int, x: int, height: int, width: int) -> Window:
        tiles = self._tiles_of(level)
        if tiles is None:
            return self._file.read(level, y, x, height, width)
        return tiles.read_window(y, x, height, width)

    def _tiles_of(self, level: int) -> TileLevel | None:
        if level not in self._tiles:
            self._tiles[level] = open_tiles(self.path, level, self._file)
        return self._tiles[level]


def _in_bands(height: int, width: int, block: int) -> Iterator[tuple[int, int]]:
    """Top-left corners (y, x) of blocks, in vertical bands, so that tiles shared by two rows stay cached."""
    band = _BAND * block
    for first in range(0, width, band):
        for top in range(0, height, block):
            for left in range(first, min(width, first + band), block):
                yield top, left
