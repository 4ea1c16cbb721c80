"""What each process of a distributed test runs, started by torchrun: ``ranks.py FOLDER``."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from wsi_assets.learning.backbones import build_model
from wsi_assets.learning.distributed import process_group
from wsi_assets.learning.engine import Learner, train_epoch

from wsi_assets.learning import train
from wsi_assets.learning.data import BatchReader
from wsi_assets_tests.learning import tiny
from wsi_assets_tests.learning.fakes import cohort, quick


def gradients(folder: Path) -> None:
    """One step on one batch by all processes; the first writes the gradients.

    BatchNorm is frozen: on the CPU each process would otherwise use statistics of its own part.
    """
    store, options = cohort(), quick(ohem_ratio=0.5, batch_size=48)
    device = torch.device("cpu")
    torch.manual_seed(0)
    model = build_model("resnet18", patch_size=32)
    model.train = lambda mode=True: model  # stays in evaluation mode, and so do its statistics
    group = process_group(device)
    learner = Learner(
        model=model,
        forward=group.wrap(model, device),
        optimizer=torch.optim.SGD(model.parameters(), lr=0.0),
        options=options,
        device=device,
        precision="float32",
        class_weights=torch.tensor([1.5, 0.7]),
        tumor_share=0.5,
        steps_per_epoch=1,
        group=group,
    )
    labels = store.labels.astype(np.int64)
    rare = np.array([i for i in range(48) if i % 2 == 0 or i % 8 == 1])[:29]  # an odd number: unequal parts
    with BatchReader(store, workers=0) as reader:
        done = train_epoch(learner, reader, [rare], labels, epoch=1, on_step=lambda done: None)
    if group.is_first:
        found = {name: parameter.grad for name, parameter in model.named_parameters()}
        torch.save({"gradients": found, "loss": done.loss, "accuracy": done.accuracy}, folder / "step.pt")


def training(folder: Path) -> None:
    """A whole training; the callback and the files are the first process's."""
    told = []
    options = quick(model_name="tiny_plain", lr=0.01, save_interval=2)
    train(cohort(), options, folder, on_epoch=lambda record: told.append(record.epoch))
    with (folder / "told.txt").open("a") as stream:
        stream.write(f"{told}\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    tiny.register()
    gradients(Path(sys.argv[1]))
    training(Path(sys.argv[1]))
