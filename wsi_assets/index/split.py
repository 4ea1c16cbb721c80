"""Split slides by patient into training and validation, and into the folds of a cross-validation.

The whole index is split, before patches are sampled. Validation slides keep every patch, so that thresholds
are chosen at the tumor prevalence of whole slides.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping

import numpy as np

from wsi_assets.errors import SlideIndexError
from wsi_assets.index.slide_index import Entry, Index, classes, is_test
from wsi_assets.slides.cohort import Side
from wsi_assets.slides.naming import normalize_id, patients_of

MIN_VALIDATION_PATCHES = 30
"""Patches of each class that validation should have; patients are added until it does."""
MAX_VALIDATION_SHARE = 1 / 3
"""Largest share of a class's patches in validation, up to which patients are added."""
MAX_DRAWS = 64


def split_slides(index: Index, val_size: float, seed: int) -> dict[str, Side]:
    """Split slides: slide id -> ``train``, ``validation`` or ``test``.

    If entries name validation slides, these are the validation slides. Otherwise patients are drawn,
    stratified by whether they have tumor: of each kind the share ``val_size``, and at least one if there are
    two. Patients are added until validation has ``MIN_VALIDATION_PATCHES`` patches of each class. If no draw
    gives both classes to training and to validation, single slides are drawn instead of patients. If that
    fails too, all slides are for training.

    Patients are drawn in the order of a seeded hash of their names, so that a new patient changes the side of
    almost no other.
    """
    sides: dict[str, Side] = {
        name: "test" if is_test(name, entry) else entry.get("split") or "train"
        for name, entry in index.items()
    }
    if "validation" in sides.values():
        return sides
    rest = {name: entry for name, entry in index.items() if sides[name] == "train"}
    for group_of in (patients(rest), {name: name for name in rest}):
        chosen = _validating(_counts(rest, group_of), val_size, seed)
        if chosen:
            return sides | {name: "validation" for name in rest if group_of[name] in chosen}
    return sides


def fold_slides(index: Index, folds: int, seed: int) -> dict[str, int]:
    """Slide id -> fold, from 0, without test slides: grouped by patient, stratified by tumor.

    Raises:
        SlideIndexError: there are fewer patients than folds.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    rest = {name: entry for name, entry in index.items() if not is_test(name, entry)}
    groups = patients(rest)
    count = len(set(groups.values()))
    if count < folds:
        raise SlideIndexError(
            f"{count} patients cannot be divided into {folds} folds",
            remedy=f"Set folds to {count} or less, or add slides",
        )
    tumor = [bool(classes(entry)[0].any()) for entry in rest.values()]
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed % 2**32)
    names, fold_of = list(rest), {}
    with warnings.catch_warnings():
        # With fewer tumor slides than folds, some folds have no tumor; the summary shows that.
        warnings.simplefilter("ignore", UserWarning)
        parts = list(splitter.split(names, tumor, [groups[name] for name in names]))
    for fold, (_, held_out) in enumerate(parts):
        fold_of |= {names[i]: fold for i in held_out}
    return fold_of


def patients(index: Index) -> dict[str, str]:
    """Slide id -> patient in normalized spelling: the entry's ``label``, else the patient in the id."""
    known = patients_of([name for name, entry in index.items() if not entry.get("label")])
    return {name: normalize_id(str(entry.get("label") or known[name])) for name, entry in index.items()}


def _counts(index: Mapping[str, Entry], group_of: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Group -> its numbers of (normal, tumor) patches."""
    counts: dict[str, np.ndarray] = {}
    for name, entry in index.items():
        tumor, normal = classes(entry)
        counts.setdefault(group_of[name], np.zeros(2, np.int64))[:] += (normal.sum(), tumor.sum())
    return counts


def _validating(counts: Mapping[str, np.ndarray], val_size: float, seed: int) -> set[str] | None:
    """The groups for validation, or None if no draw gives both classes to training and to validation.

    It is the first draw with at most ``MAX_VALIDATION_SHARE`` of each class, else the draw with least.
    """
    total = sum(counts.values(), np.zeros(2, np.int64))
    best, best_share = None, 1.0
    for draw in range(MAX_DRAWS):
        chosen = _drawn(counts, total, val_size, f"{seed}/{draw}")
        held = sum((counts[name] for name in chosen), np.zeros(2, np.int64))
        if not held.all() or not (total - held).all():
            continue
        share = max(MAX_VALIDATION_SHARE, float((held / total).max()))
        if share < best_share:
            best, best_share = chosen, share
        if share == MAX_VALIDATION_SHARE:
            break
    return best


def _drawn(counts: Mapping[str, np.ndarray], total: np.ndarray, val_size: float, salt: str) -> set[str]:
    order = sorted(counts, key=lambda name: hashlib.sha256(f"{salt}/{name}".encode()).digest())
    chosen: set[str] = set()
    for with_tumor in (False, True):
        kind = [name for name in order if bool(counts[name][1]) is with_tumor]
        chosen.update(kind[: max(1, round(val_size * len(kind))) if len(kind) > 1 else 0])
    held = sum((counts[name] for name in chosen), np.zeros(2, np.int64))
    for wanted in (1, 0):
        for name in order:
            more = held + counts[name]
            if held[wanted] >= MIN_VALIDATION_PATCHES:
                break
            if name not in chosen and counts[name][wanted] and (more <= MAX_VALIDATION_SHARE * total).all():
                chosen.add(name)
                held = more
    return chosen
