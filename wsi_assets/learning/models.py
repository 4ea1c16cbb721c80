"""Networks of timm with two outputs (normal, tumor), and their initial weights."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from wsi_assets.errors import ModelError, one_line
from wsi_assets.index.options import MAX_PATCH_SIZE
from wsi_assets.learning.augmentation import IMAGENET_MEAN, IMAGENET_STD, normalize

CLASSES = ("normal", "tumor")
WEIGHT_FILES = ("*.safetensors", "*.bin", "*.pt", "*.pth")
SECONDS_TO_WAIT = 10
WITHOUT_FILE = ("none", "imagenet")
"""Initial weights that are not the path of a file or folder."""


@dataclass(frozen=True)
class Architecture:
    """What is needed to rebuild a network and to prepare its input.

    Attributes:
        name: name of the network in timm.
        args: further arguments of ``timm.create_model``.
        mean, std: normalization of each channel, for RGB between 0 and 1.
        input_size: side, in pixels, to which patches are scaled; None if they are not scaled.
        license: of the initial weights, if known.
    """

    name: str
    args: dict[str, Any] = field(default_factory=dict)
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    input_size: int | None = None
    license: str | None = None

    def inputs(self, patches: Tensor) -> Tensor:
        """The network's float32 input (n, 3, height, width) of RGB patches (n, size, size, 3), 0 to 255."""
        inputs = normalize(patches, self.mean, self.std)
        if self.input_size in (None, inputs.shape[-1]):
            return inputs
        size = (self.input_size, self.input_size)
        return functional.interpolate(inputs, size, mode="bilinear", antialias=True)


class PatchClassifier(nn.Module):
    """Maps RGB patches (n, size, size, 3), 0 to 255, to probabilities (n, 2) of (normal, tumor).

    Args:
        tta: average over the eight flips and quarter turns of each patch (test-time augmentation).
    """

    def __init__(self, model: nn.Module, architecture: Architecture, *, tta: bool = False):
        super().__init__()
        self.model = model
        self.architecture = architecture
        self.tta = tta

    def forward(self, patches: Tensor) -> Tensor:
        views = [patches]
        if self.tta:
            views += [view.flip(1) for view in views]
            views += [view.flip(2) for view in views]
            views += [view.transpose(1, 2).contiguous() for view in views]
        inputs = map(self.architecture.inputs, views)
        return torch.stack([self.model(view).float().softmax(dim=1) for view in inputs]).mean(dim=0)


def build_model(name: str, *, patch_size: int, weights: str = "none") -> tuple[nn.Module, Architecture]:
    """Build a network with two outputs (normal, tumor), in channels-last memory, and its description.

    A new classifier on pretrained features starts at zero, so that each class has probability 0.5. As timm
    draws it, the first outputs of some networks are so large that training does not recover: with an
    EfficientNet-Lite0 on real patches of slides left out, AUC was 0.94 instead of 0.99 in one fold, and with
    frozen features 0.85, 0.24, 0.23 instead of 0.98, 0.96, 0.94 in three.

    Patches are scaled to the size of the images that the network was designed for if it takes no other, and
    smaller ones also if it begins with given weights, because pretrained features of small images are poor:
    on patches of 64 pixels of patients left out, AUC was 0.90, 0.89, 0.76 without and 0.99, 0.97, 0.88 with.

    Args:
        name: name of the network in timm; not used if ``weights`` is a timm model folder, which names it.
        weights: ``none`` (random, from torch's global generator), ``imagenet``, the path of a state dict
            (parameter names of timm or torchvision, any classifier), or of a timm model folder.

    Raises:
        ModelError: timm has no such network, it does not take this patch size, or its weights are not
            available or do not fit.
    """
    if not isinstance(patch_size, int) or not 0 < patch_size <= MAX_PATCH_SIZE:
        raise ModelError(
            f"patches of {str(patch_size)[:30]} pixels are not possible",
            remedy=f"Use {MAX_PATCH_SIZE} at most",
        )
    args, settings = {}, {}
    if weights == "imagenet":
        model = _imagenet(name)
        _clear_head(model)
    elif weights == "none":
        model = create(name, args)
    else:
        if (Path(weights) / "config.json").is_file():
            name, args, settings = _folder_config(Path(weights))
        file = _weights_file(Path(weights))
        model = create(name, args)
        _clear_head(model)
        _fit(model, read_state_dict(file), weights)
    architecture = _described(model, name, args, settings, weights, patch_size)
    check_size(model, architecture, patch_size)
    return model.to(memory_format=torch.channels_last), architecture


