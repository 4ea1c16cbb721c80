"""A network in training: a pass over batches that learns, one that updates batch-norm, one that predicts."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from wsi_assets.learning.augmentation import Transforms, augment, draw_transforms
from wsi_assets.learning.data import BatchReader, Draw, PatchTable, ordered_batches
from wsi_assets.learning.devices import autocast, resolve_precision
from wsi_assets.learning.imbalance import Imbalance
from wsi_assets.learning.losses import hard_example_mask, kept_normals, patch_losses
from wsi_assets.learning.models import Architecture, build_model, head_of
from wsi_assets.learning.options import TrainingOptions
from wsi_assets.learning.schedule import Schedule

PRETRAINED_RATE = 0.1
"""Share of ``lr`` at which a pretrained body learns."""
AVERAGED_STEPS = 100
"""Validation and ``best.pt`` take an exponential average of the weights over about so many steps: at a
constant rate the weights themselves jump from step to step, and the lowest of such losses is a lucky one."""
BATCH_NORM_PATCHES = 2048
"""Training patches from which batch-norm statistics are computed before a validation."""


@dataclass
class Learner:
    """A network with everything a training step needs.

    Attributes:
        model: what steps change; averaged: of the last steps, what is validated and kept.
        weights: (2,) of (normal, tumor) in the loss, on the device.
    """

    model: nn.Module
    averaged: nn.Module
    architecture: Architecture
    optimizer: torch.optim.Optimizer
    options: TrainingOptions
    imbalance: Imbalance
    weights: Tensor
    device: torch.device
    precision: str

    @property
    def gamma(self) -> float:
        return self.options.focal_gamma if self.options.use_focal_loss else 0.0

    def inputs(self, patches: Tensor, transforms: Transforms | None = None) -> Tensor:
        """uint8 patches of a batch to the network's input, transformed where transforms are given."""
        # Always in float32: colors in bfloat16 would be in steps of a hundredth.
        with autocast(self.device, "float32"):
            patches = patches.to(self.device, non_blocking=True)
            return self.architecture.inputs(patches if transforms is None else augment(patches, transforms))

    @torch.no_grad()
    def average(self, step: int) -> None:
        """Take the weights after a step into the average; early averages are over fewer steps."""
        share = max(1 / AVERAGED_STEPS, 9 / (10 + step))
        pairs = zip(self.averaged.parameters(), self.model.parameters(), strict=True)
        ours, new = zip(*((a, p) for a, p in pairs if p.requires_grad), strict=True)
        torch._foreach_lerp_(ours, new, share)

    def load(self, state: dict[str, Tensor]) -> None:
        """Go on from these weights."""
        self.model.load_state_dict(state)
        self.averaged.load_state_dict(state)


def make_learner(
    patch_size: int, imbalance: Imbalance, options: TrainingOptions, device: torch.device
) -> Learner:
    """Build the network and its optimizer, AdamW (Loshchilov and Hutter 2019).

    Weights decay, biases and normalization layers do not. A pretrained body learns at a tenth of ``lr``: a
    higher rate would undo what it brings; a frozen one does not learn.
    """
    model, architecture = build_model(options.model_name, patch_size=patch_size, weights=options.weights)
    model = model.to(device)
    head = {id(parameter) for parameter in head_of(model)}
    groups = []
    for in_head in (True, False):
        part = [p for p in model.parameters() if (id(p) in head) is in_head]
        if not in_head and options.freeze_backbone:
            for parameter in part:
                parameter.requires_grad_(False)
            continue
        share = 1.0 if in_head or options.weights == "none" else PRETRAINED_RATE
        for decays in (True, False):
            chosen = [p for p in part if (p.ndim > 1) is decays]
            if chosen:
                decay = options.weight_decay if decays else 0.0
                groups.append({"params": chosen, "weight_decay": decay, "share": share})
    return Learner(
        model=model,
        averaged=copy.deepcopy(model).eval(),
        architecture=architecture,
        optimizer=torch.optim.AdamW(groups, lr=options.lr, fused=True),
        options=options,
        imbalance=imbalance,
        weights=torch.tensor(imbalance.weights, device=device),
        device=device,
        precision=resolve_precision(options.precision, device),
    )


