"""The colour a slide's border is padded with, if it is: told from a few windows of level 0.

Pure white and black need no telling, they are no-data anyway; which pixels are padding is for :mod:`no_data`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from wsi_assets.slides.no_data import SIDE

Read = Callable[[int, int, int, int], tuple[np.ndarray, np.ndarray]]
"""(y, x, height, width) of a window inside level 0 -> uint8 (h, w, 3), and bool (h, w), where written."""

_ALONG = 32
_WINDOWS = 12
_LINES = 8
_STRAIGHT = 24
_GLASS_LIGHTNESS, _GLASS_CHROMA = 160, 30


@dataclass(frozen=True)
class _Side:
    """One side of the slide, seen as if it were the left one: ``depth`` inwards, ``along`` the border."""

    read: Read
    turned: bool
    far: bool
    depth: int
    length: int

    def window(self, depth: int, along: int, deep: int, long: int) -> tuple[np.ndarray, np.ndarray]:
        start = self.depth - depth - deep if self.far else depth
        place = (start, along, deep, long) if self.turned else (along, start, long, deep)
        return self.read(*place)


def padding_colours(read: Read, height: int, width: int) -> tuple[tuple[int, int, int], ...]:
    """RGB colours of constant padding along whole sides of a slide, apart from pure white and black.

    A side is padded if all along it the outermost pixels are of one colour to within 1 (scanned glass never
    is; tiles never written tell nothing), if what lies inside begins at one depth (a writer's padding has a
    straight edge, the clear background of a drawn picture has not), and if it begins with glass, not with
    tissue: where tissue borders directly on a flat colour, that colour is all the glass there is and must
    stay data.

    Raises:
        SlideError: the slide does not read there.
    """
    if min(height, width) < 4 * _ALONG:
        return ()
    sides = (
        _Side(read, turned, far, *((height, width) if turned else (width, height)))
        for turned in (False, True)
        for far in (True, False)
    )
    return tuple(sorted({colour for side in sides if (colour := _colour_of(side)) is not None}))


def _colour_of(side: _Side) -> tuple[int, int, int] | None:
    colour, seen = None, 0
    for along in np.linspace(0, side.length - _ALONG, _WINDOWS).astype(int):
        window = pixels, written = side.window(0, int(along), SIDE, _ALONG)
        if not written.any():
            continue
        seen += 1
        if colour is None:
            colour = np.median(pixels[written], axis=0).astype(int)
        if not _is_flat(window, colour):
            return None
    if (
        colour is None
        or seen < _WINDOWS / 3
        or colour.min() >= 254
        or colour.max() <= 1
        or not _is_framed(side, colour)
    ):
        return None
    red, green, blue = map(int, colour)
    return red, green, blue


def _is_framed(side: _Side, colour: np.ndarray) -> bool:
    """Whether most lines from the border inwards leave the colour at one depth, and for glass."""
    found, glass = [], 0
    for along in np.linspace(side.length * 0.2, side.length * 0.8 - _ALONG, _LINES).astype(int):
        depth = _first_other(side, int(along), colour)
        if depth is None:
            continue
        found.append(depth)
        inside, _ = side.window(min(depth + SIDE, side.depth - _ALONG), int(along), _ALONG, _ALONG)
        typical = np.median(inside.reshape(-1, 3).astype(int), axis=0)
        clear = typical.min() >= _GLASS_LIGHTNESS and np.ptp(typical) <= _GLASS_CHROMA
        glass += bool(clear or typical.max() <= 1)
    if len(found) < _LINES * 0.6:
        return False
    straight = np.abs(np.array(found) - np.median(found)) <= _STRAIGHT
    return straight.mean() >= 0.6 and glass >= len(found) / 2


def _first_other(side: _Side, along: int, colour: np.ndarray) -> int | None:
    """Depth at which a line inwards is no longer of the colour, to within ``SIDE``; None if it always is."""
    flat, step = 0, SIDE
    while True:
        probe = min(flat + step, side.depth - SIDE)
        if not _is_flat(side.window(probe, along, SIDE, _ALONG), colour):
            break
        if probe == side.depth - SIDE:
            return None
        flat, step = probe, step * 2
    while probe - flat > SIDE:
        middle = (probe + flat) // 2
        if _is_flat(side.window(middle, along, SIDE, _ALONG), colour):
            flat = middle
        else:
            probe = middle
    return probe


def _is_flat(window: tuple[np.ndarray, np.ndarray], colour: np.ndarray) -> bool:
    pixels, written = window
    return bool((np.abs(pixels.astype(int) - colour).max(axis=2) <= 1)[written].all())
