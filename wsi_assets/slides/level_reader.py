"""Read one level of a slide: the usual way, and another to check it by."""

from __future__ import annotations

from pathlib import Path

from wsi_assets.slides.closing import Closing
from wsi_assets.slides.openslide_file import OpenSlideFile, blends
from wsi_assets.slides.tiff_tiles import TileLevel, open_tiles
from wsi_assets.slides.windows import Window, over_edges

_MARGIN = 128


class LevelReader(Closing):
    """One level of a slide; use it in the process and thread that opened it.

    Pixels come straight from the slide's tiles where those are the same as OpenSlide's (``tiles``), else from
    OpenSlide.

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

        Raises:
            SlideError: it does not read.
        """
        return over_edges(self._read_inside, self._slide.sizes[self.level], y, x, height, width)

    def close(self) -> None:
        """Let go of the slide."""
        if self.tiles is not None:
            self.tiles.close()
        self._slide.close()

    def _read_inside(self, y: int, x: int, height: int, width: int) -> Window:
        if self.tiles is None:
            return self._slide.read(self.level, y, x, height, width)
        return self.tiles.read_window(y, x, height, width)


class ReferenceReader(LevelReader):
    """The same pixels read by another way.

    Instead of decoding tiles this one asks OpenSlide, or tifffile where OpenSlide would blend pixels or lacks
    the level. Instead of asking OpenSlide it asks for a larger window that begins elsewhere.
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
