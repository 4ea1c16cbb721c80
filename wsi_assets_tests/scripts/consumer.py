"""A program written from the specification of the files alone: it imports nothing of wsi_assets.

:func:`consume` reads an index, an LMDB, ``best.pt`` and ``slide_index_test.pkl`` as a script of a lab would;
:func:`produce` writes an index and an LMDB as such a script would.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path

import lmdb
import numpy as np
import torch
from PIL import Image
from torch import nn
from torchvision.models import resnet50


def keys_and_labels(index: dict) -> list[tuple[str, str, int]]:
    """(slide id, key, label) of every patch, by one counter over all slides."""
    rows, count = [], 0
    for slide_id, info in index.items():
        for _y, _x, is_tumor in info["patches"]:
            rows.append((slide_id, f"{slide_id}_{count:06d}", int(is_tumor)))
            count += 1
    return rows


def consume(index_path: Path, lmdb_path: Path) -> dict[str, float]:
    """Train a plain ResNet-50 for one small epoch; returns counts and the loss."""
    with index_path.open("rb") as stream:
        index = pickle.load(stream)
    for info in index.values():
        assert set(info) >= {"slide_path", "label", "annotation_path", "level", "work_level"}
        assert set(info) >= {"magnification", "visualisation_coords", "patches"}
        assert all(is_tumor is True or is_tumor is False for _y, _x, is_tumor in info["patches"])
    rows = keys_and_labels(index)
    train = [row for row in rows if "test" not in row[0]]
    env = lmdb.open(str(lmdb_path), readonly=True, lock=False)
    images, labels = [], []
    with env.begin() as txn:
        for _slide, key, label in train[:: max(1, len(train) // 8)]:
            image = Image.open(io.BytesIO(txn.get(key.encode()))).convert("RGB").resize((64, 64))
            images.append(torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255)
            labels.append(label)
        assert all(txn.get(key.encode()) is not None for _slide, key, _label in rows)
    env.close()
    model = resnet50(weights=None)
    model.fc = nn.Linear(model.fc.in_features, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    loss = nn.functional.cross_entropy(model(torch.stack(images)), torch.tensor(labels))
    loss.backward()
    optimizer.step()
    return {
        "patches": len(rows),
        "train": len(train),
        "tumor": sum(row[2] for row in rows),
        "loss": float(loss),
    }


def load_model(best_path: Path) -> nn.Module:
    """The trained ResNet-50, loaded strictly."""
    model = resnet50(num_classes=2)
    model.load_state_dict(torch.load(best_path, map_location="cpu", weights_only=True))
    return model.eval()


def read_test_index(path: Path) -> dict[str, tuple[list[float], list[int]]]:
    """Slide id -> (probs, preds), checked against each other."""
    with path.open("rb") as stream:
        results = pickle.load(stream)
    for info in results.values():
        assert len(info["probs"]) == len(info["preds"]) == len(info["patches"])
        assert info["preds"] == [int(prob >= 0.5) for prob in info["probs"]]
    return {slide_id: (info["probs"], info["preds"]) for slide_id, info in results.items()}


def produce(folder: Path, slides: dict[str, list[tuple[np.ndarray, bool]]]) -> tuple[Path, Path]:
    """Write ``index_level_0.pkl`` and ``patches_lmdb`` of patches (size, size, 3) with labels."""
    index, count = {}, 0
    env = lmdb.open(str(folder / "patches_lmdb"), map_size=1 << 30)
    with env.begin(write=True) as txn:
        for slide_id, patches in slides.items():
            size = len(patches[0][0])
            index[slide_id] = {
                "slide_path": f"/nowhere/{slide_id}.tif",
                "label": slide_id.rsplit("_node", 1)[0],
                "annotation_path": None,
                "level": 0,
                "work_level": 7,
                "magnification": 40.0,
                "visualisation_coords": [(0, i * size // 128, label) for i, (_, label) in enumerate(patches)],
                "patches": [(0, i * size, label) for i, (_, label) in enumerate(patches)],
            }
            for pixels, _label in patches:
                buffer = io.BytesIO()
                Image.fromarray(pixels).save(buffer, format="PNG")
                txn.put(f"{slide_id}_{count:06d}".encode(), buffer.getvalue())
                count += 1
    env.close()
    (folder / "index_level_0.pkl").write_bytes(pickle.dumps(index))
    return folder / "index_level_0.pkl", folder / "patches_lmdb"
