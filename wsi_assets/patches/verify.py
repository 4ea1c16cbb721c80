"""Compare a store with the slides it was made from. Building and repairing belong elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from wsi_assets.errors import SlideError, StoreError
from wsi_assets.patches.codecs import LOSSLESS
from wsi_assets.patches.pixels import PatchReader
from wsi_assets.patches.store import PatchStore
from wsi_assets.progress import Progress, silent

JPEG_MEAN_DIFFERENCE = 6.0
"""Grey levels by which a JPEG patch of quality 95 may differ from its slide on average; tissue differs by 1 to 2."""

_AT_ONCE = 64


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
    entries: Sequence[Mapping[str, Any]],
    fraction: float = 0.01,
    seed: int = 42,
    *,
    progress: Progress = silent,
) -> VerifyReport:
    """Read a seeded sample of patches again from their slides and compare.

    A lossless store must be equal in every pixel. A JPEG store may differ by :data:`JPEG_MEAN_DIFFERENCE`
    on average (more at lower quality).

    Args:
        entries: index entries with the slides' paths.
        fraction: share of patches to check, 0 to 1; at least one is checked, 1.0 checks all.

    Raises:
        StoreError: the fraction is out of range.
    """
    from wsi_assets.slides.naming import slide_id_of

    if not 0.0 <= fraction <= 1.0:
        raise StoreError(f"a fraction of {fraction} cannot be checked", remedy="Give one between 0 and 1")
    total = len(store)
    count = min(total, max(1, round(total * fraction)))
    chosen = np.sort(np.random.default_rng(seed).choice(total, count, replace=False)) if total else []
    paths = {slide_id_of(entry["slide_path"]): entry["slide_path"] for entry in entries}
    info, slide_ids, coords, keys = store.info, store.slide_ids, store.coords, store.keys
    allowed = 0.0
    if info["codec"] not in LOSSLESS and info["codec"] == "jpeg":
        allowed = JPEG_MEAN_DIFFERENCE * max(1.0, (100 - info["quality"]) / 5)
    problems: list[tuple[str, str]] = []
    worst = 0.0
    by_slide: dict[str, list[int]] = {}
    for index in chosen:
        by_slide.setdefault(slide_ids[index], []).append(int(index))
    done = 0
    for slide_id, indices in by_slide.items():
        for start in range(0, len(indices), _AT_ONCE):
            group = indices[start : start + _AT_ONCE]
            for index, difference, problem in _compare(store, paths.get(slide_id), group, coords, allowed):
                worst = max(worst, difference)
                if problem:
                    problems.append((keys[index], problem))
            done += len(group)
            progress(done, count, "verifying patches")
    return VerifyReport(total, count, worst, problems)


def _compare(
    store: PatchStore, path: str | None, indices: list[int], coords: np.ndarray, allowed: float
) -> list[tuple[int, float, str | None]]:
    if path is None:
        return [(index, 0.0, "its slide is not in the index") for index in indices]
    info = store.info
    try:
        reader = PatchReader(path)
        try:
            patches = reader.read(info["level"], coords[indices], info["patch_size"])
        finally:
            reader.close()
    except SlideError as error:
        return [(index, 0.0, error.fault) for index in indices]
    rows: list[tuple[int, float, str | None]] = []
    for number, index in enumerate(indices):
        if number in patches.failed:
            rows.append((index, 0.0, patches.failed[number]))
            continue
        try:
            stored = store.get(index)
        except StoreError as error:
            rows.append((index, 0.0, error.fault))
            continue
        difference = float(np.abs(stored.astype(np.int16) - patches.pixels[number]).mean())
        problem = f"differs from its slide by {difference:.2f} grey levels" if difference > allowed else None
        rows.append((index, difference, problem))
    return rows
