"""A network of a few thousand weights that can be asked for by name, like torchvision's own."""

from __future__ import annotations

import functools

from torch import nn
from torchvision import models
from torchvision.models._api import register_model


@functools.cache
def register():
    """Make ``tiny`` (with batch normalisation and dropout) and ``tiny_plain`` (neither) known by name."""

    def network(num_classes, plain):
        def block(into, out):
            norm = [] if plain else [nn.BatchNorm2d(out)]
            return [nn.Conv2d(into, out, 3, stride=2, padding=1), *norm, nn.ReLU()]

        head = [
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(0.0 if plain else 0.1),
            nn.Linear(16, num_classes),
        ]
        return nn.Sequential(*block(3, 8), *block(8, 16), *head)

    def tiny(*, weights=None, num_classes=2):
        return network(num_classes, plain=False)

    def tiny_plain(*, weights=None, num_classes=2):
        return network(num_classes, plain=True)

    for build in (tiny, tiny_plain):
        # list_models(module=torchvision.models) goes by the module a builder says it is from
        build.__module__ = models.resnet.__name__
        register_model()(build)
