"""What every store is made of, for readers and for writers; a new kind of store implements these.

No file format belongs here, and no decision about what to extract.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from wsi_assets.errors import StoreError

FORMAT = 3
"""Version of what a store holds; a store of another version is built again, not reused."""

MOST_PIXELS = 1 << 14
"""A patch's side above which a store is not believed."""

Identity = tuple[str, int, int]
"""(slide fingerprint, y, x): with equal level, size and encoding, equal identities are equal bytes."""


@dataclass(frozen=True)
class Contents:
    """What a store holds, without the patches.

    Attributes:
        info: plain values: ``format, backend, level, patch_size, stride, max_no_data, codec, quality,
            plan_digest`` (of what was asked for), ``digest`` (of what it holds: equal ones mean equal keys,
            labels and patches), ``complete, patches, tumor, normal, slides`` (id, fingerprint, downsample,
            mpp, magnification, patches of each), ``quarantined`` and ``versions``.
        keys: one a patch, in index order.
        labels: uint8 (n,), 1 is tumour.
        origins: int32 (n, 3): slide number in ``info["slides"]``, y, x in pixels of the level.
    """

    info: dict[str, Any]
    keys: Sequence[str]
    labels: np.ndarray
    origins: np.ndarray

    def check(self, path: Path) -> None:
        """See that the parts fit each other, for a store that may be damaged.

        Raises:
            UnusableStoreError: it is of another version.
            ValueError: they do not.
        """
        version = self.info.get("format") if isinstance(self.info, dict) else None
        if isinstance(version, int) and version != FORMAT:
            raise of_other_version(path, version)
        info, count = self.info, len(self.keys)
        numbers = {
            "level": int,
            "patch_size": int,
            "stride": int,
            "patches": int,
            "codec": str,
            "plan_digest": str,
            "digest": str,
        }
        for name, kind in {**numbers, "slides": list, "quarantined": list, "backend": str}.items():
            if not isinstance(info, dict) or type(info.get(name)) is not kind:
                raise ValueError(f"{name} is not told")
        if not 0 < info["patch_size"] <= MOST_PIXELS or not all(_is_slide(slide) for slide in info["slides"]):
            raise ValueError("sizes or slides are not possible")
        fits = count == info["patches"] and self.labels.shape == (count,) and self.origins.shape == (count, 3)
        if not fits or self.labels.dtype.kind not in "iu" or self.origins.dtype.kind not in "iu":
            raise ValueError("keys, labels and origins do not fit")
        if count and not (
            self.labels.max() <= 1
            and self.origins[:, 0].min() >= 0
            and self.origins[:, 0].max() < len(info["slides"])
        ):
            raise ValueError("labels or origins are not possible")


class Shelf(Protocol):
    """An open complete store as its format gives it: used by one process, never sent to another."""

    contents: Contents

    def raw(self, index: int) -> bytes | memoryview:
        """The encoded patch; valid until the shelf closes."""

    def tidy(self) -> None:
        """Take what a killed update left off its files; only for who owns the store."""

    def close(self) -> None:
        """Let go of all files."""


class Source(Protocol):
    """Encoded patches of an earlier build, complete or not, to take over without decoding."""

    def find(self, fingerprint: str, coords: np.ndarray) -> list[Any]:
        """For each (y, x) of ``coords`` a locator, or None where the source lacks the patch.

        Each patch is given out once. A copy of a slide has the same identities, and no two keys may share a
        place: freeing one would free the other.
        """

    def take(self, locator: Any) -> Any:
        """What the writer of the same kind of store takes: bytes, a place in its file, or a file to link."""


class Writer(Protocol):
    """Fills a store; one process owns it. The old store stays readable until the new one is finished.

    It is made from the store's path, what decides the bytes of a patch (:meth:`PatchPlan.content`), and the
    complete store there, if its patches are of that kind. A killed writer leaves what it committed, and the
    next one finds it among its ``sources``.

    Attributes:
        sources: what may be taken over, from an unfinished build and from the old store, in the order in
            which they are asked.
    """

    sources: list[Source]

    def add(
        self, position: int, key: str, label: int, identity: Identity, value: bytes | None, reuse: Any
    ) -> None:
        """Put one patch: newly encoded (``value``), or what a source's ``take`` gave (``reuse``).

        ``position`` is the patch's number in the plan.
        """

    def commit(self) -> None:
        """Make all added patches survive a kill, at once or soon after; a full disk may be told later."""

    def finish(self, contents: Contents) -> None:
        """Complete the store and put it in the old one's place."""

    def close(self) -> None:
        """Let go of all files; without :meth:`finish` the work stays for the next writer."""


