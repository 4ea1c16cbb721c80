"""What a TIFF's directories say of its lengths. Nothing is decoded, nothing judged."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np

_STRIP_LENGTHS, _TILE_LENGTHS = 279, 325
_UNSIGNED = {3: 2, 4: 4, 16: 8}
_MOST_DIRECTORIES = 1000


def longest_part(path: Path) -> int:
    """Bytes of the longest tile or strip any directory of a TIFF or BigTIFF names; 0 if it is no TIFF.

    A table cut short counts as far as it goes, and directories are followed as far as they lead.

    Raises:
        OSError: the file does not read.
    """
    with path.open("rb") as stream:
        head = _head(stream)
        return 0 if head is None else _followed(stream, *head)[0]


def is_cut_short(path: Path) -> bool:
    """Whether a TIFF or BigTIFF ends before one of its directories does, as a copy that was cut off may.

    Raises:
        OSError: the file does not read.
    """
    with path.open("rb") as stream:
        head = _head(stream)
        return head is not None and _followed(stream, *head)[1]


def _head(stream: BinaryIO) -> tuple[int, str, bool, int] | None:
    """Bytes of the file, byte order, whether it is a BigTIFF, place of its first directory; or None."""
    size = stream.seek(0, 2)
    stream.seek(0)
    head = stream.read(16)
    order = {b"II": "<", b"MM": ">"}.get(head[:2])
    if order is None or len(head) < 16:
        return None
    (version,) = struct.unpack_from(order + "H", head, 2)
    if version not in (42, 43):
        return None
    big = version == 43
    (first,) = struct.unpack_from(order + ("Q" if big else "I"), head, 8 if big else 4)
    return size, order, big, first


def _followed(stream: BinaryIO, size: int, order: str, big: bool, first: int) -> tuple[int, bool]:
    """The longest part that directories name, and whether they lead beyond the file's end."""
    counts, entry, place = ("Q", "HHQ8s", "Q") if big else ("H", "HHI4s", "I")
    each = struct.Struct(order + entry)
    at, longest, seen = first, 0, set()
    while 0 < at < size and at not in seen and len(seen) < _MOST_DIRECTORIES:
        seen.add(at)
        stream.seek(at)
        number = stream.read(struct.calcsize(order + counts))
        if len(number) < struct.calcsize(order + counts):
            return longest, True
        (entries,) = struct.unpack(order + counts, number)
        table = stream.read(min(entries * each.size, size))
        for tag, kind, count, value in each.iter_unpack(table[: len(table) // each.size * each.size]):
            if tag in (_STRIP_LENGTHS, _TILE_LENGTHS) and kind in _UNSIGNED:
                lengths = _values(stream, size, order, kind, count, value, place)
                longest = max(longest, int(lengths.max(initial=0)))
        if entries * each.size > size:
            return longest, True
        stream.seek(at + len(number) + entries * each.size)
        following = stream.read(struct.calcsize(order + place))
        if len(following) < struct.calcsize(order + place):
            return longest, True
        (at,) = struct.unpack(order + place, following)
    return longest, at >= size


def _values(
    stream: BinaryIO, size: int, order: str, kind: int, count: int, value: bytes, place: str
) -> np.ndarray:
    width = _UNSIGNED[kind]
    total = min(count * width, size)
    if total <= len(value):
        data = value[:total]
    else:
        (offset,) = struct.unpack(order + place, value)
        if offset >= size:
            return np.zeros(0, np.uint64)
        stream.seek(offset)
        data = stream.read(total)
    return np.frombuffer(data[: len(data) // width * width], np.dtype(f"{order}u{width}"))
