"""Read a level by another way than the readers of patches and regions do, to check what they read."""

from __future__ import annotations

from pathlib import Path

from wsi_assets.errors import SlideError
from wsi_assets.slides.closing import Closing
from wsi_assets.slides.openslide_file import OpenSlideFile, blends
from wsi_assets.slides.tiff_tiles import open_tiles
from wsi_assets.slides.windows import Window, over_edges

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

    def read(self, y: int, x: int, height: int, width: int) -> Window:
        """A window of the level, which may reach over its edges.

        Raises:
            SlideError: it does not read.
        """
        return over_edges(self._read_inside, self._slide.sizes[self.level], y, x, height, width)

    def close(self) -> None:
        """Let go of the slide."""
        if self._tiles is not None:
            self._tiles.close()
        self._slide.close()

    def _read_inside(self, y: int, x: int, height: int, width: int) -> Window:
        if not self._by_openslide:
            return self._tiles.read_window(y, x, height, width)
        margin = 0 if self._tiles else _MARGIN
        top, left = max(0, y - margin), max(0, x - margin)
        found = self._slide.read(self.level, top, left, y - top + height, x - left + width)
        return tuple(part[y - top :, x - left :] for part in found)
