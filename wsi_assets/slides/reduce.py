"""Area averages that leave out pixels without data. Arrays in, arrays out."""

from __future__ import annotations

import math

import cv2
import numpy as np

_STRIP_PIXELS = 1 << 20
"""Pixels averaged at a time, so that memory stays near that of the result."""


def area_mean(
    pixels: np.ndarray, no_data: np.ndarray, size: tuple[int, int], whole: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Average pixels over a grid of equal cells.

    The color of a cell is the mean of its pixels with data; without any, the mean of all of it. A cell is
    no-data if at most half of what it has of the array has data.

    Args:
        pixels: uint8 (h, w, 3).
        no_data: bool (h, w).
        size: (rows, columns) of the grid.
        whole: (height, width) of the grid in pixels; what reaches over the array is white and not counted.

    Returns:
        uint8 (rows, columns, 3) and no-data bool (rows, columns).
    """
    height, width = no_data.shape
    if (height, width) == whole and not no_data.any():
        if height <= 2 * size[0]:  # which OpenCV is fastest at
            return cv2.resize(pixels, size[::-1], interpolation=cv2.INTER_AREA), np.zeros(size, bool)
        return _rounded(_means(pixels, size)), np.zeros(size, bool)

    def framed(values: np.ndarray, outside: tuple[int, ...]) -> np.ndarray:
        far = (whole[0] - height, 0, whole[1] - width)
        return cv2.copyMakeBorder(values, 0, *far, cv2.BORDER_CONSTANT, value=outside)

    pixels, valid = framed(pixels, (255,) * 3), framed((~no_data).astype(np.uint8), (0,))
    inside = _means(framed(np.ones((height, width), np.uint8), (0,)), size)
    colors, known = _rounded(_means(pixels, size)), _means(valid, size)
    seen = known > 1e-4
    sums = _means(cv2.bitwise_and(pixels, pixels, mask=valid), size)
    colors[seen] = _rounded(sums[seen] / known[seen][:, None])
    return colors, known <= inside / 2 + 1e-6


def reduce_mean(pixels: np.ndarray, no_data: np.ndarray, factor: int) -> tuple[np.ndarray, np.ndarray]:
    """Average blocks of ``factor`` x ``factor`` pixels, at the far edges what there is of them.

    Args and returns as for :func:`area_mean`; the result is ceil(h / factor) x ceil(w / factor).
    """
    height, width = no_data.shape
    cols = math.ceil(width / factor)
    rows = max(1, _STRIP_PIXELS // (width * factor))
    parts = []
    for top in range(0, height, rows * factor):
        part = slice(top, top + rows * factor)
        cells = min(rows, math.ceil((height - top) / factor)), cols
        parts.append(area_mean(pixels[part], no_data[part], cells, (cells[0] * factor, cols * factor)))
    means, missing = zip(*parts, strict=True)
    return np.concatenate(means), np.concatenate(missing)


def _means(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Means of uint8 over a grid of (rows, columns), float32."""
    rows, columns = size
    step = len(values) // rows
    if 1 < step < 256 and len(values) == rows * step:
        # Sums over rows first, which is several times as fast as leaving all to OpenCV.
        shape = values.shape
        values = values.reshape(rows, step, -1).sum(axis=1, dtype=np.uint16).reshape(rows, *shape[1:])
        values = values / np.float32(step)
    return cv2.resize(values.astype(np.float32), (columns, rows), interpolation=cv2.INTER_AREA)


def _rounded(values: np.ndarray) -> np.ndarray:
    return np.rint(values).astype(np.uint8)
