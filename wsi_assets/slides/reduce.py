"""A whole slide made small, block by block, by exact area averages. What it is wanted for is the caller's."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from wsi_assets.slides.reader import Region, SlideReader

_BLOCK = 2048


def reduced(reader: SlideReader, downsample: float) -> Region:
    """See :meth:`wsi_assets.slides.reader.SlideReader.reduced`."""
    from wsi_assets.slides.reader import Region

    if not downsample >= 1:
        raise ValueError(f"a downsample of {downsample} would enlarge the slide")
    base = reader.levels[0]
    # Fractional downsamples may miss the wanted one by rounding alone.
    level = max(
        (one for one in reader.levels if one.downsample <= downsample * (1 + 1e-9)),
        key=lambda one: one.downsample,
    )
    step = downsample / level.downsample
    height, width = math.ceil(base.height / downsample), math.ceil(base.width / downsample)
    pixels = np.full((height, width, 3), 255, np.uint8)
    missing = np.ones((height, width), bool)
    block = max(1, int(_BLOCK / step))
    for top in range(0, height, block):
        rows = Span.of(top, min(height, top + block), step, level.height)
        for left in range(0, width, block):
            cols = Span.of(left, min(width, left + block), step, level.width)
            region = reader.read_region(level.index, rows.start, cols.start, rows.length, cols.length)
            window = (slice(top, top + rows.count), slice(left, left + cols.count))
            pixels[window], missing[window] = _average(region.pixels, region.no_data, rows, cols)
    return Region(pixels, missing)


class Span:
    """Output cells along one axis and the source pixels under them, with each cell's weights.

    A cell reaches from ``i * step`` to ``(i + 1) * step`` source pixels; a pixel partly under it counts by
    that part. What lies beyond the source's end has no weight.
    """

    def __init__(self, start: int, length: int, edges: np.ndarray):
        self.start, self.length, self.edges = start, length, edges
        self.count = len(edges) - 1

    @classmethod
    def of(cls, first: int, last: int, step: float, limit: int) -> Span:
        """Cells ``first`` to ``last`` (half-open) over a source of ``limit`` pixels."""
        edges = np.arange(first, last + 1) * step
        edges[np.abs(edges - np.round(edges)) < 1e-9] = np.round(edges)[
            np.abs(edges - np.round(edges)) < 1e-9
        ]
        start = min(int(edges[0]), limit - 1)
        end = max(start + 1, min(limit, math.ceil(edges[-1])))
        return cls(start, end - start, np.clip(edges, start, end) - start)

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Weighted sums of ``values`` along its first axis (``length``, ...), float64 (``count``, ...)."""
        whole = np.floor(self.edges).astype(int)
        part = self.edges - whole
        running = np.zeros((self.length + 1, *values.shape[1:]))
        np.cumsum(values, axis=0, out=running[1:])
        after = np.minimum(whole + 1, self.length)
        part = part.reshape(-1, *[1] * (values.ndim - 1))
        at = running[whole] * (1 - part) + running[after] * part
        return np.diff(at, axis=0)


def _average(
    pixels: np.ndarray, missing: np.ndarray, rows: Span, cols: Span
) -> tuple[np.ndarray, np.ndarray]:
    """Mean over the pixels that have data (over all, where none has), and where most of the area has none."""
    known = ~missing
    values = np.concatenate([pixels * known[..., None], pixels, known[..., None]], axis=2, dtype=np.float64)
    total = cols.sums(rows.sums(values).swapaxes(0, 1)).swapaxes(0, 1)
    area = np.outer(np.diff(rows.edges), np.diff(cols.edges))
    share = total[..., 6]
    some = share > 1e-6
    mean = np.where(
        some[..., None],
        total[..., :3] / np.where(some, share, 1)[..., None],
        total[..., 3:6] / np.where(area > 1e-6, area, 1)[..., None],
    )
    mean[area <= 1e-6] = 255
    full = area.max(initial=0) if area.size else 0
    return np.clip(np.rint(mean), 0, 255).astype(np.uint8), share <= full / 2
