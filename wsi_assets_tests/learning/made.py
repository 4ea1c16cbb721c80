"""Cohorts of synthetic patches with index and stores, and options of a training that takes a second."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np

from wsi_assets.learning import TrainingOptions, TrainingResult, train
from wsi_assets.patches import ExtractionOptions, PatchStore, open_store, write_patches


@dataclass
class Patches:
    """pixels (n, size, size, 3) uint8, labels (n,), slide id of every patch."""

    pixels: np.ndarray
    labels: np.ndarray
    slides: list[str]

    @property
    def keys(self) -> list[str]:
        return [f"{slide}_{count:06d}" for count, slide in enumerate(self.slides)]

    def store(self, folder: Path, without: tuple[int, ...] = ()) -> PatchStore:
        """An LMDB store of the patches in ``folder``, written once, without the patches ``without``."""
        path = folder / "patches_lmdb"
        if not path.exists():
            rows = zip(self.keys, self.pixels, self.labels, strict=True)
            kept = [row for number, row in enumerate(rows) if number not in without]
            write_patches(path, "lmdb", kept, ExtractionOptions(codec="png"))
        return open_store(path)

    def index(self, **changes) -> dict:
        """The index of the patches, with ``changes`` in each entry."""
        rows = zip(self.slides, range(len(self.slides)), self.labels, strict=True)
        return {
            slide: {
                "slide_path": f"/data/{slide}.tif",
                "label": slide.split("_node_")[0],
                "annotation_path": None,
                "level": 4,
                "work_level": 7,
                "magnification": 2.5,
                "visualisation_coords": [],
                "patches": [(0, x, bool(label)) for _, x, label in here],
                **changes,
            }
            for slide, here in groupby(rows, lambda row: row[0])
        }


def cohort(patients=6, per_patient=8, size=32, seed=0, test_patients=0, separable=True, normals=1) -> Patches:
    """Patients of one slide each; tumor patches are darker and bluer, so a tiny network can learn them.

    ``normals`` normal patches come before each tumor patch.
    """
    rng = np.random.default_rng(seed)
    pixels, labels, slides = [], [], []
    for patient in range(patients + test_patients):
        name = f"{'test' if patient >= patients else 'patient'}_{patient:03d}_node_1"
        for i in range(per_patient):
            tumor = i % (normals + 1) == normals
            base = np.array([150, 90, 160] if tumor and separable else [215, 150, 190])
            pixels.append(np.clip(base + rng.normal(0, 25, (size, size, 3)), 0, 255).astype(np.uint8))
            labels.append(int(tumor))
            slides.append(name)
    return Patches(np.stack(pixels), np.array(labels), slides)


def quick(**changes) -> TrainingOptions:
    """Options of a training that takes a second."""
    defaults = {
        "model_name": "tiny",
        "weights": "none",
        "batch_size": 16,
        "num_workers": 0,
        "max_epochs": 3,
        "patience": 9,
        "precision": "float32",
        "device": "cpu",
        "val_size": 0.2,
    }
    return TrainingOptions(**{**defaults, **changes})


def run(patches: Patches, options: TrainingOptions, folder: Path, index=None, **changes) -> TrainingResult:
    """Train on patches in ``folder``, by default with their own index."""
    with patches.store(folder) as store:
        return train(store, index or patches.index(), options, folder, **changes)
