"""A slide file opened with OpenSlide: its properties and levels, and exact reads in a level's own pixels."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import stat
from collections.abc import Mapping
from functools import cached_property, lru_cache
from itertools import chain, islice, takewhile
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np
import openslide
import tifffile

from wsi_assets.errors import SlideError, one_line
from wsi_assets.slides.closing import Closing
from wsi_assets.slides.dicom import volume_files
from wsi_assets.slides.file_access import stat_or_none, unreadable
from wsi_assets.slides.image_files import TIFF_STARTS
from wsi_assets.slides.jpeg_data import fault_of
from wsi_assets.slides.levels import odd_picture, reductions_to, true_levels
from wsi_assets.slides.tiff_pages import JPEG, Size, has_numbers, is_plain, lists_its_tiles, size_of
from wsi_assets.slides.windows import Window, tiles_over

# tifffile would log a line for each damaged tag; damage is reported once, as a SlideError.
logging.getLogger("tifffile").setLevel(logging.CRITICAL)

_CACHE_BYTES = 96 << 20
_MAX_TILE_PIXELS = 1 << 26
_MAX_TIFF_PAGES = 1000
_TILE_TABLES = {"generic-tiff", "aperio", "philips"}
_SUBPIXEL = 1 / 512
_MAX_BACK = 256
_TILE_LENGTHS = 325
_BLOCK = 1024
_KEPT_BLOCKS = 16
_MAX_AT_ONCE = 4096 - _MAX_BACK
"""Largest window that one OpenSlide read gives exactly: it splits reads at 4096 pixels, and rounds the
level-0 pixel where each part begins."""
_ANY_PAGE_IS_A_LEVEL = {"generic-tiff", "aperio"}
"""Formats in which OpenSlide takes any tiled page for a level, also a macro or label image."""


class OpenSlideFile(Closing):
    """An open slide.

    Attributes:
        vendor, properties: OpenSlide's name for the format, and its properties.
        sizes: (width, height) of each level as stored. Macro and label images that OpenSlide takes for levels
            are left out; levels in SubIFDs (as in OME-TIFF), which OpenSlide does not see, are added.
        downsamples: as OpenSlide reports them; they place its reads, but may differ from the true scale.
        bounds: (x, y, width, height) of the scanned area in level-0 pixels; None if that is the whole slide.
        notices: a line on each image that is not a level.

    Raises:
        SlideError: the file is not a slide that OpenSlide opens.
    """

    def __init__(self, path: Path):
        self.path = path
        self._entry = entry_of(path)
        self._handle: openslide.OpenSlide | None = None
        self._sound: set[tuple[int, int]] = set()
        self._alone = contextlib.ExitStack()
        self._level_alone = lru_cache(None)(self._open_alone)
        self._blocks = lru_cache(_KEPT_BLOCKS)(self._read_block)
        handle = self._open()
        # OpenSlide lists a property with a damaged name, but does not find it.
        self.properties = {name: handle.properties.get(name, "") for name in handle.properties}
        self.vendor = self.properties.get(openslide.PROPERTY_NAME_VENDOR, "unknown")
        sizes, downsamples = tuple(handle.level_dimensions), tuple(handle.level_downsamples)
        try:
            self._check_tiles(len(sizes))
        except SlideError:
            self.close()
            raise
        self._sub_pages = self._find_sub_pages(sizes)
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
        """Whether OpenSlide has the level; a level in a SubIFD is read by its tiles only."""
        return self._numbers[level] is not None

    def page_of(self, level: int) -> tifffile.TiffPage | None:
        """The tiled TIFF page that holds a level, None if there is none."""
        if not self.has_level(level):
            return self._sub_pages[level - len(self.sizes)]
        if self.vendor not in _TILE_TABLES:
            return None
        width, height = self.sizes[level]
        for page in self.tiff_pages:
            # Philips' pages are larger than the level, by less than a tile.
            wide, high = (page.tilewidth, page.tilelength) if self.vendor == "philips" else (1, 1)
            over = page.imagewidth - width, page.imagelength - height
            if page.is_tiled and 0 <= over[0] < wide and 0 <= over[1] < high:
                return page
        return None

    @cached_property
    def tiff_pages(self) -> list[tifffile.TiffPage]:
        """The pages of a TIFF up to the first that tifffile cannot parse; empty for other formats.

        Raises:
            SlideError: the file cannot be read.
        """
        pages: list[tifffile.TiffPage] = []
        if _is_tiff(self._entry):
            # A damaged page can raise any error, and damage can link pages in a circle.
            with contextlib.suppress(Exception), tifffile.TiffFile(self._entry) as file:
                pages.extend(takewhile(has_numbers, islice(file.pages, _MAX_TIFF_PAGES)))
        return pages

    def read(self, level: int, y: int, x: int, height: int, width: int) -> Window:
        """A window inside a level that OpenSlide has, (y, x) of its corner in pixels of the level.

        OpenSlide divides the level-0 coordinates of a window by its own downsample, and blends neighboring
        pixels if the result is not a whole number. So the read begins at the nearest whole pixel above and to
        the left, and is cropped. A DICOM level with too few whole pixels is opened as a slide of its own. A
        level of another format with too few is read in blocks at fixed positions, so that a pixel at least
        does not depend on the window.

        Raises:
            SlideError: the read fails. The next read opens the slide again.
        """
        downsample = self.downsamples[level]
        if not blends(downsample, max(self.sizes[level])):
            if max(height, width) <= _MAX_AT_ONCE or downsample.is_integer():
                return self.read_at_once(level, y, x, height, width)
        elif alone := self._level_alone(level):
            return self._read_by(alone, 0, 1.0, y, x, height, width)
        pixels, present = np.empty((height, width, 3), np.uint8), np.empty((height, width), bool)
        for row, col, target, source in tiles_over(y, x, height, width, _BLOCK, _BLOCK):
            block, there = self._blocks(level, row, col)
            pixels[target], present[target] = block[source], there[source]
        return pixels, present

    def read_at_once(self, level: int, y: int, x: int, height: int, width: int) -> Window:
        """As :meth:`read`, with one OpenSlide read, which may blend pixels (:func:`is_whole_start`)."""
        self._check_jpeg_tiles(level, y, x, height, width)
        number, downsample = self._numbers[level], self.downsamples[level]
        return self._read_by(self._open(), number, downsample, y, x, height, width)

    def close(self) -> None:
        """Close the file; a later read opens it again."""
        self._blocks.cache_clear()
        self._level_alone.cache_clear()
        self._alone.close()
        if self._handle is not None:
            self._handle.close()
            self._handle = None

    def _open(self) -> openslide.OpenSlide:
        if self._handle is None:
            try:
                handle = openslide.OpenSlide(self._entry)
            except (openslide.OpenSlideError, OSError) as error:
                raise self._refusal(error) from error
            handle.set_cache(openslide.OpenSlideCache(_CACHE_BYTES))
            self._handle = handle
        return self._handle

    def _open_alone(self, level: int) -> openslide.OpenSlide | None:
        """A level of a DICOM slide, opened as a slide of its own; None if that is not possible."""
        series = self.properties.get("dicom.SeriesInstanceUID")
        if self.vendor == "dicom":
            with contextlib.suppress(OSError, openslide.OpenSlideError):
                for file in volume_files(_members(self._entry.parent)):
                    if (file.series, file.size) == (series, self.sizes[level]):
                        # OpenSlide opens all files of the series in the same folder, and opens the file by
                        # its path at each read, so the link must stay.
                        folder = self._alone.enter_context(TemporaryDirectory(prefix="dicom-level-"))
                        place = Path(folder, "level.dcm")
                        place.symlink_to(file.path.absolute())
                        return self._alone.enter_context(openslide.OpenSlide(place))
        return None

    def _read_block(self, level: int, row: int, col: int) -> Window:
        (width, height), top, left = self.sizes[level], row * _BLOCK, col * _BLOCK
        return self.read_at_once(level, top, left, min(_BLOCK, height - top), min(_BLOCK, width - left))

    def _read_by(
        self,
        handle: openslide.OpenSlide,
        number: int,
        downsample: float,
        y: int,
        x: int,
        height: int,
        width: int,
    ) -> Window:
        (top, y0), (left, x0) = whole_start(y, downsample), whole_start(x, downsample)
        try:
            image = handle.read_region((x0, y0), number, (x - left + width, y - top + height))
        except openslide.OpenSlideError as error:
            self.close()
            raise SlideError(
                f"does not read at row {y}, column {x} of a level ({one_line(error)})",
                path=self.path,
                remedy="The file is damaged; copy or scan it again",
            ) from error
        return _over_white(np.asarray(image)[y - top :, x - left :])

    def _find_sub_pages(self, sizes: tuple[Size, ...]) -> list[tifffile.TiffPage]:
        """The SubIFD pages of a TIFF that are levels and can be read, the largest first."""
        if self.vendor != "generic-tiff" or len(sizes) > 1:
            return []
        with contextlib.suppress(Exception):  # damage can raise any error; OpenSlide's level remains
            first = [size_of(page) for page in self.tiff_pages].index(sizes[0])
            with tifffile.TiffFile(self._entry) as file:
                below = [page for page in file.pages[first].pages or () if has_numbers(page)]
            below = [page for page in below if page.is_tiled and reductions_to(sizes[0], size_of(page))]
            return sorted((page for page in below if is_plain(page, self.vendor)), key=size_of, reverse=True)
        return []

    def _tile_of(self, number: int) -> Size:
        width, height = (
            self.properties.get(f"openslide.level[{number}].tile-{side}") for side in ("width", "height")
        )
        return int(width or 1), int(height or 1)

    def _check_tiles(self, count: int) -> None:
        """Refuse impossible tile sizes, and a picture that is larger than its list of tiles.

        OpenSlide aborts the process if it cannot allocate a tile, and would read the picture for minutes.
        """
        tiles = [self._tile_of(number) for number in range(count)]
        size, fault = self._entry.stat().st_size, None
        pages = self.tiff_pages if self.vendor in _TILE_TABLES else []
        lengths = (page.databytecounts for page in pages if _TILE_LENGTHS in page.tags)
        if max(map(math.prod, tiles)) > _MAX_TILE_PIXELS or max(chain(*lengths), default=0) > size:
            fault = f"lists a larger tile than its {size} bytes can hold"
        elif not all(map(lists_its_tiles, pages)):
            fault = "lists fewer tiles than its size takes"
        if fault:
            raise SlideError(
                fault, path=self.path, remedy="The file is damaged or cut short; copy or scan it again"
            )

    def _check_jpeg_tiles(self, level: int, y: int, x: int, height: int, width: int) -> None:
        """Refuse a window over a JPEG tile with a hole, which OpenSlide would decode to wrong pixels."""
        page = self.page_of(level)
        if page is None or page.compression != JPEG:
            return
        across = -(-page.imagewidth // page.tilewidth)
        with self._entry.open("rb", buffering=0) as stream:
            end = os.fstat(stream.fileno()).st_size
            for row, col, _, _ in tiles_over(y, x, height, width, page.tilelength, page.tilewidth):
                number = row * across + col
                offset, length = page.dataoffsets[number], page.databytecounts[number]
                if (level, number) in self._sound or min(offset, length) <= 0:
                    continue
                if offset + length > end:
                    raise damaged_tile(self.path, level, row, col, "the file ends before it")
                if fault := fault_of(os.pread(stream.fileno(), length, offset), page.jpegtables):
                    raise damaged_tile(self.path, level, row, col, fault)
                self._sound.add((level, number))

    def _refusal(self, error: Exception) -> SlideError:
        """Why OpenSlide does not open the file."""
        fault, size = f"does not open ({one_line(error)})", self._entry.stat().st_size
        if isinstance(error, openslide.OpenSlideUnsupportedFormatError):
            ends = (
                sum(part)
                for page in self.tiff_pages
                for part in zip(page.dataoffsets, page.databytecounts, strict=False)
            )
            if _is_tiff(self._entry) and (not self.tiff_pages or max(ends, default=0) > size):
                fault = f"is a TIFF that ends, after {size} bytes, before its pages do: it was cut short"
            elif odd := odd_picture(self.tiff_pages):
                fault = (
                    f"holds a tiled image of {odd[0]} x {odd[1]} pixels that is not a reduction of its first "
                    "page, perhaps a macro or label, so OpenSlide refuses the file"
                )
            else:
                fault = "is not of a slide format that OpenSlide reads" if size else "is empty (0 bytes)"
        remedy = "Copy it again, convert it to a tiled TIFF, or take it out of the slide folder"
        return SlideError(fault, path=self.path, remedy=remedy)


@lru_cache(maxsize=4096)
def whole_start(position: int, downsample: float) -> tuple[int, int]:
    """Where an OpenSlide read can begin without blending: (pixel of the level, level-0 pixel).

    It is the last level pixel at or before ``position`` that some level-0 pixel divided by ``downsample``
    meets to within 1/512 pixel (cairo, with which OpenSlide draws, counts in 1/256). If none of the 256
    pixels before is that close (as with a downsample of 2.00001), it is the closest.
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
    """Whether an OpenSlide read that begins at this pixel of a level is not blended."""
    return abs(round(position * downsample) / downsample - position) < _SUBPIXEL


