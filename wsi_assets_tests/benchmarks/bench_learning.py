"""Training, prediction and whole slides against the same network on ready-made tensors, in one run.

    python -m wsi_assets_tests.benchmarks.bench_learning [--model resnet50] [--size 64] [--json FILE]

Both sides take the same steps in turns, so that whatever else the machine does hits both. The bar is a ratio
of 0.95, on the CPU and on a GPU where there is one. On a busy machine read the ratio of processor time, which
waits for nobody; it counts reading too. Patches come from an LMDB store built from the real cohort
(``WSI_TEST_DATA``), those of a whole slide from a file made of a few JPEG tiles; there the bar is 0.9.
"""

from __future__ import annotations

import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from wsi_assets.learning.augmentation import draw_transforms, normalize
from wsi_assets.learning.checkpoints import LoadedModel
from wsi_assets.learning.data import Batch, BatchReader, PatchTable
from wsi_assets.learning.devices import autocast, in_use, resolve_device, resolve_precision
from wsi_assets.learning.imbalance import Imbalance
from wsi_assets.learning.models import Architecture, PatchClassifier, build_model
from wsi_assets.learning.options import PredictionOptions, SlidePredictionOptions, TrainingOptions
from wsi_assets.learning.prediction import patch_probabilities
from wsi_assets.learning.schedule import Schedule
from wsi_assets.learning.slide_prediction import slide_probabilities
from wsi_assets.learning.training import make_learner, train_epoch
from wsi_assets.patches import ExtractionOptions, build_store, open_store, plan_patches
from wsi_assets_tests.benchmarks import rows
from wsi_assets_tests.conftest import REAL_DATA
from wsi_assets_tests.patches.made import entry, grid, write_mosaic_slide

BAR = 0.95


def main() -> None:
    parser = rows.arguments(__doc__)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--size", type=int, help="edge of a patch, a divisor of 256; 64, on a GPU 256")
    parser.add_argument("--batch", type=int, help="patches a step; 32, on a GPU 64")
    parser.add_argument("--steps", type=int, help="training steps a turn; 4, on a GPU 40")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    found = []
    for name in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        device = resolve_device(name)
        size, batch, steps = (64, 32, 4) if name == "cpu" else (256, 64, 40)
        options = TrainingOptions(
            model_name=asked.model,
            weights="none",
            batch_size=asked.batch or batch,
            precision=asked.precision,
            device=name,
        )
        with tempfile.TemporaryDirectory() as folder, in_use(device, "batch"):
            store = make_store(Path(folder), asked.size or size)
            found += training(store, options, device, asked.steps or steps, asked.turns)
            found += prediction(store, options, device, asked.steps or steps, asked.turns)
            size = store.info["patch_size"]
            found += whole_slide(Path(folder), size, options, device, asked.steps or steps, asked.turns)
    peak = rows.peak_memory() / 2**30
    found.append(rows.Row("training and prediction, peak memory of the process", peak, "GiB"))
    if torch.cuda.is_available():
        peak = torch.cuda.max_memory_allocated() / 2**30
        found.append(rows.Row("training and prediction, peak memory of the GPU", peak, "GiB"))
    rows.tell(found, asked.json)


def make_store(folder: Path, size: int):
    """The cohort's labelled patches, each cut into squares of ``size``, in an LMDB store of JPEGs."""
    cohort = REAL_DATA / "cohort"
    squares = [(dy, dx) for dy in range(0, 256, size) for dx in range(0, 256, size)]
    index = {
        slide: {
            "slide_path": str(cohort / "images" / f"{slide}.tif"),
            "level": 0,
            "patch_size": size,
            "patches": [(y + dy, x + dx, bool(label)) for y, x, label in truth for dy, dx in squares],
        }
        for slide, truth in sorted(json.loads((cohort / "truth.json").read_text()).items())
    }
    build_store(plan_patches(index, ExtractionOptions()), folder / "patches_lmdb", "lmdb")
    return open_store(folder / "patches_lmdb")


def training(store, options: TrainingOptions, device: torch.device, steps: int, turns: int) -> list[rows.Row]:
    """Epochs of the training loop, augmentation and sampling included."""
    count = len(store)
    labels = np.asarray(store.labels).astype(np.int64)
    table = PatchTable(("all",), np.zeros(count, np.int64), labels, np.arange(count))
    learner = make_learner(store.info["patch_size"], Imbalance(1, 1, 1, (1.2, 0.8)), options, device)
    model = learner.model
    order = np.random.default_rng(0).integers(0, count, options.batch_size * steps)
    batches = [Batch(rows, np.zeros(len(rows), bool)) for rows in np.split(order, steps)]
    first = store.get_many(batches[0].rows)
    ready = normalize(torch.from_numpy(first).to(device)).clone()
    targets = torch.from_numpy(labels[batches[0].rows]).to(device)
    schedule = Schedule(options, steps)

    def ready_made() -> float:
        started = time.perf_counter()
        model.train()
        for _ in batches:
            learner.optimizer.zero_grad(set_to_none=True)
            with autocast(device, learner.precision):
                logits = model(ready)
            torch.nn.functional.cross_entropy(logits.float(), targets).backward()
            learner.optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return len(order) / (time.perf_counter() - started)

    what, waits = f"training, {described(options, store.info['patch_size'], learner.precision, device)}", []
    with BatchReader(store, workers=options.num_workers, pin=device.type == "cuda") as reader:

        def loop() -> float:
            trained = train_epoch(learner, reader, table, batches, schedule)
            waits.append(trained["waiting"])
            return trained["images_per_second"]

        compared = compare(
            *(what, ready_made, loop, turns),
            lambda: f"{statistics.median(waits[1:]):.2%} of the time waiting for patches",
        )
    patches = torch.from_numpy(first).to(device)
    started = time.perf_counter()
    learner.inputs(patches, draw_transforms(len(patches), seed=0, epoch=1, batch=0))
    if device.type == "cuda":
        torch.cuda.synchronize()
    augmentation = time.perf_counter() - started
    started = time.perf_counter()
    draw_transforms(options.batch_size, seed=0, epoch=0, batch=0)
    drawing = time.perf_counter() - started
    return [
        compared,
        rows.Row(f"{what}: augmentation of a batch", augmentation, "s"),
        rows.Row(f"{what}: of which drawing the transforms", drawing, "s"),
    ]


