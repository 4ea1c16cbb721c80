"""The longest tile or strip that a TIFF's directories name. Nothing is decoded, nothing judged."""

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
        size = stream.seek(0, 2)
        stream.seek(0)
        head = stream.read(16)
        order = {b"II": "<", b"MM": ">"}.get(head[:2])
        if order is None or len(head) < 16:
            return 0
        (version,) = struct.unpack_from(order + "H", head, 2)
        if version not in (42, 43):
            return 0
        return _longest(stream, size, order, version == 43, head)


def _longest(stream: BinaryIO, size: int, order: str, big: bool, head: bytes) -> int:
    counts, entry, place = ("Q", "HHQ8s", "Q") if big else ("H", "HHI4s", "I")
    each = struct.Struct(order + entry)
    (at,) = struct.unpack_from(order + place, head, 8 if big else 4)
    longest, seen = 0, set()
    while 0 < at < size and at not in seen and len(seen) < _MOST_DIRECTORIES:
        seen.add(at)
        stream.seek(at)
        number = stream.read(struct.calcsize(order + counts))
        if len(number) < struct.calcsize(order + counts):
            break
        (entries,) = struct.unpack(order + counts, number)
        table = stream.read(min(entries * each.size, size))
        for tag, kind, count, value in each.iter_unpack(table[: len(table) // each.size * each.size]):
            if tag in (_STRIP_LENGTHS, _TILE_LENGTHS) and kind in _UNSIGNED:
                lengths = _values(stream, size, order, kind, count, value, place)
                longest = max(longest, int(lengths.max(initial=0)))
        stream.seek(at + len(number) + entries * each.size)
        following = stream.read(struct.calcsize(order + place))
        if len(following) < struct.calcsize(order + place):
            break
        (at,) = struct.unpack(order + place, following)
    return longest


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
