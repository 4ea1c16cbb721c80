"""Many patches of one slide's level, every touched tile read once and in file order."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wsi_assets.errors import SlideError
from wsi_assets.slides.openslide_file import OpenSlideFile
from wsi_assets.slides.tiff_tiles import TileLevel, open_tiles

_WINDOW = 1024
"""Side in pixels of the windows asked of OpenSlide: few calls, and 4 MiB at a time."""


@dataclass
class Patch:
    """One patch of a slide.

    Attributes:
        pixels: uint8 (P, P, 3) RGB, white where the slide has none; perhaps a view of a larger block.
        missing: pixels of it that the slide does not have.
        fault: why a part of it cannot be read, None if all can.
        jpeg: the slide's own JPEG of just these pixels, of a patch that is a whole tile.
    """

    pixels: np.ndarray
    missing: int
    fault: str | None = None
    jpeg: bytes | None = None


@dataclass(frozen=True)
class _Block:
    """Pixels of a level from (top, left) on, as far as the slide has or gives them, for the patches ``over``.

    ``present``: bool (h, w), where the slide has pixels; None is everywhere. The rest as in :class:`Patch`.
    """

    over: list[int]
    top: int
    left: int
    pixels: np.ndarray | None
    present: np.ndarray | None = None
    fault: str | None = None
    jpeg: bytes | None = None

    def cut(self, y: int, x: int, size: int, patch: Patch | None) -> Patch:
        """The patch at (y, x) with what the block has of it, beside what other blocks gave before."""
        shape = (0, 0) if self.pixels is None else self.pixels.shape
        y0, y1 = max(y, self.top), min(y + size, self.top + shape[0])
        x0, x1 = max(x, self.left), min(x + size, self.left + shape[1])
        if y0 >= y1 or x0 >= x1:
            patch = patch or _blank(size)
            patch.fault = patch.fault or self.fault
            return patch
        part = slice(y0 - self.top, y1 - self.top), slice(x0 - self.left, x1 - self.left)
        found, there = self.pixels[part], None if self.present is None else self.present[part]
        # Most patches lie in one tile. They are given straight from it: it is still in the processor's
        # cache, and neither filling nor copying a patch of its own is needed.
        if found.shape[:2] == (size, size) and (there is None or there.all()):
            return Patch(found, 0, None, self.jpeg if shape[:2] == (size, size) else None)
        patch = patch or _blank(size)
        target = patch.pixels[y0 - y : y1 - y, x0 - x : x1 - x]
        np.copyto(target, found, where=True if there is None else there[..., None])
        patch.missing -= int((y1 - y0) * (x1 - x0) if there is None else np.count_nonzero(there))
        return patch


class PatchReader:
    """One level of an open slide, which gives patches; use it in the process and thread that opened it.

    Pixels come straight from JPEG tiles where those are the same as OpenSlide's, else from OpenSlide.

    Args:
        direct: whether tiles may be decoded directly, if that was found out before
            (:func:`tiles_are_openslides`); None finds it out now.

    Raises:
        SlideError: the slide does not open, or has no such level.
    """

    def __init__(self, path: str | Path, level: int, *, direct: bool | None = None):
        self.path = Path(path)
        self.level = level
        self._slide = OpenSlideFile(self.path)
        self._tiles: TileLevel | None = None
        try:
            if not 0 <= level < len(self._slide.sizes):
                raise SlideError(f"has levels 0 to {len(self._slide.sizes) - 1}, not {level}", path=self.path)
            if direct is not False:
                self._tiles = open_tiles(self.path, level, self._slide, verified=bool(direct))
        except BaseException:
            self._slide.close()
            raise

    @property
    def direct(self) -> bool:
        """Whether tiles are decoded straight from their bytes."""
        return self._tiles is not None

    def read(self, coords: np.ndarray, size: int, *, jpeg: bool = False) -> Iterator[tuple[int, Patch]]:
        """(number, patch) of each of the patches with top-left corners ``coords``, as they become complete.

        ``coords`` are int (n, 2) of (y, x) in pixels of the level. A damaged tile is a fault of the patches
        over it, not of the others.

        Args:
            jpeg: also give the JPEG of patches that are a whole tile.
        """
        places = coords.tolist()
        if self._tiles is None:
            touching = _touching(coords, size, (_WINDOW, _WINDOW))
            blocks = self._windows(coords, size, touching)
        else:
            touching = _touching(coords, size, (self._tiles.tile_height, self._tiles.tile_width))
            blocks = _tiles(self._tiles, coords, size, touching, jpeg)
        parts = Counter(itertools.chain.from_iterable(touching.values()))
        begun: dict[int, Patch] = {}
        for block in blocks:
            for number in block.over:
                y, x = places[number]
                parts[number] -= 1
                patch = block.cut(y, x, size, begun.pop(number, None))
                if parts[number]:
                    begun[number] = patch
                else:
                    yield number, patch

    def close(self) -> None:
        """Let go of the slide."""
        if self._tiles is not None:
            self._tiles.close()
        self._slide.close()

    def _windows(
        self, coords: np.ndarray, size: int, touching: dict[tuple[int, int], list[int]]
    ) -> Iterator[_Block]:
        """What OpenSlide gives of the patches, window by window; once for each patch over a window."""
        for (row, col), over in sorted(touching.items()):
            place = row * _WINDOW, col * _WINDOW, _WINDOW
            try:
                yield self._window(coords, size, over, *place)
            except SlideError:
                # The fault may lie beside some of the patches: ask for each by itself.
                for number in over:
                    try:
                        yield self._window(coords, size, [number], *place)
                    except SlideError as error:
                        yield _Block([number], *place[:2], None, fault=error.fault)

    def _window(
        self, coords: np.ndarray, size: int, over: list[int], top: int, left: int, side: int
    ) -> _Block:
        """What the patches ``over`` need of a square of the level."""
        width, height = self._slide.sizes[self.level]
        corners = coords[over]
        y0, x0 = np.maximum(corners.min(axis=0), (top, left)).clip(0).tolist()
        y1, x1 = np.minimum(corners.max(axis=0) + size, (top + side, left + side)).tolist()
        y1, x1 = min(height, y1), min(width, x1)
        if y0 >= y1 or x0 >= x1:
            return _Block(over, top, left, None)
        return _Block(over, y0, x0, *self._slide.read(self.level, y0, x0, y1 - y0, x1 - x0))


def tiles_are_openslides(path: str | Path, level: int) -> bool:
    """Whether a level's tiles may be decoded directly; False also for a slide that does not open."""
    try:
        reader = PatchReader(path, level)
    except SlideError:
        return False
    reader.close()
    return reader.direct


