"""Read one level of a slide, in the fastest exact way or, for checks, in a second, independent way."""

from __future__ import annotations

from pathlib import Path

from wsi_assets.slides.closing import Closing
from wsi_assets.slides.openslide_file import OpenSlideFile, blends
from wsi_assets.slides.tiff_tiles import TileLevel, open_tiles
from wsi_assets.slides.windows import Window, over_edges

_MARGIN = 128


class LevelReader(Closing):
    """One open level of a slide, for the process and thread that opened it.

    Tiles are decoded directly where that gives the same pixels as OpenSlide; else OpenSlide reads the level.

    Attributes:
        level: number of the level.
        tiles: its tiles, None if OpenSlide reads it.

    Raises:
        SlideError: the slide does not open, or has no such level.
    """

    def __init__(self, path: str | Path, level: int):
        self.level, self._slide = level, OpenSlideFile(Path(path))
        try:
            self.tiles: TileLevel | None = open_tiles(path, level, self._slide)
        except BaseException:
            self._slide.close()
            raise

    def read_window(self, y: int, x: int, height: int, width: int) -> Window:
        """A window of the level, which may reach over its edges.

        Args:
            y, x: top-left corner, in pixels of the level.

        Returns:
            uint8 (height, width, 3) RGB, white where there is no pixel; bool (height, width), where there is.

        Raises:
            SlideError: the slide cannot be read there.
        """
        return over_edges(self._read_inside, self._slide.sizes[self.level], y, x, height, width)

    def close(self) -> None:
        """Close the slide."""
        if self.tiles is not None:
            self.tiles.close()
        self._slide.close()

    def _read_inside(self, y: int, x: int, height: int, width: int) -> Window:
        if self.tiles is None:
            return self._slide.read(self.level, y, x, height, width)
        return self.tiles.read_window(y, x, height, width)


class ReferenceReader(LevelReader):
    """Reads the same pixels in a second, independent way.

    Where :class:`LevelReader` decodes tiles, this reads with OpenSlide, or with tifffile if OpenSlide would
    blend pixels or lacks the level. Where that reads with OpenSlide, this reads a larger window with it.
    """

    def __init__(self, path: str | Path, level: int):
        super().__init__(path, level)
        slide = self._slide
        self._by_openslide = self.tiles is None or (
            slide.has_level(level) and not blends(slide.downsamples[level], max(slide.sizes[level]))
        )
        if self.tiles is not None:
            self.tiles.by_tifffile = True

    def _read_inside(self, y: int, x: int, height: int, width: int) -> Window:
        if not self._by_openslide:
            return super()._read_inside(y, x, height, width)
        margin = 0 if self.tiles else _MARGIN
        top, left = max(0, y - margin), max(0, x - margin)
        found = self._slide.read(self.level, top, left, y - top + height, x - left + width)
        return tuple(part[y - top :, x - left :] for part in found)