def train_epoch(
    learner: Learner,
    reader: BatchReader,
    table: PatchTable,
    batches: Sequence[Draw],
    schedule: Schedule,
    on_step: Callable[[int], None],
) -> dict[str, Any]:
    """Learn from each batch once; returns the training's part of an ``EpochRecord``.

    Sums stay on the device: nothing waits for it before the epoch's end.
    """
    options, device = learner.options, learner.device
    learner.model.train(not options.freeze_backbone)  # a frozen body stays as it predicts
    sums = torch.zeros(5, dtype=torch.float64, device=device)
    started, waited, done = time.perf_counter(), reader.waited, 0
    lr, phase = 0.0, schedule.phase
    for number, patches in enumerate(reader.read([table.positions[batch.rows] for batch in batches])):
        batch = batches[number]
        labels = table.labels[batch.rows]
        targets = torch.from_numpy(labels).to(device, non_blocking=True)
        transforms = None
        if options.use_augmentation:
            drawn = {"seed": options.seed, "epoch": schedule.epoch + 1, "batch": number, "plain": batch.plain}
            transforms = draw_transforms(len(labels), **drawn)
        lr, phase = options.lr * schedule.rate, schedule.phase
        for group in learner.optimizer.param_groups:
            group["lr"] = lr * group["share"]
        learner.optimizer.zero_grad(set_to_none=True)
        with autocast(device, learner.precision):
            logits = learner.model(learner.inputs(patches, transforms))
        losses = patch_losses(logits, targets, gamma=learner.gamma, weights=learner.weights)
        objective = _objective(losses, targets, int(labels.sum()), learner)
        objective.backward()
        learner.optimizer.step()
        learner.average(schedule.step)
        schedule.step += 1
        with torch.no_grad():
            tumor = targets.double()
            plain = patch_losses(logits, targets).double()
            correct = (logits.argmax(dim=1) == targets).sum().double()
            seen = (objective.double(), correct, (plain * tumor).sum(), plain.sum(), tumor.sum())
            sums += torch.stack(seen)
        done += len(labels)
        on_step(done)
    # Reading the sums waits for the device, so the clock is honest.
    objective, correct, tumor_loss, loss, tumor = sums.tolist()
    seconds = time.perf_counter() - started
    return {
        "train_loss": (tumor_loss / tumor + (loss - tumor_loss) / (done - tumor)) / 2,
        "train_acc": correct / done,
        "objective": objective / len(batches),
        "lr": lr,
        "phase": phase,
        "images_per_second": done / seconds,
        "waiting": (reader.waited - waited) / seconds,
    }


def _objective(losses: Tensor, targets: Tensor, tumor: int, learner: Learner) -> Tensor:
    """What is back-propagated: the mean loss of a batch, or of its tumor and hardest normal patches."""
    count = len(losses)
    if not learner.options.use_ohem:
        return losses.mean()
    keep = kept_normals(
        count, tumor, ratio=learner.options.ohem_ratio, tumor_share=learner.imbalance.tumor_share
    )
    if keep >= count - tumor:
        return losses.mean()
    return (losses * hard_example_mask(losses, targets, keep)).sum() / (tumor + keep)


@torch.no_grad()
def update_batch_norm(learner: Learner, reader: BatchReader, positions: np.ndarray, epoch: int) -> None:
    """Compute batch-norm statistics anew on unaugmented training patches, as validation will see its own.

    The running averages of training lag behind the weights, and are of other weights than the averaged ones.
    """
    if learner.options.freeze_backbone:
        return
    rng = np.random.default_rng([learner.options.seed, epoch, 2])
    chosen = rng.permutation(positions)[:BATCH_NORM_PATCHES]
    batches = [part for part in ordered_batches(chosen, learner.options.batch_size) if len(part) > 1]
    with autocast(learner.device, learner.precision):
        update_bn((learner.inputs(patches) for patches in reader.read(batches)), learner.averaged)
    learner.averaged.eval()


@torch.inference_mode()
def predict_positions(learner: Learner, reader: BatchReader, positions: np.ndarray) -> np.ndarray:
    """Tumor probability of the patches at these positions, without augmentation: (n,) float64."""
    parts = []
    for patches in reader.read(ordered_batches(positions, learner.options.batch_size)):
        with autocast(learner.device, learner.precision):
            logits = learner.averaged(learner.inputs(patches))
        parts.append(logits.float().softmax(dim=1)[:, 1])
    return torch.cat(parts).double().cpu().numpy()
