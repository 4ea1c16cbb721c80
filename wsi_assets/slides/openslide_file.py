"""OpenSlide behind a small surface: what a file says of itself, and exact reads by a level's own pixels."""

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
from wsi_assets.slides.image_files import TIFF_STARTS
from wsi_assets.slides.jpeg_data import fault_of
from wsi_assets.slides.levels import odd_picture, reductions_to, true_levels
from wsi_assets.slides.listing import stat_or_none, unreadable
from wsi_assets.slides.tiff_pages import JPEG, Size, is_plain, is_sound, size_of
from wsi_assets.slides.windows import Window, tiles_over

# Each damaged tag would be a line of its own; what comes of the damage is one error of ours.
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
_MOST_AT_ONCE = 4096 - _MAX_BACK
"""OpenSlide reads 4096 pixels at a time, and begins the next at a level-0 pixel that it rounds."""
_ANY_PAGE_IS_A_LEVEL = {"generic-tiff", "aperio"}
"""Formats of which OpenSlide takes any tiled page for a level, a macro or label picture too."""


class OpenSlideFile(Closing):
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
        self._entry = entry_of(path)
        self._handle: openslide.OpenSlide | None = None
        self._sound: set[tuple[int, int]] = set()
        self._alone = contextlib.ExitStack()
        self._level_alone = lru_cache(None)(self._open_alone)
        self._blocks = lru_cache(_KEPT_BLOCKS)(self._read_block)
        handle = self._open()
        # A damaged name is listed, but not found.
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
        """Whether OpenSlide itself has the level; of another one only tiles can be read."""
        return self._numbers[level] is not None

    def page_of(self, level: int) -> tifffile.TiffPage | None:
        """The TIFF page that holds a level as one grid of tiles, None if there is none."""
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
        """The pages of a TIFF, up to the first that tifffile cannot parse; none of another format.

        Raises:
            SlideError: the file cannot be read.
        """
        pages: list[tifffile.TiffPage] = []
        if _is_tiff(self._entry):
            # A damaged page may be any error, and damage may link pages in a circle.
            with contextlib.suppress(Exception), tifffile.TiffFile(self._entry) as file:
                pages.extend(takewhile(is_sound, islice(file.pages, _MAX_TIFF_PAGES)))
        return pages

    def read(self, level: int, y: int, x: int, height: int, width: int) -> Window:
        """A window inside a level that OpenSlide has.

        OpenSlide places a window by level-0 coordinates over its own downsample and blends neighbors where
        that quotient is not whole. So the window is read from the nearest place above and left of it where
        it is, and cropped. A DICOM level with too few such places is opened as a slide of its own. Of such a
        level of another format (TIFF has its tiles) the window is put together from blocks at fixed places,
        so that at least a pixel does not depend on the window.

        Raises:
            SlideError: the read fails; the next one opens the slide again.
        """
        downsample = self.downsamples[level]
        if not blends(downsample, max(self.sizes[level])):
            if max(height, width) <= _MOST_AT_ONCE or downsample.is_integer():
                return self.read_at_once(level, y, x, height, width)
        elif alone := self._level_alone(level):
            return self._read_by(alone, 0, 1.0, y, x, height, width)
        pixels, present = np.empty((height, width, 3), np.uint8), np.empty((height, width), bool)
        for row, col, target, source in tiles_over(y, x, height, width, _BLOCK, _BLOCK):
            block, there = self._blocks(level, row, col)
            pixels[target], present[target] = block[source], there[source]
        return pixels, present

    def read_at_once(self, level: int, y: int, x: int, height: int, width: int) -> Window:
        """As :meth:`read`, by one read of OpenSlide's, blended or not (:func:`is_whole_start`)."""
        self._check_jpeg_tiles(level, y, x, height, width)
        number, downsample = self._numbers[level], self.downsamples[level]
        return self._read_by(self._open(), number, downsample, y, x, height, width)

    def close(self) -> None:
        """Let go of the file; a later read opens it again."""
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
        """A level of a DICOM slide as a slide of its own; None if it cannot be had so."""
        series = self.properties.get("dicom.SeriesInstanceUID")
        if self.vendor == "dicom":
            with contextlib.suppress(OSError, openslide.OpenSlideError):
                for file in volume_files(_members(self._entry.parent)):
                    if (file.series, file.size) == (series, self.sizes[level]):
                        # OpenSlide takes all files of a series that lie beside the one it is given, and opens
                        # the file by its path for each read.
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
        """Pages below the first one of a TIFF that are levels and can be read, the largest first."""
        if self.vendor != "generic-tiff" or len(sizes) > 1:
            return []
        with contextlib.suppress(Exception):  # whatever tifffile makes of damage: OpenSlide's level remains
            first = [size_of(page) for page in self.tiff_pages].index(sizes[0])
            with tifffile.TiffFile(self._entry) as file:
                below = [page for page in file.pages[first].pages or () if page.is_tiled and is_sound(page)]
            below = [page for page in below if reductions_to(sizes[0], size_of(page))]
            return sorted((page for page in below if is_plain(page, self.vendor)), key=size_of, reverse=True)
        return []

    def _tile_of(self, number: int) -> Size:
        width, height = (
            self.properties.get(f"openslide.level[{number}].tile-{side}") for side in ("width", "height")
        )
        return int(width or 1), int(height or 1)

    def _check_tiles(self, count: int) -> None:
        """Refuse tiles that cannot be: OpenSlide takes memory for one first, and ends the process without."""
        tiles = [self._tile_of(number) for number in range(count)]
        size = self._entry.stat().st_size
        pages = self.tiff_pages if self.vendor in _TILE_TABLES else []
        lengths = (page.databytecounts for page in pages if _TILE_LENGTHS in page.tags)
        if max(map(math.prod, tiles)) > _MAX_TILE_PIXELS or max(chain(*lengths), default=0) > size:
            raise SlideError(
                f"lists a larger tile than its {size} bytes can hold",
                path=self.path,
                remedy="The file is damaged or cut short; copy or scan it again",
            )

    def _check_jpeg_tiles(self, level: int, y: int, x: int, height: int, width: int) -> None:
        """Refuse a window over a JPEG tile with a hole, of which OpenSlide makes a wrong picture."""
        page = self.page_of(level)
        if page is None or page.compression != JPEG:
            return
        across = -(-page.imagewidth // page.tilewidth)
        with self._entry.open("rb", buffering=0) as stream:
            for row, col, _, _ in tiles_over(y, x, height, width, page.tilelength, page.tilewidth):
                number = row * across + col
                offset, length = page.dataoffsets[number], page.databytecounts[number]
                if (level, number) in self._sound or min(offset, length) <= 0:
                    continue
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
                    f"holds a tiled picture of {odd[0]} x {odd[1]} pixels that is no reduction of its first "
                    "page, perhaps a macro or label, for which OpenSlide refuses the file"
                )
            else:
                fault = "is not a slide OpenSlide knows" if size else "is empty (0 bytes)"
        remedy = "Copy it again, convert it to a tiled TIFF, or take it out of the images folder"
        return SlideError(fault, path=self.path, remedy=remedy)


