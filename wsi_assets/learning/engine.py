"""One pass over batches: a training epoch, a validation pass. The network's side of training.

Files, resuming, early stopping and who is told are ``training``'s business.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from wsi_assets.learning.augmentation import augment, draw_transforms, normalise
from wsi_assets.learning.data import BatchReader
from wsi_assets.learning.devices import autocast
from wsi_assets.learning.distributed import Group
from wsi_assets.learning.losses import hard_example_mask, patch_losses
from wsi_assets.learning.options import TrainingOptions

WARM_UP_STEPS = 500
FINAL_LR = 0.01
"""The cosine ends at this share of ``lr``, so that the last epochs still learn."""


@dataclass
class Learner:
    """A network in training with everything a step needs.

    Attributes:
        model: holds the weights; forward: what is called in training (distributed or compiled around it).
        class_weights: (2,) on the device, or None.
        tumor_share: of the training part after augmentation.
        steps_per_epoch: batches of an epoch; step: optimizer steps taken.
    """

    model: nn.Module
    forward: Callable[[Tensor], Tensor]
    optimizer: torch.optim.Optimizer
    options: TrainingOptions
    device: torch.device
    precision: str
    class_weights: Tensor | None
    tumor_share: float
    steps_per_epoch: int
    group: Group = field(default_factory=Group)
    step: int = 0

    @property
    def gamma(self) -> float:
        return self.options.focal_gamma if self.options.use_focal_loss else 0.0

    @property
    def lr(self) -> float:
        return self.optimizer.param_groups[0]["lr"]

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        return patch_losses(logits, labels, gamma=self.gamma, weights=self.class_weights)

    def inputs(self, patches: Tensor, epoch: int, batch: int, count: int) -> Tensor:
        """uint8 patches of this process's part of a batch of ``count`` to the network's input."""
        patches = patches.to(self.device, non_blocking=True)
        if not self.options.use_augmentation:
            return normalise(patches)
        first, last = self.group.bounds(count)
        transforms = draw_transforms(count, seed=self.options.seed, epoch=epoch, batch=batch)
        return normalise(augment(patches, transforms[first:last]))

    def objective(self, losses: Tensor, labels: Tensor, all_labels: np.ndarray) -> Tensor:
        """What is back-propagated: the mean loss of the whole batch, or of its hard examples.

        Scaled so that the mean of all processes' gradients is the gradient of the whole batch.
        """
        count = len(all_labels)
        if not self.options.use_ohem:
            return losses.sum() * (self.group.size / count)
        positives = int(all_labels.sum())
        everything = torch.from_numpy(all_labels).to(self.device)
        mask = hard_example_mask(
            self.group.gather(losses, count),
            everything,
            ratio=self.options.ohem_ratio,
            tumor_share=self.tumor_share,
            positives=positives,
        )
        first, last = self.group.bounds(count)
        return (losses * mask[first:last]).sum() * self.group.size / mask.sum()


@dataclass(frozen=True)
class Pass:
    """What one pass over patches gave: mean loss, accuracy, and speed of the pass."""

    loss: float
    accuracy: float
    images_per_second: float
    waiting: float


def lr_at(step: int, total: int, options: TrainingOptions, steps_per_epoch: int) -> float:
    """Learning rate of a step from 0: linear warm-up, then constant or cosine (Loshchilov and Hutter 2017).

    Adam's second moments are unreliable in its first steps; the warm-up keeps those steps small. It lasts
    one epoch, at most a tenth of the training and at most 500 steps.
    """
    warm_up = max(1, min(steps_per_epoch, total // 10, WARM_UP_STEPS))
    if step < warm_up:
        return options.lr * (step + 1) / warm_up
    if options.lr_schedule == "constant":
        return options.lr
    share = (step - warm_up) / max(1, total - warm_up)
    return options.lr * (FINAL_LR + (1 - FINAL_LR) * 0.5 * (1 + math.cos(math.pi * min(1.0, share))))


def make_optimizer(model: nn.Module, options: TrainingOptions, device: torch.device) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019); weights decay, biases and normalisation layers do not."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": options.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=options.lr, fused=True)


def train_epoch(
    learner: Learner,
    reader: BatchReader,
    batches: Sequence[np.ndarray],
    labels: np.ndarray,
    *,
    epoch: int,
    on_step: Callable[[int], None],
) -> Pass:
    """Learn from each batch once. Sums stay on the device: nothing waits for it before the epoch's end."""
    options, group = learner.options, learner.group
    learner.model.train()
    sums = torch.zeros(2, dtype=torch.float64, device=learner.device)
    started, waited, done = time.perf_counter(), reader.waited, 0
    local = [batch[slice(*group.bounds(len(batch)))] for batch in batches]
    for number, patches in enumerate(reader.read(local)):
        batch = batches[number]
        all_labels = labels[batch]
        targets = torch.from_numpy(labels[local[number]]).to(learner.device, non_blocking=True)
        inputs = learner.inputs(patches, epoch, number, len(batch))
        lr = lr_at(
            learner.step, options.max_epochs * learner.steps_per_epoch, options, learner.steps_per_epoch
        )
        for parameters in learner.optimizer.param_groups:
            parameters["lr"] = lr
        learner.optimizer.zero_grad(set_to_none=True)
        with autocast(learner.device, learner.precision):
            logits = learner.forward(inputs)
        losses = learner.losses(logits, targets)
        learner.objective(losses, targets, all_labels).backward()
        learner.optimizer.step()
        learner.step += 1
        with torch.no_grad():
            sums += torch.stack([losses.sum(), (logits.argmax(dim=1) == targets).sum()]).double()
        done += len(batch)
        on_step(done)
    loss, correct = (group.total(sums) / done).tolist()  # waits for the device, so the clock is honest
    seconds = time.perf_counter() - started
    return Pass(loss, correct, done / seconds, (reader.waited - waited) / seconds)


