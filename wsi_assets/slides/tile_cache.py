"""Windows assembled from a tile source, with the last tiles kept. Scale and no-data belong elsewhere."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np

from wsi_assets.slides.tiff_tiles import TileSource

_CACHE_BYTES = 96 << 20


class CachedTiles:
    """Reads windows from ``source`` and owns it; keeps up to 96 MiB of decoded tiles."""

    def __init__(self, source: TileSource):
        self._source = source
        self._kept: OrderedDict[tuple[int, int, int], np.ndarray | None] = OrderedDict()
        self._bytes = 0

    def read(self, level: int, y: int, x: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """A window inside the level: uint8 (h, w, 3) RGB, and bool (h, w) where it has pixels; else white.

        Raises:
            SlideError: a tile of the window is damaged.
        """
        high, wide = self._source.level(level).tile_size
        pixels = np.full((height, width, 3), 255, np.uint8)
        present = np.zeros((height, width), bool)
        for row in range(y // high, -(-(y + height) // high)):
            for col in range(x // wide, -(-(x + width) // wide)):
                tile = self._tile(level, row, col)
                if tile is None:
                    continue
                top, left = row * high, col * wide
                y0, y1 = max(y, top), min(y + height, top + high)
                x0, x1 = max(x, left), min(x + width, left + wide)
                window = (slice(y0 - y, y1 - y), slice(x0 - x, x1 - x))
                pixels[window] = tile[y0 - top : y1 - top, x0 - left : x1 - left]
                present[window] = True
        return pixels, present

    def close(self) -> None:
        """Let go of the tiles and the file."""
        self._kept.clear()
        self._source.close()

    def _tile(self, level: int, row: int, col: int) -> np.ndarray | None:
        key = (level, row, col)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        tile = self._source.level(level).read_tile(row, col)
        self._kept[key] = tile
        self._bytes += 0 if tile is None else tile.nbytes
        while self._bytes > _CACHE_BYTES and len(self._kept) > 1:
            _, dropped = self._kept.popitem(last=False)
            self._bytes -= 0 if dropped is None else dropped.nbytes
        return tile
