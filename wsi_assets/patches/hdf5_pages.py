"""HDF5's file format, as far as a store needs it: what makes chunks that lie in a file a dataset.

HDF5's library can neither refer to bytes that are in the file already nor change a file so that a kill leaves
the old or the new one. Here everything is appended, and the superblock, written last, leads to it. What is
written is an ordinary file of the oldest format, which any HDF5 reads. Which datasets a store has is for
others.

Source: the HDF5 File Format Specification, version 0 of the superblock and version 1 of object headers and
B-trees.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

SUPERBLOCK = 96
"""Bytes of the superblock, with which the file begins."""

_NONE = (1 << 64) - 1
_CHUNKS_A_NODE = 64
_MOST_NAMES = 8
_NAMES_A_NODE = 32
_DEFLATE = 1, 2
_SPACE, _TYPE, _FILL, _LAYOUT, _FILTERS, _GROUP = 1, 3, 5, 8, 11, 17
_LATE, _INCREMENTAL = 2, 3


@dataclass(frozen=True)
class Chunks:
    """A dataset of uint8 in chunks of one row each.

    Attributes:
        row: shape of a row; the dataset's is (number of places, *row), and it may grow.
        places: int64 (n, 2): offset and length of each chunk in the file.
        gzip: level with which they are compressed; 0 if they are plain.
    """

    row: tuple[int, ...]
    places: np.ndarray
    gzip: int = 0


def finished(
    chunked: Mapping[str, Chunks], plain: Mapping[str, np.ndarray | bytes], end: int
) -> tuple[bytes, bytes]:
    """What makes a file of datasets out of chunks that lie in it.

    Args:
        chunked: datasets whose bytes are in the file.
        plain: datasets that are appended: arrays of uint8, int32 or fixed-length bytes, or one text.
        end: where to append, a multiple of 8; no chunk lies beyond.

    Returns:
        The bytes to append at ``end``, and the superblock, which goes to the file's beginning and commits.
    """
    file = _Appended(end)
    headers: dict[str, int] = {}
    for name, chunks in chunked.items():
        headers[name] = file.add(_header(_chunked_messages(chunks, _chunk_tree(file, chunks))))
    for name, value in plain.items():
        array = np.array(value, dtype=f"S{max(1, len(value))}") if isinstance(value, bytes) else value
        data = array.astype(array.dtype.newbyteorder("<")).tobytes()
        address = file.add(data) if data else _NONE
        headers[name] = file.add(_header(_plain_messages(array, address, len(data))))
    root, tree, heap = _group(file, headers)
    return file.bytes(), _superblock(root, tree, heap, file.end)


class _Appended:
    """Blocks one after the other, each on a multiple of 8."""

    def __init__(self, end: int):
        self._start = self.end = end
        self._blocks: list[bytes] = []

    def add(self, block: bytes) -> int:
        """Append; the block's address."""
        address = self.end
        padded = block + bytes(-len(block) % 8)
        self._blocks.append(padded)
        self.end += len(padded)
        return address

    def bytes(self) -> bytes:
        return b"".join(self._blocks)


