"""OpenSlide behind a small surface: what a file says of itself, and exact reads by a level's own pixels."""

from __future__ import annotations

import contextlib
import logging
import os
import stat
from collections.abc import Mapping
from functools import cached_property, lru_cache
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NoReturn

import numpy as np
import openslide
import tifffile

from wsi_assets.errors import SlideError, one_line
from wsi_assets.slides.dicom import volume_files
from wsi_assets.slides.jpeg_data import fault_of
from wsi_assets.slides.levels import Size, odd_picture, reductions_to, size_of, true_levels
from wsi_assets.slides.listing import stat_or_none
from wsi_assets.slides.naming import SLIDE_SUFFIXES

# Each damaged tag would be a line of its own; what comes of the damage is one error of ours.
logging.getLogger("tifffile").setLevel(logging.CRITICAL)

_CACHE_BYTES = 96 << 20
_MAX_TILE_PIXELS = 1 << 26
_MIN_TILE_BYTES = 6
_MAX_TIFF_PAGES = 1000
_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_TILE_TABLES = {"generic-tiff", "aperio", "philips"}
_SUBPIXEL = 1 / 512
_MAX_BACK = 256
_JPEG = 7
_BLOCK = 1024
_KEPT_BLOCKS = 16
_MOST_AT_ONCE = 4096 - _MAX_BACK
"""OpenSlide reads 4096 pixels at a time, and begins the next at a level-0 pixel that it rounds."""
_ANY_PAGE_IS_A_LEVEL = {"generic-tiff", "aperio"}
"""Formats of which OpenSlide takes any tiled page for a level, a macro or label picture too."""


