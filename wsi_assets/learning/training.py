"""Training a patch classifier from a store: the epochs, what they write, when they stop, how they resume.

A step is ``engine``'s, files' contents are ``checkpoints``', the split is ``split``'s. Who shows progress or
logs an experiment subscribes to ``on_epoch`` and reads the result.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from wsi_assets.errors import ModelError
from wsi_assets.files import digest
from wsi_assets.learning.augmentation import stream_seed
from wsi_assets.learning.backbones import build_model
from wsi_assets.learning.checkpoints import CheckpointFolder, best_payload, publish
from wsi_assets.learning.data import (
    BatchReader,
    batch_count,
    epoch_positions,
    ordered_batches,
    shuffled_batches,
)
from wsi_assets.learning.devices import (
    clear_compiler_errors,
    clear_memory_errors,
    quiet_randomness,
    resolve_device,
    resolve_precision,
    usable_workers,
)
from wsi_assets.learning.distributed import Group, process_group, shared_batch_norm
from wsi_assets.learning.engine import (
    Learner,
    batch_norm_statistics,
    correct_batch_norm,
    make_optimizer,
    train_epoch,
    validate,
)
from wsi_assets.learning.losses import class_weights
from wsi_assets.learning.options import TrainingOptions
from wsi_assets.learning.records import EpochRecord, TrainingResult, write_csv
from wsi_assets.learning.scores import confusion, roc_auc, youden_threshold
from wsi_assets.learning.split import Split, split_patches
from wsi_assets.progress import Progress, silent
from wsi_assets.slides.naming import DEFAULT_PATIENT_PATTERN, DEFAULT_TEST_PATTERN

if TYPE_CHECKING:
    from wsi_assets.patches import PatchStore

CSV_NAME = "epoch_losses.csv"
# What changes neither the weights nor the CSV of a run may differ when it is resumed.
_INCIDENTAL = ("num_workers", "save_interval", "device")
# Counted up when the same options come to mean another training, so that no run continues one of before.
_REVISION = 2
FEW_VALIDATING = 20
"""Tumour patches below which what is chosen on the validation part is told to rest on little."""
FEW_STEPS = 100
"""A training that patience ends before this many steps has hardly begun, and its notes say so."""


@dataclass
class _State:
    """How far a run is."""

    epochs: list[EpochRecord] = field(default_factory=list)
    best_epoch: int = 0
    best: dict[str, Any] | None = None
    resumed_from: int | None = None

    @property
    def epoch(self) -> int:
        return len(self.epochs)

    @property
    def lowest(self) -> float:
        return self.epochs[self.best_epoch - 1].val_loss if self.best_epoch else math.inf

    def exhausted(self, patience: int) -> bool:
        return bool(self.epochs) and self.epoch - self.best_epoch >= patience


def train(
    store: PatchStore,
    options: TrainingOptions,
    out_dir: str | Path,
    *,
    patient_pattern: str = DEFAULT_PATIENT_PATTERN,
    test_pattern: str = DEFAULT_TEST_PATTERN,
    progress: Progress = silent,
    on_epoch: Callable[[EpochRecord], None] | None = None,
    resume: bool = True,
) -> TrainingResult:
    """Train on the patches outside test slides; write ``best.pt``, checkpoints and ``epoch_losses.csv``.

    Into ``out_dir``, each file published whole: ``epoch_losses.csv`` after every epoch,
    ``checkpoints/best.pt`` whenever the validation loss is the lowest so far, and
    ``checkpoints/ckpt_epoch_K.pt`` (K from 1) every ``save_interval`` epochs. ``on_epoch`` is called after an
    epoch's files are in place; what it raises ends the training.

    Resuming: with ``resume``, the newest checkpoint of the same data, split and outcome-changing options is
    continued and ends in the same CSV and weights as an uninterrupted run on the same machine (on a GPU: up
    to its own non-determinism). A finished run called again therefore repeats only the epochs after its last
    checkpoint. Checkpoints of any other run are removed and training starts anew.

    All strategies off is plain cross-entropy on each training patch once an epoch.

    Under torchrun each process calls this alike; see ``distributed``.

    Raises:
        ModelError: too few patches to split, an unknown or misfitting network, a diverged training, a full
            GPU.
        ConfigError: a device that is not there.
        StoreError: a patch cannot be read.
    """
    out_dir = Path(out_dir)
    device = resolve_device(options.device)
    labels = np.asarray(store.labels).astype(np.int64)
    split = split_patches(
        [origin[0] for origin in store.origins], labels, options, patient_pattern, test_pattern
    )
    group = process_group(device)
    with quiet_randomness(device), clear_memory_errors("batch_size"), clear_compiler_errors():
        run = _Run(store, options, out_dir, split, labels, device, group)
        return run.go(progress, on_epoch, resume)


class _Run:
    def __init__(
        self,
        store: PatchStore,
        options: TrainingOptions,
        out_dir: Path,
        split: Split,
        labels: np.ndarray,
        device: torch.device,
        group: Group,
    ):
        self.store, self.options, self.split, self.labels = store, options, split, labels
        self.device, self.group = device, group
        self.folder = CheckpointFolder(out_dir / "checkpoints")
        self.csv_path = out_dir / CSV_NAME
        self.config = options.model_dump()
        self.info = store.info
        self.precision = resolve_precision(options.precision, device)
        self.positions = epoch_positions(split.train, labels, options)
        self.notes = list(split.notes)
        seen_tumor = int(labels[self.positions].sum())
        self.counts = {
            "train_tumor": int(labels[split.train].sum()),
            "train_normal": int((labels[split.train] == 0).sum()),
            "seen_tumor": seen_tumor,
            "seen_normal": len(self.positions) - seen_tumor,
            "val_tumor": int(labels[split.val].sum()),
            "val_normal": int((labels[split.val] == 0).sum()),
        }
        self.class_weights = (
            class_weights(self.counts["seen_normal"], seen_tumor) if options.use_class_weights else (1.0, 1.0)
        )
        self.workers = usable_workers(options.num_workers)
        if self.workers < options.num_workers:
            self.notes.append(
                f"Patches were read by {self.workers} threads, one a core, not by num_workers="
                f"{options.num_workers}"
            )
        if options.use_ohem and options.ohem_ratio * seen_tumor >= self.counts["seen_normal"]:
            self.notes.append(
                "Hard example mining leaves out hardly a patch: tumour is "
                f"{seen_tumor / len(self.positions):.0%} of what training sees, so a batch has fewer normal "
                "patches than it would keep; a higher normal_per_tumor, or a lower aug_factor or ohem_ratio, "
                "gives it a choice"
            )
        if self.counts["val_tumor"] < FEW_VALIDATING:
            self.notes.append(
                f"Only {self.counts['val_tumor']} tumour patches validate: the best epoch and the threshold "
                "are chosen on little"
            )
        if options.weights == "none":
            self.notes.append("Trained from random weights; weights=imagenet usually gives a better model")
        comparable = {key: value for key, value in self.config.items() if key not in _INCIDENTAL}
        self.data_digest = str(self.info["digest"])
        self.run_digest = digest(
            _REVISION,
            comparable,
            self.precision,
            self.data_digest,
            split.to_plain(),
            labels.tolist(),
            group.size,
            _content_of(options.weights),
        )
        _check_parts(len(self.positions), options.batch_size, device, group)

    def go(
        self, progress: Progress, on_epoch: Callable[[EpochRecord], None] | None, resume: bool
    ) -> TrainingResult:
        options = self.options
        learner = self._learner()
        state = self._resume(learner) if resume else _State()
        if self.group.is_first:
            self.folder.clear(after=state.epoch)
            if state.epoch:
                write_csv(self.csv_path, state.epochs)
                publish(self.folder.best_path, state.best)
        pin = self.device.type == "cuda"
        with BatchReader(self.store, workers=self.workers, pin=pin) as reader:
            while state.epoch < options.max_epochs and not state.exhausted(options.patience):
                record = self._epoch(learner, reader, state, progress)
                if self.group.is_first:
                    self._write(learner, state)
                    if on_epoch is not None:
                        on_epoch(record)
        if state.epoch < options.max_epochs and learner.step < FEW_STEPS:
            self.notes.append(
                f"Patience ended the training after only {learner.step} steps: with so few patches an epoch, "
                "a higher patience usually gives a better model"
            )
        return self._result(state)

    def _learner(self) -> Learner:
        options = self.options
        torch.manual_seed(options.seed)
        model = build_model(
            options.model_name, patch_size=int(self.info["patch_size"]), weights=options.weights
        ).to(self.device)
        model = shared_batch_norm(model, self.group, self.device)
        forward = self.group.wrap(model, self.device)
        weights = torch.tensor(self.class_weights, device=self.device) if options.use_class_weights else None
        return Learner(
            model=model,
            forward=torch.compile(forward) if options.compile_model else forward,
            optimizer=make_optimizer(model, options, self.device),
            options=options,
            device=self.device,
            precision=self.precision,
            class_weights=weights,
            tumor_share=self.counts["seen_tumor"] / len(self.positions),
            steps_per_epoch=batch_count(len(self.positions), options.batch_size),
            group=self.group,
        )

    def _resume(self, learner: Learner) -> _State:
        saved, notes = self.folder.newest(self.run_digest)
        self.notes += notes
        if saved is None:
            return _State()
        learner.model.load_state_dict(saved["model"])
        learner.optimizer.load_state_dict(saved["optimizer"])
        learner.step = saved["step"]
        epochs = [EpochRecord.from_plain(plain) for plain in saved["history"]]
        self.notes.append(f"Resumed after epoch {len(epochs)}")
        state = _State(epochs, saved["best_epoch"], saved["best"], len(epochs))
        if state.best_epoch == state.epoch:
            state.best = self._best_payload(learner, epochs[-1])
        return state

    def _epoch(self, learner: Learner, reader: BatchReader, state: _State, progress: Progress) -> EpochRecord:
        options, epoch, started = self.options, state.epoch + 1, time.perf_counter()
        # Dropout and the like draw from torch's global generator: seeding it from the epoch makes an epoch
        # the same whether or not the run was interrupted before it.
        torch.manual_seed(stream_seed(options.seed, epoch, self.group.rank))
        batches = shuffled_batches(self.positions, options.batch_size, seed=options.seed, epoch=epoch)
        what = f"training epoch {epoch} of at most {options.max_epochs}, patches"
        statistics = batch_norm_statistics(learner.model) if epoch == 1 else {}
        trained = train_epoch(
            learner,
            reader,
            batches,
            self.labels,
            epoch=epoch,
            on_step=lambda done: progress(done, len(self.positions), what),
        )
        self.group.share_buffers(learner.model)
        if epoch == 1:
            correct_batch_norm(learner.model, statistics, len(batches))
        val_loss, probabilities = validate(
            learner, reader, ordered_batches(self.split.val, options.batch_size), self.labels
        )
        if not (math.isfinite(trained.loss) and math.isfinite(val_loss)):
            raise ModelError(
                f"training diverged in epoch {epoch}: its loss is not a number any more",
                remedy="Lower lr, or use precision=float32",
            )
        truth = self.labels[self.split.val]
        called = confusion(truth, probabilities)
        record = EpochRecord(
            epoch=epoch,
            train_loss=trained.loss,
            train_acc=trained.accuracy,
            val_loss=val_loss,
            val_acc=(called[0] + called[3]) / len(truth),
            val_auc=roc_auc(truth, probabilities),
            val_threshold=youden_threshold(truth, probabilities),
            lr=learner.lr,
            images_per_second=trained.images_per_second,
            waiting=trained.waiting,
            seconds=time.perf_counter() - started,
            is_best=val_loss < state.lowest,
            confusion=called,
        )
        state.epochs.append(record)
        if record.is_best:
            state.best_epoch, state.best = epoch, self._best_payload(learner, record)
        return record

    def _best_payload(self, learner: Learner, record: EpochRecord) -> dict[str, Any]:
        return best_payload(
            learner.model,
            config=self.config,
            info=self.info,
            data_digest=self.data_digest,
            split=self.split.to_plain(),
            epoch=record.epoch,
            val_loss=record.val_loss,
            val_threshold=record.val_threshold,
        )

    def _write(self, learner: Learner, state: _State) -> None:
        is_best = state.best_epoch == state.epoch
        if is_best:
            publish(self.folder.best_path, state.best)
        write_csv(self.csv_path, state.epochs)
        if state.epoch % self.options.save_interval == 0:
            saved = {
                "run_digest": self.run_digest,
                "epoch": state.epoch,
                "step": learner.step,
                "model": learner.model.state_dict(),
                "optimizer": learner.optimizer.state_dict(),
                "history": [record.to_plain() for record in state.epochs],
                "best_epoch": state.best_epoch,
                # The best epoch's weights travel along: best.pt may by then be of an epoch that is repeated.
                "best": None if is_best else state.best,
                "config": self.config,
                "data_digest": self.data_digest,
            }
            publish(self.folder.path(state.epoch), saved)

    def _result(self, state: _State) -> TrainingResult:
        best = state.epochs[state.best_epoch - 1]
        of_val = (self.counts["val_normal"], self.counts["val_tumor"])
        majority = max(of_val) / sum(of_val)
        return TrainingResult(
            best_path=self.folder.best_path,
            csv_path=self.csv_path,
            checkpoints=tuple(self.folder.paths()),
            epochs=tuple(state.epochs),
            best_epoch=state.best_epoch,
            stopped_early=state.epoch < self.options.max_epochs,
            resumed_from=state.resumed_from,
            split=self.split,
            counts=self.counts,
            class_weights=self.class_weights,
            majority_share=majority,
            better_than_majority=best.val_acc > majority and best.val_auc is not None and best.val_auc > 0.5,
            data_digest=self.data_digest,
            run_digest=self.run_digest,
            device=str(self.device),
            precision=self.precision,
            notes=tuple(self.notes),
        )


def _content_of(weights: str) -> str | None:
    """Digest of the file that training starts from: its name stays when another takes its place."""
    if not Path(weights).is_file():
        return None
    with Path(weights).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _check_parts(patches: int, batch_size: int, device: torch.device, group: Group) -> None:
    """Refuse batches that leave a process less than its layers need: statistics of one patch are none."""
    least = 2 if device.type == "cpu" and group.size > 1 else 1
    smallest = patches // batch_count(patches, batch_size)
    if smallest < least * group.size:
        raise ModelError(
            f"batches of {smallest} patches are too small for {group.size} processes",
            remedy=f"Raise batch_size to {2 * least * group.size} or more, or start fewer processes",
        )
