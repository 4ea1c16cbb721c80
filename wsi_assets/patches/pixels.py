"""Many patches of one slide's level, every touched tile read once and in file order.

Where pixels come from is settled here: straight from JPEG tiles when the slide allows, else from OpenSlide in
aligned windows. Encoding patches and handing out work belong elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from wsi_assets.errors import SlideError
from wsi_assets.slides.openslide_file import OpenSlideFile
from wsi_assets.slides.tiff_tiles import open_tiles

_WINDOW = 1024
"""Side in pixels of the windows asked of OpenSlide: few calls, and 4 MiB at a time."""


@dataclass
class Patches:
    """``pixels``: uint8 (n, P, P, 3) RGB, white where the slide has none. ``missing``: int (n,), pixels of
    each patch the slide does not have. ``failed``: patch number -> why a part of it cannot be read.
    ``jpeg``: patch number -> the slide's own JPEG of just these pixels, of patches that are a whole tile."""

    pixels: np.ndarray
    missing: np.ndarray
    failed: dict[int, str] = field(default_factory=dict)
    jpeg: dict[int, bytes] = field(default_factory=dict)


class PatchReader:
    """An open slide that gives patches; use it in the process and thread that opened it.

    Raises:
        SlideError: the slide does not open.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._slide = OpenSlideFile(self.path)
        try:
            self._tiles = open_tiles(self.path, self._slide)
        except BaseException:
            self._slide.close()
            raise

    @property
    def direct(self) -> bool:
        """Whether tiles are decoded straight from their bytes."""
        return self._tiles is not None

    def read(self, level: int, coords: np.ndarray, size: int, *, jpeg: bool = False) -> Patches:
        """The patches with top-left corners ``coords``, int (n, 2) of (y, x), all in pixels of ``level``.

        A damaged tile fails the patches over it, not the others.

        Args:
            jpeg: also give the JPEG of patches that are a whole tile.

        Raises:
            SlideError: the slide has no such level.
        """
        if not 0 <= level < len(self._slide.sizes):
            raise SlideError(f"has levels 0 to {len(self._slide.sizes) - 1}, not {level}", path=self.path)
        count = len(coords)
        patches = Patches(
            np.full((count, size, size, 3), 255, np.uint8), np.full(count, size * size, np.int64)
        )
        if self._tiles is None:
            self._from_openslide(level, coords, size, patches)
        else:
            self._from_tiles(level, coords, size, patches, jpeg)
        return patches

    def close(self) -> None:
        """Let go of the slide."""
        if self._tiles is not None:
            self._tiles.close()
        self._slide.close()

    def _from_tiles(self, level: int, coords: np.ndarray, size: int, patches: Patches, jpeg: bool) -> None:
        tiles = self._tiles.level(level)
        touching = _touching(coords, size, tiles.tile_size)
        high, wide = tiles.tile_size
        inside = [
            (row, col) for row, col in touching if 0 <= row < tiles.grid[0] and 0 <= col < tiles.grid[1]
        ]
        for row, col in tiles.in_file_order(inside):
            over = touching[row, col]
            try:
                tile = tiles.read_tile(row, col)
            except SlideError as error:
                patches.failed.update(
                    (number, error.fault) for number in over if number not in patches.failed
                )
                continue
            if tile is not None:
                top, left = row * high, col * wide
                tile = tile[: tiles.height - top, : tiles.width - left]
                _paste(tile, top, left, coords, over, patches)
                if jpeg and tile.shape[:2] == (size, size) == tiles.tile_size:
                    whole = [number for number in over if tuple(coords[number]) == (top, left)]
                    data = tiles.jpeg_file(row, col) if whole else None
                    if data is not None:
                        patches.jpeg.update(dict.fromkeys(whole, data))

    def _from_openslide(self, level: int, coords: np.ndarray, size: int, patches: Patches) -> None:
        touching = _touching(coords, size, (_WINDOW, _WINDOW))
        for (row, col), over in sorted(touching.items()):
            window = self._within(level, coords[over], size, row * _WINDOW, col * _WINDOW, _WINDOW)
            if window is None:
                continue
            y0, x0, y1, x1 = window
            try:
                pixels, present = self._slide.read(level, y0, x0, y1 - y0, x1 - x0)
            except SlideError:
                # The fault may lie beside some of the patches: ask for each by itself.
                self._one_by_one(level, coords, size, over, patches)
                continue
            _paste(pixels, y0, x0, coords, over, patches, present)

    def _one_by_one(
        self, level: int, coords: np.ndarray, size: int, over: list[int], patches: Patches
    ) -> None:
        for number in over:
            y, x = map(int, coords[number])
            window = self._within(level, coords[number : number + 1], size, y, x, size)
            if window is None or number in patches.failed:
                continue
            y0, x0, y1, x1 = window
            patches.missing[number] = size * size
            try:
                pixels, present = self._slide.read(level, y0, x0, y1 - y0, x1 - x0)
            except SlideError as error:
                patches.failed[number] = error.fault
            else:
                _paste(pixels, y0, x0, coords, [number], patches, present)

    def _within(
        self, level: int, coords: np.ndarray, size: int, top: int, left: int, side: int
    ) -> tuple[int, int, int, int] | None:
        """What the patches need of a square of the level, half-open (y0, x0, y1, x1)."""
        width, height = self._slide.sizes[level]
        y0, x0 = np.maximum(coords.min(axis=0), (top, left)).tolist()
        y1, x1 = np.minimum(coords.max(axis=0) + size, (top + side, left + side)).tolist()
        y0, x0, y1, x1 = max(0, y0), max(0, x0), min(height, y1), min(width, x1)
        return (y0, x0, y1, x1) if y0 < y1 and x0 < x1 else None


def _touching(coords: np.ndarray, size: int, tile: tuple[int, int]) -> dict[tuple[int, int], list[int]]:
    """(row, column) of each touched tile -> numbers of the patches over it."""
    touching: dict[tuple[int, int], list[int]] = {}
    first, last = coords // tile, (coords + size - 1) // tile
    for number, (row0, col0, row1, col1) in enumerate(np.hstack([first, last]).tolist()):
        for row in range(row0, row1 + 1):
            for col in range(col0, col1 + 1):
                touching.setdefault((row, col), []).append(number)
    return touching


def _paste(
    block: np.ndarray,
    top: int,
    left: int,
    coords: np.ndarray,
    over: list[int],
    patches: Patches,
    present: np.ndarray | None = None,
) -> None:
    """Copy what each patch needs of a block of pixels whose top-left corner is (top, left)."""
    for number, target, source in _overlaps(block.shape, top, left, coords, over, patches.pixels.shape[1]):
        part = block[source]
        if present is None:
            patches.pixels[number][target] = part
            patches.missing[number] -= part.shape[0] * part.shape[1]
        else:
            there = present[source]
            np.copyto(patches.pixels[number][target], part, where=there[..., None])
            patches.missing[number] -= int(np.count_nonzero(there))


def _overlaps(
    shape: tuple[int, ...], top: int, left: int, coords: np.ndarray, over: list[int], size: int
) -> Iterator[tuple[int, tuple[slice, slice], tuple[slice, slice]]]:
    bottom, right = top + shape[0], left + shape[1]
    for number, (y, x) in zip(over, coords[over].tolist(), strict=True):
        y0, y1 = max(y, top), min(y + size, bottom)
        x0, x1 = max(x, left), min(x + size, right)
        if y0 < y1 and x0 < x1:
            yield (
                number,
                (slice(y0 - y, y1 - y), slice(x0 - x, x1 - x)),
                (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left)),
            )
