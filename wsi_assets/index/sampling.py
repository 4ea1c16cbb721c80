"""Which patches of an index are learnt from: all tumour, some normal, the same ones every time.

Pure functions of index entries; no slide, store or outline.

Every patch has a rank: a seeded hash of (slide, y, x). A slide gives its normal patches of lowest rank, and
the numbers per slide follow Webster's divisor method (one common ratio, rounded), under which a change in the
total moves all slides the same way. So a new slide only lengthens or shortens the other slides' choices at
the end; nothing is reshuffled.
"""

from __future__ import annotations

import hashlib
import heapq
from fractions import Fraction
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_assets.errors import ConfigError, SlideIndexError
from wsi_assets.slides import is_test_slide, normalize_id, slide_id_of

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from numpy.typing import NDArray

    from wsi_assets.index.options import SamplingOptions

PER_PATCH = ("patches", "visualisation_coords", "tissue_fraction", "tumor_fraction")
"""The keys of an entry that hold one value per patch, in the same order."""

NEEDED = frozenset({*PER_PATCH, "slide_path", "label", "magnification", "mpp", "config"})


def sample_index(entries: list[dict[str, Any]], options: SamplingOptions) -> list[dict[str, Any]]:
    """Choose patches: the same entries with the chosen patches only, in the same order.

    Test slides keep every patch. Other slides keep every tumour patch, and together ``normal_per_tumor``
    normal patches for each of those, spread in proportion to the slides' normal patches. Incompletely
    annotated slides give no normal patch. A cohort without any tumour patch has nothing to be balanced
    against: its slides keep all their normal patches, up to ``max_normal_per_slide``.

    Raises:
        ConfigError: the list of incompletely annotated slides cannot be read.
        SlideIndexError: the entries are not those of an index.
    """
    incomplete = incomplete_slides(options.incomplete_slides)
    try:
        return _sampled(entries, options, incomplete)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
        raise SlideIndexError(f"is not an index ({error!r:.200})", remedy="Make the index again") from error


def _sampled(
    entries: list[dict[str, Any]], options: SamplingOptions, incomplete: Collection[str]
) -> list[dict[str, Any]]:
    quotas = normal_quotas(entries, options, incomplete)
    sampled = []
    for entry in entries:
        if not entry.keys() >= NEEDED:
            raise KeyError(*sorted(NEEDED - entry.keys()))
        slide_id = slide_id_of(entry["slide_path"])
        config = {**entry["config"], **options.model_dump()}
        if is_test_slide(slide_id):
            sampled.append({**entry, "config": config})
            continue
        chosen = _choose(entry, slide_id, quotas[slide_id], options.seed)
        kept = {key: [entry[key][i] for i in chosen] for key in PER_PATCH}
        sampled.append({**entry, **kept, "config": config})
    return sampled


def normal_quotas(
    entries: list[dict[str, Any]], options: SamplingOptions, incomplete: Collection[str] = ()
) -> dict[str, int]:
    """How many normal patches each slide that is not a test slide gives: slide id -> number."""
    tumor = 0
    available: dict[str, int] = {}
    for entry in entries:
        slide_id = slide_id_of(entry["slide_path"])
        if is_test_slide(slide_id):
            continue
        positive = sum(patch[2] for patch in entry["patches"])
        tumor += positive
        barred = normalize_id(slide_id) in incomplete
        available[slide_id] = 0 if barred else len(entry["patches"]) - positive
    total = round(options.normal_per_tumor * tumor) if tumor else sum(available.values())
    return apportion(available, total, options.max_normal_per_slide)


def apportion(available: Mapping[str, int], total: int, cap: int | None = None) -> dict[str, int]:
    """Spread ``total`` over slides in proportion to ``available``, none above it or above ``cap``.

    Webster's method: slide s gets its j-th patch once the common ratio reaches (j - 1/2) / available[s].
    Equal claims go by slide id. If the limits allow less than ``total``, less is given.
    """
    names = sorted(available)
    have = np.array([available[name] for name in names], np.int64)
    limit = have if cap is None else np.minimum(have, cap)
    total = min(total, int(limit.sum()))
    if not total:
        return dict.fromkeys(names, 0)

    def given(ratio: float) -> NDArray[np.int64]:
        return np.minimum(np.floor(have * ratio + 0.5).astype(np.int64), limit)

    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if given(middle).sum() <= total:
            low = middle
        else:
            high = middle
    # Rounding may put one of several equal claims on either side of the ratio: those near it are compared
    # exactly.
    numbers = given(low * (1 - 1e-9)).tolist()

    def claim(i: int) -> tuple[Fraction, int]:
        return Fraction(2 * numbers[i] + 1, 2 * int(have[i])), i

    waiting = [claim(i) for i in range(len(names)) if numbers[i] < limit[i]]
    heapq.heapify(waiting)
    for _ in range(total - sum(numbers)):
        _, i = heapq.heappop(waiting)
        numbers[i] += 1
        if numbers[i] < limit[i]:
            heapq.heappush(waiting, claim(i))
    return dict(zip(names, numbers, strict=True))


