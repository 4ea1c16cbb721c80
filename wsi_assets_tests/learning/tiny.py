"""Networks of a few weights, registered in timm by name, and model files of them."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import torch
from timm.models import build_model_with_cfg, register_model
from torch import nn

from wsi_assets.learning.checkpoints import PROBS


class Tiny(nn.Sequential):
    """Two convolutions and a classifier; ``plain`` without batch normalization and dropout."""

    def __init__(self, num_classes=2, in_chans=3, plain=False, **_):
        def block(into, out):
            norm = [] if plain else [nn.BatchNorm2d(out)]
            return [nn.Conv2d(into, out, 3, stride=2, padding=1), *norm, nn.ReLU()]

        head = [
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(0.0 if plain else 0.1),
            nn.Linear(16, num_classes),
        ]
        super().__init__(*block(in_chans, 8), *block(8, 16), *head)

    def get_classifier(self):
        return self[-1]


def tiny(pretrained=False, **options):
    return build_model_with_cfg(Tiny, "tiny", pretrained, **options)


def tiny_plain(pretrained=False, **options):
    return build_model_with_cfg(Tiny, "tiny_plain", pretrained, plain=True, **options)


class Darkness(nn.Module):
    """The probability of tumor is how dark a patch is: 1 for black, 0 for white, with a slope of ``gain``."""

    def __init__(self, num_classes=2, in_chans=3, **_):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1))
        self.head = nn.Linear(1, num_classes)

    def get_classifier(self):
        return self.head

    def forward(self, inputs):
        tumor = torch.logit(1 - inputs.mean(dim=(1, 2, 3)), eps=1e-6) * self.gain
        return torch.stack([torch.zeros_like(tumor), tumor], dim=1)


def darkness(pretrained=False, **options):
    return build_model_with_cfg(Darkness, "darkness", pretrained, **options)


def write_darkness(folder: Path, patch_size: int, level: int | str, gain: float = 1.0) -> Path:
    """Write ``best.pt`` and ``best.json`` of a network with known probabilities."""
    register()
    folder.mkdir(parents=True, exist_ok=True)
    state = {**Darkness().state_dict(), "gain": torch.tensor([gain])}
    torch.save(state, folder / "best.pt")
    card = {
        "model": {"name": "darkness", "args": {}, "license": None},
        "input_size": None,
        "normalization": {"mean": [0.0] * 3, "std": [1.0] * 3},
        "probs": PROBS,
        "patch_size": patch_size,
        "level": level,
        "thresholds": {"preds": 0.5, "validation": {"threshold": 0.85}},
        "calibration": {"temperature": 2.0, "shift": -1.0, "prevalence": 0.1},
    }
    (folder / "best.json").write_text(json.dumps(card))
    return folder / "best.pt"


@functools.cache
def register():
    """Register these networks in timm."""
    for build in (tiny, tiny_plain, darkness):
        register_model(build)
