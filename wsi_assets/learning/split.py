"""Which patches train and which validate, so that no patient is on both sides.

A pure function of slide ids, labels and a seed. What a patch looks like, or what is done with it, is not
known here.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from wsi_assets.errors import ModelError
from wsi_assets.learning.options import TrainingOptions
from wsi_assets.slides.naming import DEFAULT_PATIENT_PATTERN, DEFAULT_TEST_PATTERN, is_test_slide, patients_of

ENUMERATED_GROUPS = 10
"""Up to this many patients every possible split is looked at; beyond, seeded draws are repaired."""

DRAWS = 64


@dataclass(frozen=True)
class Split:
    """Train and validation parts of a store.

    Attributes:
        train: positions in the store, ascending, int64.
        val: positions in the store, ascending, int64; disjoint from ``train``.
        unit: what never falls on both sides: ``patient``, or, if impossible, ``slide`` or ``patch``.
        rows: one row for each patient and side: ``patient``, ``slides`` (ids, comma separated), ``side``
            (``train``, ``val`` or ``test``), ``tumor`` and ``normal`` (patch counts).
        notes: what a reader should know, e.g. why the unit is not the patient.
    """

    train: np.ndarray
    val: np.ndarray
    unit: Literal["patient", "slide", "patch"]
    rows: tuple[dict[str, Any], ...]
    notes: tuple[str, ...]

    def to_plain(self) -> dict[str, Any]:
        """Unit, table and notes as plain types (positions are left out: options and store determine them)."""
        return {"unit": self.unit, "rows": [dict(row) for row in self.rows], "notes": list(self.notes)}


def split_patches(
    slide_ids: Sequence[str],
    labels: Sequence[int] | np.ndarray,
    options: TrainingOptions,
    patient_pattern: str = DEFAULT_PATIENT_PATTERN,
    test_pattern: str = DEFAULT_TEST_PATTERN,
) -> Split:
    """Split the patches outside test slides into a training and a validation part.

    Patients are stratified by whether they have a tumour patch; of each kind ``val_size`` (rounded, at least
    one where there are two) validate. Both sides must hold tumour and normal patches, because a validation
    loss of one class chooses no model. If no choice of patients achieves that, the unit becomes the slide,
    then the patch (stratified by class), and ``notes`` say so. The choice depends on the seed and on the ids,
    not on the order of slides.

    Args:
        slide_ids: slide of each patch, in store order.
        labels: 1 for tumour, 0 for normal, in store order.
        patient_pattern: regular expression whose group 1 is the patient of a slide id.

    Raises:
        ModelError: a class has fewer than two patches outside test slides.
    """
    labels = np.asarray(labels).astype(np.int64)
    slides = np.asarray(slide_ids, dtype=object)
    known = patients_of(slide_ids, patient_pattern)
    test = np.array([is_test_slide(slide, test_pattern) for slide in slides], dtype=bool)
    usable = np.flatnonzero(~test)
    tumor, normal = int(labels[usable].sum()), int((labels[usable] == 0).sum())
    if min(tumor, normal) < 2:
        raise ModelError(
            f"there are {tumor} tumour and {normal} normal patches outside test slides, and training and "
            "validation need two of each",
            remedy="Add annotated slides, or look at the sampled index for what was left out",
        )
    notes: list[str] = []
    patients = np.array([known[slide] for slide in slides], dtype=object)
    for unit, groups in (("patient", patients), ("slide", slides)):
        chosen = _choose_groups(groups[usable], labels[usable], options.val_size, options.seed)
        if chosen is not None:
            in_val = np.isin(groups[usable].astype(str), sorted(chosen))
            break
        notes.append(
            f"Too few {unit}s to split by {unit}: no choice leaves tumour and normal patches on both sides"
        )
    else:
        unit = "patch"
        in_val = _choose_patches(labels[usable], options.val_size, options.seed)
    if unit != "patient":
        notes.append(f"Split by {unit}: validation looks better than it would on a new patient")
    both = sorted(set(patients[test]) & set(patients[usable]))
    if both:
        notes.append(
            f"{len(both)} patients have test slides and others ({', '.join(both[:5])}): the test looks "
            "better than it would on a new patient"
        )
    train, val = usable[~in_val], usable[in_val]
    rows = _table(patients, slides, labels, (("train", train), ("val", val), ("test", np.flatnonzero(test))))
    return Split(train, val, unit, rows, tuple(notes))


def _choose_groups(groups: np.ndarray, labels: np.ndarray, val_size: float, seed: int) -> set[str] | None:
    """The groups that validate, or None if no choice gives both sides both classes."""
    names, members = np.unique(groups.astype(str), return_inverse=True)
    counts = np.zeros((len(names), 2), dtype=np.int64)
    np.add.at(counts, (members, labels), 1)
    has_tumor = counts[:, 1] > 0
    targets = [_share(int(kind.sum()), val_size) for kind in (~has_tumor, has_tumor)]
    rng = np.random.default_rng([seed, 0x5917])
    best, best_cost = None, None
    for val in _candidates(counts, has_tumor, targets, rng):
        val_counts = counts[val].sum(axis=0)
        if not (val_counts.all() and (counts.sum(axis=0) - val_counts).all()):
            continue
        off_stratum = abs(int((val & ~has_tumor).sum()) - targets[0]) + abs(
            int((val & has_tumor).sum()) - targets[1]
        )
        off_share = abs(val_counts.sum() / counts.sum() - val_size)
        cost = (off_stratum, round(float(off_share), 9))
        if best_cost is None or cost < best_cost:
            best, best_cost = val, cost
    return None if best is None else set(names[best].tolist())


def _candidates(
    counts: np.ndarray, has_tumor: np.ndarray, targets: list[int], rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """Boolean choices of groups: all of them when few, else stratified draws, each repaired."""
    n = len(counts)
    if n <= ENUMERATED_GROUPS:
        order = rng.permutation(n)  # ties between equal choices are the seed's to break
        for size in range(1, n):
            for chosen in itertools.combinations(order, size):
                val = np.zeros(n, dtype=bool)
                val[list(chosen)] = True
                yield val
        return
    for _ in range(DRAWS):
        order = rng.permutation(n)
        val = np.zeros(n, dtype=bool)
        for kind, target in zip((~has_tumor, has_tumor), targets, strict=True):
            val[[i for i in order if kind[i]][:target]] = True
        for wanted in (0, 1):
            # e.g. all normal patches of a cohort lie in two patients and neither was drawn
            if counts[val, wanted].sum() == 0:
                for i in order:
                    left = counts[~val].sum(axis=0) - counts[i]
                    if not val[i] and counts[i, wanted] and left.all():
                        val[i] = True
                        break
        yield val


def _choose_patches(labels: np.ndarray, val_size: float, seed: int) -> np.ndarray:
    rng = np.random.default_rng([seed, 0x5917])
    in_val = np.zeros(len(labels), dtype=bool)
    for label in (0, 1):
        of_class = rng.permutation(np.flatnonzero(labels == label))
        in_val[of_class[: _share(len(of_class), val_size)]] = True
    return in_val


def _share(count: int, val_size: float) -> int:
    """``val_size`` of ``count``, at least 1 and leaving at least 1; 0 of a single one."""
    return 0 if count < 2 else min(max(1, round(val_size * count)), count - 1)


def _table(
    patients: np.ndarray, slides: np.ndarray, labels: np.ndarray, sides: tuple[tuple[str, np.ndarray], ...]
) -> tuple[dict[str, Any], ...]:
    rows = []
    for side, positions in sides:
        per_patient: dict[str, dict[str, Any]] = {}
        for patient, slide, label in zip(
            patients[positions], slides[positions], labels[positions], strict=True
        ):
            row = per_patient.setdefault(patient, {"slides": set(), "counts": [0, 0]})
            row["slides"].add(slide)
            row["counts"][label] += 1
        rows += [
            {
                "patient": patient,
                "slides": ", ".join(sorted(row["slides"])),
                "side": side,
                "tumor": row["counts"][1],
                "normal": row["counts"][0],
            }
            for patient, row in sorted(per_patient.items())
        ]
    return tuple(rows)