def ranks(slide_id: str, yx: NDArray[np.int64], seed: int) -> NDArray[np.uint64]:
    """Pseudo-random rank of each patch (n, 2) of a slide, the same on every machine: (n,) uint64.

    The mixing is splitmix64's (Steele, Lea & Flood, OOPSLA 2014).
    """
    salt = hashlib.sha256(f"{seed}/{slide_id}".encode()).digest()
    state = np.full(len(yx), int.from_bytes(salt[:8], "little"), np.uint64)
    for axis in (0, 1):
        state = _mix(state ^ yx[:, axis].astype(np.uint64))
    return state


def incomplete_slides(source: str | Path | None) -> frozenset[str]:
    """Normalized ids of slides whose tumour is not fully outlined.

    Args:
        source: a file with one id, or slide file, a line and comments after ``#``; ``camelyon16`` for the
            list that comes with the package; None for none.

    Raises:
        ConfigError: the file cannot be read as text.
    """
    if source is None:
        return frozenset()
    if _is_shipped(source):
        text = resources.files("wsi_assets.index").joinpath("camelyon16_incomplete.txt").read_text("utf-8")
    else:
        try:
            text = Path(source).read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"the list of incompletely annotated slides cannot be read ({error})",
                path=source,
                remedy="Give a text file with one slide id a line, or 'camelyon16'",
            ) from error
    ids = (normalize_id(slide_id_of(line.split("#", 1)[0].strip())) for line in text.splitlines())
    return frozenset(slide_id for slide_id in ids if slide_id)


def unknown_incomplete(entries: list[dict[str, Any]], options: SamplingOptions) -> list[str]:
    """Normalized ids in the user's own list of incompletely annotated slides that are no slide of the index.

    Such an id may be mistyped, and the slide that was meant then gives normal patches. The list that comes
    with the package is of a whole challenge, of which a cohort may hold any part: none of it is told.

    Raises:
        ConfigError: the list cannot be read.
    """
    if options.incomplete_slides is None or _is_shipped(options.incomplete_slides):
        return []
    known = {normalize_id(slide_id_of(entry["slide_path"])) for entry in entries}
    return sorted(incomplete_slides(options.incomplete_slides) - known)


def slide_table(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a slide: slide, patient, patches, tumor, normal, magnification, mpp, test."""
    rows = []
    for entry in entries:
        slide_id = slide_id_of(entry["slide_path"])
        tumor = sum(patch[2] for patch in entry["patches"])
        rows.append(
            {
                "slide": slide_id,
                "patient": entry["label"],
                "patches": len(entry["patches"]),
                "tumor": tumor,
                "normal": len(entry["patches"]) - tumor,
                "magnification": entry["magnification"],
                "mpp": entry["mpp"],
                "test": is_test_slide(slide_id),
            }
        )
    return rows


def counts(entries: list[dict[str, Any]]) -> dict[str, int]:
    """Slides, patches, tumour and normal patches of an index."""
    rows = slide_table(entries)
    return {
        "slides": len(rows),
        **{key: sum(row[key] for row in rows) for key in ("patches", "tumor", "normal")},
    }


def _is_shipped(source: str | Path) -> bool:
    return str(source).lower() == "camelyon16"


def _choose(entry: dict[str, Any], slide_id: str, quota: int, seed: int) -> list[int]:
    """Positions of the tumour patches and of the ``quota`` normal ones of lowest rank, increasing."""
    if not entry["patches"]:
        return []
    patches = np.array(entry["patches"], np.int64)
    if patches.ndim != 2 or patches.shape[1] != 3:
        raise SlideIndexError("patches are not (y, x, is_tumor)", path=entry["slide_path"])
    normal = np.flatnonzero(patches[:, 2] == 0)
    order = np.argsort(ranks(slide_id, patches[normal, :2], seed), kind="stable")
    return np.sort(np.concatenate([np.flatnonzero(patches[:, 2]), normal[order[:quota]]])).tolist()


def _mix(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    state = state + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