def _superblock(root: int, tree: int, heap: int, end: int) -> bytes:
    head = b"\x89HDF\r\n\x1a\n" + bytes([0, 0, 0, 0, 0, 8, 8, 0])
    head += struct.pack("<HHI4Q", _MOST_NAMES // 2, _NAMES_A_NODE // 2, 0, 0, _NONE, end, _NONE)
    return head + struct.pack("<QQIIQQ", 0, root, 1, 0, tree, heap)


def _group(file: _Appended, headers: Mapping[str, int]) -> tuple[int, int, int]:
    """The root group: addresses of its header, its tree and its heap of names."""
    if len(headers) > _MOST_NAMES:
        raise ValueError(f"{len(headers)} datasets")
    text, at = bytearray(8), {}
    for name in sorted(headers):
        at[name] = len(text)
        text += name.encode() + b"\0"
        text += bytes(-len(text) % 8)
    data = file.add(bytes(text))
    heap = file.add(b"HEAP" + bytes(4) + struct.pack("<3Q", len(text), 1, data))
    entries = b"".join(struct.pack("<QQ24x", at[name], headers[name]) for name in at)
    node = b"SNOD" + struct.pack("<BxH", 1, len(at)) + entries
    names = file.add(node + bytes(8 + 40 * _MOST_NAMES - len(node)))
    keys = struct.pack("<3Q", 0, names, max(at.values()))
    tree = b"TREE" + struct.pack("<BBHQQ", 0, 0, 1, _NONE, _NONE) + keys
    size = 24 + 8 * (2 * _NAMES_A_NODE + 1)
    tree_at = file.add(tree + bytes(size - len(tree)))
    return file.add(_header([(_GROUP, struct.pack("<QQ", tree_at, heap))])), tree_at, heap


def _header(messages: list[tuple[int, bytes]]) -> bytes:
    """A version 1 object header."""
    body = b""
    for kind, data in messages:
        data += bytes(-len(data) % 8)
        body += struct.pack("<HHB3x", kind, len(data), 0) + data
    return struct.pack("<BxHII4x", 1, len(messages), 1, len(body)) + body


def _plain_messages(array: np.ndarray, address: int, size: int) -> list[tuple[int, bytes]]:
    layout = struct.pack("<BBQQ", 3, 1, address, size)
    return [
        (_SPACE, _space(array.shape)),
        (_TYPE, _type(array.dtype)),
        (_FILL, _fill(_LATE)),
        (_LAYOUT, layout),
    ]


def _chunked_messages(chunks: Chunks, tree: int) -> list[tuple[int, bytes]]:
    dimensions = (1, *chunks.row, 1)
    layout = struct.pack(f"<BBBQ{len(dimensions)}I", 3, 2, len(dimensions), tree, *dimensions)
    messages = [
        (_SPACE, _space((len(chunks.places), *chunks.row), grows=True)),
        (_TYPE, _type(np.dtype(np.uint8))),
        (_FILL, _fill(_INCREMENTAL)),
        (_LAYOUT, layout),
    ]
    if chunks.gzip:
        messages.append((_FILTERS, struct.pack("<BB6xHHHHII", *_DEFLATE[:1], 1, 1, 0, 1, 1, chunks.gzip, 0)))
    return messages


def _space(shape: tuple[int, ...], grows: bool = False) -> bytes:
    sizes = struct.pack(f"<{len(shape)}Q", *shape)
    most = struct.pack(f"<{len(shape)}Q", _NONE, *shape[1:]) if grows else b""
    return struct.pack("<BBB5x", 1, len(shape), int(grows)) + sizes + most


def _type(dtype: np.dtype) -> bytes:
    if dtype.kind == "S":
        # Text, filled up with zeros, UTF-8.
        return struct.pack("<BBHI", 0x13, 0x11, 0, dtype.itemsize)
    signed = 8 if dtype.kind == "i" else 0
    return struct.pack("<BBHIHH", 0x10, signed, 0, dtype.itemsize, 0, 8 * dtype.itemsize)


def _fill(allocation: int) -> bytes:
    """No fill value, none ever written."""
    return struct.pack("<BBBB", 2, allocation, 1, 0)


def _chunk_tree(file: _Appended, chunks: Chunks) -> int:
    """Append the B-tree over the chunks; its root's address.

    A node is an array of (key, child) and one more key: size, filter mask and offset of a chunk, the last
    number of which counts within an element.
    """
    count, rank = len(chunks.places), 1 + len(chunks.row)
    if not count:
        return _NONE
    key = np.dtype([("size", "<u4"), ("mask", "<u4"), ("offset", "<u8", (rank + 1,))])
    entry = np.dtype([("key", key), ("child", "<u8")])
    rows = np.zeros(count, entry)
    rows["key"]["size"] = chunks.places[:, 1]
    rows["key"]["offset"][:, 0] = np.arange(count)
    rows["child"] = chunks.places[:, 0]
    last = np.zeros(1, key)
    last["offset"] = (count, *chunks.row, 1)
    size = 24 + (_CHUNKS_A_NODE + 1) * key.itemsize + _CHUNKS_A_NODE * 8
    level = 0
    while True:
        starts = range(0, len(rows), _CHUNKS_A_NODE)
        addresses = [file.end + number * (size + -size % 8) for number in range(len(starts))]
        for number, start in enumerate(starts):
            part = rows[start : start + _CHUNKS_A_NODE]
            left = addresses[number - 1] if number else _NONE
            right = addresses[number + 1] if number + 1 < len(addresses) else _NONE
            beyond = rows["key"][start + len(part)] if right != _NONE else last[0]
            node = b"TREE" + struct.pack("<BBHQQ", 1, level, len(part), left, right)
            node += part.tobytes() + beyond.tobytes()
            file.add(node + bytes(size - len(node)))
        if len(addresses) == 1:
            return addresses[0]
        above = np.zeros(len(addresses), entry)
        above["key"] = rows["key"][::_CHUNKS_A_NODE]
        above["child"] = addresses
        rows, level = above, level + 1
