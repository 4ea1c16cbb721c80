"""Which pixels are not of the slide: never scanned, never written, or padding.

A pure function of pixels and the slide's padding colours. What is tissue and what glass is for others.
"""

from __future__ import annotations

from collections.abc import Iterable

import cv2
import numpy as np

SIDE = 9
"""An unscanned area or a padding holds a square of this many pixels of the level; less is part of the slide.

Odd, so that OpenCV's opening has a middle and does not shift.
"""

MARGIN = SIDE - 1
"""Pixels around a window that decide about it."""

_WHITE, _BLACK = 254, 1


def no_data(
    rgb: np.ndarray, present: np.ndarray, paddings: Iterable[tuple[int, int, int]] = ()
) -> np.ndarray:
    """Where a window has no data: bool (h, w).

    A pixel has none if it was never written (not ``present``), or lies in a square of ``SIDE`` x ``SIDE``
    pixels that are all pure white (254 or more in each channel, as JPEG keeps it), all pure black (at most 1)
    or all of one padding colour (within 1). A single saturated pixel in tissue is therefore data, and so is a
    line thinner than the square. At the array's edge the picture counts as mirrored, so that half a square
    there is enough. Give a window inside a level ``MARGIN`` pixels of surroundings and crop: the result then
    does not depend on the window.

    Args:
        rgb: uint8 (h, w, 3), white where not ``present``.
        present: bool (h, w).
        paddings: RGB colours that the slide's border is padded with.
    """
    found = (~present).astype(np.uint8)
    candidates = [((_WHITE,) * 3, (255,) * 3), ((0,) * 3, (_BLACK,) * 3)]
    candidates += [
        (tuple(max(0, c - 1) for c in colour), tuple(min(255, c + 1) for c in colour)) for colour in paddings
    ]
    square = np.ones((SIDE, SIDE), np.uint8)
    for low, high in candidates:
        flat = cv2.inRange(rgb, low, high)
        if flat.any():
            found |= _opened(flat, square)
    return found > 0


def _opened(mask: np.ndarray, square: np.ndarray) -> np.ndarray:
    side = square.shape[0]
    framed = cv2.copyMakeBorder(mask, side, side, side, side, cv2.BORDER_REFLECT)
    return cv2.morphologyEx(framed, cv2.MORPH_OPEN, square)[side:-side, side:-side]
