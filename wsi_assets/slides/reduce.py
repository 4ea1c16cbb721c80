"""A whole slide made small, block by block, by exact area averages. What it is wanted for is the caller's."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import cv2
import numpy as np

from wsi_assets.slides.region import Region

if TYPE_CHECKING:
    from wsi_assets.slides.reader import SlideReader

_BLOCK = 1024
_MOST = 512
_BAND = 8


def reduced(reader: SlideReader, downsample: float) -> Region:
    """See :meth:`wsi_assets.slides.reader.SlideReader.reduced`."""
    if not 1 <= downsample < math.inf:
        raise ValueError(f"a slide cannot be reduced by {downsample}")
    base = reader.levels[0]
    # A level that misses the wanted downsample by rounding alone is meant.
    level = max(
        (one for one in reader.levels if one.downsample <= downsample * (1 + 1e-9)),
        key=lambda one: one.downsample,
    )
    step = downsample / level.downsample
    if step > _MOST:
        # One output pixel would cover more of the level than should be in memory: do it in two goes.
        again = math.ceil(step / _MOST)
        first = reduced(reader, downsample / again)
        spans = (Cells(0, math.ceil(side / again), again, side) for side in first.no_data.shape)
        return Region(*area_average(first, *spans))
    height, width = math.ceil(base.height / downsample), math.ceil(base.width / downsample)
    pixels = np.full((height, width, 3), 255, np.uint8)
    missing = np.ones((height, width), bool)
    block = max(1, int(_BLOCK / step))
    for top, left in _in_bands(height, width, block):
        rows = Cells(top, min(height, top + block), step, level.height)
        cols = Cells(left, min(width, left + block), step, level.width)
        region = reader.read_region(level.index, rows.start, cols.start, rows.length, cols.length)
        window = (slice(top, top + rows.count), slice(left, left + cols.count))
        pixels[window], missing[window] = area_average(region, rows, cols)
    return Region(pixels, missing)


def _in_bands(height: int, width: int, block: int) -> Iterator[tuple[int, int]]:
    """Top-left corners of blocks, in vertical bands so narrow that the tiles two rows share stay cached."""
    band = _BAND * block
    for first in range(0, width, band):
        for top in range(0, height, block):
            for left in range(first, min(width, first + band), block):
                yield top, left


class Cells:
    """Output pixels ``first`` to ``last`` (half-open) along one axis, and the source pixels under them.

    Output pixel i covers the source from ``i * step`` to ``(i + 1) * step``; a source pixel partly under it
    counts by that part, and what lies beyond the source's ``limit`` pixels not at all.

    Attributes:
        start, length: the run of source pixels the cells touch.
        count: number of cells.
        sizes: float (count,), source pixels under each cell.
        whole_step: source pixels of every cell if that is one whole number, else 0.
        middles: int (count,), the source pixel in each cell's middle, counted from ``start``.
    """

    def __init__(self, first: int, last: int, step: float, limit: int):
        edges = np.arange(first, last + 1) * step
        whole = np.rint(edges)
        edges = np.where(np.abs(edges - whole) < 1e-6, whole, edges)
        self.count = last - first
        self.start = min(int(edges[0]), limit - 1)
        self.length = max(1, min(limit, math.ceil(edges[-1])) - self.start)
        self._edges = np.clip(edges - self.start, 0, self.length)
        self.sizes = np.diff(self._edges)
        self.whole_step = int(step) if np.all(self.sizes == int(step)) else 0
        self.middles = np.minimum((self._edges[:-1] + self._edges[1:]) / 2, self.length - 1).astype(int)

    def at_edges(self, running: np.ndarray) -> np.ndarray:
        """A running sum (length + 1, ...) along the first axis, at the count + 1 edges of the cells."""
        whole = np.floor(self._edges).astype(int)
        part = (self._edges - whole).reshape(-1, *[1] * (running.ndim - 1))
        below, above = running[whole], running[np.minimum(whole + 1, self.length)]
        # Within a source pixel the running sum rises evenly.
        return below + part * (above - below)


def area_average(region: Region, rows: Cells, cols: Cells) -> tuple[np.ndarray, np.ndarray]:
    """Colour uint8 (rows, cols, 3) and no-data bool (rows, cols) of the cells over a region.

    The colour is the mean of the pixels that have data; a cell without any takes its middle pixel's, and a
    cell beyond the level is white. A cell is no-data if at most half of its pixels in the level have data.

    The sums come from a summed-area table, read between its entries where a cell ends within a pixel.
    """
    if region.no_data.all():
        return region.pixels[np.ix_(rows.middles, cols.middles)], np.ones((rows.count, cols.count), bool)
    if rows.whole_step and cols.whole_step and not region.no_data.any():
        # The same average, several times as fast.
        size = (cols.count, rows.count)
        return cv2.resize(region.pixels, size, interpolation=cv2.INTER_AREA), np.zeros(size[::-1], bool)
    values = np.dstack([region.pixels, np.ones(region.no_data.shape, np.uint8)])
    values[region.no_data] = 0
    table = cv2.integral(values, sdepth=cv2.CV_32S)
    corners = cols.at_edges(rows.at_edges(table).swapaxes(0, 1)).swapaxes(0, 1)
    totals = np.diff(np.diff(corners, axis=0), axis=1)
    area = np.outer(rows.sizes, cols.sizes)
    weight = totals[..., 3]
    empty = weight <= 1e-3
    mean = totals[..., :3] / np.where(empty, 1, weight)[..., None]
    colours = np.clip(np.rint(mean), 0, 255).astype(np.uint8)
    colours[empty] = region.pixels[np.ix_(rows.middles, cols.middles)][empty]
    colours[area <= 1e-6] = 255
    return colours, weight <= area / 2
