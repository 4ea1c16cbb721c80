"""Model files: what ``best.pt`` and the periodic checkpoints hold, how they are written, read and refused.

A file here holds tensors and plain values only and loads with ``torch.load(path, weights_only=True)``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from wsi_assets.errors import ModelError
from wsi_assets.files import publish_file
from wsi_assets.learning.augmentation import IMAGENET_MEAN, IMAGENET_STD, normalise
from wsi_assets.learning.backbones import CLASSES, build_model, load_plain

FORMAT = 2
BEST_NAME = "best.pt"


@dataclass(frozen=True)
class LoadedModel:
    """A trained model and what it was trained on.

    Attributes:
        model: on the CPU, in evaluation mode; takes normalised float32 (n, 3, size, size).
        classes: meaning of the two outputs.
        level: pyramid level of the patches; mpp: micrometres a pixel there (median of the slides), or None.
        mean, std: of RGB between 0 and 1.
        config: the training options.
        split: unit, table and notes of the split.
        epoch, val_loss: when the weights were taken.
        val_threshold: the tumour probability that separated the validation patches best, or None.
    """

    path: Path
    model: nn.Module
    model_name: str
    classes: tuple[str, ...]
    patch_size: int
    level: int
    mpp: float | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    config: dict[str, Any]
    data_digest: str
    split: dict[str, Any]
    epoch: int
    val_loss: float
    val_threshold: float | None

    def classifier(self) -> PatchClassifier:
        """The model from pixels to probabilities in one module."""
        return PatchClassifier(self.model, self.mean, self.std)


class PatchClassifier(nn.Module):
    """From RGB patches (n, size, size, 3), 0 to 255, to probabilities (n, 2) of (normal, tumor)."""

    def __init__(self, model: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]):
        super().__init__()
        self.model = model
        self.mean = tuple(mean)
        self.std = tuple(std)

    def forward(self, patches: Tensor) -> Tensor:
        return self.model(normalise(patches, self.mean, self.std)).float().softmax(dim=1)


def best_payload(
    model: nn.Module,
    *,
    config: dict[str, Any],
    info: dict[str, Any],
    data_digest: str,
    split: dict[str, Any],
    epoch: int,
    val_loss: float,
    val_threshold: float | None,
) -> dict[str, Any]:
    """What ``best.pt`` holds; ``info`` is the patch store's."""
    return {
        "format": FORMAT,
        "state_dict": {
            # A copy even on the CPU: the model goes on learning.
            key: value.detach().to("cpu", copy=True).contiguous()
            for key, value in model.state_dict().items()
        },
        "model_name": config["model_name"],
        "classes": list(CLASSES),
        "patch_size": int(info["patch_size"]),
        "level": int(info["level"]),
        "mpp": _mpp(info),
        "normalisation": {"mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD)},
        "config": config,
        "data_digest": data_digest,
        "split": split,
        "epoch": epoch,
        "val_loss": val_loss,
        "val_threshold": val_threshold,
    }


def _mpp(info: dict[str, Any]) -> float | None:
    """Micrometres a pixel at the store's level: the median of the slides that know theirs."""
    known = [slide["mpp"] for slide in info["slides"] if slide["mpp"] is not None]
    return float(median(known)) if known else None


def load_model(path: str | Path) -> LoadedModel:
    """Load ``best.pt``.

    Raises:
        ModelError: missing, damaged, would run code on loading, or not one of ours.
    """
    path = Path(path)
    plain = load_plain(path)
    try:
        if plain["format"] != FORMAT:
            raise ModelError(f"has format {plain['format']}, not {FORMAT}", path=path, remedy="Train again")
        model = build_model(plain["model_name"], patch_size=plain["patch_size"])
        model.load_state_dict(plain["state_dict"])
        return LoadedModel(
            path=path,
            model=model.eval(),
            model_name=plain["model_name"],
            classes=tuple(plain["classes"]),
            patch_size=plain["patch_size"],
            level=plain["level"],
            mpp=plain["mpp"],
            mean=tuple(plain["normalisation"]["mean"]),
            std=tuple(plain["normalisation"]["std"]),
            config=plain["config"],
            data_digest=plain["data_digest"],
            split=plain["split"],
            epoch=plain["epoch"],
            val_loss=plain["val_loss"],
            val_threshold=plain["val_threshold"],
        )
    except (KeyError, TypeError, AttributeError, IndexError, RuntimeError) as error:
        raise ModelError(
            f"is not a model that this project wrote ({type(error).__name__}: {str(error)[:120]})",
            path=path,
            remedy="Give the best.pt of a training",
        ) from error


def publish(path: Path, payload: dict[str, Any]) -> None:
    """Write a file of tensors and plain values so that it is never seen half-written."""
    with publish_file(path) as aside:
        torch.save(payload, aside)


class CheckpointFolder:
    """The periodic checkpoints of a training, ``ckpt_epoch_K.pt`` with K from 1."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.best_path = folder / BEST_NAME

    def paths(self) -> list[Path]:
        """Existing periodic checkpoints, by epoch."""
        found = [(self._epoch(path), path) for path in self.folder.glob("ckpt_epoch_*.pt")]
        return [path for epoch, path in sorted(found) if epoch]

    def path(self, epoch: int) -> Path:
        return self.folder / f"ckpt_epoch_{epoch}.pt"

    def newest(self, run_digest: str) -> tuple[dict[str, Any] | None, list[str]]:
        """The newest readable checkpoint of this very run, if any, and notes on those passed over."""
        notes = []
        for path in reversed(self.paths()):
            try:
                plain = load_plain(path)
                if plain["run_digest"] == run_digest:
                    return plain, notes
                notes.append(f"{path.name} is of another configuration or other data and was not continued")
            except (ModelError, KeyError, TypeError) as error:
                notes.append(f"{path.name} cannot be read and was passed over ({error})")
        return None, notes

    def clear(self, *, after: int = 0) -> None:
        """Remove periodic checkpoints beyond an epoch: they belong to a run that is not continued."""
        for path in self.paths():
            if self._epoch(path) > after:
                path.unlink()

    @staticmethod
    def _epoch(path: Path) -> int:
        match = re.fullmatch(r"ckpt_epoch_(\d+)\.pt", path.name)
        return int(match.group(1)) if match else 0
