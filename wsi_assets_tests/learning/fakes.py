"""A patch store in memory with the interface of the real ones, and cohorts of synthetic patches."""

from __future__ import annotations

import hashlib

import numpy as np

from wsi_assets.errors import StoreError
from wsi_assets.learning import TrainingOptions


class MemoryStore:
    def __init__(self, patches, labels, slide_ids, *, level=4, left_out=(), keys=None):
        self.patches = np.asarray(patches, dtype=np.uint8)
        self.labels = np.asarray(labels, dtype=np.uint8)
        self.origins = [(slide, 0, i) for i, slide in enumerate(slide_ids)]
        self.keys = keys or [f"{slide}_{i:06d}" for i, slide in enumerate(slide_ids)]
        self.path = "memory"
        self.reads = 0
        self.closed = 0
        self.info = {
            "level": level,
            "patch_size": self.patches.shape[1],
            "slides": [{"slide_id": slide, "mpp": 0.25} for slide in dict.fromkeys(slide_ids)],
            "digest": hashlib.sha256(self.patches.tobytes() + self.labels.tobytes()).hexdigest()[:16],
            "quarantined": list(left_out),
            "complete": True,
        }

    def __len__(self):
        return len(self.labels)

    @property
    def coords(self):
        return np.array([(y, x) for _, y, x in self.origins]).reshape(-1, 2)

    def get(self, i):
        return self.patches[i]

    def get_many(self, indices):
        self.reads += len(indices)
        return self.patches[np.asarray(indices)]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.closed += 1

    def key_index(self, key):
        try:
            return self.keys.index(key)
        except ValueError:
            raise StoreError(f"no patch {key}") from None


def cohort(patients=6, per_patient=8, size=32, seed=0, test_patients=0, separable=True):
    """Patients of one slide each; tumour patches are darker and bluer, so a tiny network can learn them."""
    rng = np.random.default_rng(seed)
    patches, labels, slides = [], [], []
    for patient in range(patients + test_patients):
        name = f"{'test' if patient >= patients else 'patient'}_{patient:03d}_node_1"
        for i in range(per_patient):
            tumor = i % 2
            base = np.array([150, 90, 160] if tumor and separable else [215, 150, 190])
            patches.append(np.clip(base + rng.normal(0, 25, (size, size, 3)), 0, 255))
            labels.append(tumor)
            slides.append(name)
    return MemoryStore(np.stack(patches), labels, slides)


def quick(**changes):
    """Options of a training that takes a second."""
    defaults = {
        "model_name": "tiny",
        "batch_size": 16,
        "num_workers": 0,
        "max_epochs": 3,
        "patience": 9,
        "precision": "float32",
        "device": "cpu",
        "val_size": 0.2,
    }
    return TrainingOptions(**{**defaults, **changes})
