"""Training a patch classifier: split, batches, network, epochs, result."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from wsi_assets.errors import ModelError
from wsi_assets.files import digest, write_json
from wsi_assets.index.slide_index import resolution_of
from wsi_assets.learning import checkpoints as files
from wsi_assets.learning import devices
from wsi_assets.learning.augmentation import Transforms, augment, draw_transforms
from wsi_assets.learning.data import (
    Batch,
    BatchReader,
    PatchTable,
    Split,
    epoch_batches,
    locate,
    ordered_batches,
    split_patches,
)
from wsi_assets.learning.imbalance import (
    Imbalance,
    hard_example_mask,
    kept_normals,
    measure_imbalance,
    patch_losses,
    training_warnings,
)
from wsi_assets.learning.models import Architecture, PatchClassifier, build_model, head_of, weights_digest
from wsi_assets.learning.options import TrainingOptions
from wsi_assets.learning.prediction import tumor_probabilities
from wsi_assets.learning.records import CSV_NAME, EpochRecord, TrainingResult, write_csv
from wsi_assets.learning.schedule import Schedule
from wsi_assets.learning.validation import Validation
from wsi_assets.progress import Progress, silent

if TYPE_CHECKING:
    from wsi_assets.index import Index
    from wsi_assets.patches import PatchStore

PRETRAINED_RATE = 0.1
"""Share of ``lr`` at which a pretrained body learns."""
BATCH_NORM_PATCHES = 2048
"""Training patches from which batch-norm statistics are computed before a validation."""
_INCIDENTAL = {"num_workers", "save_interval", "device"}
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

    Writes ``epoch_losses.csv`` after every epoch, and into ``checkpoints`` ``best.pt`` and ``best.json`` at
    the lowest validation loss so far, ``ckpt_epoch_N.pt`` every ``save_interval`` epochs, and ``resume.pt``,
    from which a training cut off goes on and ends as an uninterrupted one.

    Args:
        store: the patches of ``index``; both may be another program's.
        checkpoint_dir, loss_csv: other places than ``checkpoints`` and ``epoch_losses.csv`` in ``folder``.
        on_epoch: called after an epoch's files are in place; what it raises ends the training.

    Raises:
        ModelError: too few patches, no such network or weights, a diverged training, a full GPU.
        ConfigError: a device that is not there.
        StoreError: the store is of another index, or a patch cannot be read.
    """
    checkpoints = Path(checkpoint_dir or Path(folder) / "checkpoints")
    csv_path = Path(loss_csv or Path(folder) / CSV_NAME)
    device = devices.resolve_device(options.device)
    table = locate(store, index)
    split = split_patches(table, index, options)
    batches = epoch_batches(split.train, table.labels, options, 1)
    imbalance = measure_imbalance(batches, table.labels, options)
    validation = Validation.of(split, table, options.seed)
    with (
        devices.in_use(device, "batch_size"),
        BatchReader(store, workers=options.num_workers, pin=device.type == "cuda") as reader,
    ):
        torch.manual_seed(options.seed)
        learner = make_learner(_patch_size(store, index), imbalance, options, device)
        classifier = PatchClassifier(learner.model, learner.architecture)
        facts = _facts(store, index, table, split, learner)
        run = _Run(learner, Schedule(options, len(batches)), facts, checkpoints)
        run.resume()
        while not run.schedule.finished:
            started, epoch = time.perf_counter(), run.schedule.epoch + 1
            # Dropout draws from torch's generator: seeded so, an epoch is the same after a resume.
            torch.manual_seed(int(np.random.SeedSequence([options.seed, epoch]).generate_state(1)[0]))
            batches = epoch_batches(split.train, table.labels, options, epoch)
            trained = train_epoch(learner, reader, table, batches, run.schedule, progress)
            update_batch_norm(learner, reader, table.positions[split.train], epoch)
            probabilities = tumor_probabilities(
                classifier,
                reader.read(ordered_batches(validation.positions, options.batch_size)),
                len(validation.positions),
                device,
                learner.precision,
            )
            if not np.isfinite([*probabilities, trained["objective"], trained["train_loss"]]).all():
                raise ModelError(
                    f"training diverged in epoch {epoch}: its loss is not a number any more",
                    remedy="Lower lr, or use precision=float32",
                )
            scores = validation.scores(probabilities)
            is_best = scores["val_loss"] < run.schedule.best_loss
            seconds = time.perf_counter() - started
            record = EpochRecord(epoch=epoch, **trained, **scores, seconds=seconds, is_best=is_best)
            run.history.append(record)
            write_csv(csv_path, run.history)
            run.end_epoch(
                record, validation.choose(probabilities, options.val_specificity) if is_best else {}
            )
            if on_epoch is not None:
                on_epoch(record)
        if options.tta:
            run.choose_with_views(validation, reader)
    return run.result(csv_path, split, training_warnings(options, imbalance, split))


