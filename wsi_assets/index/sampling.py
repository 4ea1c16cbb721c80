"""Choose the patches to learn from: all tumor patches and some normal ones, reproducibly.

Every patch has a rank, a seeded hash of (slide, y, x). The wanted number of normal patches is divided equally
among the slides, and each slide gives its patches of the lowest ranks. So a new slide changes little of what
is chosen from other slides.
"""

from __future__ import annotations

import hashlib
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_assets.errors import ConfigError, SlideIndexError
from wsi_assets.index.slide_index import PER_PATCH, Entry, Index, check_index, classes, is_test
from wsi_assets.index.split import split_slides
from wsi_assets.slides import normalize_id, slide_id_of

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from numpy.typing import NDArray

    from wsi_assets.index.options import SamplingOptions


def sample_index(
    index: Index,
    options: SamplingOptions,
    hard_negatives: Mapping[str, Collection[Sequence[float]]] | None = None,
) -> Index:
    """Sample an index: the same slides in the same order, with the chosen patches only.

    Slides are split first (:func:`split_slides`), and each entry's ``split`` says its side; with ``val_size``
    None they are not split. Test and validation slides keep all patches. Training slides keep every patch
    that holds tumor. Together they keep ``normal_per_tumor`` normal patches for each tumor patch, or all in a
    cohort without tumor, spread equally over the slides as far as each has them. Incompletely annotated
    slides give no normal patch.

    Args:
        hard_negatives: slide id -> (y, x, ...) of normal patches that training slides keep in addition.

    Raises:
        ConfigError: the list of incompletely annotated slides cannot be read.
        SlideIndexError: it is no index.
    """
    check_index(index)
    hard = hard_negatives or {}
    incomplete = incomplete_slides(options.incomplete_slides)
    try:
        if options.val_size is None:
            sides = {name: "test" if is_test(name, entry) else "train" for name, entry in index.items()}
        else:
            sides = split_slides(index, options.val_size, options.seed)
        quotas = normal_quotas(index, options, incomplete, sides)
        return {
            slide_id: {
                **(
                    entry
                    if sides[slide_id] == "test"
                    else _chosen(slide_id, entry, quotas, options, hard.get(slide_id, ()))
                ),
                **({} if options.val_size is None else {"split": sides[slide_id]}),
                "config": {**entry.get("config", {}), **options.model_dump()},
            }
            for slide_id, entry in index.items()
        }
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
        raise SlideIndexError(f"is not an index ({error!r:.200})", remedy="Make the index again") from error


def normal_quotas(
    index: Index, options: SamplingOptions, incomplete: Collection[str], sides: Mapping[str, str]
) -> dict[str, int]:
    """Slide id -> how many normal patches it keeps; without test slides."""
    tumor, all_of, available = 0, {}, {}
    for slide_id, entry in index.items():
        if sides[slide_id] == "test":
            continue
        positive, normal = classes(entry)
        given = 0 if normalize_id(slide_id) in incomplete else int(normal.sum())
        if sides[slide_id] == "validation":
            all_of[slide_id] = given
            continue
        tumor += int(positive.sum())
        cap = options.max_normal_per_slide
        available[slide_id] = given if cap is None else min(given, cap)
    if options.normal_per_tumor is None or not tumor:
        return all_of | available
    return all_of | equal_shares(available, round(options.normal_per_tumor * tumor))


def equal_shares(available: Mapping[str, int], total: int) -> dict[str, int]:
    """Divide ``total`` equally over slides, none above what it has: slide id -> number.

    The numbers add up to ``total``, or to all available patches if there are fewer.
    """
    shares = {}
    for waiting, name in zip(
        range(len(available), 0, -1), sorted(available, key=lambda name: (available[name], name)), strict=True
    ):
        shares[name] = min(available[name], total // waiting)
        total -= shares[name]
    return shares


def ranks(slide_id: str, yx: NDArray[np.int64], seed: int) -> NDArray[np.uint64]:
    """Pseudo-random rank of each patch of a slide, the same on every machine: uint64 (n,).

    The hash is that of splitmix64 (Steele, Lea & Flood, OOPSLA 2014).

    Args:
        yx: (n, 2) patch corners.
    """
    salt = hashlib.sha256(f"{seed}/{slide_id}".encode()).digest()
    state = np.full(len(yx), int.from_bytes(salt[:8], "little"), np.uint64)
    for axis in (0, 1):
        state = _mix(state ^ yx[:, axis].astype(np.uint64))
    return state


def incomplete_slides(source: str | Path | None) -> frozenset[str]:
    """Normalized ids of slides whose tumor is not fully annotated.

    Args:
        source: a text file with one slide id, or slide file name, a line, and comments after ``#``;
            "camelyon16" for the list of that cohort, which comes with the package; None for no slides.

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


def unknown_incomplete(index: Index, options: SamplingOptions) -> list[str]:
    """Normalized ids in the user's list of incompletely annotated slides that are not in the index.

    The list that comes with the package is not checked: a cohort may hold any part of CAMELYON16.

    Raises:
        ConfigError: the list cannot be read.
    """
    if options.incomplete_slides is None or _is_shipped(options.incomplete_slides):
        return []
    return sorted(
        incomplete_slides(options.incomplete_slides) - {normalize_id(slide_id) for slide_id in index}
    )


def slide_table(index: Index) -> list[dict[str, Any]]:
    """A row for each slide: slide, patient, patches, tumor, normal, partial, magnification, mpp, test.

    ``partial`` counts the patches of neither class (:func:`partial_tumor`).
    """
    rows = []
    for slide_id, entry in index.items():
        positive, normal = classes(entry)
        rows.append(
            {
                "slide": slide_id,
                "patient": entry.get("label"),
                "patches": len(positive),
                "tumor": int(positive.sum()),
                "normal": int(normal.sum()),
                "partial": int(len(positive) - positive.sum() - normal.sum()),
                "magnification": entry.get("magnification"),
                "mpp": entry.get("mpp"),
                "test": is_test(slide_id, entry),
            }
        )
    return rows


def counts(index: Index) -> dict[str, int]:
    """Numbers of slides and patches of an index, and of patches by class."""
    rows = slide_table(index)
    return {
        "slides": len(rows),
        **{key: sum(row[key] for row in rows) for key in ("patches", "tumor", "normal", "partial")},
    }


def _is_shipped(source: str | Path) -> bool:
    return str(source).lower() == "camelyon16"


def _chosen(
    slide_id: str,
    entry: Entry,
    quotas: Mapping[str, int],
    options: SamplingOptions,
    hard: Collection[Sequence[float]],
) -> Entry:
    """The entry with its tumor and partial patches, its quota of normal patches by rank, and hard
    negatives."""
    _, normal = classes(entry)
    places = np.array([patch[:2] for patch in entry["patches"]], np.int64).reshape(-1, 2)
    candidates = np.flatnonzero(normal)
    order = np.argsort(ranks(slide_id, places[candidates], options.seed), kind="stable")
    kept = ~normal
    kept[candidates[order[: quotas[slide_id]]]] = True
    if hard and quotas[slide_id]:  # an incompletely annotated slide has no quota
        wanted = {(int(y), int(x)) for y, x, *_ in hard}
        kept |= [(y, x) in wanted for y, x in places.tolist()]
    chosen = np.flatnonzero(kept).tolist()
    return {**entry, **{key: [entry[key][i] for i in chosen] for key in PER_PATCH if key in entry}}


def _mix(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    state = state + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
