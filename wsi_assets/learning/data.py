"""Find the patches of an index in a store, split them for training, and read them in batches."""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from wsi_assets.errors import ModelError, StoreError
from wsi_assets.index.slide_index import check_index, classes
from wsi_assets.index.split import patients, split_slides
from wsi_assets.learning.options import TrainingOptions

if TYPE_CHECKING:
    from wsi_assets.index import Index
    from wsi_assets.patches import PatchStore

NEITHER = -1
"""Label of a patch of neither class: it has some tumor, but too little for the rule ``fraction``."""
MOST_MISSING = 0.5
"""Share of an index's patches that a store may lack; with more, it counts as built from another index."""
PIECE = 16
"""Patches that a thread reads at a time."""


@dataclass(frozen=True)
class PatchTable:
    """The patches of an index, in the order of the index.

    Attributes:
        slide_ids: ids of the slides.
        slides: (n,) for each patch, the position of its slide in ``slide_ids``.
        labels: (n,) 1 for tumor, 0 for normal, or ``NEITHER``.
        positions: (n,) in the store; -1 for patches that are not in it because they could not be read.
    """

    slide_ids: tuple[str, ...]
    slides: np.ndarray
    labels: np.ndarray
    positions: np.ndarray

    @property
    def usable(self) -> np.ndarray:
        """(n,) bool: patches that are in the store and either tumor or normal."""
        return (self.positions >= 0) & (self.labels != NEITHER)


def locate(store: PatchStore, index: Index) -> PatchTable:
    """Find the patches of an index in the store built from it.

    They are found by their keys, which number the patches of the whole index.

    Raises:
        ModelError: the index has no patches.
        StoreError: the store was built from another index.
    """
    from wsi_assets.patches import patch_key

    slides, labels, keys, places = [], [], [], []
    for number, (slide_id, entry) in enumerate(check_index(index).items()):
        tumor, normal = classes(entry)
        keys += [patch_key(slide_id, count) for count in range(len(keys), len(keys) + len(tumor))]
        labels.append(np.where(tumor, 1, np.where(normal, 0, NEITHER)))
        slides.append(np.full(len(tumor), number))
        places += [patch[:2] for patch in entry["patches"]]
    if not keys:
        raise ModelError("the index has no patches", remedy="Build it with other options, or add slides")
    unreadable = {row["key"] for row in store.info.get("quarantined") or ()}
    positions = np.full(len(keys), -1)
    for i, key in enumerate(keys):
        if key not in unreadable:
            with contextlib.suppress(KeyError, StoreError):
                positions[i] = store.key_index(key)
    _check_origin(store, keys, positions, np.array(places), unreadable)
    return PatchTable(tuple(index), np.concatenate(slides), np.concatenate(labels), positions)


def _check_origin(
    store: PatchStore, keys: list[str], positions: np.ndarray, places: np.ndarray, unreadable: set[str]
) -> None:
    """Refuse a store of another index, in which equal keys may belong to other patches."""
    # A store of this package has coordinates and lists what it lacks; a store of another program does not,
    # so some of its patches may be missing.
    missing = [keys[i] for i in np.flatnonzero(positions < 0) if keys[i] not in unreadable]
    found = np.flatnonzero(positions >= 0)
    fault = ""
    if store.coords is not None:
        elsewhere = (np.asarray(store.coords)[positions[found]] != places[found]).any(axis=1)
        if elsewhere.any():
            fault = f"has another patch under {keys[found[elsewhere.argmax()]]}"
    if len(missing) > (MOST_MISSING * len(keys) if store.coords is None else 0):
        fault = f"has no patch {missing[0]}"
    if fault:
        raise StoreError(
            f"{fault}: it was not built from this index",
            path=store.path,
            remedy="Give the index that the store was built from, or build the store again",
        )


@dataclass(frozen=True)
class Split:
    """The rows of a :class:`PatchTable` for training and for validation; both parts have both classes.

    Attributes:
        train, validation: row numbers, ascending and disjoint.
        unit: what was split: ``patient``, or ``slide`` or ``patch`` where that is not possible.
        rows: a dict for each patient and side, with ``patient``, ``slides``, ``side`` (train, validation or
            test) and the numbers of ``tumor`` and ``normal`` patches.
        shared: patients who have both test slides and other slides.
    """

    train: np.ndarray
    validation: np.ndarray
    unit: str
    rows: tuple[dict, ...]
    shared: tuple[str, ...]


def split_patches(table: PatchTable, index: Index, options: TrainingOptions) -> Split:
    """The split stored in the index, or else one by patient from ``val_size`` and ``seed``.

    If training or validation would lack a class, the patches of each class are split at random instead,
    with the share ``val_size`` for validation.

    Raises:
        ModelError: a class has fewer than two patches outside test slides.
    """
    sides = split_slides(index, options.val_size, options.seed)
    side = np.array([sides[name] for name in table.slide_ids], object)[table.slides]
    parts = {name: np.flatnonzero(table.usable & (side == name)) for name in ("train", "validation", "test")}
    rest = np.sort(np.concatenate([parts["train"], parts["validation"]]))
    normal, tumor = np.bincount(table.labels[rest], minlength=2)
    if min(normal, tumor) < 2:
        raise ModelError(
            f"nothing can be learned from {tumor} tumor and {normal} normal patches outside test slides",
            remedy="Add slides that are not test slides, with annotated tumor and with normal tissue",
        )
    names = patients(index)
    by_side = {name: {names[slide] for slide in sides if sides[slide] == name} for name in parts}
    unit = "slide" if by_side["train"] & by_side["validation"] else "patient"
    if not all(len(np.unique(table.labels[parts[name]])) == 2 for name in ("train", "validation")):
        unit, rng = "patch", np.random.default_rng([options.seed, 4])
        of_class = [rng.permutation(rest[table.labels[rest] == label]) for label in (0, 1)]
        held = [rows[: max(1, round(options.val_size * len(rows)))] for rows in of_class]
        parts["validation"] = np.sort(np.concatenate(held))
        parts["train"] = np.setdiff1d(rest, parts["validation"])
    shared = by_side["test"] & (by_side["train"] | by_side["validation"])
    rows = tuple(row for name, part in parts.items() for row in _rows(table, names, name, part))
    return Split(parts["train"], parts["validation"], unit, rows, tuple(sorted(shared)))


