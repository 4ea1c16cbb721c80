"""Model files: ``best.pt`` and ``ckpt_epoch_N.pt`` are state dicts, ``best.json`` says what they are.

The state to resume from is a file of its own. All hold tensors and plain values only.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wsi_assets.errors import ModelError
from wsi_assets.files import publish_file, write_json
from wsi_assets.learning.models import (
    CLASSES,
    Architecture,
    PatchClassifier,
    check_size,
    create,
    load_plain,
    read_state_dict,
)

BEST_NAME, CARD_NAME, RESUME_NAME = "best.pt", "best.json", "resume.pt"
PROBS = (
    "softmax of the network's two outputs, of the class tumor: what best.pt gives by itself. Training shows "
    "the classes in equal weight, so 0.5 is the border between equally frequent classes; calibration turns "
    "probs into probabilities at the prevalence of the validation slides: "
    "1 / (1 + exp(-(logit(probs) / temperature + shift)))"
)


@dataclass(frozen=True)
class LoadedModel:
    """A trained model and what is known of it.

    Attributes:
        model: on the CPU, in evaluation mode.
        architecture: how the network is built and fed.
        patch_size, level, mpp: of the patches it was trained on; None where not known.
        threshold: chosen on validation slides, with the ``specificity`` and ``sensitivity`` there, or None.
        calibration: ``temperature`` and ``shift``, as ``probs`` in the card explains, or None.
        card: all of ``best.json``; empty for a bare state dict.
    """

    path: Path
    model: nn.Module
    architecture: Architecture
    patch_size: int | None
    level: int | None
    mpp: float | None
    threshold: dict[str, float] | None
    calibration: dict[str, float] | None
    card: dict[str, Any]

    def classifier(self) -> PatchClassifier:
        """The model from pixels to probabilities in one module."""
        return PatchClassifier(self.model, self.architecture)


def load_model(path: str | Path, *, model_name: str | None = None) -> LoadedModel:
    """Load ``best.pt`` (or the folder it is in), or a checkpoint beside it.

    Args:
        model_name: network of a state dict that has no ``best.json`` beside it, e.g. ``resnet50``.

    Raises:
        ModelError: missing, damaged, would run code on loading, not of the network that ``best.json`` names,
            or without ``best.json`` and ``model_name``.
    """
    path = Path(path)
    path = path / BEST_NAME if path.is_dir() else path
    state = read_state_dict(path)
    card = read_card(path, needed=model_name is None)
    try:
        model_card = {"name": model_name} if model_name else card["model"]
        normalization = card.get("normalization", {})
        known = {key: tuple(normalization[key]) for key in ("mean", "std") if key in normalization}
        architecture = Architecture(
            model_card["name"],
            model_card.get("args", {}),
            **known,
            input_size=card.get("input_size"),
            license=model_card.get("license"),
        )
        model = create(architecture.name, architecture.args)
        model.load_state_dict(state)
        if card:
            check_size(model, architecture, card["patch_size"])
        of_best = path.name == BEST_NAME and bool(card)
        return LoadedModel(
            path,
            model.to(memory_format=torch.channels_last).eval(),
            architecture,
            card.get("patch_size"),
            card.get("level"),
            card.get("mpp"),
            card["thresholds"]["validation"] if of_best else None,
            card["calibration"] if of_best else None,
            card,
        )
    except (KeyError, TypeError, AttributeError, IndexError, ValueError, RuntimeError) as error:
        reason = str(error).split("\n")[0][:120]
        raise ModelError(
            f"is not of the network that {CARD_NAME} or model_name names ({type(error).__name__}: {reason})",
            path=path,
            remedy=f"Put the {CARD_NAME} of the same training beside it",
        ) from error


def read_card(path: Path, *, needed: bool) -> dict[str, Any]:
    """The ``best.json`` beside a file of weights; empty if there is none and none is needed.

    Raises:
        ModelError: it is missing and needed, or damaged.
    """
    card_path = path.parent / CARD_NAME
    if not card_path.is_file():
        if not needed:
            return {}
        raise ModelError(
            f"has no {CARD_NAME} beside it, so its network is not known",
            path=path,
            remedy=f"Put its {CARD_NAME} back, or name the network, e.g. model_name=resnet50",
        )
    try:
        card = json.loads(card_path.read_text(encoding="utf-8"))
        if not isinstance(card, dict) or not isinstance(card.get("model"), dict):
            raise ValueError("it names no model")
        return card
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(
            f"is damaged ({str(error)[:120]})", path=card_path, remedy="Train again, or restore the file"
        ) from error


def model_card(architecture: Architecture, **facts: Any) -> dict[str, Any]:
    """What ``best.json`` holds: the network, what its outputs mean, and ``facts`` of the training."""
    plain = asdict(architecture)
    return {
        "model": {key: plain[key] for key in ("name", "args", "license")},
        "classes": list(CLASSES),
        "input_size": architecture.input_size,
        "normalization": {"mean": list(architecture.mean), "std": list(architecture.std)},
        "probs": PROBS,
        **facts,
    }


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the weights on the CPU; the model goes on learning."""
    return {
        key: value.detach().to("cpu", copy=True).contiguous() for key, value in model.state_dict().items()
    }


class CheckpointFolder:
    """``checkpoints/`` of a training; each file is published whole."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.best_path = folder / BEST_NAME
        self._resume_path = folder / RESUME_NAME

    def paths(self) -> tuple[Path, ...]:
        """Existing ``ckpt_epoch_N.pt``, by epoch."""
        found = {path: re.fullmatch(r"ckpt_epoch_(\d+)\.pt", path.name) for path in self.folder.glob("*.pt")}
        return tuple(sorted((p for p, match in found.items() if match), key=lambda p: int(found[p][1])))

    def save_best(self, state: dict[str, Tensor], card: dict[str, Any]) -> None:
        _save(self.best_path, state)
        write_json(self.folder / CARD_NAME, card)

    def save_epoch(self, epoch: int, state: dict[str, Tensor]) -> None:
        _save(self.folder / f"ckpt_epoch_{epoch}.pt", state)

    def save_resume(self, state: dict[str, Any]) -> None:
        _save(self._resume_path, state)

    def resume_state(self, run_digest: str) -> dict[str, Any] | None:
        """The state of this very run, if there is a readable one; checkpoints of other runs are removed."""
        try:
            state = load_plain(self._resume_path)
            if state["run_digest"] == run_digest:
                return state
        except (ModelError, KeyError, TypeError):
            pass
        for path in (*self.paths(), self._resume_path):
            path.unlink(missing_ok=True)
        return None

    def complete(self) -> None:
        self._resume_path.unlink(missing_ok=True)


def _save(path: Path, value: Any) -> None:
    with publish_file(path) as staged:
        torch.save(value, staged)
