"""Compare a store with the slides it was made from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from wsi_assets.errors import SlideError, StoreError
from wsi_assets.patches.codecs import LOSSLESS, decode, encoder
from wsi_assets.patches.store import PatchStore
from wsi_assets.progress import Progress, silent
from wsi_assets.slides import ReferenceReader

JPEG_TOLERANCE = 1.0
"""Mean gray levels by which a JPEG patch may differ from its slide's pixels put through JPEG again: 0 with
the same libraries, under 1 between versions of them, well above for any other place with tissue."""


@dataclass(frozen=True)
class VerifyReport:
    """``checked`` of ``patches`` patches were read again; ``problems`` are (key, what is wrong);
    ``worst_difference`` is the largest mean difference of a patch, in gray levels."""

    patches: int
    checked: int
    worst_difference: float
    problems: list[tuple[str, str]] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether every patch that was checked is its slide's."""
        return not self.problems


def verify_store(
    store: PatchStore,
    index: Mapping[str, Mapping[str, Any]],
    fraction: float = 0.01,
    seed: int = 42,
    *,
    progress: Progress = silent,
) -> VerifyReport:
    """Check the store's file, and read a seeded sample of patches again from their slides to compare.

    A lossless store must equal the slide in every pixel. A patch of a JPEG store must equal the slide, or,
    within :data:`JPEG_TOLERANCE`, what its codec makes of the slide's pixels.

    Args:
        index: the slide index that the store was made from.
        fraction: share of patches to check, 0 to 1; at least one is checked, 1.0 checks all.

    Raises:
        StoreError: the fraction is out of range, or the store does not say where its patches lie.
    """
    if not 0.0 <= fraction <= 1.0:
        raise StoreError(f"a fraction of {fraction} cannot be checked", remedy="Give one between 0 and 1")
    lost = {row["key"] for row in store.info["quarantined"]}
    keys, origins = store.keys, store.origins
    readable = np.array([row for row, key in enumerate(keys) if key not in lost], np.int64)
    total = len(readable)
    count = min(total, max(1, round(total * fraction)))
    chosen = np.sort(np.random.default_rng(seed).choice(readable, count, replace=False)) if total else []
    problems: list[tuple[str, str]] = [(store.path.name, problem) for problem in store.problems()]
    worst = 0.0
    by_slide: dict[str, list[int]] = {}
    for row in chosen:
        by_slide.setdefault(origins[row][0], []).append(int(row))
    done = 0
    for slide_id, rows in by_slide.items():
        entry = index.get(slide_id)
        coords = np.array([origins[row][1:] for row in rows], np.int64)
        for row, difference, problem in _compare(store, entry, rows, coords):
            worst = max(worst, difference)
            if problem:
                problems.append((keys[row], problem))
            done += 1
            progress(done, count, "verifying patches")
    return VerifyReport(total, count, worst, problems)


def _compare(
    store: PatchStore, entry: Mapping[str, Any] | None, rows: list[int], coords: np.ndarray
) -> Iterator[tuple[int, float, str | None]]:
    """(row, mean difference, what is wrong) of some patches of one slide."""
    if entry is None:
        yield from ((row, 0.0, "its slide is not in the index") for row in rows)
        return
    again = _round_trip(store.info)
    unread = dict.fromkeys(rows)
    try:
        # Another way than the store was read by, whose faults the same way would repeat.
        with ReferenceReader(entry["slide_path"], int(entry["level"])) as reader:
            size = store.info["patch_size"]
            for row, (y, x) in zip(rows, coords.tolist(), strict=True):
                try:
                    expected = reader.read(y, x, size, size)
                except SlideError as error:
                    found = 0.0, error.fault
                else:
                    found = _difference(store, row, expected, again)
                del unread[row]
                yield (row, *found)
    except SlideError as error:
        yield from ((row, 0.0, error.fault) for row in unread)


def _difference(
    store: PatchStore,
    index: int,
    expected: np.ndarray,
    again: Callable[[np.ndarray], np.ndarray] | None,
) -> tuple[float, str | None]:
    try:
        stored = store.get(index)
    except StoreError as error:
        return 0.0, error.fault
    if again is not None and not np.array_equal(stored, expected):
        expected = again(expected)
    difference = float(np.abs(stored.astype(np.int16) - expected).mean())
    if difference > (0.0 if again is None else JPEG_TOLERANCE):
        return difference, f"differs from its slide by {difference:.2f} gray levels"
    return difference, None


def _round_trip(info: Mapping[str, Any]) -> Callable[[np.ndarray], np.ndarray] | None:
    """Encode and decode, to compare a JPEG patch with its source; None if the codec is lossless."""
    if info["codec"] in LOSSLESS:
        return None
    encode = encoder(info["codec"], info.get("quality"))
    return lambda pixels: decode(encode(pixels), info["patch_size"])