@lru_cache(maxsize=4096)
def blends(downsample: float, side: int) -> bool:
    """Whether a level of ``side`` pixels has parts that OpenSlide blends wherever the read begins."""
    starts = np.arange(side)
    whole = starts[np.abs(np.rint(starts * downsample) / downsample - starts) < _SUBPIXEL]
    return bool(np.diff(whole, append=side).max(initial=0) > _MAX_BACK)


def damaged_tile(path: Path, level: int, row: int, col: int, why: str) -> SlideError:
    """The error of a damaged tile."""
    return SlideError(
        f"tile at row {row}, column {col} of level {level} is damaged ({why})",
        path=path,
        remedy="Copy or scan the slide again",
    )


def _bounds_of(properties: Mapping[str, str], size: Size) -> tuple[int, int, int, int] | None:
    try:
        x, y, width, height = (
            int(float(properties[f"openslide.bounds-{name}"])) for name in ("x", "y", "width", "height")
        )
    except (KeyError, ValueError, OverflowError):
        return None
    return None if (x, y, width, height) == (0, 0, *size) else (x, y, width, height)


def _over_white(rgba: np.ndarray) -> Window:
    # NumPy copies take ten to forty times as long.
    pixels, alpha = cv2.cvtColor(rgba, cv2.COLOR_RGBA2RGB), cv2.extractChannel(rgba, 3)
    present = alpha > 0
    if alpha.min(initial=255) == 255:
        return pixels, present
    if (present == (alpha == 255)).all():  # tiles that were never written
        return cv2.bitwise_or(pixels, cv2.cvtColor(cv2.bitwise_not(alpha), cv2.COLOR_GRAY2RGB)), present
    share = alpha[..., None].astype(np.uint16)
    mixed = (pixels * share + 255 * (255 - share) + 127) // 255
    return mixed.astype(np.uint8), present


