"""Training a patch classifier: split, batches, network, epochs, result."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from wsi_assets.errors import ModelError
from wsi_assets.files import digest
from wsi_assets.learning.augmentation import stream_seed
from wsi_assets.learning.checkpoints import CheckpointFolder, model_card, read_card, state_of
from wsi_assets.learning.data import (
    BatchReader,
    Draw,
    PatchTable,
    Split,
    epoch_draw,
    locate,
    shuffled_batches,
    split_patches,
)
from wsi_assets.learning.devices import (
    clear_memory_errors,
    quiet_randomness,
    resolve_device,
    usable_workers,
)
from wsi_assets.learning.imbalance import measure_imbalance, training_warnings
from wsi_assets.learning.learner import (
    Learner,
    make_learner,
    predict_positions,
    train_epoch,
    update_batch_norm,
)
from wsi_assets.learning.models import weights_digest
from wsi_assets.learning.options import TrainingOptions
from wsi_assets.learning.records import CSV_NAME, EpochRecord, TrainingResult, write_csv
from wsi_assets.learning.schedule import Schedule
from wsi_assets.learning.scores import confusion, fit_calibration, roc_auc, threshold_at, validation_loss
from wsi_assets.progress import Progress, silent

if TYPE_CHECKING:
    from wsi_assets.index import Index
    from wsi_assets.patches import PatchStore

MOST_VALIDATED = 20_000
"""Patches of a class that are validated each epoch; of more, a seeded choice stands for all."""
_INCIDENTAL = ("num_workers", "save_interval", "device", "folds")
"""Options that change neither weights nor CSV, so a run may be resumed with others."""


def train(
    store: PatchStore,
    index: Index,
    options: TrainingOptions,
    folder: str | Path,
    *,
    progress: Progress = silent,
    checkpoint_dir: str | Path | None = None,
    loss_csv: str | Path | None = None,
    on_epoch: Callable[[EpochRecord], None] | None = None,
) -> TrainingResult:
    """Train on the patches of an index that are not of test slides.

    Writes ``epoch_losses.csv`` after every epoch, and into ``checkpoints`` ``best.pt`` and ``best.json``
    whenever the validation loss is the lowest so far and ``ckpt_epoch_N.pt`` every ``save_interval`` epochs.
    A training cut off continues from ``resume.pt`` if patches, split and options are the same, and ends as an
    uninterrupted one (on a GPU up to its own non-determinism); the file is removed in the end.

    Args:
        store: the patches of ``index``; both may be another program's.
        checkpoint_dir, loss_csv: other places than ``checkpoints`` and ``epoch_losses.csv`` in ``folder``.
        on_epoch: called after an epoch's files are in place; what it raises ends the training.

    Raises:
        ModelError: too few patches, no such network or weights, a diverged training, a full GPU.
        ConfigError: a device that is not there.
        StoreError: the store is of another index, or a patch cannot be read.
    """
    files = CheckpointFolder(Path(checkpoint_dir or Path(folder) / "checkpoints"))
    csv_path = Path(loss_csv or Path(folder) / CSV_NAME)
    device = resolve_device(options.device)
    table = locate(store, index)
    split = split_patches(table, index, options)
    first = _batches(table, split, options, 1)
    imbalance = measure_imbalance(first, table.labels, options)
    validation = Validation.of(split, table, options)
    with (
        quiet_randomness(device),
        clear_memory_errors("batch_size"),
        BatchReader(store, workers=usable_workers(options.num_workers), pin=device.type == "cuda") as reader,
    ):
        torch.manual_seed(options.seed)
        learner = make_learner(_patch_size(store, index), imbalance, options, device)
        run = _Run(Schedule(options, len(first)), learner, _facts(store, index, table, split, learner))
        run.resume(files)
        while not run.schedule.finished:
            started, epoch = time.perf_counter(), run.schedule.epoch + 1
            # Dropout draws from torch's generator: seeded so, an epoch is the same after a resume.
            torch.manual_seed(stream_seed(options.seed, epoch))
            batches = _batches(table, split, options, epoch)
            show = _progress_of(progress, epoch, options, batches)
            trained = train_epoch(learner, reader, table, batches, run.schedule, show)
            update_batch_norm(learner, reader, table.positions[split.train], epoch)
            probabilities = predict_positions(learner, reader, validation.positions)
            record = validation.record(trained, probabilities, run.schedule, started)
            if record.is_best:
                run.best = state_of(learner.averaged)
                files.save_best(run.best, run.card(record, validation.choose(probabilities, options)))
            if epoch % options.save_interval == 0:
                files.save_epoch(epoch, state_of(learner.averaged))
            run.end_epoch(record)
            write_csv(csv_path, run.history)
            files.save_resume(run.state())
            if on_epoch is not None:
                on_epoch(record)
    files.complete()
    return _result(files, csv_path, run, split, table)


@dataclass(frozen=True)
class Validation:
    """The patches that validate, at the prevalence of their slides.

    Attributes:
        positions: (n,) in the store; truth: (n,) 1 for tumor.
        weights: (n,) how many patches each stands for.
    """

    positions: np.ndarray
    truth: np.ndarray
    weights: np.ndarray

    @classmethod
    def of(cls, split: Split, table: PatchTable, options: TrainingOptions) -> Validation:
        rng = np.random.default_rng([options.seed, 3])
        rows, weights = [], []
        for label in (0, 1):
            found = split.validation[table.labels[split.validation] == label]
            chosen = np.sort(rng.permutation(found)[:MOST_VALIDATED])
            rows.append(chosen)
            weights.append(np.full(len(chosen), len(found) / len(chosen)))
        together = np.concatenate(rows)
        return cls(table.positions[together], table.labels[together], np.concatenate(weights))

    def record(
        self, trained: dict[str, Any], probabilities: np.ndarray, schedule: Schedule, started: float
    ) -> EpochRecord:
        """The epoch's record.

        Raises:
            ModelError: a loss is not a number any more.
        """
        epoch = schedule.epoch + 1
        if not np.isfinite([*probabilities, trained["objective"], trained["train_loss"]]).all():
            raise ModelError(
                f"training diverged in epoch {epoch}: its loss is not a number any more",
                remedy="Lower lr, or use precision=float32",
            )
        loss = validation_loss(self.truth, probabilities)
        return EpochRecord(
            epoch=epoch,
            **trained,
            val_loss=loss,
            val_acc=float(np.average((probabilities >= 0.5) == self.truth, weights=self.weights)),
            val_auc=roc_auc(self.truth, probabilities),
            seconds=time.perf_counter() - started,
            is_best=loss < schedule.best_loss,
            confusion=confusion(self.truth, probabilities),
        )

    def choose(self, probabilities: np.ndarray, options: TrainingOptions) -> dict[str, Any]:
        """Threshold and calibration for ``best.json``."""
        return {
            "thresholds": {
                "preds": 0.5,
                "validation": threshold_at(self.truth, probabilities, options.val_specificity),
            },
            "calibration": fit_calibration(self.truth, probabilities, self.weights),
        }


@dataclass
class _Run:
    """What of a training changes from epoch to epoch, beside the network, and goes into ``resume.pt``."""

    schedule: Schedule
    learner: Learner
    facts: dict[str, Any]
    history: list[EpochRecord] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)
    resumed_from: int | None = None

    def card(self, record: EpochRecord, chosen: dict[str, Any]) -> dict[str, Any]:
        of_epoch = {"epoch": record.epoch, "val_loss": record.val_loss, "val_auc": record.val_auc}
        return model_card(self.learner.architecture, **self.facts, **of_epoch, **chosen)

    def end_epoch(self, record: EpochRecord) -> None:
        self.history.append(record)
        if self.schedule.end_epoch(record.val_loss):
            self.learner.load(self.best)

    def state(self) -> dict[str, Any]:
        return {
            "run_digest": self.facts["provenance"]["run_digest"],
            "schedule": self.schedule.state(),
            "model": self.learner.model.state_dict(),
            "averaged": self.learner.averaged.state_dict(),
            "optimizer": self.learner.optimizer.state_dict(),
            "history": [record.to_plain() for record in self.history],
            "best": self.best,
        }

    def resume(self, files: CheckpointFolder) -> None:
        """Go on where a training of the same digest was cut off, if there is one."""
        state = files.resume_state(self.facts["provenance"]["run_digest"])
        if state is None:
            return
        self.learner.model.load_state_dict(state["model"])
        self.learner.averaged.load_state_dict(state["averaged"])
        self.learner.optimizer.load_state_dict(state["optimizer"])
        self.schedule.restore(state["schedule"])
        self.history = [EpochRecord.from_plain(plain) for plain in state["history"]]
        self.best, self.resumed_from = state["best"], len(self.history)


def _batches(table: PatchTable, split: Split, options: TrainingOptions, epoch: int) -> list[Draw]:
    draw = epoch_draw(split.train, table.labels, options, epoch)
    return shuffled_batches(draw, options.batch_size, seed=options.seed, epoch=epoch)


def _progress_of(
    progress: Progress, epoch: int, options: TrainingOptions, batches: list[Draw]
) -> Callable[[int], None]:
    what = f"training epoch {epoch} of at most {options.max_epochs}, patches"
    total = sum(len(batch.rows) for batch in batches)
    return lambda done: progress(done, total, what)


def _patch_size(store: PatchStore, index: Index) -> int:
    known = store.info.get("patch_size") or next(iter(index.values())).get("patch_size")
    return int(known or store.get(0).shape[0])


def _facts(
    store: PatchStore, index: Index, table: PatchTable, split: Split, learner: Learner
) -> dict[str, Any]:
    """What ``best.json`` says of patches, split, parameters and provenance."""
    options = learner.options
    entries = list(index.values())
    mpp = [entry["mpp"] for entry in entries if entry.get("mpp")]
    labels = table.labels
    counts = {
        **{
            f"{part}_{name}": int((labels[rows] == label).sum())
            for part, rows in (("train", split.train), ("val", split.validation))
            for name, label in (("tumor", 1), ("normal", 0))
        },
        "seen_tumor": learner.imbalance.seen_tumor,
        "seen_normal": learner.imbalance.seen_normal,
        "kept_normal": learner.imbalance.kept_normal,
    }
    patches = digest(table.slide_ids, table.slides.tobytes(), labels.tobytes(), table.positions.tobytes())
    data_digest = str(store.info.get("digest") or patches)
    comparable = {key: value for key, value in options.model_dump().items() if key not in _INCIDENTAL}
    parts = (split.train.tobytes(), split.validation.tobytes())
    run_digest = digest(
        comparable, learner.precision, data_digest, patches, parts, weights_digest(options.weights)
    )
    return {
        "patch_size": _patch_size(store, index),
        "level": entries[0].get("level"),
        "mpp": float(median(mpp)) if mpp else None,
        "split": {"unit": split.unit, "rows": list(split.rows)},
        "counts": counts,
        "class_weights": list(learner.imbalance.weights),
        "parameters": options.model_dump(),
        "provenance": {
            "data_digest": data_digest,
            "run_digest": run_digest,
            "store": str(store.path),
            "versions": {name: version(name) for name in ("wsi-assets", "torch", "timm")},
        },
    }


def _result(
    files: CheckpointFolder, csv_path: Path, run: _Run, split: Split, table: PatchTable
) -> TrainingResult:
    options, facts, learner, schedule = run.learner.options, run.facts, run.learner, run.schedule
    best = run.history[schedule.best_epoch - 1]
    true_normal, false_tumor, false_normal, true_tumor = best.confusion
    normal, tumor = facts["counts"]["val_normal"], facts["counts"]["val_tumor"]
    youden = true_tumor / (true_tumor + false_normal) + true_normal / (true_normal + false_tumor) - 1
    return TrainingResult(
        best_path=files.best_path,
        card=read_card(files.best_path, needed=True),
        csv_path=csv_path,
        checkpoints=files.paths(),
        epochs=tuple(run.history),
        best_epoch=schedule.best_epoch,
        stopped_early=schedule.epoch < options.max_epochs,
        resumed_from=run.resumed_from,
        seconds=sum(record.seconds for record in run.history),
        split=split,
        counts=facts["counts"],
        class_weights=learner.imbalance.weights,
        majority_share=max(normal, tumor) / (normal + tumor),
        better_than_majority=best.val_auc is not None and best.val_auc > 0.5 and youden > 0,
        data_digest=facts["provenance"]["data_digest"],
        run_digest=facts["provenance"]["run_digest"],
        device=str(learner.device),
        precision=learner.precision,
        warnings=training_warnings(options, learner.imbalance, split, table.labels, schedule.step),
    )
