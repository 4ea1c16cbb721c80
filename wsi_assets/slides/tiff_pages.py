"""The size of a TIFF page, whether it is undamaged, and whether its tiles can be decoded directly."""

from __future__ import annotations

import tifffile

Size = tuple[int, int]
"""(width, height) in pixels."""

JPEG = 7
COLORSPACES = {2: "RGB", 6: "YCBCR"}
"""TIFF's photometric interpretation -> the color space of its JPEG data."""
LOSSLESS = {1, 5, 8, 32946, 50000}
"""Uncompressed, LZW, Deflate (two numbers), Zstandard."""
JPEG_2000 = {33003: True, 33005: False}
"""Aperio's two compressions -> whether the components are YCbCr."""


def size_of(page: tifffile.TiffPage) -> Size:
    """(width, height) of a TIFF page."""
    return page.imagewidth, page.imagelength


def has_numbers(page: tifffile.TiffPage) -> bool:
    """Whether a page's sizes and the offsets of its data are numbers: damage can leave anything."""
    sides = page.imagewidth, page.imagelength, page.tilewidth, page.tilelength
    if {*map(type, (*sides, *page.dataoffsets, *page.databytecounts))} != {int}:
        return False
    return not page.is_tiled or min(sides) > 0


def lists_its_tiles(page: tifffile.TiffPage) -> bool:
    """Whether a page, if it is tiled, lists at least as many tiles as its size requires."""
    return not page.is_tiled or _tiles(page) <= len(page.dataoffsets) == len(page.databytecounts)


def is_plain(page: tifffile.TiffPage, vendor: str) -> bool:
    """Whether a page holds 8-bit RGB in a compression and a layout whose tiles are decoded directly."""
    known = (
        (page.compression == JPEG and page.photometric in COLORSPACES)
        or (page.compression in LOSSLESS and page.photometric == 2)
        or page.compression in JPEG_2000
    )
    return (
        known
        and (page.samplesperpixel, page.bitspersample, page.planarconfig, page.imagedepth) == (3, 8, 1, 1)
        and len(page.dataoffsets) == len(page.databytecounts) == _tiles(page)
        # In SVS files OpenSlide fills a missing tile from the next finer level, so it reads those levels.
        and (vendor != "aperio" or all((*page.dataoffsets, *page.databytecounts)))
    )


def _tiles(page: tifffile.TiffPage) -> int:
    return -(-page.imagewidth // page.tilewidth) * -(-page.imagelength // page.tilelength)