def check_name(name: str) -> None:
    """Check that timm has a network of this name.

    Raises:
        ModelError: it has none.
    """
    import timm

    if not timm.is_model(name.partition(".")[0]):
        close = difflib.get_close_matches(name, timm.list_models(), n=1)
        remedy = f"Did you mean {close[0]!r}?" if close else "Use e.g. resnet18"
        raise ModelError(f"model_name {name!r:.80} is not a network of timm", remedy=remedy)


def check_weights(name: str, weights: str) -> None:
    """Check, without reading weights, that a network and its initial weights can be had.

    Args:
        name, weights: as for :func:`build_model`.

    Raises:
        ModelError: timm has no such network, or the weights are neither on this machine nor online.
    """
    if weights not in WITHOUT_FILE:
        _weights_file(Path(weights))
        if (Path(weights) / "config.json").is_file():
            name, _, _ = _folder_config(Path(weights))
    check_name(name)
    if weights == "imagenet":
        with _needs_imagenet(name):
            pass


def create(name: str, args: dict[str, Any]) -> nn.Module:
    """Build a network of timm with two outputs and random weights."""
    import timm

    check_name(name)
    try:
        return timm.create_model(name, **{**args, "num_classes": len(CLASSES)})
    except Exception as error:  # networks raise errors of many types
        raise ModelError(
            f"{name} cannot be built ({one_line(error)[:200]})", remedy="Choose another model_name"
        ) from error


def check_size(model: nn.Module, architecture: Architecture, patch_size: int) -> None:
    """Check that the network takes patches of this size and has two outputs."""
    model.eval()
    try:
        with torch.no_grad():
            outputs = model(architecture.inputs(torch.zeros(1, patch_size, patch_size, 3)))
        if outputs.shape != (1, len(CLASSES)):
            raise ValueError(f"its output for one patch has shape {tuple(outputs.shape)}, not (1, 2)")
    except Exception as error:  # networks refuse a size in many ways
        raise ModelError(
            f"{architecture.name} does not take patches of {patch_size} pixels ({one_line(error)[:200]})",
            remedy="Choose another model_name or patch_size",
        ) from error


def _clear_head(model: nn.Module) -> None:
    for parameter in head_of(model):
        nn.init.zeros_(parameter)


