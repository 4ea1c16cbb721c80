"""Tiles of JPEG-compressed TIFF and SVS slides, straight from their bytes: several times OpenSlide's rate.

Only files whose pixels are the same as OpenSlide's are opened; the rest is left to OpenSlide. Scale, no-data
and the shape of regions belong elsewhere.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile

from wsi_assets.errors import SlideError, one_line
from wsi_assets.slides.openslide_file import OpenSlideFile

_VENDORS = {"generic-tiff", "aperio", "philips"}
_JPEG = 7
_RGB, _YCBCR = 2, 6
_START_OF_IMAGE, _END_OF_IMAGE = b"\xff\xd8", b"\xff\xd9"
_START_OF_SCAN = 0xDA
_ADOBE = b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0"
"""The segment of a JPEG file that tells its colours, up to the last byte, which is one of these."""
_TRANSFORMS = {"RGB": 0, "YCBCR": 1}


@dataclass(frozen=True)
class TileLevel:
    """One level of a tiled JPEG TIFF. All places are (row, column) of tiles; all sizes are its own pixels.

    Attributes:
        index: the level's number, as OpenSlide counts.
        width, height: size of the level as OpenSlide gives it.
        tile_size: (height, width) of every tile. Tiles at the right and bottom reach over the level's edge.
        grid: (rows, columns) of tiles.
        offsets, lengths: int64, one a tile in row order, the place of its bytes in the file.
        present: bool, shape ``grid``: False is a tile never written.
        colorspace: "RGB" or "YCBCR", how the JPEG data is coded.
        tables: the JPEG tables tiles share, if they do.
    """

    index: int
    width: int
    height: int
    tile_size: tuple[int, int]
    grid: tuple[int, int]
    offsets: np.ndarray = field(repr=False)
    lengths: np.ndarray = field(repr=False)
    present: np.ndarray = field(repr=False)
    colorspace: str
    tables: bytes | None = field(repr=False)
    source: TileSource = field(repr=False)

    def in_file_order(self, indices: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
        """The (row, column) pairs, each once, in the order of their bytes in the file."""
        return sorted(set(indices), key=lambda place: (self.offsets[self._at(*place)], place))

    def read_bytes(self, row: int, col: int) -> bytes | None:
        """The coded tile, or None if it was never written.

        Raises:
            SlideError: the file ends before the tile does, or cannot be read.
        """
        at = self._at(row, col)
        length = int(self.lengths[at])
        if not self.present[row, col]:
            return None
        data = self.source.pread(int(self.offsets[at]), length)
        if len(data) != length:
            raise self._damaged(row, col, "the file ends before it")
        return data

    def read_tile(self, row: int, col: int) -> np.ndarray | None:
        """A whole tile, uint8 (tile height, tile width, 3) RGB, or None if it was never written.

        Raises:
            SlideError: the tile's bytes are damaged.
        """
        data = self.read_bytes(row, col)
        if data is None:
            return None
        try:
            # Memory of the tile's size, not of the size that damaged data may claim.
            tile = imagecodecs.jpeg8_decode(
                data,
                tables=self.tables,
                colorspace=self.colorspace,
                outcolorspace="RGB",
                out=np.empty((*self.tile_size, 3), np.uint8),
            )
        except Exception as error:  # the codec's error types differ between its versions
            raise self._damaged(row, col, one_line(error)) from error
        if tile.shape != (*self.tile_size, 3):
            raise self._damaged(row, col, f"it decodes to {tile.shape}")
        if _is_suspect(data, tile):
            self._confirm(row, col)
        return tile

    def jpeg_file(self, row: int, col: int) -> bytes | None:
        """A tile as a JPEG file of its own, which image libraries decode to the tile's pixels.

        None if the tile was never written, or has marks that would tell them other colours than the slide's.
        Nothing is decoded: read the tile to see that it is whole.

        Raises:
            SlideError: the file ends before the tile does, or cannot be read.
        """
        data = self.read_bytes(row, col)
        if data is None or data[:2] != _START_OF_IMAGE:
            return None
        segments = (self.tables[2:-2] if self.tables else b"") + data[2:]
        told = _colours_told(segments)
        if told is None:
            # Without a mark libraries guess.
            segments = _ADOBE + bytes([_TRANSFORMS[self.colorspace]]) + segments
        elif told != self.colorspace:
            return None
        return _START_OF_IMAGE + segments

    def read_tiles(self, indices: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int, np.ndarray | None]]:
        """(row, column, tile or None) of each place once, in file order.

        Raises:
            SlideError: a tile is damaged; to go on past it, call :meth:`read_tile` place by place.
        """
        for row, col in self.in_file_order(indices):
            yield row, col, self.read_tile(row, col)

    def _confirm(self, row: int, col: int) -> None:
        """Let OpenSlide judge a tile: it refuses what the decoder here only warns of.

        Raises:
            SlideError: the tile is damaged.
        """
        high, wide = self.tile_size
        y, x = row * high, col * wide
        slide = OpenSlideFile(self.source.path)
        try:
            slide.read(self.index, y, x, min(high, self.height - y), min(wide, self.width - x))
        except SlideError as error:
            raise self._damaged(row, col, error.fault) from error
        finally:
            slide.close()

    def _at(self, row: int, col: int) -> int:
        rows, cols = self.grid
        if not (0 <= row < rows and 0 <= col < cols):
            raise IndexError(f"tile ({row}, {col}) is outside a grid of {rows} x {cols}")
        return row * cols + col

    def _damaged(self, row: int, col: int, why: str) -> SlideError:
        return SlideError(
            f"tile at row {row}, column {col} of level {self.index} is damaged ({why})",
            path=self.source.path,
            remedy="Copy or scan the slide again",
        )


class TileSource:
    """An open tiled JPEG TIFF: one file descriptor, read by position, so threads may share it.

    ``levels``: one :class:`TileLevel` for each of OpenSlide's levels. Use it in the process that opened it.
    """

    def __init__(self, path: Path):
        self.path = path
        self.levels: tuple[TileLevel, ...] = ()
        self._descriptor: int | None = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        self._size = os.fstat(self._descriptor).st_size

    def level(self, index: int) -> TileLevel:
        """The level of this number."""
        return self.levels[index]

    def pread(self, offset: int, length: int) -> bytes:
        """Bytes of the file; fewer where it ends.

        Raises:
            SlideError: the disk does not give them.
        """
        if self._descriptor is None:
            raise ValueError("the tile source is closed")
        # A damaged length would take its memory before the first byte is read.
        length = min(length, max(0, self._size - offset))
        try:
            return os.pread(self._descriptor, length, offset)
        except OSError as error:
            raise SlideError(
                f"cannot be read ({error.strerror})", path=self.path, remedy="Check its disk, then run again"
            ) from error

    def close(self) -> None:
        """Let go of the file."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> TileSource:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_tiles(path: str | Path, slide: OpenSlideFile | None = None) -> TileSource | None:
    """The slide's tiles, or None if it is not a JPEG-tiled TIFF whose every level is the same as OpenSlide's.

    Besides rules on the format, one to two written tiles of each level are decoded and compared with what
    OpenSlide reads there; a single differing value closes the source.

    Args:
        path: the slide.
        slide: the same file already open, to save opening it again.

    Raises:
        SlideError: the path is no slide that opens.
    """
    path = Path(path)
    own = slide is None
    slide = slide or OpenSlideFile(path)
    source: TileSource | None = None
    try:
        if slide.vendor not in _VENDORS or path.is_dir():
            return None
        source = TileSource(path)
        source.levels = _levels(source, slide)
        if source.levels and all(_same_as_openslide(level, slide) for level in source.levels):
            kept, source = source, None
            return kept
        return None
    finally:
        if source is not None:
            source.close()
        if own:
            slide.close()


