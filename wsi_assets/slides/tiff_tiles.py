"""Decode the tiles of TIFF slides directly: exact at every level, and several times as fast as OpenSlide.

It is used for a level only if the decoded tiles have the same pixels as OpenSlide's unblended reads.
"""

from __future__ import annotations

import contextlib
import os
import threading
from functools import lru_cache
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile

from wsi_assets.errors import SlideError, one_line
from wsi_assets.slides.closing import Closing
from wsi_assets.slides.file_access import unreadable
from wsi_assets.slides.jpeg_data import ADOBE, ends_early, hole_in, named_colorspace
from wsi_assets.slides.openslide_file import OpenSlideFile, damaged_tile, is_whole_start
from wsi_assets.slides.tiff_pages import COLORSPACES, JPEG, JPEG_2000, is_plain
from wsi_assets.slides.windows import Window, everywhere, tiles_over

_CACHE_BYTES = 48 << 20
_BLOCK = 512
_COMPARED = 128
"""Side of the part of a tile that is compared with OpenSlide: decoders differ in every JPEG block or in none,
and OpenSlide takes four times as long for a whole tile of 512 pixels."""
_END = b"\xff\xd9"


class TileLevel(Closing):
    """One level of a tiled TIFF, a context manager. Threads may share it; forked processes may not.

    Attributes:
        path, index: the slide, and the number of the level.
        width, height: size of the level in its own pixels.
        tile_height, tile_width: size of every tile; tiles at the right and bottom edge reach over the level.
        rows, cols: number of tiles.
        side: side of a square of whole tiles that is efficient to read at a time.
        by_tifffile: decode JPEG tiles with tifffile, as an independent check; it finds less damage.
    """

    def __init__(self, index: int, page: tifffile.TiffPage, slide: OpenSlideFile, *, owns_slide: bool):
        self.path, self.index = slide.path, index
        self.width, self.height = slide.sizes[index]
        self.tile_height, self.tile_width = page.tilelength, page.tilewidth
        self.rows, self.cols = -(-page.imagelength // page.tilelength), -(-page.imagewidth // page.tilewidth)
        longest = max(page.tilelength, page.tilewidth)
        self.side = longest * max(1, _BLOCK // longest)
        self._offsets, self._lengths = page.dataoffsets, page.databytecounts
        self._page, self._tables = page, page.jpegtables
        self.by_tifffile = False
        self._is_jpeg = page.compression == JPEG
        self._colorspace = COLORSPACES.get(page.photometric)
        self._slide, self._owns_slide, self._lock = slide, owns_slide, threading.Lock()
        self.keep(_CACHE_BYTES)
        self._file = self.path.open("rb", buffering=0)
        self._size = os.fstat(self._file.fileno()).st_size

    def keep(self, tiles: int) -> None:
        """Cache the last ``tiles`` decoded tiles, as far as memory allows."""
        most = _CACHE_BYTES // (self.tile_height * self.tile_width * 3)
        self._kept_tile = lru_cache(max(1, min(tiles, most)))(self.read_tile)

    def read_tile(self, row: int, col: int) -> np.ndarray | None:
        """A whole tile, uint8 (tile_height, tile_width, 3) RGB; None if the file does not hold it.

        Raises:
            SlideError: the tile is damaged or cannot be read.
        """
        data = self._read_bytes(row, col)
        if data is None:
            return None
        try:
            direct = self._is_jpeg and not self.by_tifffile
            return self._decode_jpeg(row, col, data) if direct else self._decode(row, col, data)
        except Exception as error:  # the codecs' error types differ between their versions
            fault = error.fault if isinstance(error, SlideError) else one_line(error)
            raise damaged_tile(self.path, self.index, row, col, fault) from error

    def read_window(self, y: int, x: int, height: int, width: int) -> Window:
        """A window inside the level, perhaps a view of a cached tile; errors as of :meth:`read_tile`."""
        row, top = divmod(y, self.tile_height)
        col, left = divmod(x, self.tile_width)
        if top + height <= self.tile_height and left + width <= self.tile_width:
            tile = self._kept_tile(row, col)
            if tile is not None:
                return tile[top : top + height, left : left + width], everywhere(True, height, width)
        pixels, present = np.empty((height, width, 3), np.uint8), np.ones((height, width), bool)
        for row, col, target, source in tiles_over(y, x, height, width, self.tile_height, self.tile_width):
            tile = self._kept_tile(row, col)
            if tile is None:
                pixels[target], present[target] = 255, False
            else:
                pixels[target] = tile[source]
        return pixels, present

    def jpeg_file(self, row: int, col: int) -> bytes | None:
        """A tile as a complete JPEG file, which image libraries decode to the tile's pixels.

        None if the tile is not a JPEG, is not in the file, or names another color space than the slide. The
        tile is not decoded, so damage is not found: :meth:`read_tile` finds it. Errors as there.
        """
        data = self._read_bytes(row, col)
        if not self._is_jpeg or data is None or data[:2] != b"\xff\xd8":
            return None
        segments = (self._tables[2:-2] if self._tables else b"") + data[2:]
        named = named_colorspace(segments)
        if named is None:
            # Without a marker libraries guess the color space.
            segments = ADOBE + (b"\1" if self._colorspace == "YCBCR" else b"\0") + segments
        return data[:2] + segments if named in (None, self._colorspace) else None

    def close(self) -> None:
        """Close the file."""
        self._kept_tile.cache_clear()
        self._file.close()
        self._page.parent.filehandle.close()
        if self._owns_slide:
            self._slide.close()

    def same_as_openslide(self) -> bool:
        """Whether parts of one or two tiles have exactly OpenSlide's pixels.

        Also True if OpenSlide does not have the level, or can read none of its tiles without blending.
        """
        if not self._slide.has_level(self.index):
            return True
        ratio = self._slide.downsamples[self.index]
        rows = [is_whole_start(row * self.tile_height, ratio) for row in range(self.rows)]
        cols = [is_whole_start(col * self.tile_width, ratio) for col in range(self.cols)]
        written = [
            at
            for at, (start, length) in enumerate(zip(self._offsets, self._lengths, strict=True))
            if min(start, length) > 0 and rows[at // self.cols] and cols[at % self.cols]
        ]
        # Decoders differ in detail, of which the tile with most bytes has most, and at the slide's edges.
        for number in {written[0], max(written, key=self._lengths.__getitem__)} if written else ():
            place = divmod(number, self.cols)
            try:
                tile, pixels = self.read_tile(*place), self._read_by_openslide(*place, side=_COMPARED)
            except SlideError:
                return False
            if not np.array_equal(tile[: pixels.shape[0], : pixels.shape[1]], pixels):
                return False
        return True

    def _decode_jpeg(self, row: int, col: int, data: bytes) -> np.ndarray:
        if hole := hole_in(data, self._tables):
            raise ValueError(hole)
        # TiffPage.decode would allocate whatever size damaged data claims; ``out`` refuses another size.
        tile = imagecodecs.jpeg8_decode(
            data,
            tables=self._tables,
            colorspace=self._colorspace,
            outcolorspace="RGB",
            out=np.empty((self.tile_height, self.tile_width, 3), np.uint8),
        )
        # libjpeg only warns if data ends early, and leaves the rest mid-gray; gray can also be padding.
        early = ends_early(data)
        if self._slide.has_level(self.index):
            if early or (tile[-8:, -8:] == 128).all():
                self._read_by_openslide(row, col)  # raises where this decoder only warns
        elif early:
            raise ValueError("it ends early")
        return tile

    def _decode(self, row: int, col: int, data: bytes) -> np.ndarray:
        """Decode a tile with tifffile, for compressions other than JPEG; Aperio's YCbCr as OpenSlide does."""
        if self._page.compression in JPEG_2000 and data.endswith(bytes(16)) and _END not in data[-64:]:
            raise ValueError("it has no end")
        if self._is_jpeg:  # tifffile then reads the file too
            self._page.parent.filehandle.open()
        found = self._page.decode(data, self._number(row, col), jpegtables=self._tables)[0]
        pixels = np.asarray(found)[0]
        ycbcr = JPEG_2000.get(self._page.compression, False)  # decoders do not convert it
        tile = np.zeros((self.tile_height, self.tile_width, 3), np.uint8)
        tile[: pixels.shape[0], : pixels.shape[1]] = _rgb_of(pixels) if ycbcr else pixels
        return tile

    def _read_bytes(self, row: int, col: int) -> bytes | None:
        number = self._number(row, col)
        offset, length = self._offsets[number], self._lengths[number]
        if offset <= 0 or length <= 0:
            return None
        # Reading a damaged length would allocate that much memory.
        if offset + length > self._size:
            raise damaged_tile(self.path, self.index, row, col, "the file ends before it")
        try:
            # By position, so that threads may share the file.
            return os.pread(self._file.fileno(), length, offset)
        except OSError as error:
            raise unreadable(self.path, error) from error

    def _read_by_openslide(self, row: int, col: int, side: int = 1 << 30) -> np.ndarray:
        y, x = row * self.tile_height, col * self.tile_width
        height, width = min(self.tile_height, self.height - y), min(self.tile_width, self.width - x)
        with self._lock:
            return self._slide.read_at_once(self.index, y, x, min(side, height), min(side, width))[0]

    def _number(self, row: int, col: int) -> int:
        if not (0 <= row < self.rows and 0 <= col < self.cols):
            raise IndexError(f"tile ({row}, {col}) is outside a grid of {self.rows} x {self.cols}")
        return row * self.cols + col


def open_tiles(
    path: str | Path, level: int, slide: OpenSlideFile | None = None, *, verified: bool = False
) -> TileLevel | None:
    """The tiles of one level, or None if decoding them directly may not give the same pixels as OpenSlide.

    The format must be one of those known (:func:`is_plain`), and one or two tiles of the level are compared
    with OpenSlide's pixels; a single difference gives None.

    Args:
        slide: the same file, already open; the caller closes it, after the tiles.
        verified: the level was compared before, so do not compare it.

    Raises:
        SlideError: the slide does not open, or has no such level.
    """
    used = slide or OpenSlideFile(Path(path))
    if not 0 <= level < len(used.sizes):
        raise SlideError(f"has levels 0 to {len(used.sizes) - 1}, not {level}", path=path)
    tiles = None
    # tifffile can raise anything on a damaged file; OpenSlide then reads the level.
    with contextlib.suppress(Exception):
        page = used.page_of(level)
        if page is not None and is_plain(page, used.vendor):
            tiles = TileLevel(level, page, used, owns_slide=slide is None)
    if tiles is not None and (verified or tiles.same_as_openslide()):
        return tiles
    if tiles is not None:
        tiles.close()
    if slide is None:
        used.close()
    return None


def _rgb_of(ycbcr: np.ndarray) -> np.ndarray:
    """Convert YCbCr, uint8 (h, w, 3), to RGB with OpenSlide's rounding."""
    y, cb, cr = (ycbcr[..., i].astype(np.int32) - (128 if i else 0) for i in range(3))
    green = np.rint(-0.34414 * 65536 * cb) + np.rint(-0.71414 * 65536 * cr) + 32768
    red, blue = np.rint(1.402 * cr), np.rint(1.772 * cb)
    rgb = np.stack([y + red, y + np.floor(green / 65536), y + blue], axis=-1)
    return np.clip(rgb, 0, 255).astype(np.uint8)
