"""The slide index ``{slide_id: entry}``: its pickle file, its validation, and facts derived from an entry.

An entry has at least ``slide_path`` and ``patches``; an index of another program may hold no more.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_assets.errors import SlideIndexError
from wsi_assets.files import read_plain_pickle, write_plain_pickle
from wsi_assets.slides.naming import DEFAULT_TEST_PATTERN, is_test_slide

if TYPE_CHECKING:
    from numpy.typing import NDArray

Entry = dict[str, Any]
"""One slide of an index: plain types only, so that its pickle loads anywhere."""

Index = dict[str, Entry]
"""Slide id -> entry, sorted by id."""

PER_PATCH = ("patches", "visualisation_coords", "tissue_fraction", "tumor_fraction")
"""The keys of an entry that hold one value per patch, in the same order."""


def load_index(path: str | Path) -> Index:
    """Read an index pickle, of this package or of another program.

    Raises:
        SlideIndexError: the file cannot be read, would run code, or holds no index.
    """
    try:
        return check_index(read_plain_pickle(path))
    except SlideIndexError as error:
        raise SlideIndexError(error.fault, path=path, remedy=error.remedy) from error


def save_index(path: str | Path, index: Index) -> None:
    """Write an index atomically as a pickle of plain types."""
    write_plain_pickle(path, index)


def check_index(index: Any) -> Index:
    """Return ``index`` if it is a slide index.

    Raises:
        SlideIndexError: it is something else, or an entry lacks a key.
    """
    if not isinstance(index, Mapping):
        raise SlideIndexError(
            f"is a {type(index).__name__}, not a slide index", remedy="Make the index again"
        )
    for slide_id, entry in index.items():
        if not isinstance(slide_id, str) or not isinstance(entry, Mapping):
            raise SlideIndexError(
                f"{slide_id!r:.60} is not a slide with its entry", remedy="Make the index again"
            )
        missing = [key for key in ("slide_path", "patches") if key not in entry]
        if missing:
            raise SlideIndexError(
                f"slide {slide_id} lacks {' and '.join(missing)}", remedy="Make the index again"
            )
    return index


def is_test(slide_id: str, entry: Mapping[str, Any]) -> bool:
    """Whether a slide is a test slide: by its ``split``, else by the ``test_pattern`` of its index."""
    if entry.get("split"):
        return entry["split"] == "test"
    return is_test_slide(slide_id, entry.get("config", {}).get("test_pattern", DEFAULT_TEST_PATTERN))


def resolution_of(entry: Mapping[str, Any]) -> int | str:
    """The resolution of an entry: a pyramid level, or a magnification ("10x") or pixel size ("0.5um")."""
    return entry.get("resolution") or int(entry["level"])


def partial_tumor(entry: Mapping[str, Any]) -> NDArray[np.bool_]:
    """Which patches hold some tumor, but too little for the label rule ``fraction``: bool (n,).

    They belong to neither class: they are not trained on, and reported apart in testing.
    """
    patches = entry["patches"]
    fractions = entry.get("tumor_fraction")
    if entry.get("config", {}).get("label_rule") != "fraction" or fractions is None:
        return np.zeros(len(patches), bool)
    labels = np.fromiter((patch[2] for patch in patches), bool, len(patches))
    return (np.asarray(fractions, float) > 0) & ~labels


def classes(entry: Mapping[str, Any]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which patches are tumor and which are normal: bool (n,) each; a patch may be neither."""
    tumor = np.fromiter((patch[2] for patch in entry["patches"]), bool, len(entry["patches"]))
    return tumor, ~tumor & ~partial_tumor(entry)
