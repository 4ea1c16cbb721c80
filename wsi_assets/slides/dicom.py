"""What the headers of DICOM slide files say, found without parsing the whole file."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_HEADER_BYTES = 256 << 10
_STUDY = re.compile(rb"\x20\x00\x0d\x00UI(..)", re.DOTALL)
"""(0020,000D); the series, (0020,000E), follows it directly in the file's own attributes, and only there."""
_SERIES = b"\x20\x00\x0e\x00UI"
_COLUMNS, _ROWS = b"\x48\x00\x06\x00UL\x04\x00", b"\x48\x00\x07\x00UL\x04\x00"
_VOLUME = b"\\VOLUME"


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
    found = (_read(path) for path in paths)
    return [one for one in found if one is not None]


def _read(path: Path) -> DicomFile | None:
    with path.open("rb") as stream:
        head = stream.read(_HEADER_BYTES)
    if head[128:132] != b"DICM" or _VOLUME not in head:
        return None
    columns, rows = (_number_after(head, tag) for tag in (_COLUMNS, _ROWS))
    for study in _STUDY.finditer(head):
        at = study.end() + int.from_bytes(study[1], "little")
        if head[at : at + 6] == _SERIES and columns and rows:
            length = int.from_bytes(head[at + 6 : at + 8], "little")
            series = head[at + 8 : at + 8 + length].rstrip(b"\0 ").decode("ascii", "replace")
            return DicomFile(path, series, (columns, rows))
    return None


def _number_after(head: bytes, tag: bytes) -> int:
    at = head.find(tag)
    return int.from_bytes(head[at + len(tag) : at + len(tag) + 4], "little") if at >= 0 else 0
