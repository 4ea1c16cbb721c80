"""Pictures of a training as PNG bytes: curves, confusion matrix, what augmentation does to patches.

Only drawing; every number comes in as an argument.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from wsi_assets.learning.records import EpochRecord

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from wsi_assets.patches import PatchStore

TRAIN_COLOUR, VAL_COLOUR, BEST_COLOUR = "#4c6a92", "#c8553d", "#7a7a7a"


def curves_png(epochs: Sequence[EpochRecord], *, width: int = 900) -> bytes:
    """Loss, accuracy with AUC, and learning rate over the epochs; the best epoch is marked.

    Args:
        width: of the picture in pixels.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(width / 100, width / 290), dpi=100, layout="constrained")
    loss, accuracy, lr = figure.subplots(1, 3)
    x = [record.epoch for record in epochs]
    style = {"marker": "o", "markersize": 3.5, "linewidth": 1.6}
    loss.plot(x, [r.train_loss for r in epochs], color=TRAIN_COLOUR, label="train", **style)
    loss.plot(x, [r.val_loss for r in epochs], color=VAL_COLOUR, label="validation", **style)
    accuracy.plot(x, [r.train_acc for r in epochs], color=TRAIN_COLOUR, label="train", **style)
    accuracy.plot(x, [r.val_acc for r in epochs], color=VAL_COLOUR, label="validation", **style)
    auc = [np.nan if r.val_auc is None else r.val_auc for r in epochs]
    accuracy.plot(x, auc, color=VAL_COLOUR, linestyle=":", label="validation AUC", linewidth=1.6)
    accuracy.set_ylim(-0.02, 1.02)
    lr.plot(x, [r.lr for r in epochs], color=TRAIN_COLOUR, **style)
    lr.set_ylim(bottom=0)
    for axes, title in ((loss, "Loss"), (accuracy, "Accuracy"), (lr, "Learning rate")):
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("epoch", fontsize=9)
        axes.tick_params(labelsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    best = [record.epoch for record in epochs if record.is_best]
    for axes in (loss, accuracy):
        if best:
            axes.axvline(best[-1], color=BEST_COLOUR, linewidth=1, linestyle="--", label="best")
        axes.legend(fontsize=7.5, frameon=False)
    return _png(figure)


def confusion_png(confusion: Sequence[int], *, title: str = "Validation patches") -> bytes:
    """A two by two confusion matrix from (true normal, false tumor, false normal, true tumor)."""
    from matplotlib.figure import Figure

    counts = np.asarray(confusion).reshape(2, 2)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure = Figure(figsize=(3.6, 3.4), dpi=100, layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row in range(2):
        for column in range(2):
            share = shares[row, column]
            axes.text(
                column,
                row,
                f"{counts[row, column]:,}\n{share:.1%}",
                ha="center",
                va="center",
                color="white" if share > 0.5 else "black",
            )
    axes.set_xticks([0, 1], ["normal", "tumor"])
    axes.set_yticks([0, 1], ["normal", "tumor"], rotation=90, va="center")
    axes.set_xlabel("predicted")
    axes.set_ylabel("annotated")
    axes.set_title(title, fontsize=10)
    return _png(figure)


def augmentation_mosaic_png(
    store: PatchStore, *, seed: int = 42, patches: int = 6, copies: int = 7, side: int = 96
) -> bytes:
    """What training sees: each row a patch as stored, then ``copies`` random transforms of it.

    Args:
        patches: rows, half tumour and half normal where the store has both.
        side: edge of a tile in the picture, in pixels.
    """
    import cv2
    import torch

    from wsi_assets.learning.augmentation import augment, draw_transforms

    labels = np.asarray(store.labels)
    rng = np.random.default_rng(seed)
    tumor = rng.permutation(np.flatnonzero(labels == 1))[: -(-patches // 2)]
    normal = rng.permutation(np.flatnonzero(labels == 0))[: patches - len(tumor)]
    chosen = np.concatenate([tumor, normal])
    gap, rows = 4, []
    for number, position in enumerate(chosen):
        original = np.asarray(store.get(int(position)))
        repeated = torch.from_numpy(np.repeat(original[None], copies, axis=0))
        changed = augment(repeated, draw_transforms(copies, seed=seed, epoch=1, batch=number))
        tiles = [original, *changed.round().to(torch.uint8).numpy()]
        tiles = [cv2.resize(tile, (side, side), interpolation=cv2.INTER_AREA) for tile in tiles]
        # The stored patch stands apart from its copies.
        row = [tiles[0], np.full((side, 3 * gap, 3), 255, np.uint8)]
        for tile in tiles[1:]:
            row += [tile, np.full((side, gap, 3), 255, np.uint8)]
        joined = np.hstack(row)
        rows += [joined, np.full((gap, joined.shape[1], 3), 255, np.uint8)]
    picture = np.vstack(rows)
    return cv2.imencode(".png", picture[:, :, ::-1])[1].tobytes()


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