def _tiles(
    tiles: TileLevel, coords: np.ndarray, size: int, touching: dict[tuple[int, int], list[int]], jpeg: bool
) -> Iterator[_Block]:
    """The touched tiles in the order of the file; first those outside the level, which have no pixels."""
    high, wide = tiles.tile_height, tiles.tile_width
    inside = []
    for (row, col), over in touching.items():
        if 0 <= row < tiles.rows and 0 <= col < tiles.cols:
            inside.append((row, col))
        else:
            yield _Block(over, row * high, col * wide, None)
    for row, col in tiles.in_file_order(inside):
        over, top, left = touching[row, col], row * high, col * wide
        own = None
        try:
            tile = tiles.read_tile(row, col)
            if jpeg and tile is not None and (high, wide) == (size, size):
                own = tiles.jpeg_file(row, col) if (coords[over] == (top, left)).all(axis=1).any() else None
        except SlideError as error:
            yield _Block(over, top, left, None, fault=error.fault)
            continue
        if tile is not None:
            tile = tile[: tiles.height - top, : tiles.width - left]
        yield _Block(over, top, left, tile, jpeg=own)


def _blank(size: int) -> Patch:
    return Patch(np.full((size, size, 3), 255, np.uint8), size * size)


def _touching(coords: np.ndarray, size: int, tile: tuple[int, int]) -> dict[tuple[int, int], list[int]]:
    """(row, column) of each touched tile -> numbers of the patches over it."""
    touching: dict[tuple[int, int], list[int]] = {}
    first, last = coords // tile, (coords + size - 1) // tile
    for number, (row0, col0, row1, col1) in enumerate(np.hstack([first, last]).tolist()):
        for row in range(row0, row1 + 1):
            for col in range(col0, col1 + 1):
                touching.setdefault((row, col), []).append(number)
    return touching
