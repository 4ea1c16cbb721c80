"""Networks by name and the weights they start from. Knows torchvision; knows nothing of training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wsi_assets.errors import ModelError
from wsi_assets.index.options import LARGEST_PATCH

CLASSES = ("normal", "tumor")

# Their training forward returns auxiliary outputs beside the prediction.
_UNSUITABLE = frozenset({"googlenet", "inception_v3"})


def build_model(name: str, *, patch_size: int, weights: str = "none") -> nn.Module:
    """A torchvision classifier with two outputs (normal, tumor), in channels-last memory.

    Args:
        name: as in ``torchvision.models.list_models()``.
        patch_size: edge of a patch in pixels; networks of fixed input size refuse others.
        weights: ``none`` (random, from torch's global generator), ``imagenet`` or the path of a state dict
            whose classifier may have any number of outputs.

    Raises:
        ModelError: no such network, not for this patch size, or its weights cannot be had or do not fit.
    """
    from torchvision import models

    check_start(name, weights)
    if not isinstance(patch_size, int) or not 0 < patch_size <= LARGEST_PATCH:
        raise ModelError(
            f"patches of {str(patch_size)[:30]} pixels are not possible",
            remedy=f"Use {LARGEST_PATCH} at most",
        )
    model = models.get_model(name, weights=None, num_classes=len(CLASSES))
    if weights == "imagenet":
        _fit(model, _imagenet(name), f"ImageNet weights of {name}")
    elif weights != "none":
        _fit(model, read_state_dict(weights), weights)
    model.eval()
    try:
        with torch.no_grad():
            outputs = model(torch.zeros(1, 3, patch_size, patch_size))
    except Exception as error:  # networks refuse a size in many ways
        raise ModelError(
            f"{name} does not take patches of {patch_size} pixels ({_first_line(error)})",
            remedy="Choose another model_name or patch_size",
        ) from error
    if outputs.shape != (1, len(CLASSES)):
        raise ModelError(f"{name} gives {tuple(outputs.shape)} for one patch instead of two classes")
    return model.to(memory_format=torch.channels_last)


def check_start(name: str, weights: str) -> None:
    """See, before anything is read or trained, that there are such a network and such weights.

    Raises:
        ModelError: no such network, or no such file of weights.
    """
    from torchvision import models

    if name not in models.list_models(module=models) or name in _UNSUITABLE:
        raise ModelError(
            f"model_name {name!r} is not a classification network of torchvision that this trains",
            remedy="Use e.g. resnet18, resnet34, resnet50 or efficientnet_b0",
        )
    if weights not in ("none", "imagenet") and not Path(weights).is_file():
        raise ModelError(
            "does not exist", path=weights, remedy="Set weights to none, imagenet or a file of weights"
        )


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Weights from a file of ours or anybody's: a state dict, bare or under ``state_dict`` or ``model``.

    Raises:
        ModelError: missing, damaged, or holds anything but tensors and plain values.
    """
    plain = load_plain(path)
    for key in ("state_dict", "model"):
        if isinstance(plain, dict) and isinstance(plain.get(key), dict):
            plain = plain[key]
    if not isinstance(plain, dict) or not any(isinstance(value, Tensor) for value in plain.values()):
        raise ModelError("holds no state dict", path=path, remedy="Save model.state_dict() with torch.save")
    return {
        str(key).removeprefix("module."): value for key, value in plain.items() if isinstance(value, Tensor)
    }


def load_plain(path: str | Path) -> Any:
    """``torch.load`` of tensors and plain values only: nothing in the file can run code.

    Raises:
        ModelError: missing, damaged, or a pickle that names classes or functions.
    """
    if not Path(path).is_file():
        raise ModelError("does not exist", path=path, remedy="Train first, or check the path")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged zip or a hostile pickle can raise nearly anything
        reason = str(error).strip().split("\n")[0][:120]
        raise ModelError(
            f"is damaged or not a file of weights ({type(error).__name__}: {reason})",
            path=path,
            remedy="Train again, or restore the file",
        ) from error


def _imagenet(name: str) -> dict[str, Tensor]:
    from torchvision import models

    chosen = models.get_model_weights(name).DEFAULT
    try:
        return chosen.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError) as error:  # no network is an URLError, a broken download a RuntimeError
        raise ModelError(
            f"the ImageNet weights of {name} cannot be downloaded ({_first_line(error)})",
            remedy=f"Set weights=none, or fetch {chosen.url} elsewhere and set weights to that file's path",
        ) from error


def _first_line(error: Exception) -> str:
    # PyTorch goes on with a page of its own stack.
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


def _fit(model: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Load ``state`` into ``model``; only the classifier may be missing or of another shape."""
    own = model.state_dict()
    fitting = {key: value for key, value in state.items() if key in own and own[key].shape == value.shape}
    # Both tensors of the last layer begin with the number of classes; no other layer has so few outputs.
    head = {key for key, value in own.items() if value.ndim and value.shape[0] == len(CLASSES)}
    missing = [key for key in own if key not in fitting and key not in head]
    missing = [key for key in missing if not key.endswith("num_batches_tracked")]
    if missing:
        raise ModelError(
            f"does not fit the network: {len(missing)} of {len(own)} tensors are missing or of another "
            f"shape, first {missing[0]}",
            path=source,
            remedy="Give the weights of the network named by model_name",
        )
    model.load_state_dict(fitting, strict=False)
