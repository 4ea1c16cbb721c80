"""Windows over a grid of tiles."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np

Part = tuple[slice, slice]
"""(rows, columns) of an array."""


def tiles_over(
    y: int, x: int, height: int, width: int, tile_height: int, tile_width: int
) -> Iterator[tuple[int, int, Part, Part]]:
    """(row, column, its part of the window, the window's part of it) of each tile that a window touches."""
    for row in range(y // tile_height, -(-(y + height) // tile_height)):
        for col in range(x // tile_width, -(-(x + width) // tile_width)):
            top, left = row * tile_height, col * tile_width
            y0, y1 = max(y, top), min(y + height, top + tile_height)
            x0, x1 = max(x, left), min(x + width, left + tile_width)
            yield (
                row,
                col,
                (slice(y0 - y, y1 - y), slice(x0 - x, x1 - x)),
                (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left)),
            )


@lru_cache(maxsize=32)
def everywhere(value: bool, height: int, width: int) -> np.ndarray:
    """A constant bool (h, w), shared and read-only: making one takes as long as shrinking a picture."""
    result = np.full((height, width), value)
    result.flags.writeable = False
    return result