@dataclass
class Learner:
    """A network and what a training step needs; ``weights`` (2,) are of (normal, tumor) in the loss."""

    model: nn.Module
    architecture: Architecture
    optimizer: torch.optim.Optimizer
    options: TrainingOptions
    imbalance: Imbalance
    weights: Tensor
    device: torch.device
    precision: str

    def inputs(self, patches: Tensor, transforms: Transforms | None = None) -> Tensor:
        """uint8 patches of a batch to the network's input, transformed where transforms are given."""
        # Always in float32: colors in bfloat16 would be in steps of a hundredth.
        with devices.autocast(self.device, "float32"):
            patches = patches.to(self.device, non_blocking=True)
            return self.architecture.inputs(patches if transforms is None else augment(patches, transforms))


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
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        in_head = id(parameter) in head
        parameter.requires_grad_(in_head or not options.freeze_backbone)
        share = 1.0 if in_head or options.weights == "none" else PRETRAINED_RATE
        decay = options.weight_decay if parameter.ndim > 1 else 0.0
        if parameter.requires_grad:
            groups.setdefault((share, decay), []).append(parameter)
    optimizer = torch.optim.AdamW(
        [{"params": part, "weight_decay": decay, "share": share} for (share, decay), part in groups.items()],
        lr=options.lr,
        fused=True,
    )
    weights = torch.tensor(imbalance.weights, device=device)
    precision = devices.resolve_precision(options.precision, device)
    return Learner(model, architecture, optimizer, options, imbalance, weights, device, precision)


