import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from wsi_assets.learning.distributed import Group

from wsi_assets_tests.learning import ranks


@pytest.fixture(scope="module")
def alone_and_together(tmp_path_factory):
    """Folders of the same work done by one process and by two."""
    folders = [tmp_path_factory.mktemp(name) for name in ("one", "two")]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    ranks.gradients(folders[0])
    ranks.training(folders[0])
    torch.set_num_threads(threads)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [*launch, ranks.__file__, str(folders[1])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    return folders


def test_two_processes_have_the_gradients_of_one_on_the_joint_batch(alone_and_together):
    # with augmentation, class weights, focal loss, and hard examples chosen over the joint batch
    one, two = (torch.load(folder / "step.pt", weights_only=True) for folder in alone_and_together)
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-6)
    assert two["accuracy"] == one["accuracy"]
    assert max(gradient.abs().max() for gradient in one["gradients"].values()) > 1e-3
    for name, gradient in one["gradients"].items():
        torch.testing.assert_close(two["gradients"][name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_a_training_in_two_processes_is_the_training_in_one(alone_and_together):
    one, two = alone_and_together
    rows = [list(csv.DictReader((folder / "epoch_losses.csv").open())) for folder in (one, two)]
    assert len(rows[0]) == len(rows[1]) == 3
    for first, second in zip(*rows, strict=True):
        for name, value in first.items():
            assert float(second[name]) == pytest.approx(float(value), abs=2e-5)
    assert (two / "checkpoints" / "ckpt_epoch_2.pt").is_file()
    assert sorted((two / "told.txt").read_text().split("\n")[:2]) == ["[1, 2, 3]", "[]"]


def test_parts_of_a_batch_cover_it_once():
    for size in (1, 2, 3, 8):
        for count in (8, 9, 31, 64):
            bounds = [Group(rank, size).bounds(count) for rank in range(size)]
            assert [i for first, last in bounds for i in range(first, last)] == list(range(count))
            assert max(b - a for a, b in bounds) - min(b - a for a, b in bounds) <= 1
