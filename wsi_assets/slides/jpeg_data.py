"""Check the JPEG data of TIFF tiles for damage, and find its color space."""

from __future__ import annotations

import re

import imagecodecs
import numpy as np

from wsi_assets.errors import one_line

ADOBE = b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0"
"""Adobe's segment, which names the color space of a JPEG file, without its last byte."""

_TRANSFORMS = {0: "RGB", 1: "YCBCR"}
"""Last byte of Adobe's segment -> color space."""
_START_OF_SCAN = b"\xff\xda"
_END = b"\xff\xd9"
_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
"""A marker that cannot occur within a scan, where FF is followed by 00, by FF, or by a restart number."""
_BASELINE = re.compile(rb"\xff[\xc0\xc1]\0")
_RESTARTS = b"\xff\xdd"
_ZEROS = bytes(64)
_AFTER = 16


def hole_in(data: bytes, tables: bytes | None = None) -> str | None:
    """Why JPEG data must have been damaged in copying, although decoders accept it; None if it seems whole.

    Decoders do not notice a hole of zero bytes, because zero bits are valid codes. In a baseline scan 64 zero
    bytes cannot be an image, unless the code of zero bits ends a block in every AC table (flat areas, with
    Huffman tables made for them). A scan without an end marker was cut short.

    Args:
        tables: the TIFF's shared JPEG tables, for an abbreviated stream.
    """
    start = data.find(_START_OF_SCAN)
    end = data.rfind(_END, max(start, 0))
    if start < 0 or end < 0:
        return "it has no picture" if start < 0 else "it has no end"
    # Words of 8 bytes first: searching bytes takes a tenth of the decoder's time.
    words = np.frombuffer(data, np.uint64, len(data) // 8)
    if not words.all() and 0 <= data.find(_ZEROS, start) < end:
        header = (tables or b"") + data[:start]
        if _BASELINE.search(header) and not _zeros_are_flat(header):
            return "it has a hole of zeros"
    return None


def fault_of(data: bytes, tables: bytes | None) -> str | None:
    """Why JPEG data is damaged, although decoders may accept it; None if it is whole."""
    fault = hole_in(data, tables)
    if fault or not ends_early(data):
        return fault
    try:
        pixels = imagecodecs.jpeg8_decode(data, tables=tables)
    except Exception as error:  # the codec's error types differ between its versions
        return one_line(error)
    # Decoders leave missing blocks mid-gray, the last one above all.
    return "it ends early" if (pixels[-8:, -8:] == 128).all() else None


def ends_early(data: bytes) -> bool:
    """Whether the first scan may end before the data does, so that a strict decoder must check it.

    Also True for data with filler after its end. A decoder that goes wrong leaves the last block mid-gray,
    unless restart markers bring it back; so only data with restart markers is searched for other markers.
    """
    start = data.find(_START_OF_SCAN)
    if data.rfind(_END, max(start, 0)) < len(data) - _AFTER:
        return True
    if _RESTARTS not in data[: max(start, 0)]:
        return False
    marker = _MARKER.search(data, start + 2)
    return marker is None or marker[0] != _END or marker.end() < len(data) - _AFTER


def named_colorspace(segments: bytes) -> str | None:
    """The color space that the markers of JPEG data name, None if there is no such marker.

    A JFIF marker always means YCbCr; Adobe's marker states it (Adobe Technical Note 5116).
    """
    header = segments.partition(_START_OF_SCAN)[0]
    if re.search(rb"\xff\xe0..JFIF\0", header, re.DOTALL):
        return "YCBCR"
    adobe = re.search(rb"\xff\xee..Adobe.{6}(.)", header, re.DOTALL)
    return _TRANSFORMS.get(adobe[1][0], "another") if adobe else None


def _zeros_are_flat(header: bytes) -> bool:
    """Whether the code of zero bits ends a block in every AC table, that is, its first symbol is 0."""
    found = False
    for match in re.finditer(rb"\xff\xc4(..)", header, re.DOTALL):
        at, end = match.end(), match.start() + 2 + int.from_bytes(match[1], "big")
        while at + 17 <= min(end, len(header)):
            count = sum(header[at + 1 : at + 17])
            if header[at] >> 4 == 1 and count:
                found = True
                if header[at + 17 : at + 18] != b"\0":
                    return False
            at += 17 + count
    return found