@torch.inference_mode()
def prediction(
    store, options: TrainingOptions, device: torch.device, steps: int, turns: int
) -> list[rows.Row]:
    """Probabilities of patches in random order, in float32 on both sides."""
    size = store.info["patch_size"]
    model, _ = build_model(options.model_name, patch_size=size)
    model = model.to(device)
    classifier = PatchClassifier(model, Architecture(options.model_name))
    positions = np.random.default_rng(0).integers(0, len(store), 2 * options.batch_size * steps)
    settings = PredictionOptions(prediction_batch_size=options.batch_size, device=str(device))
    ready = normalize(torch.from_numpy(store.get_many(positions[: options.batch_size])).to(device)).clone()

    def ready_made() -> float:
        started = time.perf_counter()
        for _ in range(2 * steps):
            model(ready)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return len(positions) / (time.perf_counter() - started)

    def loop() -> float:
        started = time.perf_counter()
        patch_probabilities(classifier, store, positions, settings)
        return len(positions) / (time.perf_counter() - started)

    what = f"prediction, {described(options, size, settings.prediction_precision, device)}"
    return [compare(what, ready_made, loop, turns)]


@torch.inference_mode()
def whole_slide(
    folder: Path, size: int, options: TrainingOptions, device: torch.device, steps: int, turns: int
) -> list[rows.Row]:
    """A slide from its file, every patch of it, in the precision that prediction has and in the fastest."""
    model, architecture = build_model(options.model_name, patch_size=size)
    loaded = LoadedModel(folder / "best.pt", model.to(device), architecture, {"patch_size": size})
    side = math.ceil((2 * steps * options.batch_size) ** 0.5 * size / 512)
    slide = write_mosaic_slide(folder / "slide.tif", side, side)
    patches = grid(side * 512, side * 512, size)
    of_slide = entry(slide, patches, size)
    pixels = torch.randint(0, 256, (options.batch_size, size, size, 3), dtype=torch.uint8)
    ready = architecture.inputs(pixels.to(device)).clone()
    found = []
    for precision in dict.fromkeys(("float32", resolve_precision("auto", device))):
        settings = SlidePredictionOptions(
            prediction_batch_size=options.batch_size, prediction_precision=precision, device=str(device)
        )

        def ready_made(precision: str = precision) -> float:
            started, batches = time.perf_counter(), math.ceil(len(patches) / options.batch_size)
            for _ in range(batches):
                with autocast(device, precision):
                    model(ready)
            if device.type == "cuda":
                torch.cuda.synchronize()
            return batches * options.batch_size / (time.perf_counter() - started)

        def loop(settings: SlidePredictionOptions = settings) -> float:
            started = time.perf_counter()
            slide_probabilities(of_slide, loaded, settings)
            return len(patches) / (time.perf_counter() - started)

        what = f"whole slide from file, {described(options, size, precision, device)}"
        found.append(compare(what, ready_made, loop, turns, bar=0.9))
    return found


def described(options: TrainingOptions, size: int, precision: str, device: torch.device) -> str:
    """Network, patches and device, short enough for a table."""
    return f"{options.model_name}, {options.batch_size} of {size} px, {precision}, {device}"


def compare(
    what: str, ready_made, loop, turns: int, note: Callable[[], str] = str, bar: float = BAR
) -> rows.Row:
    """Both sides in turns. The row is the turn whose ratio is the median, with its own two sides."""

    def turn(side) -> tuple[float, float]:
        started = time.process_time()
        return side(), time.process_time() - started

    turn(ready_made), turn(loop)  # warm up
    pairs = [(turn(ready_made), turn(loop)) for _ in range(turns)]
    pairs.sort(key=lambda pair: pair[1][0] / pair[0][0])
    (ready, _), (ours, _) = pairs[turns // 2]
    processor = statistics.median(ready_[1] / loop_[1] for ready_, loop_ in pairs)
    told = "; ".join(filter(None, [f"{processor:.3f} by processor time", note()]))
    return rows.at_least(f"{what}, against ready-made tensors", ours, ready, "img/s", bar, told)


if __name__ == "__main__":
    main()
