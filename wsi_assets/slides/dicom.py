"""What the headers of DICOM slide files say, found without parsing the whole file."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_HEADER_BYTES = 256 << 10
_SERIES = re.compile(rb"\x20\0\x0d\0UI..[0-9.]*\0?\x20\0\x0e\0UI..([0-9.]+)", re.DOTALL)
"""(0020,000E), which follows the study, (0020,000D), directly in a file's own attributes only."""
_SIZE = re.compile(rb"\x48\0\x06\0UL\x04\0(.{4})\x48\0\x07\0UL\x04\0(.{4})", re.DOTALL)


@dataclass(frozen=True)
class DicomFile:
    """One file of a slide: its series, and (width, height) of its level in pixels."""

    path: Path
    series: str
    size: tuple[int, int]


def volume_files(paths: Iterable[Path]) -> list[DicomFile]:
    """Those of the files that hold a level of a slide (no label, no overview), in the order given.

    Raises:
        OSError: a file does not read.
    """
    found = []
    for path in paths:
        with path.open("rb") as stream:
            head = stream.read(_HEADER_BYTES)
        series, size = _SERIES.search(head), _SIZE.search(head)
        if head[128:132] == b"DICM" and b"\\VOLUME" in head and series and size:
            found.append(DicomFile(path, series[1].decode(), struct.unpack("<II", size[1] + size[2])))
    return found
