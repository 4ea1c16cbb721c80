"""Windows (rectangles) of a level: how they reach over its edges, and which tiles they touch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache

import numpy as np

Part = tuple[slice, slice]
"""(rows, columns) of an array."""
Window = tuple[np.ndarray, np.ndarray]
"""uint8 (h, w, 3) RGB, white where there are no pixels; and bool (h, w), True where there are."""
Read = Callable[[int, int, int, int], Window]
"""(y, x, height, width) in pixels of a level -> the window."""


def over_edges(
    read: Read, size: tuple[int, int], y: int, x: int, height: int, width: int, *, outside: bool = False
) -> Window:
    """A window that may reach over the edges of a level, where it is white and its mask is ``outside``.

    Args:
        read: reads a window inside the level.
        size: (width, height) of the level.
    """
    top, bottom = max(0, y), min(size[1], y + height)
    left, right = max(0, x), min(size[0], x + width)
    if (bottom - top, right - left) == (height, width):
        return read(y, x, height, width)
    pixels, mask = np.full((height, width, 3), 255, np.uint8), np.full((height, width), outside)
    if top < bottom and left < right:
        inner = np.s_[top - y : bottom - y, left - x : right - x]
        pixels[inner], mask[inner] = read(top, left, bottom - top, right - left)
    return pixels, mask


def tiles_over(
    y: int, x: int, height: int, width: int, tile_height: int, tile_width: int
) -> Iterator[tuple[int, int, Part, Part]]:
    """Each tile that a window touches: row, column, the part of the window it fills, the part of it that is
    used."""
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
    """A constant bool (h, w), read-only and cached: making one takes as long as reducing an image."""
    result = np.full((height, width), value)
    result.flags.writeable = False
    return result
