"""LMDB's file format, page by page: where values lie, and the tree that makes them a database.

LMDB's library can neither add to a database without touching its old pages, nor give a value a new key
without copying it; both are what an update of a large store needs. It also believes its pages, so that a
damaged one ends the process. What is written here is an ordinary LMDB file, which any LMDB reads, writes,
copies and compacts. Which names a store has, and what they hold, is for others.

The layout is LMDB 0.9's on a 64-bit machine (``MDB_meta``, ``MDB_page`` and ``MDB_node`` in its ``mdb.c``).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

PAGE = 4096
"""Bytes of the pages written here; files of other page sizes are read."""

META_PAGES = 2
OVERFLOW_HEADER = 16
"""Bytes before a value that has pages of its own, as all values written here have."""

_HEADER = 16
_META_BYTES = 152
_MAGIC, _VERSION = 0xBEEFC0DE, 1
_BRANCH, _LEAF, _OVERFLOW, _META = 1, 2, 4, 8
_BIG = 1
_NONE = (1 << 64) - 1
_DEEPEST = 31
_INTEGER_KEYS = 8
_PAGE_HEADER = struct.Struct("=QHHHH")
_TREE = struct.Struct("=IHH5Q")


@dataclass(frozen=True)
class Database:
    """The main database of an LMDB file.

    Attributes:
        keys: in LMDB's order, that of their bytes.
        places: int64 (n, 2): offset and length of each value in the file.
        page: bytes of the file's pages.
        end: bytes of the file that the database takes; what follows belongs to nobody.
        transaction: number of its last commit.
    """

    keys: list[bytes]
    places: np.ndarray
    page: int
    end: int
    transaction: int


def read_database(handle: int) -> Database:
    """Every key of the open file and the place of its value, all of it checked to lie inside the file.

    Reads one page in about eighty patches, never a value.

    Raises:
        ValueError: the file is damaged or cut short, or is no LMDB file of this kind of machine.
        OSError: the file does not read.
    """
    return _Reader(handle).read()


def overflow_header(page: int, length: int) -> bytes:
    """What stands before a value of ``length`` bytes whose pages begin at number ``page``."""
    return struct.pack("=QHHI", page, 0, _OVERFLOW, pages_of(length))


def pages_of(lengths: Any) -> Any:
    """Pages that a value of so many bytes takes; an array for an array."""
    return -(-(OVERFLOW_HEADER + lengths) // PAGE)


def empty_meta(page: int) -> bytes:
    """The meta page of an empty database, which every file begins with."""
    return _meta(page, _tree_record(PAGE, _INTEGER_KEYS), _tree_record(0, 0), META_PAGES - 1, 0)


def finished(
    keys: Sequence[bytes], places: np.ndarray, end: int, transaction: int
) -> tuple[bytes, tuple[int, bytes]]:
    """What makes a database of values that lie in a file.

    Pages that neither a value nor the new tree takes are listed as free, for whoever writes to the file
    next.

    Args:
        keys: names of the values, in any order, each once, of 1 to 511 bytes.
        places: int64 (n, 2): offset and length of each value, which follows its :func:`overflow_header`.
        end: where to append, a multiple of :data:`PAGE`; no value lies beyond.
        transaction: number of the commit, 1 for the first.

    Returns:
        The bytes to append at ``end``; then (offset, bytes) of the meta page, which commits.
    """
    order = sorted(range(len(keys)), key=keys.__getitem__)
    offsets, lengths = places[order, 0] - OVERFLOW_HEADER, places[order, 1]
    if (offsets % PAGE).any():
        raise ValueError("a value does not begin at a page")
    first = end // PAGE
    tree = _Tree([keys[i] for i in order], offsets // PAGE, lengths, first)
    free = _free_pages(offsets // PAGE, lengths, first)
    pages, last = tree.pages, first + len(tree.pages) // PAGE
    free_record = _tree_record(PAGE, _INTEGER_KEYS)
    if len(free):
        # One list of free pages, latest first, kept under the number of the commit that freed them.
        value = np.concatenate([[len(free)], free[::-1]]).astype("=u8").tobytes()
        pages += overflow_header(last, len(value)) + value
        pages += bytes(-len(pages) % PAGE)
        used = pages_of(len(value))
        key = struct.pack("=Q", transaction)
        freed = _Tree([key], np.array([last]), np.array([len(value)]), last + used)
        pages += freed.pages
        last += used + len(freed.pages) // PAGE
        free_record = freed.record(PAGE, _INTEGER_KEYS, used)
    overflow = int(pages_of(lengths).sum())
    page = transaction % META_PAGES
    meta = _meta(page, free_record, tree.record(0, 0, overflow), last - 1, transaction)
    return pages, (page * PAGE, meta)


class _Tree:
    """Leaf and branch pages over sorted keys, from page number ``first`` on.

    Attributes:
        pages: all of them.
        root: number of the root page.
    """

    def __init__(self, keys: Sequence[bytes], value_pages: np.ndarray, lengths: np.ndarray, first: int):
        self._first = first
        self._entries = len(keys)
        self._counts: list[int] = []
        numbers, groups = self._level(first, keys, 16)
        self.pages = b"".join(
            _leaf(number, keys[a:b], value_pages[a:b].tolist(), lengths[a:b].tolist())
            for number, (a, b) in zip(numbers, groups, strict=True)
        )
        while len(numbers) > 1:
            keys = [keys[a] for a, _ in groups]
            children = numbers
            numbers, groups = self._level(numbers[-1] + 1, keys, 8)
            self.pages += b"".join(
                _branch(number, keys[a:b], children[a:b])
                for number, (a, b) in zip(numbers, groups, strict=True)
            )
        self.root = numbers[0]

    def record(self, pad: int, flags: int, overflow: int) -> bytes:
        """What a meta page says of the tree."""
        leaves, branches = self._counts[0], sum(self._counts[1:])
        depth = len(self._counts)
        return _TREE.pack(pad, flags, depth, branches, leaves, overflow, self._entries, self.root)

    def _level(self, first: int, keys: Sequence[bytes], more: int) -> tuple[list[int], list[tuple[int, int]]]:
        """Numbers of a level's pages, and which keys each has: as few pages as hold them, filled evenly, so
        that no branch page has a single child, which LMDB does not allow."""
        sizes = np.array([len(key) for key in keys], np.int64) + more
        total = np.concatenate([[0], np.cumsum(sizes + sizes % 2 + 2)])
        count = max(1, -(-int(total[-1]) // (PAGE - _HEADER)))
        while True:
            borders = np.searchsorted(total, np.arange(1, count) * total[-1] / count)
            borders = np.concatenate([[0], borders, [len(keys)]])
            if (np.diff(total[borders]) <= PAGE - _HEADER).all():
                break
            count += 1
        self._counts.append(count)
        groups = list(zip(borders[:-1].tolist(), borders[1:].tolist(), strict=True))
        return list(range(first, first + count)), groups


def _leaf(number: int, keys: Sequence[bytes], pages: Sequence[int], lengths: Sequence[int]) -> bytes:
    nodes = [
        struct.pack("=HHHH", length & 0xFFFF, length >> 16, _BIG, len(key)) + key + struct.pack("=Q", page)
        for key, page, length in zip(keys, pages, lengths, strict=True)
    ]
    return _page(number, _LEAF, nodes)


def _branch(number: int, keys: Sequence[bytes], children: Sequence[int]) -> bytes:
    # The first child has no key: all that is smaller than the second's goes there.
    named = [b"", *keys[1:]]
    nodes = [
        struct.pack("=HHHH", child & 0xFFFF, child >> 16 & 0xFFFF, child >> 32, len(key)) + key
        for key, child in zip(named, children, strict=True)
    ]
    return _page(number, _BRANCH, nodes)


def _page(number: int, flags: int, nodes: Sequence[bytes]) -> bytes:
    """Nodes lie at the page's end, the last first; their offsets follow its header."""
    upper, offsets = PAGE, []
    for node in nodes:
        upper -= len(node) + len(node) % 2
        offsets.append(upper)
    lower = _HEADER + 2 * len(nodes)
    body = b"".join(node + b"\0" * (len(node) % 2) for node in reversed(nodes))
    header = _PAGE_HEADER.pack(number, 0, flags, lower, upper) + struct.pack(f"={len(offsets)}H", *offsets)
    return header + bytes(upper - lower) + body


