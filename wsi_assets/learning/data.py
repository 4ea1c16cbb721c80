"""Patches of an index in a store: where each lies, what trains and validates, and batches read ahead."""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
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
"""Label of a patch that is neither class: too little tumor for the rule ``fraction``."""
MOST_MISSING = 0.5
"""Share of an index's patches that a store may lack before it is taken for the store of another index."""


@dataclass(frozen=True)
class PatchTable:
    """The patches of an index, in its order.

    Attributes:
        slide_ids: the slides; slides: (n,) number in it of each patch's slide.
        labels: (n,) 1 for tumor, 0 for normal, ``NEITHER``.
        positions: (n,) in the store, -1 for patches the store lacks because they could not be read.
    """

    slide_ids: tuple[str, ...]
    slides: np.ndarray
    labels: np.ndarray
    positions: np.ndarray

    @property
    def usable(self) -> np.ndarray:
        """(n,) bool: in the store and of a class."""
        return (self.positions >= 0) & (self.labels != NEITHER)


def locate(store: PatchStore, index: Index) -> PatchTable:
    """Find the patches of an index in the store built from it, by keys that count over the whole index.

    Raises:
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
        raise ModelError("the index has no patches", remedy="Make it again with other options, or add slides")
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
    """Refuse a store of another index: keys are counted, so another index has many of the same."""
    # A store of ours lists what it lacks and knows where its patches lie; another program's does not.
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
    """Rows of a :class:`PatchTable` that train and that validate.

    Attributes:
        train, validation: ascending and disjoint.
        unit: what is never on both sides: ``patient``, or if that is not possible ``slide`` or ``patch``.
        rows: one for each patient and side: ``patient``, ``slides``, ``side``, ``tumor`` and ``normal``.
        shared: patients with test slides and others.
    """

    train: np.ndarray
    validation: np.ndarray
    unit: str
    rows: tuple[dict, ...]
    shared: tuple[str, ...]


def split_patches(table: PatchTable, index: Index, options: TrainingOptions) -> Split:
    """The split that the index's entries carry, or else one by patient from ``val_size`` and ``seed``.

    Where no choice of slides gave both sides both classes, a stratified share of the patches validates.

    Raises:
        ModelError: a class has fewer than two patches outside test slides.
    """
    sides = split_slides(index, options.val_size, options.seed)
    side = np.array([sides[name] for name in table.slide_ids], object)[table.slides]
    parts = {name: np.flatnonzero(table.usable & (side == name)) for name in ("train", "validation", "test")}
    rest = np.sort(np.concatenate([parts["train"], parts["validation"]]))
    counts = np.bincount(table.labels[rest], minlength=2)
    if counts.min() < 2:
        raise ModelError(
            f"{counts[1]} tumor and {counts[0]} normal patches outside test slides cannot be split",
            remedy="Add annotated slides, or slides with normal tissue",
        )
    names = patients(index)
    by_side = {name: {names[slide] for slide in sides if sides[slide] == name} for name in parts}
    unit = "slide" if by_side["train"] & by_side["validation"] else "patient"
    if not all(len(np.unique(table.labels[parts[name]])) == 2 for name in ("train", "validation")):
        from sklearn.model_selection import train_test_split

        unit = "patch"
        parts["train"], parts["validation"] = train_test_split(
            rest,
            test_size=max(2, round(options.val_size * len(rest))),
            stratify=table.labels[rest],
            random_state=options.seed % 2**32,
        )
    shared = by_side["test"] & (by_side["train"] | by_side["validation"])
    rows = tuple(row for name, part in parts.items() for row in _rows(table, names, name, part))
    return Split(np.sort(parts["train"]), np.sort(parts["validation"]), unit, rows, tuple(sorted(shared)))


def _rows(table: PatchTable, names: dict[str, str], side: str, part: np.ndarray) -> list[dict]:
    """A row for each patient of one side."""
    slides: dict[str, list[int]] = {}
    for number in np.unique(table.slides[part]).tolist():
        slides.setdefault(names[table.slide_ids[number]], []).append(number)
    rows = []
    for patient, numbers in sorted(slides.items()):
        labels = table.labels[part[np.isin(table.slides[part], numbers)]]
        rows.append(
            {
                "patient": patient,
                "slides": ", ".join(table.slide_ids[number] for number in numbers),
                "side": side,
                "tumor": int((labels == 1).sum()),
                "normal": int((labels == 0).sum()),
            }
        )
    return rows


@dataclass(frozen=True)
class Draw:
    """Patches of one epoch or one batch.

    Attributes:
        rows: (n,) of the table; a tumor patch's row comes once for each of its copies.
        plain: (n,) bool, whether this copy is left as it is.
    """

    rows: np.ndarray
    plain: np.ndarray


def epoch_draw(train: np.ndarray, labels: np.ndarray, options: TrainingOptions, epoch: int) -> Draw:
    """What one epoch shows: every training patch, tumor patches with ``aug_factor`` augmented copies more.

    The first copy of a tumor patch is left as it is, and so is the same share of the normal patches:
    otherwise augmentation would tell the classes apart.
    """
    if not options.use_augmentation:
        return Draw(train, np.ones(len(train), bool))
    copies = np.where(labels[train] == 1, options.aug_factor + 1, 1)
    rows = np.repeat(train, copies)
    first = np.zeros(len(rows), bool)
    first[np.cumsum(copies) - copies] = True
    lucky = np.random.default_rng([options.seed, epoch, 1]).random(len(rows)) < 1 / (options.aug_factor + 1)
    return Draw(rows, first & ((labels[rows] == 1) | lucky))


def shuffled_batches(draw: Draw, batch_size: int, *, seed: int, epoch: int) -> list[Draw]:
    """Batches of one epoch in an order drawn from (seed, epoch).

    Sizes differ by one at most, and none is 1, which would have no batch statistics; for that a batch may
    hold one patch more than ``batch_size``.
    """
    order = np.random.default_rng([seed, epoch]).permutation(len(draw.rows))
    count = max(1, min(-(-len(order) // batch_size), len(order) // 2))
    return [Draw(draw.rows[part], draw.plain[part]) for part in np.array_split(order, count)]


def epoch_batches(train: np.ndarray, labels: np.ndarray, options: TrainingOptions, epoch: int) -> list[Draw]:
    """The shuffled batches of an epoch's :func:`epoch_draw`."""
    draw = epoch_draw(train, labels, options, epoch)
    return shuffled_batches(draw, options.batch_size, seed=options.seed, epoch=epoch)