def _levels(source: TileSource, slide: OpenSlideFile) -> tuple[TileLevel, ...]:
    """A level for each of OpenSlide's, or none at all."""
    try:
        with tifffile.TiffFile(source.path) as file:
            pages = [page for page in file.pages if page.is_tiled]
            pages.sort(key=lambda page: -page.imagewidth)
            if len(pages) != len(slide.sizes) or not all(map(_is_plain_jpeg, pages)):
                return ()
            levels = tuple(
                _level(index, size, page, source)
                for index, (size, page) in enumerate(zip(slide.sizes, pages, strict=True))
                if _covers(page, size)
            )
    except Exception:  # whatever tifffile makes of a file OpenSlide opens, OpenSlide serves it
        return ()
    if len(levels) != len(slide.sizes):
        return ()
    # In SVS files OpenSlide fills a missing tile from the level above; that is left to it.
    if slide.vendor == "aperio" and not all(level.present.all() for level in levels):
        return ()
    return levels


def _is_plain_jpeg(page: tifffile.TiffPage) -> bool:
    return (
        page.compression == _JPEG
        and page.photometric in (_RGB, _YCBCR)
        and page.samplesperpixel == 3
        and page.bitspersample == 8
        and page.planarconfig == 1
        and page.imagedepth == 1
    )


