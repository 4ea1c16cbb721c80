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
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from wsi_assets.files import digest
from wsi_assets.patches.backends.base import UNKNOWN_LABEL, StoreMetadata, StoreReader, StoreWriter

_SUFFIX = ".part"
_STORE, NOWHERE = -1, -2
"""In place of a part's number: the patch is in the old store, or is not known."""


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
            stream.write(trailer + len(trailer).to_bytes(8, "big"))
        path.rename(path.with_suffix(_SUFFIX))
    finally:
        path.unlink(missing_ok=True)


class ReusablePatches:
    """Encoded patches of one content, by slide fingerprint and (y, x).

    Args:
        old: the store there is, if any; it is closed with this.
        folder: of parts; unfinished ones, and those of another content, are removed.
    """

    def __init__(self, old: StoreReader | None, folder: Path, content: dict[str, Any]):
        self.old = old
        self._known: dict[str, list[tuple[np.ndarray, np.ndarray]]] = defaultdict(list)
        self._parts: list[Path] = []
        self._handle: int | None = None
        self._open = -1
        for path in sorted(folder.glob("*")):
            about = _trailer(path) if path.suffix == _SUFFIX else None
            if about is None or about["content"] != digest(content):
                path.unlink(missing_ok=True)
                continue
            lengths = np.array(about["lengths"], np.int64)
            places = [np.full_like(lengths, len(self._parts)), np.cumsum(lengths) - lengths, lengths]
            self._known[about["fingerprint"]].append((np.array(about["coords"]), np.column_stack(places)))
            self._parts.append(path)
        if old is not None and old.metadata.origins is not None:
            self._add_store(old.metadata, content)

    def _add_store(self, metadata: StoreMetadata, content: dict[str, Any]) -> None:
        if any(metadata.info.get(name) != value for name, value in content.items()):
            return
        origins, slides = metadata.origins, metadata.info["slides"]
        borders = np.searchsorted(origins[:, 0], np.arange(len(slides) + 1))
        for slide, first, end in zip(slides, borders, borders[1:], strict=False):
            rows = first + np.flatnonzero(metadata.labels[first:end] != UNKNOWN_LABEL)
            places = [np.full_like(rows, _STORE), rows, np.zeros_like(rows)]
            self._known[slide["fingerprint"]].append((origins[rows, 1:], np.column_stack(places)))

    def find(self, fingerprint: str, coords: np.ndarray) -> np.ndarray:
        """Where the patches at ``coords`` of a slide are: int64 (n, 3), first :data:`NOWHERE` if unknown."""
        known: dict[tuple[int, int], list[int]] = {}
        for there, places in self._known.get(fingerprint, ()) if fingerprint else ():
            known.update(zip(map(tuple, there.tolist()), places.tolist(), strict=True))
        found = [known.get((y, x), (NOWHERE, 0, 0)) for y, x in coords.tolist()]
        return np.array(found, np.int64).reshape(-1, 3)

    def copy(self, place: list[int], writer: StoreWriter, row: int, key: str, label: int) -> None:
        """Put the patch at a place that was found into a store."""
        part, offset, length = place
        if part == _STORE:
            writer.keep(row, key, label, self.old, offset)
            return
        if part != self._open:
            self._close_part()
            self._handle, self._open = os.open(self._parts[part], os.O_RDONLY | os.O_CLOEXEC), part
        writer.write(row, key, label, os.pread(self._handle, length, offset))

    def close(self) -> None:
        """Let go of all files."""
        self._close_part()
        if self.old is not None:
            self.old.close()

    def _close_part(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
        self._handle, self._open = None, -1


def _trailer(path: Path) -> dict[str, Any] | None:
    """What a part holds; None if it is not whole, as after a power cut."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError), path.open("rb") as stream:
        end = stream.seek(-8, os.SEEK_END)
        length = int.from_bytes(stream.read(8), "big")
        stream.seek(end - length)
        about = json.loads(stream.read(length))
        if about["lengths"] and sum(about["lengths"]) + length == end:
            return about
    return None
