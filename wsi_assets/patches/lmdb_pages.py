"""Whether an LMDB file can be opened at all: LMDB believes its pages, and a damaged one ends the process.

Only what keeps LMDB inside the file is looked at, page by page of the trees, never a value. Which names a
store has, and what they hold, is for others.

The layout is LMDB 0.9's on a little-endian 64-bit machine (``MDB_meta``, ``MDB_page`` and ``MDB_node`` in its
``mdb.c``).
"""

from __future__ import annotations

import os
import struct
import sys
from pathlib import Path

import numpy as np

_HEADER = 16
_MAGIC, _VERSION = 0xBEEFC0DE, 1
_META = struct.Struct("<II8xQ")
_TREE = struct.Struct("<IHH4QQ")
_BRANCH, _LEAF, _META_PAGE = 1, 2, 8
_BIG = 1
_NONE = (1 << 64) - 1
_DEEPEST = 31
_INTEGER_KEYS = 8


def check_pages(folder: Path) -> None:
    """See that no page of the environment in ``folder`` leads LMDB out of its file.

    Reads one page in about eighty patches, so that a store of 100,000 takes some hundredths of a second.

    Raises:
        ValueError: one does, or the file is cut short.
        OSError: the file does not read.
    """
    if sys.byteorder != "little" or struct.calcsize("P") != 8:
        return
    handle = os.open(folder / "data.mdb", os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    try:
        _Pages(handle).check()
    finally:
        os.close(handle)


class _Pages:
    def __init__(self, handle: int):
        self._handle = handle
        self._bytes = os.fstat(handle).st_size
        head = os.pread(handle, _HEADER + 136, 0)
        if len(head) < _HEADER + 136:
            raise ValueError("it is cut short")
        (self._size,) = struct.unpack_from("<I", head, _HEADER + 24)
        if self._size not in (1 << power for power in range(9, 17)):
            raise ValueError(f"pages of {self._size} bytes")

    def check(self) -> None:
        metas = [self._meta(number) for number in (0, 1)]
        # LMDB takes the later one; with equal numbers the first.
        trees, last = max(metas, key=lambda meta: meta[2])[:2]
        if (last + 1) * self._size > self._bytes:
            raise ValueError("it is cut short")
        self._last = last
        for (_, flags, *_, root), wanted in zip(trees, (_INTEGER_KEYS, 0), strict=True):
            if flags != wanted:
                raise ValueError(f"a tree of kind {flags}")
            if root != _NONE:
                self._tree(root)

    def _meta(self, number: int) -> tuple[list[tuple[int, ...]], int, int]:
        page = self._page(number)
        magic, version, _ = _META.unpack_from(page, _HEADER)
        if (magic, version) != (_MAGIC, _VERSION) or not page[10] & _META_PAGE:
            raise ValueError("its head is not LMDB's")
        trees = [_TREE.unpack_from(page, _HEADER + 24 + 48 * tree) for tree in (0, 1)]
        last, transaction = struct.unpack_from("<QQ", page, _HEADER + 120)
        return trees, last, transaction

    def _tree(self, root: int) -> None:
        """Walk a tree's branch and leaf pages."""
        waiting, seen, leaf_depth = [(root, 1)], 0, None
        while waiting:
            number, depth = waiting.pop()
            seen += 1
            if depth > _DEEPEST or seen > self._last or not 1 < number <= self._last:
                raise ValueError(f"page {number} is outside it")
            page = self._page(number)
            own, _, flags, lower, upper = struct.unpack_from("<QHHHH", page)
            if own != number or flags not in (_BRANCH, _LEAF):
                raise ValueError(f"page {number} is not what it should be")
            if not _HEADER < lower <= upper <= self._size or lower % 2:
                raise ValueError(f"page {number} is damaged")
            children = self._nodes(page, number, (lower - _HEADER) // 2, upper, flags == _BRANCH)
            if flags == _BRANCH:
                waiting += [(child, depth + 1) for child in children]
            elif leaf_depth not in (None, depth):
                raise ValueError(f"page {number} is at another depth")
            else:
                leaf_depth = depth

    def _nodes(self, page: bytes, number: int, count: int, upper: int, branch: bool) -> list[int]:
        """Check a page's nodes; the pages that a branch page's nodes lead to."""
        raw = np.frombuffer(page, np.uint8)
        at = np.frombuffer(page, "<u2", count, _HEADER).astype(np.int64)
        if (at < upper).any() or (at > self._size - 8).any():
            raise ValueError(f"page {number} is damaged")
        fields = raw[at[:, None] + np.arange(8)].view("<u2").astype(np.int64)
        low, high, flags, key = fields.T
        ends = at + 8 + key
        if branch:
            if (ends > self._size).any():
                raise ValueError(f"page {number} is damaged")
            return (low | high << 16 | flags << 32).tolist()
        lengths, big = low | high << 16, (flags & _BIG).astype(bool)
        if (flags & ~_BIG).any() or (ends + np.where(big, 8, lengths) > self._size).any():
            raise ValueError(f"page {number} is damaged")
        if big.any():
            first = raw[ends[big, None] + np.arange(8)].view("<u8")[:, 0]
            pages = -(-(lengths[big] + _HEADER) // self._size)
            if (first < 2).any() or (first > self._last).any():
                raise ValueError(f"page {number} leads out of it")
            if (first.astype(np.int64) + pages - 1 > self._last).any():
                raise ValueError(f"page {number} leads out of it")
        return []

    def _page(self, number: int) -> bytes:
        page = os.pread(self._handle, self._size, number * self._size)
        if len(page) != self._size:
            raise ValueError("it is cut short")
        return page
