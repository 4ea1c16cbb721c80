"""Compare a store with the slides it was made from. Building and repairing belong elsewhere."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from wsi_assets.errors import SlideError, StoreError
from wsi_assets.patches.codecs import LOSSLESS, decoder, encoder
from wsi_assets.patches.pixels import Patch, PatchReader
from wsi_assets.patches.store import PatchStore
from wsi_assets.progress import Progress, silent

JPEG_TOLERANCE = 1.0
"""Mean grey levels by which a JPEG patch may differ from its slide's pixels put through JPEG again: 0 with
the same libraries, under 1 between versions of them, well above for any other place with tissue."""


@dataclass(frozen=True)
class VerifyReport:
    """``checked`` of ``patches`` patches were read again; ``problems`` are (key, what is wrong);
    ``worst_difference`` is the largest mean difference of a patch, in grey levels."""

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
    """Read a seeded sample of patches again from their slides and compare.

    A lossless store must equal the slide in every pixel. A patch of a JPEG store must equal the slide, or,
    within :data:`JPEG_TOLERANCE`, what its codec makes of the slide's pixels.

    Args:
        index: slide id -> its entry, which has the path of the slide.
        fraction: share of patches to check, 0 to 1; at least one is checked, 1.0 checks all.

    Raises:
        StoreError: the fraction is out of range.
    """
    if not 0.0 <= fraction <= 1.0:
        raise StoreError(f"a fraction of {fraction} cannot be checked", remedy="Give one between 0 and 1")
    total = len(store)
    count = min(total, max(1, round(total * fraction)))
    chosen = np.sort(np.random.default_rng(seed).choice(total, count, replace=False)) if total else []
    paths = {slide_id: entry["slide_path"] for slide_id, entry in index.items()}
    slide_ids, coords, keys = store.slide_ids, store.coords, store.keys
    problems: list[tuple[str, str]] = []
    worst = 0.0
    by_slide: dict[str, list[int]] = {}
    for index in chosen:
        by_slide.setdefault(slide_ids[index], []).append(int(index))
    done = 0
    for slide_id, indices in by_slide.items():
        for index, difference, problem in _compare(store, paths.get(slide_id), indices, coords):
            worst = max(worst, difference)
            if problem:
                problems.append((keys[index], problem))
            done += 1
            progress(done, count, "verifying patches")
    return VerifyReport(total, count, worst, problems)


def _compare(
    store: PatchStore, path: str | None, indices: list[int], coords: np.ndarray
) -> Iterator[tuple[int, float, str | None]]:
    """(patch number, mean difference, what is wrong) of some patches of one slide."""
    if path is None:
        yield from ((index, 0.0, "its slide is not in the index") for index in indices)
        return
    info = store.info
    again = _codec_again(info)
    unread = dict.fromkeys(indices)
    try:
        with contextlib.closing(PatchReader(path)) as reader:
            for number, patch in reader.read(info["level"], coords[indices], info["patch_size"]):
                del unread[indices[number]]
                yield (indices[number], *_difference(store, indices[number], patch, again))
    except SlideError as error:
        yield from ((index, 0.0, error.fault) for index in unread)


def _difference(
    store: PatchStore,
    index: int,
    patch: Patch,
    again: Callable[[np.ndarray], np.ndarray] | None,
) -> tuple[float, str | None]:
    if patch.fault is not None:
        return 0.0, patch.fault
    try:
        stored = store.get(index)
    except StoreError as error:
        return 0.0, error.fault
    expected = patch.pixels
    if again is not None and not np.array_equal(stored, expected):
        expected = again(expected)
    difference = float(np.abs(stored.astype(np.int16) - expected).mean())
    if difference > (0.0 if again is None else JPEG_TOLERANCE):
        return difference, f"differs from its slide by {difference:.2f} grey levels"
    return difference, None


def _codec_again(info: Mapping[str, Any]) -> Callable[[np.ndarray], np.ndarray] | None:
    """What a lossy codec makes of pixels; None for a lossless one."""
    if info["codec"] in LOSSLESS:
        return None
    encode = encoder(info["codec"], info["quality"])
    decode = decoder(info["codec"], info["patch_size"])
    return lambda pixels: decode(encode(pixels))