@torch.inference_mode()
def validate(
    learner: Learner, reader: BatchReader, batches: Sequence[np.ndarray], labels: np.ndarray
) -> tuple[float, np.ndarray]:
    """Mean loss, and tumour probability of each validation patch in order, without augmentation.

    In the mean a tumour patch counts as often as training sees one. Training repeats tumour patches and
    weighs classes by the frequencies after that; if validation used those weights on patches that are not
    repeated, tumour would hardly count in the loss that chooses the model.
    """
    group = learner.group
    learner.model.eval()
    losses, probabilities = [], []
    local = [batch[slice(*group.bounds(len(batch)))] for batch in batches]
    for number, patches in enumerate(reader.read(local)):
        targets = torch.from_numpy(labels[local[number]]).to(learner.device, non_blocking=True)
        with autocast(learner.device, learner.precision):
            logits = learner.model(normalise(patches.to(learner.device, non_blocking=True))).float()
        count = len(batches[number])
        losses.append(group.gather(learner.losses(logits, targets), count))
        probabilities.append(group.gather(logits.softmax(dim=1)[:, 1], count))
    positions = np.concatenate(batches)
    seen = np.where(
        labels[positions] == 1, learner.options.aug_factor if learner.options.use_augmentation else 1, 1
    )
    loss = float(np.average(torch.cat(losses).double().cpu().numpy(), weights=seen))
    return loss, torch.cat(probabilities).cpu().numpy()


def batch_norm_statistics(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all running means and variances."""
    return {
        key: value.clone()
        for key, value in model.named_buffers()
        if key.endswith(("running_mean", "running_var"))
    }


@torch.no_grad()
def correct_batch_norm(model: nn.Module, start: dict[str, Tensor], steps: int) -> None:
    """Remove the starting values from running statistics after the first ``steps`` steps.

    Running statistics are exponential averages that begin at 0 and 1 (or at ImageNet's). In a small cohort
    an epoch has few steps, the start still weighs (1 - momentum)^steps, and validation, which uses them,
    sees another network than training did. This is the bias correction Adam applies to its moments.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.momentum is not None:
            left = (1 - module.momentum) ** steps
            for key in ("running_mean", "running_var"):
                buffer = getattr(module, key)
                buffer.sub_(left * start[f"{name}.{key}" if name else key]).div_(1 - left)
            # Of a dead channel rounding may leave less than no variance.
            module.running_var.clamp_(min=0)
