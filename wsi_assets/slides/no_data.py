"""Which pixels of a slide have no data: not scanned, not in the file, or padding."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable

import cv2
import numpy as np

from wsi_assets.slides.windows import Read, Window

SIDE = 9
"""Side, in pixels of the level, of the smallest square of one color that counts as unscanned or padding. Odd,
so that OpenCV's morphological opening does not shift the mask."""

MARGIN = SIDE - 1
"""Pixels around a window that its no-data mask depends on."""

_WHITE, _BLACK = 254, 1
_ALONG = 32
_WINDOWS = 12
_LINES = 8
_STRAIGHT = 24
_GLASS_LIGHTNESS, _GLASS_CHROMA = 160, 30


def no_data(
    rgb: np.ndarray, present: np.ndarray, paddings: Iterable[tuple[int, int, int]] = ()
) -> np.ndarray:
    """Where a window has no data: bool (h, w).

    A pixel has no data if it is not ``present``, or lies in a square of ``SIDE`` x ``SIDE`` pixels that are
    all pure white (at least 254 in each channel, because of JPEG), all pure black (at most 1) or all of one
    padding color (within 1). At the array's edge the image is mirrored. To make the result independent of the
    window, read ``MARGIN`` pixels more on each side and crop the result.

    Args:
        rgb: uint8 (h, w, 3), white where not ``present``.
        present: bool (h, w), False where the file has no pixel.
        paddings: RGB colors of the slide's padding.
    """
    found = (~present).astype(np.uint8)
    for low, high in _ranges(paddings):
        flat = cv2.inRange(rgb, low, high)
        if flat.any():
            framed = cv2.copyMakeBorder(flat, SIDE, SIDE, SIDE, SIDE, cv2.BORDER_REFLECT)
            opened = cv2.morphologyEx(framed, cv2.MORPH_OPEN, np.ones((SIDE, SIDE), np.uint8))
            found |= opened[SIDE:-SIDE, SIDE:-SIDE]
    return found > 0


def may_lack_data(
    rgb: np.ndarray, present: np.ndarray, paddings: Iterable[tuple[int, int, int]] = ()
) -> bool:
    """Whether :func:`no_data` may find any in this window, whatever surrounds it; a quick test."""
    if not present.all():
        return True
    # A square holds one of the pixels at multiples of SIDE, or reaches over the border.
    grid = rgb[::SIDE, ::SIDE].reshape(-1, 3)
    tested = np.concatenate([grid, rgb[0], rgb[-1], rgb[:, 0], rgb[:, -1]])[None]
    for span in _ranges(paddings):
        if cv2.inRange(tested, *span).any():
            flat = cv2.copyMakeBorder(cv2.inRange(rgb, *span), *[MARGIN] * 4, cv2.BORDER_CONSTANT, value=255)
            centers = cv2.erode(flat, np.ones((SIDE, SIDE), np.uint8))
            if centers[MARGIN // 2 : -MARGIN // 2, MARGIN // 2 : -MARGIN // 2].any():
                return True
    return False


def _ranges(paddings: Iterable[tuple[int, int, int]]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Lowest and highest RGB of white, black and each padding color."""
    return [
        ((_WHITE,) * 3, (255,) * 3),
        ((0,) * 3, (_BLACK,) * 3),
        *((tuple(max(0, c - 1) for c in rgb), tuple(min(255, c + 1) for c in rgb)) for rgb in paddings),
    ]


def padding_colors(read: Read, height: int, width: int) -> tuple[tuple[int, int, int], ...]:
    """RGB colors of constant padding along whole sides of a slide, other than pure white and black.

    A few windows of level 0 are read along each side. A side is padded if three things hold. Its outermost
    pixels have one color to within 1, which scanned glass never has (missing tiles are skipped). The padding
    ends at one depth: the background of a synthetic image has no straight edge. And it ends at glass: where
    tissue borders directly on a flat color, that color is the only glass there is, and must stay data.

    Args:
        read: reads windows of level 0.
        height, width: size of level 0.

    Raises:
        SlideError: the slide cannot be read there.
    """
    if min(height, width) < 4 * _ALONG:
        return ()
    found = set()
    for turned, far in itertools.product((False, True), repeat=2):
        depth, length = (height, width) if turned else (width, height)

        def window(start: int, along: int, deep: int, *, turned=turned, far=far, depth=depth) -> Window:
            """A window that begins ``start`` pixels from the side and is ``deep`` pixels deep."""
            start = depth - start - deep if far else start
            return read(*((start, along, deep, _ALONG) if turned else (along, start, _ALONG, deep)))

        color = _border_color(window, length)
        if color is not None and _is_framed(window, depth, length, color):
            found.add(tuple(map(int, color)))
    return tuple(sorted(found))


def _border_color(window: Callable[..., Window], length: int) -> np.ndarray | None:
    """The one color of a side's outermost pixels; None if they have several, or pure white or black."""
    color, seen = None, 0
    for along in np.linspace(0, length - _ALONG, _WINDOWS).astype(int).tolist():
        pixels, written = window(0, along, SIDE)
        if written.any():
            seen += 1
            color = np.median(pixels[written], axis=0).astype(int) if color is None else color
            if not _is_flat(pixels, written, color):
                return None
    if color is None or seen < _WINDOWS / 3 or color.min() >= _WHITE or color.max() <= _BLACK:
        return None
    return color


def _is_framed(window: Callable[..., Window], depth: int, length: int, color: np.ndarray) -> bool:
    """Whether most lines from the border inwards leave the color at the same depth, and reach glass there."""
    found, glass = [], 0
    for along in np.linspace(length * 0.2, length * 0.8 - _ALONG, _LINES).astype(int).tolist():
        # How deep the color reaches, found by doubling and then bisecting, to within SIDE pixels.
        flat, other = 0, SIDE
        while _is_flat(*window(min(other, depth - SIDE), along, SIDE), color) and other < depth:
            flat, other = other, other * 2
        if other >= depth:
            continue
        while other - flat > SIDE:
            middle = (other + flat) // 2
            is_flat = _is_flat(*window(middle, along, SIDE), color)
            flat, other = (middle, other) if is_flat else (flat, middle)
        found.append(other)
        typical = np.median(window(min(other + SIDE, depth - _ALONG), along, _ALONG)[0], axis=(0, 1))
        clear = typical.min() >= _GLASS_LIGHTNESS and np.ptp(typical) <= _GLASS_CHROMA
        glass += bool(clear or typical.max() <= _BLACK)
    straight = np.abs(np.array(found) - np.median(found or [0])) <= _STRAIGHT
    return len(found) >= _LINES * 0.6 and straight.mean() >= 0.6 and glass >= len(found) / 2


def _is_flat(pixels: np.ndarray, written: np.ndarray, color: np.ndarray) -> bool:
    return bool((np.abs(pixels.astype(int) - color).max(axis=2) <= 1)[written].all())
