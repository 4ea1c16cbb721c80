"""OpenSlide behind a small surface: what a file says of itself, and exact reads by a level's own pixels."""

from __future__ import annotations

import contextlib
import logging
import stat
from collections.abc import Mapping
from functools import cached_property, lru_cache
from itertools import chain
from pathlib import Path
from typing import NoReturn

import numpy as np
import openslide
import tifffile

from wsi_assets.errors import SlideError, one_line
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


class OpenSlideFile:
    """An open slide.

    ``vendor``; ``properties``; ``sizes``: (width, height) of each level as stored; ``downsamples``: what
    OpenSlide reports, which is right only for placing its own reads.

    Raises:
        SlideError: the path is no slide that opens.
    """

    def __init__(self, path: Path):
        self.path = path
        self._entry = _entry_of(path)
        self._handle: openslide.OpenSlide | None = None
        self._lengths_checked = False
        handle = self._open()
        self.properties: Mapping[str, str] = _readable(handle.properties)
        self.vendor = self.properties.get(openslide.PROPERTY_NAME_VENDOR, "unknown")
        self.sizes: tuple[tuple[int, int], ...] = tuple(handle.level_dimensions)
        self.downsamples: tuple[float, ...] = tuple(handle.level_downsamples)
        try:
            self._check_tiles()
        except SlideError:
            self.close()
            raise

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
        the quotient is whole, and cropped.

        Raises:
            SlideError: the read fails. The handle, which OpenSlide then refuses to use, is opened again by
                the next read, so that one bad place does not take the slide with it.
        """
        if not self._lengths_checked:
            self._check_lengths()
        downsample = self.downsamples[level]
        top, y0 = whole_start(y, downsample)
        left, x0 = whole_start(x, downsample)
        try:
            image = self._open().read_region((x0, y0), level, (x - left + width, y - top + height))
        except openslide.OpenSlideError as error:
            self.close()
            raise SlideError(
                f"does not read at level {level}, row {y}, column {x} ({one_line(error)})",
                path=self.path,
                remedy="The file is damaged; copy or scan it again",
            ) from error
        rgba = np.asarray(image)[y - top :, x - left :]
        return _over_white(rgba)

    def close(self) -> None:
        """Let go of the file; a later read opens it again."""
        if self._handle is not None:
            self._handle.close()
            self._handle = None

    def _check_tiles(self) -> None:
        """Refuse tiles that cannot be: OpenSlide takes memory for one before it reads it, ending the process
        where there is none; and a damaged width can claim more glass than anybody waits for.

        A TIFF lists each tile's place and length, in six bytes at the least, also of tiles never written.
        """
        listed = 0
        for level, (width, height) in enumerate(self.sizes):
            named = (
                self.properties.get(f"openslide.level[{level}].tile-{side}") for side in ("width", "height")
            )
            wide, high = (int(side or 0) for side in named)
            if wide * high > _MAX_TILE_PIXELS:
                self._refuse(f"has tiles of {wide} x {high} pixels at level {level}")
            if wide and high:
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
    if stat.S_ISDIR(found.st_mode):
        try:
            members = sorted(
                file for file in path.iterdir() if file.is_file() and not file.name.startswith(".")
            )
        except OSError as error:
            raise SlideError(
                f"cannot be listed ({error.strerror})", path=path, remedy="Check its permissions"
            ) from error
        for member in members:
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