def entry_of(path: Path) -> Path:
    """The file to give OpenSlide: the path itself, or one file of a DICOM folder."""
    found = stat_or_none(path)
    if found is None:
        raise SlideError("does not exist", path=path, remedy="Check the path, or that its disk is mounted")
    if stat.S_ISREG(found.st_mode):
        return path
    if not stat.S_ISDIR(found.st_mode):
        raise SlideError(
            "is a pipe, socket or device instead of a file",
            path=path,
            remedy="Take it out of the slide folder",
        )
    try:
        members = _members(path)
        volumes = volume_files(members)
    except OSError as error:
        raise unreadable(path, error) from error
    series = {file.series for file in volumes}
    if len(series) > 1:
        raise SlideError(
            f"holds {len(series)} DICOM series, so more than one slide",
            path=path,
            remedy="Give each series a folder of its own",
        )
    for member in [*(file.path for file in volumes), *members]:
        if openslide.OpenSlide.detect_format(member) == "dicom":
            return member
    raise SlideError(
        "is a folder without a DICOM slide", path=path, remedy="Give a slide file or a folder of .dcm files"
    )


def _members(folder: Path) -> list[Path]:
    """The regular files of a folder, hidden ones excepted, by name."""
    return sorted(file for file in folder.iterdir() if file.is_file() and not file.name.startswith("."))


def _is_tiff(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            return stream.read(4) in TIFF_STARTS
    except OSError as error:  # OpenSlide would report an unknown format
        raise unreadable(path, error) from error
