"""A network of a few thousand weights that can be asked for by name, like timm's own."""

from __future__ import annotations

import functools

from timm.models import build_model_with_cfg, register_model
from torch import nn


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


@functools.cache
def register():
    """Make ``tiny`` and ``tiny_plain`` known by name."""
    for build in (tiny, tiny_plain):
        register_model(build)
