"""Many patches of one slide's level, every touched tile read about once and in file order."""

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
        pixels: uint8 (P, P, 3) RGB, white where the slide has none; None if it does not read.
        missing: share of it that the slide does not have.
        fault: why it cannot be read, None if it can.
        jpeg: the slide's own JPEG of just these pixels, of a patch that is a whole tile.
    """

    pixels: np.ndarray | None
    missing: float = 0.0
    fault: str | None = None
    jpeg: bytes | None = None

    def why_unusable(self, max_no_data: float) -> str | None:
        """Why it is no patch to learn from or to predict; None if it is one.

        Args:
            max_no_data: the largest share of it that the slide may not have.
        """
        if self.missing > max_no_data or self.missing == 1:
            return f"the slide has no pixels for {self.missing:.0%} of it"
        return self.fault


class PatchReader(LevelReader):
    """One level of a slide, which gives patches."""

    def read(
        self, coords: np.ndarray, size: int, step: float = 1.0, *, jpeg: bool = False
    ) -> Iterator[tuple[int, Patch]]:
        """(number, patch) of each of the patches with top-left corners ``coords``, tile after tile.

        ``coords`` are int (n, 2) of (y, x) in pixels that are each ``step`` x ``step`` of the level's.
        A damaged tile is a fault of the patches over it, not of the others.

        Args:
            jpeg: also give the JPEG of patches that are a whole tile.
        """
        corners, span = (coords * step).astype(np.int64), math.ceil(size * step)
        tile = (self.tiles.tile_height, self.tiles.tile_width) if self.tiles else (span, span)
        first, last = corners // tile, (corners + span - 1) // tile
        if self.tiles:  # keep as many as patches in rows go back to
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
