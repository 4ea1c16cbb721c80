"""PNG pictures of a training: learning curves, confusion matrix and augmented patches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_assets.drawing import BLUE, GREEN, GREY, canvas_png, new_canvas, plain_axes, png_of
from wsi_assets.learning.records import EpochRecord

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from wsi_assets.patches import PatchStore

DPI = 100
GAP = 4
"""White pixels between the patches of a mosaic."""


def curves_png(epochs: Sequence[EpochRecord]) -> bytes:
    """Loss, accuracy with AUC, and learning rate by epoch, 900 pixels wide; the best epoch is marked."""
    return canvas_png(curves([vars(record) for record in epochs]), DPI)


def curves(epochs: Sequence[Mapping[str, Any]]) -> Figure:
    """Panels of loss, accuracy and learning rate, as far as the rows have them (the CSV has no rate)."""
    panels = {
        "Loss": {"train_loss": BLUE, "val_loss": GREEN},
        "Accuracy": {"train_acc": BLUE, "val_acc": GREEN, "val_auc": GREY},
        "Learning rate": {"lr": BLUE},
    }
    panels = {title: colors for title, colors in panels.items() if colors.keys() & epochs[0].keys()}
    canvas = new_canvas(9, 3.1)
    x = [row["epoch"] for row in epochs]
    best = min(epochs, key=lambda row: row["val_loss"])["epoch"]
    for axes, (title, colors) in zip(canvas.subplots(1, len(panels)), panels.items(), strict=True):
        for name in filter(epochs[0].__contains__, colors):
            style = {"color": colors[name], "ls": "--" if "val" in name else "-", "ms": 3.5, "lw": 1.6}
            axes.plot(x, [row[name] for row in epochs], marker="o", label=name.replace("_", " "), **style)
        axes.axvline(best, color=GREY, linewidth=1, linestyle=":", label="best")
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("epoch", fontsize=9)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_ylim(bottom=0)
        axes.legend(fontsize=7.5, frameon=False)
        plain_axes(axes)
    return canvas


def confusion_png(confusion: Sequence[int]) -> bytes:
    """Confusion matrix of the validation patches (true normal, false tumor, false normal, true tumor)."""
    counts = np.asarray(confusion).reshape(2, 2)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    canvas = new_canvas(3.6, 3.4)
    axes = canvas.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), share in np.ndenumerate(shares):
        text = f"{counts[row, column]:,}\n{share:.1%}"
        axes.text(column, row, text, ha="center", va="center", color="white" if share > 0.5 else "black")
    axes.set_xticks([0, 1], ["normal", "tumor"])
    axes.set_yticks([0, 1], ["normal", "tumor"], rotation=90, va="center")
    axes.set_xlabel("predicted")
    axes.set_ylabel("annotated")
    axes.set_title("Validation patches", fontsize=10)
    return canvas_png(canvas, DPI)


def augmentation_mosaic_png(
    store: PatchStore, *, seed: int = 42, patches: int = 6, copies: int = 7, side: int = 96
) -> bytes:
    """Rows with a patch as stored and ``copies`` augmented copies of it, each ``side`` pixels wide.

    Half of the rows show tumor patches if the store has both classes.
    """
    import cv2
    import torch

    from wsi_assets.learning.augmentation import augment, draw_transforms

    order = np.random.default_rng(seed).permutation(len(store))
    labels = np.asarray(store.labels)[order]
    tumor = order[labels == 1][: -(-patches // 2)]
    rows = []
    for number, position in enumerate([*tumor, *order[labels != 1][: patches - len(tumor)]]):
        original = np.asarray(store.get(int(position)))
        repeated = torch.from_numpy(np.repeat(original[None], copies, axis=0))
        changed = augment(repeated, draw_transforms(copies, seed=seed, epoch=1, batch=number))
        tiles = [original, *changed.round().to(torch.uint8).numpy()]
        tiles = [cv2.resize(tile, (side, side), interpolation=cv2.INTER_AREA) for tile in tiles]
        padded = [np.pad(tile, ((0, GAP), (0, GAP), (0, 0)), constant_values=255) for tile in tiles]
        rows.append(np.hstack(padded))
    return png_of(np.vstack(rows))
