"""JPEG data as TIFF tiles hold it: whether it is whole, and its color space. Bytes in, facts out."""

from __future__ import annotations

import re

import imagecodecs
import numpy as np

from wsi_assets.errors import one_line

ADOBE = b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0"
"""The segment of a JPEG file that names its color space, up to the last byte, which is one of these."""

_TRANSFORMS = {0: "RGB", 1: "YCBCR"}
_START_OF_SCAN = b"\xff\xda"
_END = b"\xff\xd9"
_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
"""A marker that cannot be within a scan: there FF is stuffed (FF 00), fills, or begins a restart."""
_BASELINE = re.compile(rb"\xff[\xc0\xc1]\0")
_RESTARTS = b"\xff\xdd"
_ZEROS = bytes(64)
_AFTER = 16


def hole_in(data: bytes, tables: bytes | None = None) -> str | None:
    """What shows that JPEG data was lost in copying, though decoders take it; None if nothing.

    Decoders go on where a hole of zeros begins: zero bits are codes. In a baseline scan 64 zero bytes are
    never a picture unless the all-zero code of every AC table ends a block (flat areas, under tables made for
    them). A scan without its end marker was cut. ``tables``: those of an abbreviated stream.
    """
    start = data.find(_START_OF_SCAN)
    end = data.rfind(_END, max(start, 0))
    if start < 0 or end < 0:
        return "it has no picture" if start < 0 else "it has no end"
    # Words first: a search by bytes takes a tenth of the decoder's time.
    words = np.frombuffer(data, np.uint64, len(data) // 8)
    if not words.all() and 0 <= data.find(_ZEROS, start) < end:
        header = (tables or b"") + data[:start]
        if _BASELINE.search(header) and not _zeros_are_flat(header):
            return "it has a hole of zeros"
    return None


def fault_of(data: bytes, tables: bytes | None) -> str | None:
    """Why JPEG data is no whole picture, although decoders may take it for one; None if it is."""
    fault = hole_in(data, tables)
    if fault or not ends_early(data):
        return fault
    try:
        pixels = imagecodecs.jpeg8_decode(data, tables=tables)
    except Exception as error:  # the codec's error types differ between its versions
        return one_line(error)
    # What is missing is left mid-grey, the last block above all.
    return "it ends early" if (pixels[-8:, -8:] == 128).all() else None


def ends_early(data: bytes) -> bool:
    """Whether the first scan may end before the data does: a suspicion, for a strict decoder to judge.

    True also of data with filler after its end. Decoders that lose their way leave the last block mid-grey,
    unless restart markers lead them back; so only with those the scan is searched for other markers.
    """
    start = data.find(_START_OF_SCAN)
    if data.rfind(_END, max(start, 0)) < len(data) - _AFTER:
        return True
    if _RESTARTS not in data[: max(start, 0)]:
        return False
    marker = _MARKER.search(data, start + 2)
    return marker is None or marker[0] != _END or marker.end() < len(data) - _AFTER


def named_colorspace(segments: bytes) -> str | None:
    """The color space that JPEG data names to every library, None if none.

    JFIF's marker always means YCbCr; Adobe's says it (Adobe Technical Note 5116).
    """
    header = segments.partition(_START_OF_SCAN)[0]
    if re.search(rb"\xff\xe0..JFIF\0", header, re.DOTALL):
        return "YCBCR"
    adobe = re.search(rb"\xff\xee..Adobe.{6}(.)", header, re.DOTALL)
    return _TRANSFORMS.get(adobe[1][0], "another") if adobe else None


def _zeros_are_flat(header: bytes) -> bool:
    """Whether the code of zero bits alone ends a block in every AC table: its first symbol then is 0."""
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
