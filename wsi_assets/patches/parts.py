"""Encoded patches that need not be read from slides: those of part files, and of the store there is.

A part is the encoded patches of a batch one after another, a JSON trailer that lists them, and its length in
8 bytes. Parts bring patches from workers to the builder, and are what a killed build leaves to the next.
"""

from __future__ import annotations

import contextlib
import json
import os
import uuid
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from wsi_assets.errors import StoreError
from wsi_assets.files import digest
from wsi_assets.patches.backends.base import UNKNOWN_LABEL, StoreReader, StoreWriter
from wsi_assets.slides.closing import Closing

_STORE = -1
"""In place of a part's number: the patch is in the old store."""

NOWHERE = -2
"""The patch is neither there nor in a part."""


@contextlib.contextmanager
def new_part(folder: Path) -> Iterator[BinaryIO]:
    """A stream to write a part to, which gets its name once it is whole."""
    path = folder / f"{uuid.uuid4().hex}.unfinished"
    try:
        with path.open("wb") as stream:
            yield stream
        path.rename(path.with_suffix(".part"))
    finally:
        path.unlink(missing_ok=True)


def write_part(
    stream: BinaryIO,
    content: dict[str, Any],
    fingerprint: str,
    values: Iterable[tuple[tuple[int, int], bytes]],
) -> None:
    """Write (y, x) and encoded patch each.

    Args:
        content: what decides the bytes of a patch besides slide and place (:meth:`PatchPlan.content`).
        fingerprint: of the slide.
    """
    coords, lengths = [], []
    for place, value in values:
        stream.write(value)
        coords.append(place)
        lengths.append(len(value))
    about = {"content": digest(content), "fingerprint": fingerprint, "coords": coords, "lengths": lengths}
    trailer = json.dumps(about).encode()
    stream.write(trailer + len(trailer).to_bytes(8, "big"))


class EncodedPatches(Closing):
    """Encoded patches of one content, by slide fingerprint and (y, x); a context manager.

    Args:
        old: the store there is, if any; it is closed with this.
        folder: of parts.
    """

    def __init__(self, old: StoreReader | None, folder: Path, content: dict[str, Any]):
        self.old = old
        self._folder, self._content = folder, content
        # Fingerprint -> rows of y, x, number of the part, place in it, length.
        self._known: dict[str, list[np.ndarray]] = defaultdict(list)
        self._parts: list[Path] = []
        self._open: tuple[int, BinaryIO] | None = None
        self.find_parts()
        if old is not None and old.metadata.origins is not None:
            info = old.metadata.info
            if all(info.get(name) == value for name, value in content.items()):
                self._add_store()

    def find_parts(self) -> None:
        """Take up the parts that were written since; remove unfinished ones and those of another content."""
        for path in sorted(set(self._folder.glob("*")) - set(self._parts)):
            about = _trailer(path)
            if about is None or about["content"] != digest(self._content):
                path.unlink(missing_ok=True)
                continue
            lengths = np.array(about["lengths"], np.int64)
            places = [np.full_like(lengths, len(self._parts)), np.cumsum(lengths) - lengths, lengths]
            self._known[about["fingerprint"]].append(np.column_stack([about["coords"], *places]))
            self._parts.append(path)

    def _add_store(self) -> None:
        numbers, slides = self.old.metadata.origins[:, 0], self.old.metadata.info["slides"]
        rows = np.flatnonzero(self.old.metadata.labels != UNKNOWN_LABEL)
        rows = rows[np.argsort(numbers[rows], kind="stable")]
        for some in np.split(rows, np.flatnonzero(np.diff(numbers[rows])) + 1):
            if len(some):
                places = [np.full_like(some, _STORE), some, np.zeros_like(some)]
                known = np.column_stack([self.old.metadata.origins[some, 1:], *places])
                self._known[slides[numbers[some[0]]]["fingerprint"]].append(known)

    def find(self, fingerprint: str, coords: np.ndarray) -> np.ndarray:
        """Where the patches at ``coords`` of a slide are: int64 (n, 3), first :data:`NOWHERE` if unknown."""
        known: dict[tuple[int, int], list[int]] = {}
        for rows in self._known.get(fingerprint, ()):
            known.update(((y, x), place) for y, x, *place in rows.tolist())
        found = [known.get((y, x), (NOWHERE, 0, 0)) for y, x in coords.tolist()]
        return np.array(found, np.int64).reshape(-1, 3)

    def put(self, place: list[int], writer: StoreWriter, row: int, key: str, label: int) -> None:
        """Put the patch at a place that was found into a store."""
        part, offset, length = place
        if part == NOWHERE:
            raise StoreError(f"the part file of {key} is gone", path=self._folder, remedy="Run again")
        if part == _STORE:
            writer.keep(row, key, label, self.old, offset)
            return
        if self._open is None or self._open[0] != part:
            self._close_part()
            self._open = part, self._parts[part].open("rb", buffering=0)
        writer.write(row, key, label, os.pread(self._open[1].fileno(), length, offset))

    def close(self) -> None:
        """Let go of all files."""
        self._close_part()
        if self.old is not None:
            self.old.close()

    def _close_part(self) -> None:
        if self._open is not None:
            self._open[1].close()
        self._open = None


def _trailer(path: Path) -> dict[str, Any] | None:
    """What a part holds; None if it is not whole, as after a kill or a power cut."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError), path.open("rb") as stream:
        end = stream.seek(-8, os.SEEK_END)
        length = int.from_bytes(stream.read(8), "big")
        stream.seek(end - length)
        about = json.loads(stream.read(length))
        if about["lengths"] and sum(about["lengths"]) + length == end:
            return about
    return None