def _free_pages(value_pages: np.ndarray, lengths: np.ndarray, first: int) -> np.ndarray:
    """Numbers of the pages before ``first`` that no value takes, ascending."""
    change = np.zeros(first + 1, np.int64)
    np.add.at(change, value_pages, 1)
    np.add.at(change, value_pages + pages_of(lengths), -1)
    taken = np.cumsum(change[:first])
    if len(taken) and taken.max() > 1:
        raise ValueError("two values share a page")
    return np.flatnonzero(taken[META_PAGES:] == 0) + META_PAGES


def _tree_record(pad: int, flags: int) -> bytes:
    return _TREE.pack(pad, flags, 0, 0, 0, 0, 0, _NONE)


def _meta(page: int, free: bytes, main: bytes, last: int, transaction: int) -> bytes:
    # The map is as large as the file; who wants to write more sets its own.
    map_size = -(-(last + 1) * PAGE >> 20) << 20
    header = _PAGE_HEADER.pack(page, 0, _META, 0, 0)
    body = struct.pack("=IIQQ", _MAGIC, _VERSION, 0, max(map_size, 1 << 20))
    whole = header + body + free + main + struct.pack("=QQ", last, transaction)
    return whole + bytes(PAGE - len(whole))


class _Reader:
    def __init__(self, handle: int):
        self._handle = handle
        self._bytes = os.fstat(handle).st_size
        head = os.pread(handle, _META_BYTES, 0)
        if len(head) < _META_BYTES:
            raise ValueError("it is cut short")
        (self._size,) = struct.unpack_from("=I", head, _HEADER + 24)
        if self._size not in (1 << power for power in range(9, 17)):
            raise ValueError(f"pages of {self._size} bytes")
        self._keys: list[bytes] = []
        self._places: list[np.ndarray] = []

    def read(self) -> Database:
        metas = [self._meta(number) for number in range(META_PAGES)]
        # LMDB takes the later one; with equal numbers the first.
        trees, last, transaction = max(metas, key=lambda meta: meta[2])
        end = (last + 1) * self._size
        if end > self._bytes:
            raise ValueError("it is cut short")
        self._last = last
        for (_, flags, *_), wanted in zip(trees, (_INTEGER_KEYS, 0), strict=True):
            if flags != wanted:
                raise ValueError(f"a tree of kind {flags}")
        *_, entries, root = trees[1]
        if root != _NONE:
            self._tree(root)
        if entries != len(self._keys) or any(a >= b for a, b in pairwise(self._keys)):
            raise ValueError("its keys are not in order")
        places = np.concatenate(self._places) if self._places else np.zeros((0, 2), np.int64)
        return Database(self._keys, places, self._size, end, transaction)

    def _meta(self, number: int) -> tuple[list[tuple[int, ...]], int, int]:
        page = self._page(number)
        magic, version = struct.unpack_from("=II", page, _HEADER)
        if (magic, version) != (_MAGIC, _VERSION) or not page[10] & _META:
            raise ValueError("its head is not LMDB's")
        trees = [_TREE.unpack_from(page, _HEADER + 24 + 48 * tree) for tree in (0, 1)]
        last, transaction = struct.unpack_from("=QQ", page, _HEADER + 120)
        return trees, last, transaction

    def _tree(self, root: int) -> None:
        """Walk the tree from its first leaf to its last."""
        waiting, seen, leaf_depth = [(root, 1)], 0, None
        while waiting:
            number, depth = waiting.pop()
            seen += 1
            if depth > _DEEPEST or seen > self._last or not 1 < number <= self._last:
                raise ValueError(f"page {number} is outside it")
            page = self._page(number)
            own, _, flags, lower, upper = _PAGE_HEADER.unpack_from(page)
            if own != number or flags not in (_BRANCH, _LEAF):
                raise ValueError(f"page {number} is not what it should be")
            if not _HEADER < lower <= upper <= self._size or lower % 2:
                raise ValueError(f"page {number} is damaged")
            count = (lower - _HEADER) // 2
            if flags == _BRANCH:
                children = self._children(page, number, count, upper)
                waiting += [(child, depth + 1) for child in reversed(children)]
            elif leaf_depth not in (None, depth):
                raise ValueError(f"page {number} is at another depth")
            else:
                leaf_depth = depth
                self._take(page, number, count, upper)

    def _children(self, page: bytes, number: int, count: int, upper: int) -> list[int]:
        _, fields, ends = self._nodes(page, number, count, upper)
        if (ends > self._size).any():
            raise ValueError(f"page {number} is damaged")
        low, high, flags, _ = fields.T
        return (low | high << 16 | flags << 32).tolist()

    def _take(self, page: bytes, number: int, count: int, upper: int) -> None:
        """Take down a leaf's keys and where their values are: in it, or on pages of their own."""
        at, fields, ends = self._nodes(page, number, count, upper)
        low, high, flags, _ = fields.T
        lengths, big = low | high << 16, (flags & _BIG).astype(bool)
        if (flags & ~_BIG).any() or (ends + np.where(big, 8, lengths) > self._size).any():
            raise ValueError(f"page {number} is damaged")
        offsets = number * self._size + ends
        if big.any():
            raw = np.frombuffer(page, np.uint8)
            first = raw[ends[big, None] + np.arange(8)].view("=u8")[:, 0]
            if (first < META_PAGES).any() or (first > self._last).any():
                raise ValueError(f"page {number} leads out of it")
            first = first.astype(np.int64)
            pages = -(-(lengths[big] + OVERFLOW_HEADER) // self._size)
            if (first + pages - 1 > self._last).any():
                raise ValueError(f"page {number} leads out of it")
            offsets[big] = first * self._size + OVERFLOW_HEADER
        self._keys += [page[a:b] for a, b in zip((at + 8).tolist(), ends.tolist(), strict=True)]
        self._places.append(np.column_stack([offsets, lengths]))

    def _nodes(
        self, page: bytes, number: int, count: int, upper: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Where a page's nodes begin, their four fields, and where their keys end."""
        raw = np.frombuffer(page, np.uint8)
        at = np.frombuffer(page, "=u2", count, _HEADER).astype(np.int64)
        if (at < upper).any() or (at > self._size - 8).any():
            raise ValueError(f"page {number} is damaged")
        fields = raw[at[:, None] + np.arange(8)].view("=u2").astype(np.int64)
        return at, fields, at + 8 + fields[:, 3]

    def _page(self, number: int) -> bytes:
        page = os.pread(self._handle, self._size, number * self._size)
        if len(page) != self._size:
            raise ValueError("it is cut short")
        return page