def train_epoch(
    learner: Learner,
    reader: BatchReader,
    table: PatchTable,
    batches: Sequence[Batch],
    schedule: Schedule,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Learn from each batch once; returns the training's part of an ``EpochRecord``."""
    options, epoch = learner.options, schedule.epoch + 1
    learner.model.train(not options.freeze_backbone)  # a frozen body stays as it predicts
    sums = torch.zeros(4, dtype=torch.float64, device=learner.device)
    started, waited, done, tumor = time.perf_counter(), reader.waited, 0, 0
    total = sum(len(batch.rows) for batch in batches)
    what = f"training epoch {epoch} of at most {options.max_epochs}, patches"
    stream = reader.read([table.positions[batch.rows] for batch in batches])
    for number, (batch, patches) in enumerate(zip(batches, stream, strict=True)):
        labels, transforms = table.labels[batch.rows], None
        if options.use_augmentation:
            drawn = {"seed": options.seed, "epoch": epoch, "batch": number, "plain": batch.plain}
            transforms = draw_transforms(len(labels), **drawn)
        lr = options.lr * schedule.rate
        for group in learner.optimizer.param_groups:
            group["lr"] = lr * group["share"]
        sums += _step(learner, patches, labels, transforms)  # stays on the device: nothing waits for it
        schedule.step += 1
        done += len(labels)
        tumor += int(labels.sum())
        progress(done, total, what)
    objective, correct, tumor_loss, normal_loss = sums.tolist()  # waits for the device
    seconds = time.perf_counter() - started
    return {
        "train_loss": (tumor_loss / tumor + normal_loss / (done - tumor)) / 2,
        "train_acc": correct / done,
        "objective": objective / len(batches),
        "lr": lr,
        "images_per_second": done / seconds,
        "waiting": (reader.waited - waited) / seconds,
    }


def _step(learner: Learner, patches: Tensor, labels: np.ndarray, transforms: Transforms | None) -> Tensor:
    """Learn from one batch: (objective, correct patches, cross-entropy of tumor, of normal patches)."""
    options = learner.options
    targets = torch.from_numpy(labels).to(learner.device, non_blocking=True)
    learner.optimizer.zero_grad(set_to_none=True)
    with devices.autocast(learner.device, learner.precision):
        logits = learner.model(learner.inputs(patches, transforms))
    gamma = options.focal_gamma if options.use_focal_loss else 0.0
    losses = patch_losses(logits, targets, gamma=gamma, weights=learner.weights)
    if options.use_ohem:
        tumor, share = int(labels.sum()), learner.imbalance.tumor_share
        keep = kept_normals(len(labels), tumor, ratio=options.ohem_ratio, tumor_share=share)
        objective = (losses * hard_example_mask(losses, targets, keep)).sum() / (tumor + keep)
    else:
        objective = losses.mean()
    objective.backward()
    learner.optimizer.step()
    with torch.no_grad():
        plain = patch_losses(logits, targets).double()
        correct = (logits.argmax(dim=1) == targets).sum().double()
        by_class = ((plain * (targets == label)).sum() for label in (1, 0))
        return torch.stack((objective.double(), correct, *by_class))


@torch.no_grad()
def update_batch_norm(learner: Learner, reader: BatchReader, positions: np.ndarray, epoch: int) -> None:
    """Compute batch-norm statistics anew on unaugmented training patches: running averages lag behind."""
    if learner.options.freeze_backbone:
        return
    chosen = np.random.default_rng([learner.options.seed, epoch, 2]).permutation(positions)
    chosen = chosen[:BATCH_NORM_PATCHES]
    stream = reader.read(np.array_split(chosen, max(1, len(chosen) // learner.options.batch_size)))
    with devices.autocast(learner.device, learner.precision):
        update_bn((learner.inputs(patches) for patches in stream), learner.model)


class _Run:
    """What of a training changes from epoch to epoch, and its files in ``checkpoints``."""

    def __init__(self, learner: Learner, schedule: Schedule, facts: dict[str, Any], checkpoints: Path):
        self.learner, self.schedule, self.facts, self.checkpoints = learner, schedule, facts, checkpoints
        self.history: list[EpochRecord] = []
        self.best: dict[str, Tensor] = {}
        self.resumed_from: int | None = None

    def end_epoch(self, record: EpochRecord, chosen: dict[str, Any]) -> None:
        """Save the model, with what was ``chosen`` on validation if it is the best, and the state."""
        state = files.state_of(self.learner.model)
        if record.is_best:
            self.best = state
            of_epoch = {"epoch": record.epoch, "val_loss": record.val_loss, "val_auc": record.val_auc}
            card = files.model_card(self.learner.architecture, **self.facts, **of_epoch, **chosen)
            files.save_weights(self.checkpoints / files.BEST_NAME, state)
            write_json(self.checkpoints / files.CARD_NAME, card)
        if record.epoch % self.learner.options.save_interval == 0:
            files.save_weights(self.checkpoints / f"ckpt_epoch_{record.epoch}.pt", state)
        if self.schedule.end_epoch(record.val_loss):
            self.learner.model.load_state_dict(self.best)
        plain = {
            "run_digest": self.facts["provenance"]["run_digest"],
            "schedule": self.schedule.state(),
            "model": self.learner.model.state_dict(),
            "optimizer": self.learner.optimizer.state_dict(),
            "history": [asdict(record) for record in self.history],
            "best": self.best,
        }
        files.save_weights(self.checkpoints / files.RESUME_NAME, plain)

    def choose_with_views(self, validation: Validation, reader: BatchReader) -> None:
        """Choose threshold and calibration again, with the averages over flips and turns that the finished
        model gives; epoch by epoch they would cost eight validations."""
        learner, options = self.learner, self.learner.options
        learner.model.load_state_dict(self.best)
        classifier = PatchClassifier(learner.model, learner.architecture, tta=True)
        probabilities = tumor_probabilities(
            classifier,
            reader.read(ordered_batches(validation.positions, options.batch_size)),
            len(validation.positions),
            learner.device,
            learner.precision,
        )
        card = files.read_card(self.checkpoints / files.BEST_NAME)
        chosen = validation.choose(probabilities, options.val_specificity)
        write_json(self.checkpoints / files.CARD_NAME, {**card, **chosen})

    def resume(self) -> None:
        """Go on where a training of the same digest was cut off, if there is one."""
        state = files.load_resume(self.checkpoints, self.facts["provenance"]["run_digest"])
        if state is None:
            return
        self.learner.model.load_state_dict(state["model"])
        self.learner.optimizer.load_state_dict(state["optimizer"])
        self.schedule.restore(state["schedule"])
        self.history = [EpochRecord(**plain) for plain in state["history"]]
        self.best, self.resumed_from = state["best"], len(self.history)

    def result(self, csv_path: Path, split: Split, warnings: dict[str, str]) -> TrainingResult:
        """What the finished training left; nothing is left to resume."""
        (self.checkpoints / files.RESUME_NAME).unlink(missing_ok=True)
        return TrainingResult(
            best_path=self.checkpoints / files.BEST_NAME,
            card=files.read_card(self.checkpoints / files.BEST_NAME),
            csv_path=csv_path,
            epochs=tuple(self.history),
            resumed_from=self.resumed_from,
            split=split,
            device=str(self.learner.device),
            precision=self.learner.precision,
            warnings=warnings,
        )


def _patch_size(store: PatchStore, index: Index) -> int:
    known = store.info.get("patch_size") or next(iter(index.values())).get("patch_size")
    return int(known or store.get(0).shape[0])


def _facts(
    store: PatchStore, index: Index, table: PatchTable, split: Split, learner: Learner
) -> dict[str, Any]:
    """What ``best.json`` says of patches, split, parameters and provenance."""
    options, labels, imbalance = learner.options, table.labels, learner.imbalance
    entries = list(index.values())
    mpp = [entry["mpp"] for entry in entries if entry.get("mpp")]
    parts = {"train": split.train, "val": split.validation}
    patches = digest(table.slide_ids, table.slides.tobytes(), labels.tobytes(), table.positions.tobytes())
    data_digest = str(store.info.get("digest") or patches)
    run_digest = digest(
        options.model_dump(exclude=_INCIDENTAL),
        learner.precision,
        data_digest,
        patches,
        [part.tobytes() for part in parts.values()],
        weights_digest(options.weights),
    )
    return {
        "patch_size": _patch_size(store, index),
        "level": resolution_of(entries[0]) if "level" in entries[0] else None,
        "mpp": float(median(mpp)) if mpp else None,
        "split": {"unit": split.unit, "rows": list(split.rows)},
        "counts": {
            **{f"{name}_tumor": int((labels[part] == 1).sum()) for name, part in parts.items()},
            **{f"{name}_normal": int((labels[part] == 0).sum()) for name, part in parts.items()},
            "seen_tumor": imbalance.seen_tumor,
            "seen_normal": imbalance.seen_normal,
            "kept_normal": imbalance.kept_normal,
        },
        "class_weights": list(imbalance.weights),
        "tta": options.tta,
        "parameters": options.model_dump(),
        "provenance": {
            "data_digest": data_digest,
            "run_digest": run_digest,
            "store": str(store.path),
            "versions": {name: version(name) for name in ("wsi-assets", "torch", "timm")},
        },
    }
