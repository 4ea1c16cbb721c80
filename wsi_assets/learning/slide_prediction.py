"""Tumor probabilities of any slide's patches, read from its file while the network computes."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from wsi_assets.errors import SlideError
from wsi_assets.index.slide_index import resolution_of
from wsi_assets.learning.checkpoints import LoadedModel, load_model
from wsi_assets.learning.devices import in_use, resolve_device, resolve_precision
from wsi_assets.learning.options import ComputingOptions
from wsi_assets.learning.prediction import check_fits, tumor_probabilities
from wsi_assets.progress import Progress, silent

if TYPE_CHECKING:
    from wsi_assets.index import Entry, IndexOptions, TissueRegions

AHEAD = 2
"""Batches that each thread reads in advance."""

T = TypeVar("T")

Batches = Generator[tuple[np.ndarray, Tensor], None, None]
"""(numbers of the patches in their entry, pixels) of each batch."""


def slide_grid(
    tissue: TissueRegions,
    level: int | str,
    options: IndexOptions,
    patch_size: int,
    stride: int | None = None,
) -> Entry:
    """Index entry of a slide without annotation, with the patch size and stride of the prediction.

    Args:
        options: those of the level's index; their ``patch_size`` and ``stride`` are replaced.
        patch_size: that of the model, in pixels of the level.
        stride: distance between patches, in pixels of the level; half of ``patch_size`` if None.

    Raises:
        SlideIndexError: the slide has no such level, or the stride is too small for a slide of its size.
    """
    from wsi_assets.index import index_slide

    own = {"patch_size": patch_size, "stride": stride or max(1, patch_size // 2)}
    return index_slide(tissue, None, level, options.model_copy(update=own))


def slide_probabilities(
    entry: Mapping[str, Any],
    model: str | Path | LoadedModel,
    options: ComputingOptions | None = None,
    *,
    max_no_data: float = 0.5,
    progress: Progress = silent,
) -> np.ndarray:
    """Tumor probability of each patch of an index entry, (n,) float64, in the order of ``patches``.

    Memory use is that of a few batches, for slides of any size. The same patches from a lossless store get
    the same probabilities.

    Args:
        entry: ``slide_path, level, patches, patch_size``, and ``step``, ``resolution``, ``stride`` and
            ``fingerprint`` where it has them.
        model: ``best.pt``, its folder, or the loaded model, which is then moved to the chosen device.
        max_no_data: as in :class:`wsi_assets.patches.ExtractionOptions`.

    Returns:
        The probabilities; NaN for a patch that cannot be read or lacks more than ``max_no_data``.

    Raises:
        ModelError: the model is damaged, or was trained on another patch size or level.
        SlideError: the slide cannot be opened, or changed since it was indexed, or no patch can be read.
    """
    from wsi_assets.slides.fingerprints import fingerprint

    options = options or ComputingOptions()
    loaded = model if isinstance(model, LoadedModel) else load_model(model)
    path = entry["slide_path"]
    check_fits(loaded, entry["patch_size"], resolution_of(entry), str(path))
    if entry.get("fingerprint") and fingerprint(path) != entry["fingerprint"]:
        raise SlideError(
            "changed since its tissue was found", path=path, remedy="Materialize tissue_regions again"
        )
    device = resolve_device(options.device)
    precision = resolve_precision(options.prediction_precision, device)
    classifier = loaded.classifier().to(device, memory_format=torch.channels_last)
    slide = _SlideBatches(entry, options.prediction_batch_size, max_no_data, pin=device.type == "cuda")
    probs = np.full(len(slide.coords), np.nan)
    order, done = np.empty(len(probs), np.int64), 0

    def pixels() -> Iterator[Tensor]:
        nonlocal done
        with closing(slide.read(options.num_workers)) as batches:
            for numbers, patches in batches:
                order[done : done + len(numbers)] = numbers
                done += len(numbers)
                yield patches

    with in_use(device, "prediction_batch_size"), closing(pixels()) as batches:
        found = tumor_probabilities(classifier, batches, len(probs), device, precision, progress)
    if slide.fault and not done:
        raise SlideError(f"none of its patches can be read: {slide.fault}", path=path)
    probs[order[:done]] = found
    progress(len(probs), len(probs), "predicting patches")
    return probs


class _SlideBatches:
    """Reads the patches of an entry in batches; ``fault`` is why the first unusable patch was left out."""

    def __init__(self, entry: Mapping[str, Any], batch_size: int, max_no_data: float, *, pin: bool):
        self.path, self.level = entry["slide_path"], int(entry["level"])
        self.size, self.step = int(entry["patch_size"]), float(entry.get("step", 1.0))
        self.stride = int(entry.get("stride") or self.size)
        self.coords = np.array(entry["patches"], np.int64).reshape(-1, 3)[:, :2]
        self.batch_size, self.max_no_data, self.pin = batch_size, max_no_data, pin
        self.fault: str | None = None

    def read(self, workers: int) -> Batches:
        """The batches, read by ``workers`` threads; with 0, only when they are requested."""
        from wsi_assets.patches.plan import read_batches

        # Grouped by stride instead of patch size, so that overlapping patches too are read an area at a time.
        parts = read_batches(self.coords, self.stride, self.step)
        if workers == 0:
            return self._batches(parts)
        workers = min(workers, os.cpu_count() or 1)  # more threads than processors would only wait
        # Each thread reads a sequence of neighboring parts and opens the slide itself.
        share = -(-len(parts) // workers) or 1
        stretches = (parts[first : first + share] for first in range(0, len(parts), share))
        return _in_turn([self._batches(stretch) for stretch in stretches])

    def _batches(self, parts: Sequence[np.ndarray]) -> Batches:
        from wsi_assets.patches.patch_reader import PatchReader

        numbers: list[int] = []
        with PatchReader(self.path, self.level) as reader:
            for part in parts:
                for number, patch in reader.read(self.coords[part], self.size, self.step):
                    why = patch.why_unusable(self.max_no_data)
                    if why:
                        self.fault = self.fault or why
                        continue
                    if not numbers:
                        shape = (self.batch_size, self.size, self.size, 3)
                        pixels = torch.empty(shape, dtype=torch.uint8, pin_memory=self.pin)
                        filled = pixels.numpy()
                    # Copied, because it may be a view of a larger tile, which would stay in memory.
                    filled[len(numbers)] = patch.pixels
                    numbers.append(int(part[number]))
                    if len(numbers) == self.batch_size:
                        yield np.array(numbers), pixels
                        numbers = []
        if numbers:
            yield np.array(numbers), pixels[: len(numbers)]


def _in_turn(sources: Sequence[Generator[T, None, None]]) -> Generator[T, None, None]:
    """Items of the sources in turn, a reproducible order; each source has a thread that reads in advance."""
    with ExitStack() as stack:
        waiting = deque()
        for source in sources:
            stack.callback(source.close)
            pool = stack.enter_context(ThreadPoolExecutor(1, "slide"))
            waiting.append((source, pool, deque(pool.submit(next, source, None) for _ in range(AHEAD))))
        while waiting:
            source, pool, ahead = waiting.popleft()
            item = ahead.popleft().result()
            if item is not None:
                ahead.append(pool.submit(next, source, None))
                waiting.append((source, pool, ahead))
                yield item
