"""Part files: encoded patches on their way from the workers to the store, and what a killed build leaves.

A part is a batch's encoded patches one after another, then a JSON trailer with what they show. It appears
under its name only when it is whole.
"""

from __future__ import annotations

import contextlib
import json
import os
import uuid
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from wsi_assets.files import digest

_SUFFIX = ".part"
_END = b"wsi-part"


def write_part(
    folder: Path, content: dict[str, Any], fingerprint: str, values: Iterable[tuple[tuple[int, int], bytes]]
) -> None:
    """Write a part of (y, x) and encoded patch each, and give it its name once it is whole.

    Args:
        content: what decides the bytes of a patch besides slide and place (:meth:`PatchPlan.content`).
        fingerprint: of the slide.
    """
    path = folder / f"{uuid.uuid4().hex}.unfinished"
    coords: list[tuple[int, int]] = []
    lengths: list[int] = []
    try:
        with path.open("wb") as stream:
            for place, value in values:
                stream.write(value)
                coords.append(place)
                lengths.append(len(value))
            about = {"content": digest(content), "fingerprint": fingerprint, "coords": coords}
            trailer = json.dumps({**about, "lengths": lengths}).encode()
            stream.write(trailer + len(trailer).to_bytes(8, "big") + _END)
        path.rename(path.with_suffix(_SUFFIX))
    finally:
        path.unlink(missing_ok=True)


class PatchTable:
    """Numbers of known patches by slide fingerprint and (y, x)."""

    def __init__(self) -> None:
        self._added: dict[str, list[tuple[np.ndarray, np.ndarray]]] = defaultdict(list)
        self._sorted: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def add(self, fingerprint: str, coords: np.ndarray, numbers: np.ndarray) -> None:
        """Enter patches of a slide, before the first :meth:`find` of it."""
        if len(numbers):
            self._added[fingerprint].append((_codes(coords), numbers))

    def find(self, fingerprint: str, coords: np.ndarray) -> np.ndarray:
        """int64 (n,): the number of the patch at each (y, x) of ``coords``, -1 where none is known."""
        found = np.full(len(coords), -1, np.int64)
        if not fingerprint or fingerprint not in self._added or not len(coords):
            return found
        if fingerprint not in self._sorted:
            codes, numbers = map(np.concatenate, zip(*self._added[fingerprint], strict=True))
            order = np.argsort(codes, kind="stable")
            self._sorted[fingerprint] = codes[order], numbers[order]
        codes, numbers = self._sorted[fingerprint]
        wanted = _codes(coords)
        at = np.minimum(np.searchsorted(codes, wanted), len(codes) - 1)
        hit = codes[at] == wanted
        found[hit] = numbers[at[hit]]
        return found


class Parts:
    """The whole parts of one content in a folder; those of another, and unfinished ones, are removed.

    ``table`` gives the numbers of their patches.
    """

    def __init__(self, folder: Path, content: dict[str, Any]):
        self.table = PatchTable()
        self._files: list[Path] = []
        self._places: list[np.ndarray] = []
        self._handle: int | None = None
        self._open = -1
        wanted, first = digest(content), 0
        for path in sorted(folder.iterdir()) if folder.is_dir() else []:
            about = _trailer(path) if path.suffix == _SUFFIX else None
            if about is None or about["content"] != wanted:
                path.unlink(missing_ok=True)
                continue
            lengths = np.array(about["lengths"], np.int64)
            count = len(lengths)
            if not count:
                continue
            ends = np.cumsum(lengths)
            places = np.column_stack([np.full(count, len(self._files)), ends - lengths, lengths])
            self._places.append(places)
            self._files.append(path)
            self.table.add(about["fingerprint"], np.array(about["coords"]), np.arange(first, first + count))
            first += count
        self._all = np.concatenate(self._places) if self._places else np.empty((0, 3), np.int64)

    def read(self, number: int) -> bytes:
        """The encoded patch of this number."""
        file, offset, length = self._all[number].tolist()
        if file != self._open:
            self.close()
            self._handle, self._open = os.open(self._files[file], os.O_RDONLY | os.O_CLOEXEC), file
        return os.pread(self._handle, length, offset)

    def close(self) -> None:
        """Let go of the file read last."""
        if self._handle is not None:
            os.close(self._handle)
        self._handle, self._open = None, -1


def _trailer(path: Path) -> dict[str, Any] | None:
    """What a part holds; None if it is not whole, as after a power cut."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError), path.open("rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(size - 16)
        tail = stream.read(16)
        length = int.from_bytes(tail[:8], "big")
        if tail[8:] == _END and length <= size - 16:
            stream.seek(size - 16 - length)
            about = json.loads(stream.read(length))
            if sum(about["lengths"]) + length + 16 == size and len(about["coords"]) == len(about["lengths"]):
                return about
    return None


def _codes(coords: np.ndarray) -> np.ndarray:
    coords = np.asarray(coords, np.int64)
    return (coords[:, 0] << 32) | (coords[:, 1] & 0xFFFFFFFF)
