"""Part files, which hold encoded patches until the store is written, and the reuse of patches of the old
store.

A part file holds the encoded patches of a batch one after another, then a JSON trailer that lists them, then
the length of the trailer in 8 bytes. Workers pass patches to the building process in part files, and the part
files of a killed build are used by the next one.
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
from wsi_assets.patches.plan import source_of

_STORE = -1

Location = tuple[int, int] | None
"""Where an encoded patch is: (number of its part, or ``_STORE`` for the old store; row in it), or None."""


@contextlib.contextmanager
def new_part(folder: Path) -> Iterator[BinaryIO]:
    """A stream to write a part file; the file gets its name when it is complete."""
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
    source: str,
    values: Iterable[tuple[tuple[int, int], bytes]],
) -> None:
    """Write a part.

    Args:
        content: patch size, codec and so on, which the bytes of a patch depend on
        (:meth:`PatchPlan.content`). source: identity of the pixels they are made of
        (:attr:`SlidePlan.source`). values: (y, x) and encoded patch, each.
    """
    coords, lengths = [], []
    for place, value in values:
        stream.write(value)
        coords.append(place)
        lengths.append(len(value))
    about = {"content": digest(content), "source": source, "coords": coords, "lengths": lengths}
    trailer = json.dumps(about).encode()
    stream.write(trailer + len(trailer).to_bytes(8, "big"))


class _Part:
    """A complete part file.

    Raises:
        ValueError: it is incomplete, as after a power cut.
    """

    def __init__(self, path: Path):
        self.path = path
        with path.open("rb") as stream:
            end = stream.seek(-8, os.SEEK_END)
            length = int.from_bytes(stream.read(8), "big")
            stream.seek(end - length)
            about = json.loads(stream.read(length))
        self.content, self.source = about["content"], about["source"]
        self.coords, self._lengths = np.array(about["coords"]), np.array(about["lengths"], np.int64)
        self._starts = np.cumsum(self._lengths) - self._lengths
        if not len(self.coords) or self._lengths.sum() + length != end:
            raise ValueError("is cut short")

    def read(self, row: int) -> bytes:
        with self.path.open("rb", buffering=0) as stream:
            return os.pread(stream.fileno(), int(self._lengths[row]), int(self._starts[row]))


class EncodedPatches:
    """The encoded patches at hand, in the old store and in part files, by source and (y, x).

    Args:
        old: the old store, None without one.
        folder: folder of the part files.
        content: :meth:`PatchPlan.content`; patches of another content are not used.
    """

    def __init__(self, old: StoreReader | None, folder: Path, content: dict[str, Any]):
        self._old, self._folder, self._content = old, folder, digest(content)
        self._parts: list[_Part] = []
        # Source -> arrays of (y, x, number of the part or _STORE, row in it).
        self._known: dict[str, list[np.ndarray]] = defaultdict(list)
        if old is not None and old.metadata.origins is not None:
            info, origins = old.metadata.info, old.metadata.origins
            if all(info.get(name) == value for name, value in content.items()):
                borders = np.searchsorted(origins[:, 0], np.arange(len(info["slides"]) + 1))
                for slide, first, end in zip(info["slides"], borders, borders[1:], strict=False):
                    rows = first + np.flatnonzero(old.metadata.labels[first:end] != UNKNOWN_LABEL)
                    self._add(
                        source_of(slide["fingerprint"], slide["level"], slide["step"]),
                        origins[rows, 1:],
                        _STORE,
                        rows,
                    )
        self.find_parts()

    def find_parts(self) -> None:
        """Add the part files written meanwhile; remove incomplete ones and those of another content."""
        for path in sorted(set(self._folder.glob("*")) - {part.path for part in self._parts}):
            part = None
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                part = _Part(path)
            if part is None or part.content != self._content:
                path.unlink(missing_ok=True)
                continue
            self._add(part.source, part.coords, len(self._parts), np.arange(len(part.coords)))
            self._parts.append(part)

    def find(self, source: str, coords: np.ndarray) -> list[Location]:
        """Where the patches at ``coords`` (n, 2) of a source are, None for each that is not at hand."""
        known: dict[tuple[int, int], Location] = {}
        for rows in self._known.get(source, ()):
            known.update(((y, x), (number, row)) for y, x, number, row in rows.tolist())
        return [known.get((y, x)) for y, x in coords.tolist()]

    def put(self, place: Location, writer: StoreWriter, row: int, key: str, label: int) -> None:
        """Write the patch at a location to a store."""
        if place is None:
            raise StoreError(f"the part file of {key} is gone", path=self._folder, remedy="Run again")
        source, source_row = place
        if source == _STORE:
            writer.keep(row, key, label, self._old, source_row)
        else:
            writer.write(row, key, label, self._parts[source].read(source_row))

    def _add(self, source: str, coords: np.ndarray, number: int, rows: np.ndarray) -> None:
        self._known[source].append(np.column_stack([coords, np.full_like(rows, number), rows]))
