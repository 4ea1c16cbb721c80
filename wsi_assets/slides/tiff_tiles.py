"""Tiles of JPEG-compressed TIFF and SVS slides, decoded from the file: several times OpenSlide's rate.

Only levels whose pixels are the same as OpenSlide's are read so; OpenSlide reads the rest.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile

from wsi_assets.errors import SlideError, one_line
from wsi_assets.slides.openslide_file import OpenSlideFile

_VENDORS = {"generic-tiff", "aperio", "philips"}
_CACHE_BYTES = 48 << 20
_COMPARED = 128
"""Side of the part of a tile that is compared: decoders differ in every block or in none, and OpenSlide takes
four times as long to compose a whole tile of 512 pixels."""
_JPEG = 7
_COLORSPACES = {2: "RGB", 6: "YCBCR"}
"""TIFF's photometric interpretation -> the color space of its JPEG data."""
_ADOBE = b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0"
"""The segment of a JPEG file that names its color space, up to the last byte, which is one of these."""
_TRANSFORMS = {0: "RGB", 1: "YCBCR"}
_START_OF_SCAN = b"\xff\xda"


class TileLevel:
    """One level of a tiled JPEG TIFF, a context manager. Threads may share it; a forked process may not.

    Places are (row, column) of tiles; sizes are the level's own pixels.

    Attributes:
        path, index: the slide, and the level's number as OpenSlide counts.
        width, height: size of the level as OpenSlide gives it.
        tile_height, tile_width: size of every tile. Those at the far edges reach over the level.
        rows, cols: number of tiles.
    """

    def __init__(self, index: int, page: tifffile.TiffPage, slide: OpenSlideFile, *, owns_slide: bool):
        self.path, self.index = slide.path, index
        self.width, self.height = slide.sizes[index]
        self.tile_height, self.tile_width = page.tilelength, page.tilewidth
        self.rows, self.cols = -(-page.imagelength // page.tilelength), -(-page.imagewidth // page.tilewidth)
        self._offsets, self._lengths = page.dataoffsets, page.databytecounts
        self._colorspace, self._tables = _COLORSPACES[page.photometric], page.jpegtables
        self._slide, self._owns_slide, self._lock = slide, owns_slide, threading.Lock()
        kept = _CACHE_BYTES // (self.tile_height * self.tile_width * 3)
        self._kept_tile = lru_cache(max(1, kept))(self.read_tile)
        self._file = self.path.open("rb", buffering=0)
        self._size = os.fstat(self._file.fileno()).st_size

    def in_file_order(self, places: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
        """The (row, column) pairs, each once, in the order of their bytes in the file."""
        return sorted(set(places), key=lambda place: (self._offsets[self._number(*place)], place))

    def read_tile(self, row: int, col: int) -> np.ndarray | None:
        """A whole tile, uint8 (tile height, tile width, 3) RGB, or None if it was never written.

        Raises:
            SlideError: the tile is damaged or cannot be read.
        """
        data = self._read_bytes(row, col)
        if data is None:
            return None
        try:
            # TiffPage.decode would take as much memory as damaged data claims; ``out`` refuses another size.
            tile = imagecodecs.jpeg8_decode(
                data,
                tables=self._tables,
                colorspace=self._colorspace,
                outcolorspace="RGB",
                out=np.empty((self.tile_height, self.tile_width, 3), np.uint8),
            )
            if _is_suspect(data, tile):
                self._read_by_openslide(row, col)  # refuses what the decoder here only warns of
        except Exception as error:  # the codec's error types differ between its versions
            fault = error.fault if isinstance(error, SlideError) else one_line(error)
            raise self._damaged(row, col, fault) from error
        return tile

    def read_tiles(self, places: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int, np.ndarray | None]]:
        """(row, column, tile or None) of each place once, in file order; errors as of :meth:`read_tile`."""
        for row, col in self.in_file_order(places):
            yield row, col, self.read_tile(row, col)

    def read_window(self, y: int, x: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """A window inside the level: uint8 (h, w, 3) RGB, and bool (h, w) where it has pixels; else white.

        Up to 48 MiB of tiles are kept for the next window. Errors as of :meth:`read_tile`.
        """
        high, wide = self.tile_height, self.tile_width
        pixels = np.full((height, width, 3), 255, np.uint8)
        present = np.zeros((height, width), bool)
        for row in range(y // high, -(-(y + height) // high)):
            for col in range(x // wide, -(-(x + width) // wide)):
                tile = self._kept_tile(row, col)
                if tile is None:
                    continue
                top, left = row * high, col * wide
                y0, y1 = max(y, top), min(y + height, top + high)
                x0, x1 = max(x, left), min(x + width, left + wide)
                window = (slice(y0 - y, y1 - y), slice(x0 - x, x1 - x))
                pixels[window] = tile[y0 - top : y1 - top, x0 - left : x1 - left]
                present[window] = True
        return pixels, present

    def jpeg_file(self, row: int, col: int) -> bytes | None:
        """A tile as a JPEG file of its own, which image libraries decode to the tile's pixels.

        None if the tile was never written, or has markers that name another color space than the slide does.
        Nothing is decoded: read the tile to see that it is whole.

        Raises:
            SlideError: the file ends before the tile does, or cannot be read.
        """
        data = self._read_bytes(row, col)
        if data is None or data[:2] != b"\xff\xd8":
            return None
        segments = (self._tables[2:-2] if self._tables else b"") + data[2:]
        named = _named_colorspace(segments)
        if named is None:
            # Without a marker libraries guess.
            segments = _ADOBE + (b"\1" if self._colorspace == "YCBCR" else b"\0") + segments
        return data[:2] + segments if named in (None, self._colorspace) else None

    def close(self) -> None:
        """Let go of the file."""
        self._kept_tile.cache_clear()
        self._file.close()
        if self._owns_slide:
            self._slide.close()

    def __enter__(self) -> TileLevel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def same_as_openslide(self) -> bool:
        """Whether a part of one or two written tiles has OpenSlide's pixels, to the last value."""
        written = [
            at
            for at, (start, length) in enumerate(zip(self._offsets, self._lengths, strict=True))
            if min(start, length) > 0
        ]
        # The heaviest tile holds the most detail, where decoders differ; the first has the edge rules.
        for number in {written[0], max(written, key=self._lengths.__getitem__)} if written else ():
            place = divmod(number, self.cols)
            try:
                tile, pixels = self.read_tile(*place), self._read_by_openslide(*place, side=_COMPARED)
            except SlideError:
                return False
            if not np.array_equal(tile[: pixels.shape[0], : pixels.shape[1]], pixels):
                return False
        return True

    def _read_bytes(self, row: int, col: int) -> bytes | None:
        number = self._number(row, col)
        offset, length = self._offsets[number], self._lengths[number]
        if offset <= 0 or length <= 0:
            return None
        # A damaged length would take its memory before the first byte is read.
        if offset + length > self._size:
            raise self._damaged(row, col, "the file ends before it")
        try:
            # By position, so that threads may share the file.
            return os.pread(self._file.fileno(), length, offset)
        except OSError as error:
            raise SlideError(
                f"cannot be read ({error.strerror})", path=self.path, remedy="Check its disk, then run again"
            ) from error

    def _read_by_openslide(self, row: int, col: int, side: int = 1 << 30) -> np.ndarray:
        y, x = row * self.tile_height, col * self.tile_width
        height = min(side, self.tile_height, self.height - y)
        width = min(side, self.tile_width, self.width - x)
        with self._lock:
            return self._slide.read(self.index, y, x, height, width)[0]

    def _number(self, row: int, col: int) -> int:
        if not (0 <= row < self.rows and 0 <= col < self.cols):
            raise IndexError(f"tile ({row}, {col}) is outside a grid of {self.rows} x {self.cols}")
        return row * self.cols + col

    def _damaged(self, row: int, col: int, why: str) -> SlideError:
        return SlideError(
            f"tile at row {row}, column {col} of level {self.index} is damaged ({why})",
            path=self.path,
            remedy="Copy or scan the slide again",
        )


def open_tiles(
    path: str | Path, level: int, slide: OpenSlideFile | None = None, *, verified: bool = False
) -> TileLevel | None:
    """The tiles of one level, or None if they cannot be decoded directly to the same pixels as OpenSlide's.

    Besides rules on the format, one or two written tiles of the level are compared with what OpenSlide reads
    there; a single differing value gives None.

    Args:
        path: the slide.
        level: its number, as OpenSlide counts.
        slide: the same file already open, to save opening it again. The tiles use it until they are closed;
            closing it is the caller's.
        verified: the level was compared before; compare nothing now.

    Raises:
        SlideError: the path is no slide that opens.
        IndexError: there is no such level.
    """
    used = slide or OpenSlideFile(Path(path))
    if not 0 <= level < len(used.sizes):
        raise IndexError(f"{path} has levels 0 to {len(used.sizes) - 1}, not {level}")
    tiles = None
    # Whatever tifffile makes of a damaged file that OpenSlide opens, OpenSlide serves it.
    with contextlib.suppress(Exception):
        page = _page_of(level, used)
        if page is not None:
            tiles = TileLevel(level, page, used, owns_slide=slide is None)
    if tiles is not None and (verified or tiles.same_as_openslide()):
        return tiles
    for opened in (tiles, None if slide else used):
        if opened is not None:
            opened.close()
    return None


def _page_of(level: int, slide: OpenSlideFile) -> tifffile.TiffPage | None:
    """The TIFF page of a level, if it holds plain JPEG in a layout that OpenSlide reads tile by tile."""
    pages = sorted((page for page in slide.tiff_pages if page.is_tiled), key=lambda page: -page.imagewidth)
    if slide.vendor not in _VENDORS or len(pages) != len(slide.sizes):
        return None
    page, (width, height) = pages[level], slide.sizes[level]
    wide, high = page.tilewidth, page.tilelength
    fits = (
        page.compression == _JPEG
        and page.photometric in _COLORSPACES
        and (page.samplesperpixel, page.bitspersample, page.planarconfig, page.imagedepth) == (3, 8, 1, 1)
        # Philips' pages are larger than the level, by less than a tile.
        and 0 <= page.imagewidth - width < wide
        and 0 <= page.imagelength - height < high
        and len(page.dataoffsets) == len(page.databytecounts)
        and len(page.dataoffsets) == -(-page.imagewidth // wide) * -(-page.imagelength // high)
        # In SVS files OpenSlide fills a missing tile from the level above; that is left to it.
        and (slide.vendor != "aperio" or all((*page.dataoffsets, *page.databytecounts)))
    )
    return page if fits else None


def _named_colorspace(segments: bytes) -> str | None:
    """The color space that JPEG data names to every library, None if none.

    JFIF's marker always means YCbCr; Adobe's says it (Adobe Technical Note 5116).
    """
    header = segments.partition(_START_OF_SCAN)[0]
    if re.search(rb"\xff\xe0..JFIF\0", header, re.DOTALL):
        return "YCBCR"
    adobe = re.search(rb"\xff\xee..Adobe.{6}(.)", header, re.DOTALL)
    return _TRANSFORMS.get(adobe[1][0], "another") if adobe else None


def _is_suspect(data: bytes, tile: np.ndarray) -> bool:
    """Whether JPEG data may have ended early.

    libjpeg then only warns and leaves the rest mid-grey, which would pass for a picture: the last block shows
    it. A grey last block can also be real (grey padding), so this is a suspicion.
    """
    return b"\xff\xd9" not in data[-16:] or bool((tile[-8:, -8:] == 128).all())
