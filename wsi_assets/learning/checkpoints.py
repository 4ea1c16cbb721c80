"""Model files: ``best.pt`` and ``ckpt_epoch_N.pt`` are state dicts, ``best.json`` describes the model.

``resume.pt`` holds the state of an interrupted training. All files hold tensors and plain values only.
"""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wsi_assets.errors import ModelError, one_line
from wsi_assets.files import publish_file
from wsi_assets.learning.models import (
    CLASSES,
    WITHOUT_FILE,
    Architecture,
    PatchClassifier,
    build_model,
    check_size,
    create,
    load_plain,
    read_state_dict,
)

BEST_NAME, CARD_NAME, RESUME_NAME = "best.pt", "best.json", "resume.pt"
PROBS = (
    "probability of the class tumor: softmax of the two outputs of best.pt, without calibration. Training "
    "weights both classes equally, so 0.5 is the border between equally frequent classes; calibration turns "
    "probs into probabilities at the prevalence of the validation slides: "
    "1 / (1 + exp(-(logit(probs) / temperature + shift)))"
)


@dataclass(frozen=True)
class LoadedModel:
    """A trained model, on the CPU in evaluation mode.

    Attributes:
        path: the file of weights.
        architecture: how to build the network and prepare its input.
        card: the content of ``best.json``.
    """

    path: Path
    model: nn.Module
    architecture: Architecture
    card: dict[str, Any]

    @property
    def patch_size(self) -> int:
        """Side, in pixels, of the patches that the model was trained on."""
        return self.card["patch_size"]

    def classifier(self) -> PatchClassifier:
        """The model as one module from RGB patches to class probabilities."""
        return PatchClassifier(self.model, self.architecture, tta=self.card.get("tta", False))


def load_model(path: str | Path) -> LoadedModel:
    """Load a model from ``best.pt``, from the folder it is in, or from a checkpoint beside it.

    Raises:
        ModelError: the file is missing or damaged, could run code when loaded, or does not fit the network
            that ``best.json`` beside it describes.
    """
    path = Path(path)
    path = path / BEST_NAME if path.is_dir() else path
    state, card = read_state_dict(path), read_card(path)
    try:
        normalization = {key: tuple(value) for key, value in card["normalization"].items()}
        architecture = Architecture(**card["model"], **normalization, input_size=card["input_size"])
        model = create(architecture.name, architecture.args)
        model.load_state_dict(state)
        check_size(model, architecture, card["patch_size"])
        model = model.to(memory_format=torch.channels_last).eval()
        return LoadedModel(path, model, architecture, card)
    except (KeyError, TypeError, AttributeError, IndexError, ValueError, RuntimeError) as error:
        reason = one_line(error)[:120]
        raise ModelError(
            f"does not fit the network that {CARD_NAME} describes ({type(error).__name__}: {reason})",
            path=path,
            remedy=f"Put the {CARD_NAME} of the same training beside it",
        ) from error


def initial_model(name: str, *, patch_size: int, weights: str) -> tuple[nn.Module, Architecture]:
    """The network at the start of a training, and its description.

    As :func:`build_model`, but if ``weights`` is a model of this package, its ``best.json`` describes it.
    """
    path = Path(weights)
    folder = path if path.is_dir() else path.parent
    if weights in WITHOUT_FILE or not (folder / CARD_NAME).is_file():
        return build_model(name, patch_size=patch_size, weights=weights)
    loaded = load_model(path)
    check_size(loaded.model, loaded.architecture, patch_size)
    return loaded.model, loaded.architecture


def read_card(path: Path) -> dict[str, Any]:
    """Read the ``best.json`` beside a file of weights.

    Raises:
        ModelError: it is missing or damaged.
    """
    card_path = path.parent / CARD_NAME
    try:
        card = json.loads(card_path.read_text(encoding="utf-8"))
        if not isinstance(card, dict) or not isinstance(card.get("model"), dict):
            raise ValueError("it names no model")
        return card
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(
            f"does not describe the network of the weights ({one_line(error)[:120]})",
            path=card_path,
            remedy="Restore it, or train again",
        ) from error


def model_card(architecture: Architecture, **facts: Any) -> dict[str, Any]:
    """The content of ``best.json``: the network, what its outputs mean, and ``facts`` of the training."""
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
    """A copy of the weights on the CPU, which further training does not change."""
    return {
        key: value.detach().to("cpu", copy=True).contiguous() for key, value in model.state_dict().items()
    }


def save_weights(path: Path, value: dict[str, Any]) -> None:
    """Write tensors and plain values atomically."""
    # Into memory first, because the error of torch.save on a full disk does not say that it is full.
    data = io.BytesIO()
    torch.save(value, data)
    with publish_file(path) as staged:
        staged.write_bytes(data.getbuffer())


def load_resume(folder: Path, run_digest: str) -> dict[str, Any] | None:
    """The saved state of the run with this digest, else None; checkpoints of other runs are then removed."""
    with contextlib.suppress(ModelError, KeyError, TypeError):
        state = load_plain(folder / RESUME_NAME)
        if state["run_digest"] == run_digest:
            return state
    for path in (*folder.glob("ckpt_epoch_*.pt"), folder / RESUME_NAME):
        path.unlink(missing_ok=True)
    return None
