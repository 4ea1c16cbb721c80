"""Compare the patches of a store with the slides they were extracted from."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from wsi_assets.errors import SlideError, StoreError
from wsi_assets.patches.codecs import LOSSLESS, decode, encoder
from wsi_assets.patches.options import ExtractionOptions
from wsi_assets.patches.plan import plan_patches
from wsi_assets.patches.store import PatchStore
from wsi_assets.progress import Progress, silent
from wsi_assets.slides import ReferenceReader, read_averaged

JPEG_TOLERANCE = 1.0
"""Largest mean difference, in gray levels, of a JPEG patch from its slide's pixels encoded as JPEG again. It
is 0 with the same libraries, under 1 between their versions, and much more for other tissue."""

UNKNOWN_JPEG_TOLERANCE = 8.0
"""The same for a store of another program, whose JPEG quality is not known."""

Compare = Callable[[np.ndarray, np.ndarray], tuple[float, bool]]
"""(stored pixels, slide's pixels) -> mean difference in gray levels, and whether that is too much."""


@dataclass(frozen=True)
class VerifyReport:
    """The result of a verification.

    Attributes:
        patches, checked: numbers of patches in the store, and of those that were compared.
        worst_difference: largest mean difference of a patch, in gray levels.
        problems: (key, what is wrong) of each patch that differs or cannot be read.
    """

    patches: int
    checked: int
    worst_difference: float
    problems: list[tuple[str, str]] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether every patch that was checked equals its slide."""
        return not self.problems


def verify_store(
    store: PatchStore,
    index: Mapping[str, Mapping[str, Any]],
    fraction: float = 0.01,
    seed: int = 42,
    *,
    progress: Progress = silent,
) -> VerifyReport:
    """Check the store's files, and compare a random sample of patches with their slides.

    Patches of a lossless store must equal the slide in every pixel. Patches of a JPEG store must equal the
    slide's pixels, or those pixels encoded as JPEG to within :data:`JPEG_TOLERANCE`.

    Args:
        index: the slide index that the store was made from. It gives the coordinates of the patches if the
            store lacks them, as stores of other programs do.
        fraction: share of patches to compare, 0 to 1; at least one is compared.
        seed: seed of the random sample.

    Raises:
        StoreError: the fraction is out of range, or the store and the index have no key in common.
    """
    if not 0.0 <= fraction <= 1.0:
        raise StoreError(f"a fraction of {fraction} cannot be checked", remedy="Give one between 0 and 1")
    lost = {row["key"] for row in store.info["quarantined"]}
    keys, origins = store.keys, _origins(store, index)
    readable = np.array([row for row in origins if keys[row] not in lost], np.int64)
    total = len(readable)
    count = min(total, max(1, round(total * fraction)))
    chosen = np.sort(np.random.default_rng(seed).choice(readable, count, replace=False)).tolist()
    problems: list[tuple[str, str]] = [(store.path.name, problem) for problem in store.problems()]
    by_slide: dict[str, list[int]] = {}
    for row in chosen:
        by_slide.setdefault(origins[row][0], []).append(row)
    worst, done = 0.0, 0
    for slide_id, rows in by_slide.items():
        places = {row: origins[row][1:] for row in rows}
        for row, difference, problem in _compare(store, index.get(slide_id), places):
            worst, done = max(worst, difference), done + 1
            if problem:
                problems.append((keys[row], problem))
            progress(done, count, "verifying patches")
    return VerifyReport(total, count, worst, problems)


def _origins(store: PatchStore, index: Mapping[str, Mapping[str, Any]]) -> dict[int, tuple[str, int, int]]:
    """Row of a patch in the store -> slide id, y, x."""
    if store.coords is not None:
        return dict(enumerate(store.origins))
    plan, found = plan_patches(index, ExtractionOptions(), patch_size=store.info["patch_size"]), {}
    for key, (number, y, x) in zip(plan.keys(), plan.origins.tolist(), strict=True):
        with contextlib.suppress(KeyError):
            found[store.key_index(key)] = plan.slides[number].slide_id, y, x
    if not found:
        raise StoreError(
            "has none of the keys of this index", path=store.path, remedy="Give the index it was made from"
        )
    return found


def _compare(
    store: PatchStore, entry: Mapping[str, Any] | None, places: dict[int, tuple[int, int]]
) -> Iterator[tuple[int, float, str | None]]:
    """(row, mean difference, what is wrong or None) of patches of one slide."""
    if entry is None:
        yield from ((row, 0.0, "its slide is not in the index") for row in places)
        return
    compare, size, unread = _comparison(store.info), store.info["patch_size"], set(places)
    step = float(entry.get("step", 1.0))
    try:
        # Read in another way than for the store, because the same way would repeat its errors.
        with ReferenceReader(entry["slide_path"], int(entry["level"])) as reader:
            for row, (y, x) in places.items():
                unread.remove(row)
                try:
                    expected, _ = read_averaged(reader.read_window, y, x, size, step)
                    difference, wrong = compare(store.get(row), expected)
                except (SlideError, StoreError) as error:
                    yield row, 0.0, error.fault
                else:
                    fault = f"differs from its slide by {difference:.2f} gray levels"
                    yield row, difference, fault if wrong else None
    except SlideError as error:
        yield from ((row, 0.0, error.fault) for row in unread)


def _comparison(info: Mapping[str, Any]) -> Compare:
    tolerance = JPEG_TOLERANCE if info.get("quality") else UNKNOWN_JPEG_TOLERANCE
    tolerance = 0.0 if info["codec"] in LOSSLESS else tolerance
    encode = encoder(info["codec"], info.get("quality"))

    def compare(stored: np.ndarray, expected: np.ndarray) -> tuple[float, bool]:
        if tolerance and not np.array_equal(stored, expected):
            expected = decode(encode(expected))
        difference = float(np.abs(stored.astype(np.int16) - expected).mean())
        return difference, difference > tolerance

    return compare