def _covers(page: tifffile.TiffPage, size: tuple[int, int]) -> bool:
    """Whether the page is the level: its size, or (Philips) more by less than a tile."""
    wide, high = page.imagewidth - size[0], page.imagelength - size[1]
    return 0 <= wide < page.tilewidth and 0 <= high < page.tilelength


def _level(index: int, size: tuple[int, int], page: tifffile.TiffPage, source: TileSource) -> TileLevel:
    grid = (-(-page.imagelength // page.tilelength), -(-page.imagewidth // page.tilewidth))
    offsets = np.asarray(page.dataoffsets, np.int64)
    lengths = np.asarray(page.databytecounts, np.int64)
    if not len(offsets) == len(lengths) == grid[0] * grid[1]:
        raise ValueError("the tables of tiles do not fit the grid")
    return TileLevel(
        index=index,
        width=size[0],
        height=size[1],
        tile_size=(page.tilelength, page.tilewidth),
        grid=grid,
        offsets=offsets,
        lengths=lengths,
        present=((lengths > 0) & (offsets > 0)).reshape(grid),
        colorspace="YCBCR" if page.photometric == _YCBCR else "RGB",
        tables=page.jpegtables,
        source=source,
    )


def _colours_told(segments: bytes) -> str | None:
    """The colours that the marks of JPEG data, after its first two bytes, tell every library; None if none.

    JFIF's mark always means YCbCr; Adobe's says it (Adobe Technical Note 5116).
    """
    told, at = None, 0
    while at + 4 <= len(segments) and segments[at] == 0xFF and segments[at + 1] != _START_OF_SCAN:
        body = segments[at + 4 : at + 2 + int.from_bytes(segments[at + 2 : at + 4], "big")]
        if segments[at + 1] == 0xE0 and body.startswith(b"JFIF\0"):
            return "YCBCR"
        if segments[at + 1] == 0xEE and body.startswith(b"Adobe") and len(body) >= 12:
            told = next((name for name, value in _TRANSFORMS.items() if value == body[11]), "another")
        at += 4 + len(body)
    return told


def _is_suspect(data: bytes, tile: np.ndarray) -> bool:
    """Whether JPEG data may have ended early.

    libjpeg then only warns and leaves the rest mid-grey, which would pass for a picture: the last block shows
    it. A grey last block can also be real (grey padding), so this is a suspicion.
    """
    return _END_OF_IMAGE not in data[-16:] or bool((tile[-8:, -8:] == 128).all())


def _same_as_openslide(level: TileLevel, slide: OpenSlideFile) -> bool:
    written = np.argwhere(level.present)
    # The heaviest tile holds the most detail, where decoders differ; the first has the level's edge rules.
    heaviest = np.divmod(int(np.argmax(level.lengths)), level.grid[1])
    for row, col in {tuple(map(int, place)) for place in (*written[:1], heaviest)} if len(written) else ():
        high, wide = level.tile_size
        y, x = row * high, col * wide
        try:
            tile = level.read_tile(row, col)
            pixels, _ = slide.read(level.index, y, x, min(high, level.height - y), min(wide, level.width - x))
        except SlideError:
            return False
        if tile is None or not np.array_equal(tile[: pixels.shape[0], : pixels.shape[1]], pixels):
            return False
    return True
