"""The learning rate during a training, and when the training ends.

The rate rises linearly (warm-up), stays constant, and at the end falls linearly (cool-down; Hägele et al.
2024). When the validation loss has not fallen for ``patience`` epochs, a plateau, the rate is lowered. The
second plateau starts the cool-down; so does the point where only enough epochs for it are left, so that every
training has one. Each time, training continues from the best weights so far.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from wsi_assets.learning.options import TrainingOptions

WARM_UP_STEPS = 200
"""Adam's second moments are unreliable in its first steps; the warm-up keeps those steps small."""
FIRST_STEPS = 400
"""Steps before epochs count for ``patience``: until then the validation loss fluctuates strongly."""
FALLS = 1
"""How often the rate is lowered at a plateau before the cool-down."""
FALL = 0.3
"""Factor by which the rate is multiplied at a plateau."""
COOL_DOWN = 0.25
"""Length of the cool-down as a share of the epochs before it."""
FINAL_RATE = 0.01
"""Share of the rate at the start of the cool-down that is left at its end."""


@dataclass
class Schedule:
    """How far a training has come.

    Attributes:
        step: optimizer steps taken.
        epoch: epochs finished.
        best_epoch: epoch of the lowest validation loss, from 1.
        best_loss: that loss.
        waited: epochs without a lower loss, to compare with ``patience``.
        falls: how often the rate was lowered at a plateau.
        cooling_from: epoch after which the cool-down began, None before it.
        last_epoch: epoch at whose end the cool-down ends, None before it began.
    """

    options: TrainingOptions
    steps_per_epoch: int
    step: int = 0
    epoch: int = 0
    best_epoch: int = 0
    best_loss: float = math.inf
    waited: int = 0
    falls: int = 0
    cooling_from: int | None = None
    last_epoch: int | None = None

    def __post_init__(self) -> None:
        self._cool_down_if_due()

    @property
    def finished(self) -> bool:
        return self.epoch >= (self.last_epoch or self.options.max_epochs)

    @property
    def rate(self) -> float:
        """Learning rate of the coming step as a share of ``lr``."""
        rate = min(1.0, (self.step + 1) / self._warm_up) * FALL**self.falls
        if self.cooling_from is None:
            return rate
        steps = (self.last_epoch - self.cooling_from) * self.steps_per_epoch
        done = min(1.0, (self.step - self.cooling_from * self.steps_per_epoch + 1) / steps)
        return rate * (1 - (1 - FINAL_RATE) * done)

    def end_epoch(self, val_loss: float) -> bool:
        """Record a finished epoch; True if training must continue from the best weights."""
        self.epoch += 1
        if val_loss < self.best_loss:
            self.best_epoch, self.best_loss, self.waited = self.epoch, val_loss, 0
        elif self.step > max(self._warm_up, FIRST_STEPS):
            self.waited += 1
        if self.finished or self.cooling_from is not None:
            return False
        exhausted = self.waited >= self.options.patience
        falls = exhausted and self.falls < FALLS
        if falls:
            self.falls, self.waited = self.falls + 1, 0
        self._cool_down_if_due(exhausted and not falls)
        return falls or self.cooling_from is not None

    def state(self) -> dict[str, Any]:
        """The state as plain values, for :meth:`restore`."""
        return {key: value for key, value in vars(self).items() if key not in ("options", "steps_per_epoch")}

    def restore(self, state: dict[str, Any]) -> None:
        vars(self).update(state)

    def _cool_down_if_due(self, exhausted: bool = False) -> None:
        left = self.options.max_epochs - self.epoch
        wanted = max(1, round(COOL_DOWN * self.epoch))
        if exhausted or wanted >= left:
            self.cooling_from, self.last_epoch = self.epoch, self.epoch + min(wanted, left)

    @property
    def _warm_up(self) -> int:
        return max(1, min(WARM_UP_STEPS, self.options.max_epochs * self.steps_per_epoch // 10))
