"""Series and level size of DICOM slide files, from their headers alone."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_HEADER_BYTES = 256 << 10
_SERIES = re.compile(rb"\x20\0\x0d\0UI..[0-9.]*\0?\x20\0\x0e\0UI..([0-9.]+)", re.DOTALL)
"""Series Instance UID (0020,000E). Only in the file's main data set does it directly follow (0020,000D)."""
_SIZE = re.compile(rb"\x48\0\x06\0UL\x04\0(.{4})\x48\0\x07\0UL\x04\0(.{4})", re.DOTALL)
"""Total Pixel Matrix Columns (0048,0006) and Rows (0048,0007)."""


@dataclass(frozen=True)
class DicomFile:
    """One file of a DICOM slide: its Series Instance UID, and (width, height) of its level in pixels."""

    path: Path
    series: str
    size: tuple[int, int]


def volume_files(paths: Iterable[Path]) -> list[DicomFile]:
    """The files among ``paths`` that hold a level of a slide instead of a label or overview, in their order.

    Raises:
        OSError: a file cannot be read.
    """
    found = []
    for path in paths:
        with path.open("rb") as stream:
            head = stream.read(_HEADER_BYTES)
        series, size = _SERIES.search(head), _SIZE.search(head)
        if head[128:132] == b"DICM" and b"\\VOLUME" in head and series and size:
            found.append(DicomFile(path, series[1].decode(), struct.unpack("<II", size[1] + size[2])))
    return found
