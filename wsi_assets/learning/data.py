"""Patches from a store to batches of tensors: which, in what order, read ahead by threads.

What is done to a batch (augmentation, normalisation, loss) is not known here.

Threads, not processes: decoding releases the interpreter lock, so threads read as fast; they share the open
store, need no second import of torch, no copy between processes and no fork of a process that has threads,
and they work the same under Dagster, in a notebook and in a script without a main guard.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from wsi_assets.learning.options import TrainingOptions

if TYPE_CHECKING:
    from wsi_assets.patches import PatchStore


def epoch_positions(train: np.ndarray, labels: np.ndarray, options: TrainingOptions) -> np.ndarray:
    """Store positions of one epoch before shuffling: tumour patches ``aug_factor`` times when augmenting.

    Every copy, and every normal patch too, gets its own random transform each time it is seen. Normal
    patches are not repeated, but they are transformed from the same distribution: if only tumour patches
    were jittered or blurred, jitter and blur would tell the classes apart.
    """
    if not options.use_augmentation:
        return train
    return np.repeat(train, np.where(labels[train] == 1, options.aug_factor, 1))


def shuffled_batches(positions: np.ndarray, batch_size: int, *, seed: int, epoch: int) -> list[np.ndarray]:
    """Batches of one epoch, each position once, in an order drawn from (seed, epoch).

    Sizes differ by one at most instead of leaving a remainder: a last batch of one patch would have no
    batch statistics. Only where that is the price does a batch hold one patch more than ``batch_size``.
    """
    order = np.random.default_rng([seed, epoch]).permutation(len(positions))
    return np.array_split(positions[order], batch_count(len(positions), batch_size))


def batch_count(patches: int, batch_size: int) -> int:
    """How many batches an epoch of so many patches has; the smallest holds ``patches // batches``."""
    return max(1, min(-(-patches // batch_size), patches // 2))


def ordered_batches(positions: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Consecutive batches in the given order."""
    return [positions[start : start + batch_size] for start in range(0, len(positions), batch_size)]


class BatchReader:
    """Reads batches of a store ahead of their use, in order, with bounded memory.

    Attributes:
        waited: seconds the consumer has waited for a batch so far.

    Args:
        store: safe to read from several threads of one process.
        workers: threads; 0 reads when asked.
        pin: put batches into page-locked memory, for asynchronous copies to a GPU.
    """

    def __init__(self, store: PatchStore, *, workers: int, pin: bool = False):
        self.store = store
        self.waited = 0.0
        self._pin = pin
        self._ahead = max(2, 2 * workers)
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="patches") if workers else None

    def __enter__(self) -> BatchReader:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def read(self, batches: Sequence[np.ndarray]) -> Iterator[Tensor]:
        """Yield each batch as uint8 (n, size, size, 3).

        Raises:
            StoreError: a patch cannot be read.
        """
        pending: deque = deque()
        remaining = iter(batches)
        try:
            for _ in batches:
                started = time.perf_counter()
                if self._pool is None:
                    patches = self._load(next(remaining))
                else:
                    while len(pending) < self._ahead and (batch := next(remaining, None)) is not None:
                        pending.append(self._pool.submit(self._load, batch))
                    patches = pending.popleft().result()
                self.waited += time.perf_counter() - started
                yield patches
        finally:
            for future in pending:
                future.cancel()

    def _load(self, positions: np.ndarray) -> Tensor:
        patches = np.ascontiguousarray(self.store.get_many(positions.tolist()))
        if not patches.flags.writeable:
            patches = patches.copy()
        tensor = torch.from_numpy(patches)
        return tensor.pin_memory() if self._pin else tensor