class OpenSlideFile:
    """An open slide.

    Attributes:
        vendor, properties: OpenSlide's name for the format, and what the file says of itself.
        sizes: (width, height) of each level as stored, without pictures that are no levels and with those
            that a TIFF keeps below its first page (SubIFDs, as OME-TIFF does), which OpenSlide does not see.
        downsamples: what OpenSlide reports, which is right only for placing its own reads.
        bounds: (x, y, width, height) of the scanned area in level-0 pixels; None if that is all.
        notices: a line on each level that was left out.

    Raises:
        SlideError: the path is no slide that opens.
    """

    def __init__(self, path: Path):
        self.path = path
        self._entry = _entry_of(path)
        self._handle: openslide.OpenSlide | None = None
        self._jpeg_pages: dict[int, tifffile.TiffPage | None] = {}
        self._sound: set[tuple[int, int]] = set()
        self._alone: dict[int, openslide.OpenSlide | None] = {}
        self._folder: TemporaryDirectory | None = None
        self._lengths_checked = False
        self._blocks = lru_cache(_KEPT_BLOCKS)(self._read_block)
        handle = self._open()
        self.properties: Mapping[str, str] = _readable(handle.properties)
        self.vendor = self.properties.get(openslide.PROPERTY_NAME_VENDOR, "unknown")
        sizes, downsamples = tuple(handle.level_dimensions), tuple(handle.level_downsamples)
        try:
            self._check_tiles(sizes)
            self._sub_pages = self._find_sub_pages(sizes)
        except SlideError:
            self.close()
            raise
        numbers, self.notices = [*range(len(sizes))], ()
        if self.vendor in _ANY_PAGE_IS_A_LEVEL and len(sizes) > 1:
            numbers, self.notices = true_levels(sizes, self._tile_of, self.tiff_pages)
        below = [size_of(page) for page in self._sub_pages]
        self._numbers: tuple[int | None, ...] = (*numbers, *[None] * len(below))
        self.sizes: tuple[Size, ...] = (*(sizes[number] for number in numbers), *below)
        width, height = sizes[0]
        self.downsamples: tuple[float, ...] = (
            *(downsamples[number] for number in numbers),
            *((width / w + height / h) / 2 for w, h in below),
        )
        self.bounds = _bounds_of(self.properties, sizes[0])

    def has_level(self, level: int) -> bool:
        """Whether OpenSlide itself has the level."""
        return self._numbers[level] is not None

    def page_of(self, level: int) -> tifffile.TiffPage | None:
        """The TIFF page that holds a level as one grid of tiles, None if there is none.

        Raises:
            SlideError: the file cannot be read.
        """
        if not self.has_level(level):
            return self._sub_pages[level - len(self.sizes)]
        if self.vendor not in _TILE_TABLES:
            return None
        width, height = self.sizes[level]
        # Philips' pages are larger than the level, by less than a tile.
        fits = (
            page
            for page in self.tiff_pages
            if page.is_tiled
            and 0 <= page.imagewidth - width < (page.tilewidth if self.vendor == "philips" else 1)
            and 0 <= page.imagelength - height < (page.tilelength if self.vendor == "philips" else 1)
        )
        return next(fits, None)

    @cached_property
    def tiff_pages(self) -> list[tifffile.TiffPage]:
        """The pages of a TIFF, up to the first that tifffile cannot parse; none of another format.

        Raises:
            SlideError: the file cannot be read.
        """
        pages: list[tifffile.TiffPage] = []
        if _is_tiff(self._entry):
            # The end is an IndexError; a damaged page may be any other.
            with contextlib.suppress(Exception), tifffile.TiffFile(self._entry) as file:
                # One by one: the pages before a damaged one count, and damage may link pages in a circle.
                while len(pages) < _MAX_TIFF_PAGES:
                    page = file.pages[len(pages)]
                    if {*map(type, page.dataoffsets), *map(type, page.databytecounts)} - {int}:
                        break
                    pages.append(page)
        return pages

    def read(self, level: int, y: int, x: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """A window inside the level: uint8 (h, w, 3) RGB, and bool (h, w) where it has pixels; else white.

        OpenSlide places a window by level-0 coordinates over its own downsample and blends neighbours where
        that quotient is not whole. So the window is read from the nearest place above and left of it where
        the quotient is whole, and cropped. A DICOM level that has too few such places is opened as a slide of
        its own, where every place is whole. Of such a level of another format (TIFF has its tiles) the window
        is put together from blocks at fixed places, so that at least a pixel does not depend on the window;
        those not at a whole quotient are blended by ``0.5 / downsample`` pixels at most.

        Raises:
            SlideError: the read fails. The handle, which OpenSlide then refuses to use, is opened again by
                the next read, so that one bad place does not take the slide with it.
        """
        if not self.has_level(level):
            return self._read_sub_page(level, y, x, height, width)
        downsample = self.downsamples[level]
        if blends(downsample, max(self.sizes[level])):
            alone = self._open_alone(level)
            if alone is not None:
                return self._read_by(alone, level, 0, 1.0, y, x, height, width)
        elif max(height, width) <= _MOST_AT_ONCE or downsample.is_integer():
            return self.read_at_once(level, y, x, height, width)
        pixels, present = np.empty((height, width, 3), np.uint8), np.empty((height, width), bool)
        for top in range(y // _BLOCK * _BLOCK, y + height, _BLOCK):
            for left in range(x // _BLOCK * _BLOCK, x + width, _BLOCK):
                block, there = self._blocks(level, top, left)
                y0, y1 = max(y, top), min(y + height, top + block.shape[0])
                x0, x1 = max(x, left), min(x + width, left + block.shape[1])
                target = slice(y0 - y, y1 - y), slice(x0 - x, x1 - x)
                source = slice(y0 - top, y1 - top), slice(x0 - left, x1 - left)
                pixels[target], present[target] = block[source], there[source]
        return pixels, present

    def read_at_once(
        self, level: int, y: int, x: int, height: int, width: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """As :meth:`read`, by one read of OpenSlide's, blended or not (:func:`is_whole_start`)."""
        if not self._lengths_checked:
            self._check_lengths()
        self._check_holes(level, y, x, height, width)
        number, downsample = self._numbers[level], self.downsamples[level]
        return self._read_by(self._open(), level, number, downsample, y, x, height, width)

    def close(self) -> None:
        """Let go of the file; a later read opens it again."""
        self._blocks.cache_clear()
        for alone in self._alone.values():
            if alone is not None:
                alone.close()
        self._alone.clear()
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None
        if self._handle is not None:
            self._handle.close()
            self._handle = None

    def _read_block(self, level: int, top: int, left: int) -> tuple[np.ndarray, np.ndarray]:
        width, height = self.sizes[level]
        high, wide = min(_BLOCK, height - top), min(_BLOCK, width - left)
        return self.read_at_once(level, top, left, high, wide)

    def _read_by(
        self,
        handle: openslide.OpenSlide,
        level: int,
        number: int,
        downsample: float,
        y: int,
        x: int,
        height: int,
        width: int,
    ) -> tuple[np.ndarray, np.ndarray]:
        top, y0 = whole_start(y, downsample)
        left, x0 = whole_start(x, downsample)
        try:
            image = handle.read_region((x0, y0), number, (x - left + width, y - top + height))
        except openslide.OpenSlideError as error:
            self.close()
            raise SlideError(
                f"does not read at level {level}, row {y}, column {x} ({one_line(error)})",
                path=self.path,
                remedy="The file is damaged; copy or scan it again",
            ) from error
        rgba = np.asarray(image)[y - top :, x - left :]
        return _over_white(rgba)

    def _open_alone(self, level: int) -> openslide.OpenSlide | None:
        """A level of a DICOM slide as a slide of its own; None if it cannot be had so."""
        if self.vendor == "dicom" and level not in self._alone:
            self._alone[level] = None
            with contextlib.suppress(OSError, StopIteration, openslide.OpenSlideError):
                series = self.properties.get("dicom.SeriesInstanceUID")
                file = next(
                    file
                    for file in volume_files(_members(self._entry.parent))
                    if (file.series, file.size) == (series, self.sizes[level])
                )
                # OpenSlide takes all files of a series that lie beside the one it is given, and opens the
                # file by its path for each read.
                self._folder = self._folder or TemporaryDirectory(prefix="dicom-level-")
                place = Path(self._folder.name, str(level), "level.dcm")
                place.parent.mkdir()
                place.symlink_to(file.path.absolute())
                handle = openslide.OpenSlide(place)
                if handle.level_dimensions == (self.sizes[level],):
                    handle.set_cache(openslide.OpenSlideCache(_CACHE_BYTES))
                    self._alone[level] = handle
                else:
                    handle.close()
        return self._alone.get(level)

    def _read_sub_page(
        self, level: int, y: int, x: int, height: int, width: int
    ) -> tuple[np.ndarray, np.ndarray]:
        from wsi_assets.slides.tiff_tiles import open_tiles

        with open_tiles(self.path, level, self) as tiles:
            return tiles.read_window(y, x, height, width)

    def _find_sub_pages(self, sizes: tuple[Size, ...]) -> list[tifffile.TiffPage]:
        """Pages below the first one of a TIFF that are levels and can be read, the largest first."""
        if self.vendor != "generic-tiff" or len(sizes) > 1:
            return []
        from wsi_assets.slides.tiff_tiles import is_plain

        with contextlib.suppress(Exception):  # whatever tifffile makes of damage: OpenSlide's level remains
            first = [size_of(page) for page in self.tiff_pages].index(sizes[0])
            with tifffile.TiffFile(self._entry) as file:
                below = [page for page in file.pages[first].pages or () if page.is_tiled]
            below = [page for page in below if reductions_to(sizes[0], size_of(page))]
            return sorted((page for page in below if is_plain(page, self.vendor)), key=size_of, reverse=True)
        return []

    def _tile_of(self, number: int) -> tuple[int, int]:
        width, height = (
            self.properties.get(f"openslide.level[{number}].tile-{side}") for side in ("width", "height")
        )
        return int(width or 1), int(height or 1)

    def _check_tiles(self, sizes: tuple[Size, ...]) -> None:
        """Refuse tiles that cannot be: OpenSlide takes memory for one before it reads it, ending the process
        where there is none; and a damaged width can claim more glass than anybody waits for.

        A TIFF lists each tile's place and length, in six bytes at the least, also of tiles never written.
        """
        listed = 0
        for number, (width, height) in enumerate(sizes):
            wide, high = self._tile_of(number)
            if wide * high > _MAX_TILE_PIXELS:
                self._refuse(f"has tiles of {wide} x {high} pixels at level {number}")
            if wide * high > 1:
                listed += -(-width // wide) * -(-height // high)
        if self.vendor in _TILE_TABLES and listed * _MIN_TILE_BYTES > self._size():
            self._refuse(f"is too short to list its {listed} tiles")

    def _check_lengths(self) -> None:
        """Refuse a TIFF with a tile longer than the file: OpenSlide takes memory for all of it, as above."""
        # Hamamatsu writes lengths in its own way.
        if self.vendor != "hamamatsu":
            size = self._size()
            # Where the tag is missing tifffile makes up a length.
            listed = (page.databytecounts for page in self.tiff_pages if 279 in page.tags or 325 in page.tags)
            longest = max(chain(*listed), default=0)
            if longest > size:
                self._refuse(f"lists a tile of {longest} bytes, more than the {size} of the whole file")
        self._lengths_checked = True

    def _check_holes(self, level: int, y: int, x: int, height: int, width: int) -> None:
        """Refuse a window over a JPEG tile with a hole, of which OpenSlide makes a wrong picture."""
        page = self._jpeg_page(level)
        if page is None:
            return
        high, wide, across = page.tilelength, page.tilewidth, -(-page.imagewidth // page.tilewidth)
        with self._entry.open("rb", buffering=0) as stream:
            for row in range(y // high, (y + height - 1) // high + 1):
                for col in range(x // wide, (x + width - 1) // wide + 1):
                    number = row * across + col
                    offset, length = page.dataoffsets[number], page.databytecounts[number]
                    if (level, number) in self._sound or min(offset, length) <= 0:
                        continue
                    if fault := fault_of(os.pread(stream.fileno(), length, offset), page.jpegtables):
                        raise SlideError(
                            f"tile at row {row}, column {col} of level {level} is damaged ({fault})",
                            path=self.path,
                            remedy="Copy or scan the slide again",
                        )
                    self._sound.add((level, number))

    def _jpeg_page(self, level: int) -> tifffile.TiffPage | None:
        if level not in self._jpeg_pages:
            page = self.page_of(level)
            tiles = 0
            if page is not None:
                tiles = -(-page.imagewidth // page.tilewidth) * -(-page.imagelength // page.tilelength)
            known = page is not None and page.compression == _JPEG and len(page.dataoffsets) == tiles
            self._jpeg_pages[level] = page if known else None
        return self._jpeg_pages[level]

    def _size(self) -> int:
        found = stat_or_none(self._entry)
        return found.st_size if found else 0

    def _refusal(self, error: Exception) -> SlideError:
        """Why OpenSlide does not open the file."""
        remedy = "Copy it again, convert it to a tiled TIFF, or take it out of the images folder"
        if not isinstance(error, openslide.OpenSlideUnsupportedFormatError):
            return SlideError(f"does not open ({one_line(error)})", path=self.path, remedy=remedy)
        size = self._size()
        parts = chain(*(zip(page.dataoffsets, page.databytecounts, strict=False) for page in self.tiff_pages))
        if _is_tiff(self._entry) and (not self.tiff_pages or any(sum(part) > size for part in parts)):
            self._refuse(f"is a TIFF that ends, after {size} bytes, before its pages do")
        if odd := odd_picture(self.tiff_pages):
            return SlideError(
                f"holds a tiled picture of {odd[0]} x {odd[1]} pixels that is no reduction of its first "
                "page, perhaps a macro or label, for which OpenSlide refuses the file",
                path=self.path,
                remedy="Write the slide again without that picture",
            )
        fault = "is empty (0 bytes)" if size == 0 else "is not a slide OpenSlide knows"
        return SlideError(fault, path=self.path, remedy=remedy)

    def _refuse(self, fault: str) -> NoReturn:
        raise SlideError(
            fault, path=self.path, remedy="The file is damaged or cut short; copy or scan it again"
        )

    def _open(self) -> openslide.OpenSlide:
        if self._handle is None:
            try:
                handle = openslide.OpenSlide(self._entry)
            except (openslide.OpenSlideError, OSError) as error:
                raise self._refusal(error) from error
            handle.set_cache(openslide.OpenSlideCache(_CACHE_BYTES))
            self._handle = handle
        return self._handle


def _readable(properties: Mapping[str, str]) -> dict[str, str]:
    """The properties that can be had: a damaged name that is no text is listed, but not found."""
    found = {}
    for name in properties:
        with contextlib.suppress(KeyError):
            found[name] = properties[name]
    return found


@lru_cache(maxsize=4096)
def whole_start(position: int, downsample: float) -> tuple[int, int]:
    """(level pixel at or before ``position``, level-0 pixel) whose quotient by ``downsample`` is that pixel.

    "Is" to 1/512 pixel: the compositor under OpenSlide counts in 1/256. Where no place within 256 pixels is
    that good (a downsample like 2.00001, of a level with an odd row dropped), the best of them; it is off by
    ``0.5 / downsample`` pixels at most, and the read blended by as much.
    """
    best = (1.0, 0, 0)
    for start in range(position, max(-1, position - _MAX_BACK), -1):
        base = round(start * downsample)
        off = abs(base / downsample - start)
        if off < _SUBPIXEL:
            return start, base
        best = min(best, (off, start, base))
    return best[1:]


def is_whole_start(position: int, downsample: float) -> bool:
    """Whether OpenSlide can read from this pixel of a level on without blending."""
    start, base = whole_start(position, downsample)
    return start == position and abs(base / downsample - start) < _SUBPIXEL


@lru_cache(maxsize=4096)
def blends(downsample: float, side: int) -> bool:
    """Whether OpenSlide blends pixels of a level of this side, wherever a read of some of them begins."""
    starts = np.arange(side)
    whole = starts[np.abs(np.rint(starts * downsample) / downsample - starts) < _SUBPIXEL]
    return bool(np.diff(whole, append=side).max(initial=0) > _MAX_BACK)


def _bounds_of(properties: Mapping[str, str], size: tuple[int, int]) -> tuple[int, int, int, int] | None:
    try:
        x, y, width, height = (
            int(float(properties[f"openslide.bounds-{name}"])) for name in ("x", "y", "width", "height")
        )
    except (KeyError, ValueError, OverflowError):
        return None
    return None if (x, y, width, height) == (0, 0, *size) else (x, y, width, height)


def _over_white(rgba: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    alpha = rgba[..., 3]
    present = alpha > 0
    if alpha.min(initial=255) == 255:
        return np.ascontiguousarray(rgba[..., :3]), present
    share = alpha[..., None].astype(np.uint16)
    mixed = (rgba[..., :3] * share + 255 * (255 - share) + 127) // 255
    return mixed.astype(np.uint8), present


def _entry_of(path: Path) -> Path:
    """The file to give OpenSlide: the path itself, or one file of a DICOM folder."""
    found = stat_or_none(path)
    if found is None:
        raise SlideError("does not exist", path=path, remedy="Check the path, or that its disk is mounted")
    if not stat.S_ISDIR(found.st_mode) and not stat.S_ISREG(found.st_mode):
        raise SlideError(
            "is a pipe, socket or device, no file", path=path, remedy="Take it out of the images folder"
        )
    if stat.S_ISDIR(found.st_mode):
        try:
            members = _members(path)
            volumes = volume_files(members)
        except OSError as error:
            raise SlideError(
                f"cannot be read ({error.strerror})", path=path, remedy="Check its permissions"
            ) from error
        if len({file.series for file in volumes}) > 1:
            raise SlideError(
                f"holds {len({file.series for file in volumes})} DICOM series, so more than one slide",
                path=path,
                remedy="Give each series a folder of its own",
            )
        for member in [*(file.path for file in volumes), *members]:
            if openslide.OpenSlide.detect_format(member) == "dicom":
                return member
        for member in members:
            _check_reads(member)
        raise SlideError(
            "is a folder without a DICOM slide",
            path=path,
            remedy=f"Name a file ({' '.join(sorted(SLIDE_SUFFIXES))}) or a folder of .dcm files",
        )
    return path


def _members(folder: Path) -> list[Path]:
    """The regular files of a folder, hidden ones excepted, by name."""
    return sorted(file for file in folder.iterdir() if file.is_file() and not file.name.startswith("."))


def _check_reads(path: Path) -> None:
    """Refuse a file that may not be read, which OpenSlide takes for one of a format it does not know."""
    try:
        with path.open("rb") as stream:
            stream.read(1)
    except OSError as error:
        raise SlideError(
            f"cannot be read ({error.strerror or error})",
            path=path,
            remedy="Check its permissions and its disk",
        ) from error


def _is_tiff(path: Path) -> bool:
    _check_reads(path)
    with path.open("rb") as stream:
        return stream.read(4) in _TIFF_STARTS