def _rows(table: PatchTable, names: dict[str, str], side: str, part: np.ndarray) -> list[dict]:
    """A row for each patient among ``part``, the table rows of one side."""
    slides: dict[str, list[int]] = {}
    for number in np.unique(table.slides[part]).tolist():
        slides.setdefault(names[table.slide_ids[number]], []).append(number)
    rows = []
    for patient, numbers in sorted(slides.items()):
        labels = table.labels[part[np.isin(table.slides[part], numbers)]]
        row = {"patient": patient, "slides": ", ".join(table.slide_ids[number] for number in numbers)}
        rows.append({**row, "side": side, "tumor": int(labels.sum()), "normal": int((labels == 0).sum())})
    return rows


@dataclass(frozen=True)
class Batch:
    """Patches of one training step.

    Attributes:
        rows: (n,) row numbers of the table; a tumor patch occurs once for each of its copies.
        plain: (n,) bool, whether this copy is not augmented.
    """

    rows: np.ndarray
    plain: np.ndarray


def epoch_batches(train: np.ndarray, labels: np.ndarray, options: TrainingOptions, epoch: int) -> list[Batch]:
    """The batches of one epoch: all training patches, and ``aug_factor`` augmented copies of tumor patches.

    Tumor patches themselves are not augmented, and neither is the same share of the normal patches:
    otherwise a network could recognize the classes by the augmentation. The order, and which normal patches
    are augmented, are drawn from (seed, epoch). Batch sizes differ by one at most. No batch holds a single
    patch, which batch normalization cannot use; to avoid it, a batch may exceed ``batch_size`` by one.

    Args:
        train: (n,) training rows of the table.
        labels: labels of all rows of the table.
    """
    copies = np.ones(len(train), np.int64)
    if options.use_augmentation:
        copies[labels[train] == 1] += options.aug_factor
    rows = np.repeat(train, copies)
    plain = np.ones(len(rows), bool)
    if options.use_augmentation:
        first = np.zeros(len(rows), bool)
        first[np.cumsum(copies) - copies] = True
        chance = np.random.default_rng([options.seed, epoch, 1]).random(len(rows))
        plain = first & ((labels[rows] == 1) | (chance < 1 / (options.aug_factor + 1)))
    order = np.random.default_rng([options.seed, epoch]).permutation(len(rows))
    count = max(1, min(-(-len(order) // options.batch_size), len(order) // 2))
    return [Batch(rows[part], plain[part]) for part in np.array_split(order, count)]


def ordered_batches(positions: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Split store positions (n,) into consecutive batches, in the given order."""
    return [positions[start : start + batch_size] for start in range(0, len(positions), batch_size)]


class BatchReader:
    """Reads batches from a store in advance, in order, with bounded memory.

    Each thread decodes a piece of a batch directly into it, so that the first batch is ready early. Threads
    are as fast as processes here, because decoding releases the global interpreter lock.

    Args:
        workers: number of threads; 0 reads a batch only when it is requested.
        pin: keep batches in page-locked memory, which torch reuses, for asynchronous copies to a GPU.

    Attributes:
        waited: seconds the consumer has waited for a batch so far.
    """

    def __init__(self, store: PatchStore, *, workers: int, pin: bool = False):
        self.store, self.waited, self._pin = store, 0.0, pin
        workers = min(workers, os.cpu_count() or 1)  # more threads than processors would only wait
        self._most_pending = 2 * PIECE * workers
        self._pool = ThreadPoolExecutor(max(1, workers), thread_name_prefix="patches")

    def __enter__(self) -> BatchReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def read(self, batches: Sequence[np.ndarray]) -> Iterator[Tensor]:
        """Yield each batch of store positions as uint8 (n, size, size, 3).

        Raises:
            StoreError: a patch cannot be read.
        """
        size = self.store.info["patch_size"]
        pending: deque[tuple[Tensor, list[Future]]] = deque()
        remaining = iter(batches)
        try:
            for _ in batches:
                started = time.perf_counter()
                while not pending or sum(len(patches) for patches, _ in pending) < self._most_pending:
                    positions = next(remaining, None)
                    if positions is None:
                        break
                    shape = len(positions), size, size, 3
                    patches = torch.empty(shape, dtype=torch.uint8, pin_memory=self._pin)
                    pending.append((patches, self._fill(patches.numpy(), positions.tolist())))
                patches, parts = pending.popleft()
                for part in parts:
                    part.result()
                self.waited += time.perf_counter() - started
                yield patches
        finally:
            for _, parts in pending:
                for part in parts:
                    part.cancel()

    def _fill(self, out: np.ndarray, positions: list[int]) -> list[Future]:
        """Start reading ``positions`` into ``out``; a future for each piece."""
        pieces = [slice(start, start + PIECE) for start in range(0, len(positions), PIECE)]
        return [self._pool.submit(self.store.get_many, positions[piece], out[piece]) for piece in pieces]
