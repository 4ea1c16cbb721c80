"""A patch store in memory with the interface of the real ones, cohorts of synthetic patches, their index."""

from __future__ import annotations

import hashlib
from itertools import groupby

import numpy as np

from wsi_assets.learning import TrainingOptions


class MemoryStore:
    def __init__(self, patches, labels, slide_ids, *, level=4, left_out=(), keys=None):
        self.patches = np.asarray(patches, dtype=np.uint8)
        self.labels = np.asarray(labels, dtype=np.uint8)
        self.slide_ids = list(slide_ids)
        self.coords = np.array([(0, i) for i in range(len(self.labels))]).reshape(-1, 2)
        self.keys = keys or [f"{slide}_{i:06d}" for i, slide in enumerate(slide_ids)]
        self.path = "memory"
        self.reads = 0
        self.info = {
            "level": level,
            "patch_size": self.patches.shape[1],
            "digest": hashlib.sha256(self.patches.tobytes() + self.labels.tobytes()).hexdigest()[:16],
            "quarantined": list(left_out),
        }

    def __len__(self):
        return len(self.labels)

    def get(self, i):
        return self.patches[i]

    def get_many(self, indices):
        self.reads += len(indices)
        return self.patches[np.asarray(indices)]

    def key_index(self, key):
        return {name: row for row, name in enumerate(self.keys)}[key]


def index_of(store, **changes):
    """The index a store's patches are of, with the keys of the specification and ``changes``."""
    slides = groupby(zip(store.slide_ids, store.coords, store.labels, strict=True), key=lambda row: row[0])
    return {
        slide: {
            "slide_path": f"/data/{slide}.tif",
            "label": slide.split("_node_")[0],
            "annotation_path": None,
            "level": store.info.get("level", 4),
            "work_level": 7,
            "magnification": 2.5,
            "visualisation_coords": [],
            "patches": [(int(y), int(x), bool(label)) for _, (y, x), label in rows],
            **changes,
        }
        for slide, rows in slides
    }


def cohort(patients=6, per_patient=8, size=32, seed=0, test_patients=0, separable=True, normals=1):
    """Patients of one slide each; tumor patches are darker and bluer, so a tiny network can learn them.

    ``normals`` normal patches come before each tumor patch.
    """
    rng = np.random.default_rng(seed)
    patches, labels, slides = [], [], []
    for patient in range(patients + test_patients):
        name = f"{'test' if patient >= patients else 'patient'}_{patient:03d}_node_1"
        for i in range(per_patient):
            tumor = i % (normals + 1) == normals
            base = np.array([150, 90, 160] if tumor and separable else [215, 150, 190])
            patches.append(np.clip(base + rng.normal(0, 25, (size, size, 3)), 0, 255))
            labels.append(int(tumor))
            slides.append(name)
    return MemoryStore(np.stack(patches), labels, slides)


def quick(**changes):
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