def head_of(model: nn.Module) -> list[nn.Parameter]:
    """The parameters of the network's classifier, its last layer."""
    head = model.get_classifier()
    return [p for part in (head if isinstance(head, tuple) else (head,)) for p in part.parameters()]


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict from any file; it may be under the key ``state_dict`` or ``model`` there."""
    plain = load_plain(path)
    for key in ("state_dict", "model"):
        if isinstance(plain, dict) and isinstance(plain.get(key), dict):
            plain = plain[key]
    plain = plain if isinstance(plain, dict) else {}
    tensors = {str(key): value for key, value in plain.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ModelError("holds no state dict", path=path, remedy="Save model.state_dict() with torch.save")
    return {key.removeprefix("_orig_mod.").removeprefix("module."): tensors[key] for key in tensors}


def weights_digest(weights: str) -> str | None:
    """Digest of the file of initial weights, because another file may replace it under the same name."""
    if weights in WITHOUT_FILE:
        return None
    with _weights_file(Path(weights)).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def load_plain(path: str | Path) -> Any:
    """Load tensors and plain values from a file of torch or safetensors, without running code in it."""
    if not Path(path).is_file():
        raise ModelError("does not exist", path=path, remedy="Train first, or check the path")
    try:
        if Path(path).suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged zip or a hostile pickle can raise nearly anything
        reason = one_line(error)[:120]
        raise ModelError(
            f"is damaged or not a file of weights ({type(error).__name__}: {reason})",
            path=path,
            remedy="Train again, or restore the file",
        ) from error


def _weights_file(path: Path) -> Path:
    """The path itself if it is a file, or the file of weights in a folder."""
    if path.is_file():
        return path
    found = [file for pattern in WEIGHT_FILES for file in sorted(path.glob(pattern))]
    if not found:
        raise ModelError(
            "is a folder without a file of weights" if path.is_dir() else "does not exist",
            path=path,
            remedy="Set weights to none, imagenet, a file of weights or a folder that holds one",
        )
    return found[0]


def _folder_config(folder: Path) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Network name, model arguments and settings from the ``config.json`` of a timm model folder."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        args = {key: value for key, value in config.get("model_args", {}).items() if key != "num_classes"}
        return str(config["architecture"]), args, dict(config.get("pretrained_cfg", config))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"is not the configuration of a timm model ({one_line(repr(error))[:120]})",
            path=folder / "config.json",
            remedy="Give the folder as it was downloaded, or the file of weights alone and its model_name",
        ) from error


def _imagenet(name: str) -> nn.Module:
    """The network with ImageNet weights, from the cache or downloaded."""
    import timm

    with _needs_imagenet(name):
        return timm.create_model(name, pretrained=True, num_classes=len(CLASSES))


@contextlib.contextmanager
def _needs_imagenet(name: str) -> Iterator[None]:
    """Check that the ImageNet weights of a network are in the cache or online, and report what goes wrong."""
    import timm
    from huggingface_hub import try_to_load_from_cache

    settings = timm.get_pretrained_cfg(name)
    if settings is None or not settings.has_weights:
        raise ModelError(f"there are no ImageNet weights of {name}", remedy="Set weights to none or a file")
    source = settings.hf_hub_id
    page = f"https://huggingface.co/{source}" if source else settings.url
    try:
        if source and not isinstance(try_to_load_from_cache(source, "model.safetensors"), str):
            # Offline, timm and the hub would retry for a minute. Any answer shows a connection, even an
            # HTTP error.
            request = urllib.request.Request(page, method="HEAD")
            with contextlib.suppress(urllib.error.HTTPError):
                urllib.request.urlopen(request, timeout=SECONDS_TO_WAIT).close()
        yield
    except Exception as error:  # hub, connection, hash and file raise errors of different types
        raise ModelError(
            f"the ImageNet weights of {name} cannot be downloaded ({one_line(error)[:120]})",
            remedy=f"Set weights=none to start from random weights, or download {page} elsewhere and set "
            "weights to the path of its folder or of a state dict",
        ) from error


def _described(
    model: nn.Module, name: str, args: dict[str, Any], settings: dict[str, Any], weights: str, patch_size: int
) -> Architecture:
    """The description of a model, from its own configuration updated with ``settings``."""
    import timm.data

    settings = {**model.pretrained_cfg, **settings}
    data = timm.data.resolve_data_config(pretrained_cfg=settings)
    size = int(args.get("img_size") or data["input_size"][-1])
    fixed = settings.get("fixed_input_size") and not args.get("dynamic_img_size")
    scaled = fixed or (weights != "none" and patch_size < size)
    license_of = None if weights == "none" else settings.get("license")
    mean, std = tuple(data["mean"]), tuple(data["std"])
    return Architecture(name, args, mean, std, size if scaled else None, license_of)


def _fit(model: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Load ``state`` into ``model``; only the classifier may be missing or of another shape."""
    own = model.state_dict()
    to_timm = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if to_timm is not None and not own.keys() <= state.keys():
        state = to_timm(state, model)
    fitting = {key: value for key, value in state.items() if key in own and own[key].shape == value.shape}
    head = {id(parameter) for parameter in head_of(model)}
    optional = {key for key, parameter in model.named_parameters() if id(parameter) in head}
    missing = [
        key for key in own.keys() - fitting.keys() - optional if not key.endswith("num_batches_tracked")
    ]
    if missing:
        raise ModelError(
            f"does not fit the network: {len(missing)} of {len(own)} tensors are missing or of another "
            f"shape, e.g. {min(missing)}",
            path=source,
            remedy="Give the weights of the network named by model_name",
        )
    model.load_state_dict(fitting, strict=False)
