"""What each of the four strategies against class imbalance is worth, on the demo cohort, as one table.

``python -m wsi_assets_tests.benchmarks.bench_ablation [--seeds 3] [--epochs 8] [--normal-per-tumor 6]``

The whole way is taken: slides are drawn, indexed and stored, the model is trained with all strategies, with
each one switched off and with none, and the test slides are predicted. The seed changes the split, the first
weights and every draw; a row is the mean over seeds with the lowest and the highest. The demo cohort is small
and drawn, so the table shows that the switches work and what they cost, not what they bring in a clinic.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wsi_assets.annotations import AnnotationOptions, read_annotation
from wsi_assets.demo import DEMO_LEVEL, DEMO_PARAMETERS, DEMO_PATCH_SIZE, make_cohort
from wsi_assets.index import (
    IndexOptions,
    SamplingOptions,
    TissueOptions,
    counts,
    find_tissue,
    index_level,
    sample_index,
)
from wsi_assets.learning import PredictionOptions, TrainingOptions, load_model, predict, train
from wsi_assets.learning.scores import confusion, roc_auc
from wsi_assets.patches import ExtractionOptions, PatchStore, build_store, open_store, plan_patches
from wsi_assets.slides import find_slides, fingerprint, open_slide

STRATEGIES = ("use_augmentation", "use_class_weights", "use_focal_loss", "use_ohem")
VARIANTS: dict[str, dict[str, bool]] = {
    "all four": {},
    **{f"without {name.removeprefix('use_').replace('_', ' ')}": {name: False} for name in STRATEGIES},
    "none": dict.fromkeys(STRATEGIES, False),
}
COLUMNS = ("roc_auc", "average_precision", "sensitivity", "specificity", "youden_at_chosen", "seconds")


@dataclass(frozen=True)
class Level:
    """A level of the cohort, ready to learn from: the sampled index and its store."""

    entries: list[dict[str, Any]]
    store: PatchStore


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each variant")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--normal-per-tumor", type=float, default=6.0, help="the imbalance")
    parser.add_argument("--json", type=Path, help="where the rows go")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        level = make_level(Path(folder), arguments.normal_per_tumor)
        print(
            f"{arguments.model}, {arguments.epochs} epochs, {arguments.seeds} seeds, {counts(level.entries)}"
        )
        rows = []
        for name, switches in VARIANTS.items():
            runs = []
            for seed in range(arguments.seeds):
                options = TrainingOptions(
                    model_name=arguments.model,
                    batch_size=DEMO_PARAMETERS["batch_size"],
                    aug_factor=DEMO_PARAMETERS["aug_factor"],
                    max_epochs=arguments.epochs,
                    patience=arguments.epochs,
                    seed=seed,
                    **switches,
                )
                runs.append(measure(level, options, Path(folder) / "training" / name / str(seed)))
            rows.append({"variant": name, "runs": runs})
            show(rows[-1], header=len(rows) == 1)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def make_level(folder: Path, normal_per_tumor: float) -> Level:
    """Draw the demo cohort and take it as far as the patch store."""
    cohort = make_cohort(folder)
    tissue = TissueOptions()
    slides = []
    for slide in find_slides(cohort.images, cohort.annotations).slides:
        with open_slide(slide.path) as reader:
            found = find_tissue(reader, tissue, fingerprint=fingerprint(slide.path))
        outline = slide.annotation_path
        regions = None if outline is None else read_annotation(outline, AnnotationOptions())
        slides.append((found, regions, None if outline is None else str(outline)))
    index = index_level(slides, DEMO_LEVEL, IndexOptions(patch_size=DEMO_PATCH_SIZE))
    entries = sample_index(index.entries, SamplingOptions(normal_per_tumor=normal_per_tumor))
    build_store(plan_patches(entries, ExtractionOptions()), folder / "patches_lmdb", "lmdb")
    return Level(entries, open_store(folder / "patches_lmdb"))


def measure(level: Level, options: TrainingOptions, folder: Path) -> dict[str, float]:
    """Train, predict the test slides, and judge at 0.5 and at the threshold chosen on validation patches."""
    from sklearn.metrics import average_precision_score

    started = time.perf_counter()
    trained = train(level.store, options, folder)
    seconds = time.perf_counter() - started
    model = load_model(trained.best_path)
    predicted = predict(level.store, level.entries, model, PredictionOptions())
    truth = np.array([label for entry in predicted for _, _, label in entry["patches"]])
    probabilities = np.array([p for entry in predicted for p in entry["probs"]])
    sensitivity, specificity = rates(truth, probabilities, 0.5)
    chosen = 0.5 if model.val_threshold is None else model.val_threshold
    return {
        "seed": options.seed,
        "roc_auc": roc_auc(truth, probabilities),
        "average_precision": float(average_precision_score(truth, probabilities)),
        "sensitivity": sensitivity,
        "specificity": specificity,
        "threshold": chosen,
        "youden_at_chosen": sum(rates(truth, probabilities, chosen)) - 1,
        "best_epoch": trained.best_epoch,
        "seconds": seconds,
    }


def rates(truth: np.ndarray, probabilities: np.ndarray, threshold: float) -> tuple[float, float]:
    """Sensitivity and specificity."""
    true_normal, false_tumor, false_normal, true_tumor = confusion(truth, probabilities, threshold)
    return true_tumor / (true_tumor + false_normal), true_normal / (true_normal + false_tumor)


def show(row: dict[str, Any], *, header: bool) -> None:
    if header:
        print(f"{'':28}" + "".join(f"{name:>24}" for name in COLUMNS))
    cells = []
    for name in COLUMNS:
        values = [run[name] for run in row["runs"]]
        digits = 0 if name == "seconds" else 3
        cells.append(
            f"{statistics.mean(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"
        )
    print(f"{row['variant']:28}" + "".join(f"{cell:>24}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
