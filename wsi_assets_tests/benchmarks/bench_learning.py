"""Training and prediction against the same network on ready-made tensors, in one run on one machine.

``python -m wsi_assets_tests.benchmarks.bench_learning [--model resnet50] [--size 64] [--json FILE]``

Both sides take the same steps in turns, so that whatever else the machine does hits both. The bar is a ratio
of 0.95. On a busy machine read the ratio of processor time, which waits for nobody; it counts reading too.
Patches come from an LMDB store built from the real cohort (``WSI_TEST_DATA``).
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from wsi_assets.learning.augmentation import draw_transforms, normalise
from wsi_assets.learning.backbones import build_model
from wsi_assets.learning.checkpoints import PatchClassifier
from wsi_assets.learning.data import BatchReader, shuffled_batches
from wsi_assets.learning.devices import (
    autocast,
    quiet_randomness,
    resolve_device,
    resolve_precision,
    usable_workers,
)
from wsi_assets.learning.engine import Learner, make_optimizer, train_epoch
from wsi_assets.learning.options import PredictionOptions, TrainingOptions
from wsi_assets.learning.prediction import patch_probabilities
from wsi_assets.patches import ExtractionOptions, build_store, open_store, plan_patches
from wsi_assets_tests.conftest import REAL_DATA


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--size", type=int, default=64, help="edge of a patch in pixels, a divisor of 256")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=4, help="training steps a turn")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="where the figures go")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        store = make_store(Path(folder), arguments.size)
        options = TrainingOptions(
            model_name=arguments.model, batch_size=arguments.batch, precision=arguments.precision
        )
        device = resolve_device(options.device)
        table = {
            "model": arguments.model,
            "patch_size": arguments.size,
            "batch_size": arguments.batch,
            "precision": resolve_precision(options.precision, device),
            "device": str(device),
            "threads": torch.get_num_threads(),
            "readers": usable_workers(options.num_workers),
            "patches": len(store),
        }
        print(", ".join(f"{name} {value}" for name, value in table.items()))
        with quiet_randomness(device):
            table["training"] = training(store, options, device, arguments.steps, arguments.turns)
            table["prediction"] = prediction(store, options, device, arguments.steps, arguments.turns)
    table["peak_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    gpu = ""
    if device.type == "cuda":
        table["peak_gpu_gib"] = torch.cuda.max_memory_allocated() / 2**30
        gpu = f", GPU {table['peak_gpu_gib']:.2f} GiB"
    print(f"peak memory {table['peak_gib']:.2f} GiB{gpu}")
    if arguments.json:
        arguments.json.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


def make_store(folder: Path, size: int):
    """The cohort's labelled patches, each cut into squares of ``size``, in an LMDB store of JPEGs."""
    cohort = REAL_DATA / "cohort"
    squares = [(dy, dx) for dy in range(0, 256, size) for dx in range(0, 256, size)]
    entries = [
        {
            "slide_path": str(cohort / "images" / f"{slide}.tif"),
            "level": 0,
            "patch_size": size,
            "patches": [(y + dy, x + dx, label) for y, x, label in rows for dy, dx in squares],
        }
        for slide, rows in sorted(json.loads((cohort / "truth.json").read_text()).items())
    ]
    build_store(plan_patches(entries, ExtractionOptions()), folder / "patches_lmdb", "lmdb")
    return open_store(folder / "patches_lmdb")


def training(
    store, options: TrainingOptions, device: torch.device, steps: int, turns: int
) -> dict[str, float]:
    labels = np.asarray(store.labels).astype(np.int64)
    model = build_model(options.model_name, patch_size=store.info["patch_size"]).to(device)
    learner = Learner(
        model=model,
        forward=model,
        optimizer=make_optimizer(model, options, device),
        options=options,
        device=device,
        precision=resolve_precision(options.precision, device),
        class_weights=torch.tensor([1.2, 0.8], device=device),
        tumor_share=0.5,
        steps_per_epoch=steps,
    )
    order = np.random.default_rng(0).integers(0, len(store), options.batch_size * steps)
    batches = shuffled_batches(order, options.batch_size, seed=0, epoch=0)
    ready = normalise(torch.from_numpy(store.get_many(batches[0])).to(device)).clone()
    targets = torch.from_numpy(labels[batches[0]]).to(device)

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

    waits = []
    with BatchReader(store, workers=usable_workers(options.num_workers), pin=device.type == "cuda") as reader:

        def loop() -> float:
            trained = train_epoch(learner, reader, batches, labels, epoch=1, on_step=lambda done: None)
            waits.append(trained.waiting)
            return trained.images_per_second

        figures = compare("training", ready_made, loop, turns)
    figures["waiting"] = statistics.median(waits[1:])
    print(f"  waiting for patches: {figures['waiting']:.2%} of the time")
    patches = torch.from_numpy(store.get_many(batches[0])).to(device)
    started = time.perf_counter()
    learner.inputs(patches, 1, 0, len(patches))
    figures["augmentation_s"] = time.perf_counter() - started
    print(f"  augmentation of a batch: {figures['augmentation_s']:.3f} s")
    draw_started = time.perf_counter()
    draw_transforms(options.batch_size, seed=0, epoch=0, batch=0)
    print(f"  of which drawing the transforms: {time.perf_counter() - draw_started:.4f} s")
    return figures


@torch.inference_mode()
def prediction(
    store, options: TrainingOptions, device: torch.device, steps: int, turns: int
) -> dict[str, float]:
    model = build_model(options.model_name, patch_size=store.info["patch_size"]).to(device)
    classifier = PatchClassifier(model, (0.5,) * 3, (0.2,) * 3)
    positions = np.random.default_rng(0).integers(0, len(store), 2 * options.batch_size * steps)
    settings = PredictionOptions(prediction_batch_size=options.batch_size, device=str(device))
    ready = normalise(torch.from_numpy(store.get_many(positions[: options.batch_size])).to(device)).clone()

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

    return compare("prediction", ready_made, loop, turns)


def compare(name: str, ready_made, loop, turns: int) -> dict[str, float]:
    def turn(side) -> tuple[float, float]:
        started = time.process_time()
        return side(), time.process_time() - started

    turn(ready_made), turn(loop)  # warm up
    pairs = [(turn(ready_made), turn(loop)) for _ in range(turns)]
    ready, ours = (statistics.median(pair[side][0] for pair in pairs) for side in (0, 1))
    wall = statistics.median(loop_[0] / ready_[0] for ready_, loop_ in pairs)
    processor = statistics.median(ready_[1] / loop_[1] for ready_, loop_ in pairs)
    print(
        f"{name}: ready-made {ready:.1f} img/s, loop {ours:.1f} img/s, ratio {wall:.3f} (bar 0.95), "
        f"by processor time {processor:.3f}"
    )
    return {
        "ready_made_images_per_second": ready,
        "loop_images_per_second": ours,
        "ratio": wall,
        "ratio_by_processor_time": processor,
        "bar": 0.95,
    }


if __name__ == "__main__":
    main()