def ordered_batches(positions: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Consecutive batches in the given order."""
    return [positions[start : start + batch_size] for start in range(0, len(positions), batch_size)]


class BatchReader:
    """Reads batches of a store ahead of their use, in order, with bounded memory.

    Threads read as fast as processes would, since decoding releases the interpreter lock, and copy nothing.

    Args:
        workers: threads; 0 reads when asked.
        pin: put batches into page-locked memory, for asynchronous copies to a GPU.

    Attributes:
        waited: seconds the consumer has waited for a batch so far.
    """

    def __init__(self, store: PatchStore, *, workers: int, pin: bool = False):
        self.store = store
        self.waited = 0.0
        self._pin = pin
        workers = min(workers, os.cpu_count() or 1)  # more threads would only wait in line
        self._ahead = max(1, 2 * workers)
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
        pending: deque = deque()
        remaining = iter(batches)
        try:
            for _ in batches:
                started = time.perf_counter()
                for batch in islice(remaining, self._ahead - len(pending)):
                    pending.append(self._pool.submit(self._load, batch))
                patches = pending.popleft().result()
                self.waited += time.perf_counter() - started
                yield patches
        finally:
            for future in pending:
                future.cancel()

    def _load(self, positions: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(np.require(self.store.get_many(positions.tolist()), requirements="CW"))
        return tensor.pin_memory() if self._pin else tensor
