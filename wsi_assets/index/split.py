"""Which slides train and which validate, by patient, and the folds of a cross-validation.

The split is decided on the whole index, before patches are sampled: validation slides keep every patch, so
what is chosen on them holds at the prevalence of whole slides.
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

LEAST_VALIDATING = 30
"""Tumor and normal patches that the validation patients shall hold; more patients are taken until they do."""
MOST_VALIDATING = 1 / 3
"""Share of a class's patches up to which patients are taken for the sake of ``LEAST_VALIDATING``."""
DRAWS = 64


def split_slides(index: Index, val_size: float, seed: int) -> dict[str, Side]:
    """The side of each slide: slide id -> ``train``, ``validation`` or ``test``.

    What the entries say comes first: a slide they put on validation validates, and no others then. Else
    patients with and without tumor are drawn apart; of each kind ``val_size`` (rounded, at least one where
    there are two) validate. Both sides shall hold both classes, and validation ``LEAST_VALIDATING`` patches
    of each, for which more patients are taken. If no choice of patients gives both sides both classes,
    slides are drawn instead, and if that fails too every slide trains.

    Patients are drawn in the order of a seeded hash of their names, so a new patient leaves the side of
    nearly all others as it was.
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
    """Fold, from 0, of each slide that is not a test slide: grouped by patient, stratified by tumor.

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
        # With fewer tumor slides than folds some folds have none, and no metrics; the summary shows it.
        warnings.simplefilter("ignore", UserWarning)
        parts = list(splitter.split(names, tumor, [groups[name] for name in names]))
    for fold, (_, held_out) in enumerate(parts):
        fold_of |= {names[i]: fold for i in held_out}
    return fold_of


def patients(index: Index) -> dict[str, str]:
    """Slide id -> patient, in one spelling; the entry's ``label``, or what the id tells where it has none."""
    known = patients_of([name for name, entry in index.items() if not entry.get("label")])
    return {name: normalize_id(str(entry.get("label") or known[name])) for name, entry in index.items()}


def _counts(index: Mapping[str, Entry], group_of: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Group -> its (normal, tumor) patches; patches that are neither do not count."""
    counts: dict[str, np.ndarray] = {}
    for name, entry in index.items():
        tumor, normal = classes(entry)
        counts.setdefault(group_of[name], np.zeros(2, np.int64))[:] += (normal.sum(), tumor.sum())
    return counts


def _validating(counts: Mapping[str, np.ndarray], val_size: float, seed: int) -> set[str] | None:
    """The groups that validate, or None if no draw gives both sides both classes.

    Among the draws the first is taken that leaves training most of both classes.
    """
    total = sum(counts.values(), np.zeros(2, np.int64))
    best, best_share = None, 1.0
    for draw in range(DRAWS):
        chosen = _drawn(counts, total, val_size, f"{seed}/{draw}")
        held = sum((counts[name] for name in chosen), np.zeros(2, np.int64))
        if not held.all() or not (total - held).all():
            continue
        share = max(MOST_VALIDATING, float((held / total).max()))
        if share < best_share:
            best, best_share = chosen, share
        if share == MOST_VALIDATING:
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
            if held[wanted] >= LEAST_VALIDATING:
                break
            if name not in chosen and counts[name][wanted] and (more <= MOST_VALIDATING * total).all():
                chosen.add(name)
                held = more
    return chosen