class IndexedSource:
    """A :class:`Source` over a table of identities; ``take`` is up to the kind of store."""

    def __init__(self, tables: dict[str, tuple[np.ndarray, Sequence[Any]]]):
        self._tables = {}
        for fingerprint, (coords, locators) in tables.items():
            codes = _codes(coords)
            order = np.argsort(codes, kind="stable")
            given = np.zeros(len(codes), np.int32)  # how often, at the first of equal codes
            self._tables[fingerprint] = (codes[order], order, locators, given)

    def find(self, fingerprint: str, coords: np.ndarray) -> list[Any]:
        """See :class:`Source`."""
        if fingerprint not in self._tables or not len(coords):
            return [None] * len(coords)
        codes, order, locators, given = self._tables[fingerprint]
        wanted = _codes(coords)
        first = np.minimum(np.searchsorted(codes, wanted), len(codes) - 1)
        at = first + given[first] + _occurrence(wanted)
        hits = codes[np.minimum(at, len(codes) - 1)] == wanted
        hits &= at < len(codes)
        np.add.at(given, first[hits], 1)
        return [locators[order[i]] if hit else None for i, hit in zip(at, hits, strict=True)]


class ShelfSource(IndexedSource):
    """A complete store as a source; locators are its patch numbers."""

    def __init__(self, shelf: Shelf):
        self.shelf = shelf
        origins = shelf.contents.origins
        of_file: dict[str, list[int]] = {}
        for number, slide in enumerate(shelf.contents.info["slides"]):
            if slide["fingerprint"]:
                of_file.setdefault(slide["fingerprint"], []).append(number)
        tables = {}
        for fingerprint, numbers in of_file.items():
            rows = np.concatenate([np.flatnonzero(origins[:, 0] == number) for number in numbers])
            if len(rows):
                tables[fingerprint] = (origins[rows, 1:], rows.tolist())
        super().__init__(tables)

    def take(self, locator: int) -> Any:
        """See :class:`Source`."""
        return self.shelf.raw(locator)


def tables_of(items: Sequence[tuple[Identity, Any]]) -> dict[str, tuple[np.ndarray, list[Any]]]:
    """Tables for an :class:`IndexedSource` from (identity, locator) pairs."""
    tables: dict[str, tuple[list[tuple[int, int]], list[Any]]] = {}
    for (fingerprint, y, x), locator in items:
        coords, locators = tables.setdefault(fingerprint, ([], []))
        coords.append((y, x))
        locators.append(locator)
    return {name: (np.array(coords, np.int64), locators) for name, (coords, locators) in tables.items()}


class UnusableStoreError(StoreError):
    """A store that is half-built or damaged: nothing in it can be trusted, and building replaces it."""


def _is_slide(slide: Any) -> bool:
    return (
        isinstance(slide, dict)
        and isinstance(slide.get("slide_id"), str)
        and isinstance(slide.get("fingerprint"), str)
        and {"mpp", "downsample", "magnification"} <= slide.keys()
    )


def incomplete(path: Path) -> StoreError:
    """The error of a store whose build did not finish."""
    return UnusableStoreError(
        "is half-built: its build has not finished", path=path, remedy="Run the build again; it continues"
    )


def of_other_version(path: Path, version: int) -> StoreError:
    """The error of a store that an older or newer version of this package wrote."""
    return UnusableStoreError(
        f"is of format {version}, and this version of wsi-assets writes {FORMAT}",
        path=path,
        remedy="Build it again: run the level, or materialize its patch_store",
    )


def replaced(path: Path) -> StoreError:
    """The error of a handle whose store is no longer the one at its path."""
    return StoreError("was built anew since this handle was made", path=path, remedy="Open it again")


def damaged(path: Path, why: object) -> StoreError:
    """The error of a store that cannot be understood."""
    return UnusableStoreError(f"is damaged ({why})", path=path, remedy="Delete it and build it again")


def _occurrence(values: np.ndarray) -> np.ndarray:
    """How many equal values stand before each."""
    order = np.argsort(values, kind="stable")
    ascending = values[order]
    before = np.empty(len(values), np.int64)
    before[order] = np.arange(len(values)) - np.searchsorted(ascending, ascending)
    return before


def _codes(coords: np.ndarray) -> np.ndarray:
    coords = np.asarray(coords, np.int64)
    return (coords[:, 0] << 32) | (coords[:, 1] & 0xFFFFFFFF)