@lru_cache(maxsize=4096)
def whole_start(position: int, downsample: float) -> tuple[int, int]:
    """(level pixel at or before ``position``, level-0 pixel) whose quotient by ``downsample`` is that pixel.

    "Is" to 1/512 pixel: the compositor under OpenSlide counts in 1/256. Where no place within 256 pixels is
    that good (a downsample like 2.00001), the best of them.
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
    return abs(round(position * downsample) / downsample - position) < _SUBPIXEL


@lru_cache(maxsize=4096)
def blends(downsample: float, side: int) -> bool:
    """Whether OpenSlide blends pixels of a level of this side, wherever a read of some of them begins."""
    starts = np.arange(side)
    whole = starts[np.abs(np.rint(starts * downsample) / downsample - starts) < _SUBPIXEL]
    return bool(np.diff(whole, append=side).max(initial=0) > _MAX_BACK)


def damaged_tile(path: Path, level: int, row: int, col: int, why: str) -> SlideError:
    """The error of a tile that is not read."""
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
    # numpy takes ten to forty times as long for the copies.
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
            "is a pipe, socket or device, no file", path=path, remedy="Take it out of the images folder"
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
        "is a folder without a DICOM slide", path=path, remedy="Name a slide file or a folder of .dcm files"
    )


def _members(folder: Path) -> list[Path]:
    """The regular files of a folder, hidden ones excepted, by name."""
    return sorted(file for file in folder.iterdir() if file.is_file() and not file.name.startswith("."))


def _is_tiff(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            return stream.read(4) in TIFF_STARTS
    except OSError as error:  # which OpenSlide takes for a file of a format it does not know
        raise unreadable(path, error) from error
