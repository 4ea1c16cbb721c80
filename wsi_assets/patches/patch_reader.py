"""Read many patches of one level of a slide, so that each tile is decoded about once, in file order."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from wsi_assets.errors import SlideError
from wsi_assets.slides.level_reader import LevelReader
from wsi_assets.slides.reduce import read_averaged


@dataclass(frozen=True)
class Patch:
    """One patch of a slide.

    Attributes:
        pixels: uint8 (P, P, 3) RGB, white where the slide has no pixels; None if it cannot be read.
        missing: share of the patch for which the slide has no pixels.
        fault: why it cannot be read, None if it can.
        jpeg: the slide's own JPEG tile, if it has exactly these pixels.
    """

    pixels: np.ndarray | None
    missing: float = 0.0
    fault: str | None = None
    jpeg: bytes | None = None

    def why_unusable(self, max_no_data: float) -> str | None:
        """Why the patch can neither be learned from nor predicted; None if it can.

        Args:
            max_no_data: largest share of the patch for which the slide may have no pixels.
        """
        if self.missing > max_no_data or self.missing == 1:
            return f"the slide has no pixels for {self.missing:.0%} of it"
        return self.fault


class PatchReader(LevelReader):
    """One open level of a slide, from which patches are read."""

    def read(
        self, coords: np.ndarray, size: int, step: float = 1.0, *, jpeg: bool = False
    ) -> Iterator[tuple[int, Patch]]:
        """Read patches in the order of the slide's tiles: (position in ``coords``, patch) of each.

        A damaged tile only affects the patches over it.

        Args:
            coords: int (n, 2), top-left corners (y, x) in averaged pixels.
            size: side of a patch in averaged pixels.
            step: pixels of the level, each way, that are averaged to one.
            jpeg: also give the JPEG tile of patches that are exactly one tile.
        """
        corners, span = (coords * step).astype(np.int64), math.ceil(size * step)
        tile = (self.tiles.tile_height, self.tiles.tile_width) if self.tiles else (span, span)
        first, last = corners // tile, (corners + span - 1) // tile
        if self.tiles:  # cache as many tiles as the next row of patches shares with this one
            rows, across = (last - first).max(axis=0) + 1, last[:, 1].max() - first[:, 1].min() + 1
            self.tiles.keep(int(rows[0] * across if rows.max() > 1 else 1))
        whole_tiles = jpeg and self.tiles and step == 1 and tile == (size, size)
        for number in np.lexsort((first[:, 1], first[:, 0])).tolist():
            y, x = coords[number].tolist()
            try:
                pixels, missing = read_averaged(self.read_window, y, x, size, step)
                whole_tile = whole_tiles and not missing and y % size == x % size == 0
                own = self.tiles.jpeg_file(y // size, x // size) if whole_tile else None
                yield number, Patch(pixels, missing, jpeg=own)
            except SlideError as error:
                yield number, Patch(None, fault=error.fault)
