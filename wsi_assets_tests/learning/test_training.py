import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from wsi_assets.errors import ConfigError, ModelError
from wsi_assets.learning import load_model, train
from wsi_assets.learning.devices import resolve_device
from wsi_assets_tests.learning.fakes import MemoryStore, cohort, quick


def weights_of(path):
    return torch.load(path, weights_only=True)["state_dict"]


def assert_same_weights(first, second):
    for key, value in weights_of(first).items():
        assert torch.equal(value, weights_of(second)[key]), key


class KilledError(Exception):
    pass


def stop_after(epoch):
    def on_epoch(record):
        if record.epoch == epoch:
            raise KilledError

    return on_epoch


def test_a_training_writes_its_files_under_their_names(tmp_path):
    result = train(cohort(), quick(max_epochs=5, save_interval=2), tmp_path)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "best.pt",
        "ckpt_epoch_2.pt",
        "ckpt_epoch_4.pt",
    ]
    lines = (tmp_path / "epoch_losses.csv").read_text().splitlines()
    assert lines[0] == "epoch,train_loss,train_acc,val_loss,val_acc"
    assert [line.split(",")[0] for line in lines[1:]] == ["1", "2", "3", "4", "5"]
    assert result.checkpoints == tuple(tmp_path / "checkpoints" / f"ckpt_epoch_{k}.pt" for k in (2, 4))


def test_best_is_the_epoch_of_lowest_validation_loss(tmp_path):
    result = train(cohort(separable=False), quick(max_epochs=8, lr=0.02), tmp_path)
    losses = [record.val_loss for record in result.epochs]
    assert result.best_epoch == 1 + int(np.argmin(losses))
    best = load_model(result.best_path)
    assert (best.epoch, best.val_loss) == (result.best_epoch, min(losses))
    assert [record.is_best for record in result.epochs] == [
        loss < min(losses[:i], default=np.inf) for i, loss in enumerate(losses)
    ]


def test_the_validation_loss_can_be_computed_again_from_the_best_model(tmp_path):
    # Focal loss with weights after augmentation, a tumour patch counted as often as training sees one.
    store, options = cohort(), quick(aug_factor=4)
    result = train(store, options, tmp_path)
    with torch.inference_mode():
        p = (
            load_model(result.best_path)
            .classifier()(torch.from_numpy(store.patches[result.split.val]))
            .numpy()
        )
    y = store.labels[result.split.val]
    p_t = p[np.arange(len(y)), y]
    losses = np.array(result.class_weights)[y] * (1 - p_t) ** 2 * -np.log(p_t)
    assert result.best.val_loss == pytest.approx(np.average(losses, weights=np.where(y == 1, 4, 1)), rel=1e-4)


def test_class_weights_are_of_the_training_part_after_repetition(tmp_path):
    store = cohort()
    result = train(store, quick(max_epochs=1, aug_factor=5), tmp_path)
    labels = store.labels[result.split.train]
    normal, tumor = int((labels == 0).sum()), 5 * int(labels.sum())
    assert result.class_weights == pytest.approx(
        ((normal + tumor) / 2 / normal, (normal + tumor) / 2 / tumor)
    )
    assert result.counts["seen_tumor"] == tumor
    assert result.counts["train_tumor"] * 5 == tumor


OFF = {"use_augmentation": False, "use_class_weights": False, "use_focal_loss": False, "use_ohem": False}


def test_with_every_strategy_off_the_first_loss_is_plain_cross_entropy(tmp_path):
    # One batch of all training patches: its loss is that of the untrained network.
    from wsi_assets.learning.backbones import build_model

    from wsi_assets.learning.augmentation import normalise

    store, options = cohort(), quick(model_name="tiny_plain", max_epochs=1, batch_size=999, **OFF)
    result = train(store, options, tmp_path)
    torch.manual_seed(options.seed)
    model = build_model("tiny_plain", patch_size=32)
    part = result.split.train
    logits = model(normalise(torch.from_numpy(store.patches[part])))
    expected = torch.nn.functional.cross_entropy(logits, torch.from_numpy(store.labels[part]).long())
    assert result.epochs[0].train_loss == pytest.approx(expected.item(), rel=1e-5)
    assert result.class_weights == (1.0, 1.0)
    assert result.counts["seen_tumor"] == result.counts["train_tumor"]


@pytest.mark.parametrize("switch", OFF)
def test_each_strategy_changes_the_training(tmp_path, switch):
    rare = [i for i in range(48) if i % 2 == 0 or i % 8 == 1]  # one tumour patch to four normal ones
    store = cohort()
    store = MemoryStore(store.patches[rare], store.labels[rare], [store.origins[i][0] for i in rare])
    options = quick(max_epochs=2, ohem_ratio=1.0, aug_factor=2)
    with_it = train(store, options, tmp_path / "on")
    without = train(store, options.model_copy(update={switch: False}), tmp_path / "off")
    assert with_it.csv_path.read_text() != without.csv_path.read_text()


def test_same_seed_gives_the_same_csv_and_weights_with_any_number_of_readers(tmp_path):
    results = [
        train(cohort(), quick(num_workers=workers, precision="auto"), tmp_path / str(workers))
        for workers in (0, 1, 2)
    ]
    for other in results[1:]:
        assert other.csv_path.read_bytes() == results[0].csv_path.read_bytes()
        assert_same_weights(other.best_path, results[0].best_path)
    seeded = train(cohort(), quick(seed=7), tmp_path / "seeded")
    assert seeded.csv_path.read_bytes() != results[0].csv_path.read_bytes()


def test_a_compiled_network_learns_the_same_and_leaves_plain_weights(tmp_path, monkeypatch):
    # aot_eager traces forward and backward as a compiler does, without waiting for a C compiler.
    compile_ = torch.compile
    traced = []

    def compile_without_code(model):
        traced.append(model)
        return compile_(model, backend="aot_eager")

    monkeypatch.setattr(torch, "compile", compile_without_code)
    options = quick(model_name="tiny_plain", max_epochs=2)
    plain = train(cohort(), options, tmp_path / "plain")
    assert not traced
    compiled = train(cohort(), options.model_copy(update={"compile_model": True}), tmp_path / "compiled")
    assert traced
    for a, b in zip(plain.epochs, compiled.epochs, strict=True):
        assert (a.train_loss, a.val_loss) == pytest.approx((b.train_loss, b.val_loss), rel=1e-4)
    for key, value in weights_of(plain.best_path).items():
        torch.testing.assert_close(weights_of(compiled.best_path)[key], value, rtol=1e-3, atol=1e-4)


def test_a_network_that_cannot_be_compiled_is_one_line(tmp_path, monkeypatch):
    compile_ = torch.compile

    def no_compiler(*_):
        raise FileNotFoundError("no C++ compiler\nis here")

    monkeypatch.setattr(torch, "compile", lambda model: compile_(model, backend=no_compiler))
    with pytest.raises(
        ModelError, match=r"cannot be compiled.*no C\+\+ compiler.*compile_model=false"
    ) as caught:
        train(cohort(), quick(model_name="tiny_plain", compile_model=True), tmp_path)
    assert "\n" not in str(caught.value)


def test_other_starting_weights_under_the_same_name_are_another_training(tmp_path):
    weights, options = tmp_path / "start.pt", quick(save_interval=1, max_epochs=2)
    options = options.model_copy(update={"weights": str(weights)})
    source = tmp_path / "source"
    train(cohort(), quick(max_epochs=1), source)
    started = weights_of(source / "checkpoints" / "best.pt")
    torch.save(started, weights)
    train(cohort(), options, tmp_path / "run")
    assert train(cohort(), options, tmp_path / "run").resumed_from == 2
    torch.save({name: value * 0.5 for name, value in started.items()}, weights)
    assert train(cohort(), options, tmp_path / "run").resumed_from is None


@pytest.mark.parametrize(("normal_per_tumor", "told"), [(1, True), (4, True), (8, False)])
def test_mining_that_has_nothing_to_leave_out_says_so(tmp_path, normal_per_tumor, told):
    store = cohort(patients=6, per_patient=18)
    labels = np.asarray(store.labels)
    tumor = np.flatnonzero(labels == 1)[:: normal_per_tumor + 1]
    kept = np.sort(np.concatenate([tumor, np.flatnonzero(labels == 0)[: normal_per_tumor * len(tumor)]]))
    store = MemoryStore(store.patches[kept], labels[kept], [store.origins[i][0] for i in kept])
    result = train(store, quick(max_epochs=1, aug_factor=2, ohem_ratio=3.0), tmp_path)
    assert any("leaves out hardly a patch" in note for note in result.notes) is told


def test_a_compiled_run_does_not_continue_one_that_was_not(tmp_path, monkeypatch):
    # A compiler may round differently, and a resumed run must end as an uninterrupted one does.
    monkeypatch.setattr(torch, "compile", lambda model: model)
    options = quick(save_interval=1, max_epochs=2)
    train(cohort(), options, tmp_path)
    assert train(cohort(), options.model_copy(update={"compile_model": True}), tmp_path).resumed_from is None


def test_training_leaves_torchs_global_generator_alone(tmp_path):
    torch.manual_seed(11)
    expected = torch.rand(4)
    torch.manual_seed(11)
    train(cohort(), quick(max_epochs=1), tmp_path)
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize("killed_after", [1, 2, 3, 5])
def test_a_stopped_training_resumes_and_ends_like_an_uninterrupted_one(tmp_path, killed_after):
    options = quick(max_epochs=6, save_interval=2, lr=0.01)
    whole = train(cohort(), options, tmp_path / "whole")
    with pytest.raises(KilledError):
        train(cohort(), options, tmp_path / "stopped", on_epoch=stop_after(killed_after))
    told = []
    resumed = train(cohort(), options, tmp_path / "stopped", on_epoch=told.append)
    continued_from = killed_after - killed_after % 2
    assert resumed.resumed_from == (continued_from or None)
    assert [record.epoch for record in told] == list(range(continued_from + 1, 7))
    assert resumed.csv_path.read_bytes() == whole.csv_path.read_bytes()
    assert resumed.best_epoch == whole.best_epoch
    assert_same_weights(resumed.best_path, whole.best_path)


def test_resuming_takes_best_back_to_the_checkpoint(tmp_path):
    # best.pt on disk may be of an epoch that the resumed run has not reached; it must not survive as the best
    options = quick(max_epochs=4, save_interval=2)
    with pytest.raises(KilledError):
        train(cohort(), options, tmp_path, on_epoch=stop_after(3))
    with pytest.raises(KilledError):
        train(cohort(), options, tmp_path, on_epoch=stop_after(3))
    (tmp_path / "checkpoints" / "best.pt").write_bytes(b"of a lost future")
    with pytest.raises(KilledError):
        train(cohort(), options, tmp_path, progress=lambda *_: (_ for _ in ()).throw(KilledError))
    assert load_model(tmp_path / "checkpoints" / "best.pt").epoch <= 2


def test_a_killed_process_resumes_to_the_same_csv_and_weights(tmp_path):
    script = """
import os, signal, sys
from pathlib import Path
import torch
from wsi_assets.learning import train
from wsi_assets_tests.learning import tiny
from wsi_assets_tests.learning.fakes import cohort, quick
torch.set_num_threads(1)
tiny.register()
steps = 0
def progress(done, total, what):
    global steps
    steps += 1
    if steps == 38:  # in the middle of the fifth epoch of eight steps each
        os.kill(os.getpid(), signal.SIGKILL)
train(cohort(), quick(max_epochs=6, save_interval=3), Path(sys.argv[1]), progress=progress)
"""
    options = quick(max_epochs=6, save_interval=3)
    killed = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "killed")], env=os.environ, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    assert (tmp_path / "killed" / "epoch_losses.csv").read_text().count("\n") == 1 + 4
    resumed = train(cohort(), options, tmp_path / "killed")
    whole = train(cohort(), options, tmp_path / "whole")
    assert resumed.resumed_from == 3
    assert resumed.csv_path.read_bytes() == whole.csv_path.read_bytes()
    assert_same_weights(resumed.best_path, whole.best_path)


def test_other_options_or_data_start_anew_and_remove_the_old_checkpoints(tmp_path):
    train(cohort(), quick(max_epochs=4, save_interval=1), tmp_path)
    other = train(cohort(), quick(max_epochs=3, save_interval=2), tmp_path)
    assert other.resumed_from is None
    assert any("another configuration or other data" in note for note in other.notes)
    assert [path.name for path in other.checkpoints] == ["ckpt_epoch_2.pt"]
    assert train(cohort(seed=1), quick(max_epochs=3, save_interval=2), tmp_path).resumed_from is None
    assert (
        train(cohort(seed=1), quick(max_epochs=3, save_interval=2), tmp_path, resume=False).resumed_from
        is None
    )


def test_more_readers_or_rarer_checkpoints_continue_the_same_run(tmp_path):
    with pytest.raises(KilledError):
        train(cohort(), quick(save_interval=1), tmp_path, on_epoch=stop_after(2))
    assert train(cohort(), quick(save_interval=7, num_workers=2), tmp_path).resumed_from == 2


def test_a_damaged_checkpoint_is_passed_over(tmp_path):
    options = quick(max_epochs=4, save_interval=1)
    whole = train(cohort(), options, tmp_path)
    expected = whole.csv_path.read_bytes()
    (tmp_path / "checkpoints" / "ckpt_epoch_4.pt").write_bytes(b"torn")
    (tmp_path / "checkpoints" / "ckpt_epoch_3.pt").write_bytes(b"")
    again = train(cohort(), options, tmp_path)
    assert again.resumed_from == 2
    assert again.csv_path.read_bytes() == expected


def test_patience_counts_epochs_without_a_lower_validation_loss(tmp_path):
    result = train(cohort(separable=False), quick(max_epochs=40, patience=2, lr=0.05), tmp_path)
    assert result.stopped_early
    assert len(result.epochs) == result.best_epoch + 2
    steps = 8 * len(result.epochs)
    assert any("higher patience" in note for note in result.notes) == (steps < 100)


def test_a_handful_of_patches_is_learned_by_heart(tmp_path):
    # Random pixels with random labels: only a correct chain of gradients reaches zero loss.
    rng = np.random.default_rng(0)
    patches = rng.integers(0, 256, (16, 32, 32, 3))
    store = MemoryStore(patches, np.arange(16) % 2, [f"p{i // 4}" for i in range(16)])
    options = quick(model_name="resnet18", max_epochs=25, patience=99, weight_decay=0.0, **OFF)
    result = train(store, options, tmp_path)
    assert result.epochs[-1].train_loss < 0.01
    assert result.epochs[-1].train_acc == 1.0


def test_tumour_that_can_be_seen_is_found_and_beats_the_majority(tmp_path):
    result = train(cohort(patients=10), quick(max_epochs=8, lr=0.01), tmp_path)
    assert result.best.val_auc > 0.95
    assert result.majority_share == 0.5
    assert result.better_than_majority
    assert sum(result.best.confusion) == len(result.split.val)


def test_labels_that_mean_nothing_do_not_beat_the_majority(tmp_path):
    store = cohort(patients=10, separable=False)
    store.patches[:] = 128
    result = train(store, quick(max_epochs=2), tmp_path)
    assert not result.better_than_majority
    assert result.best.val_auc == 0.5


def test_a_training_that_diverges_says_so_in_one_line(tmp_path):
    with pytest.raises(ModelError, match=r"diverged in epoch 1.*Lower lr") as caught:
        train(cohort(), quick(lr=1e30, model_name="tiny_plain"), tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "checkpoints" / "best.pt").exists()


def test_a_device_that_is_not_there_is_named(tmp_path):
    for device in ("cuda:99", "abacus", "meta"):
        with pytest.raises(ConfigError, match=device):
            train(cohort(), quick(device=device), tmp_path)


def test_the_gpu_of_a_process_under_torchrun_is_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert resolve_device("cuda") == torch.device("cuda:3")
    assert resolve_device("cuda:1") == torch.device("cuda:1")


def test_processes_that_were_not_started_are_not_waited_for(tmp_path, monkeypatch):
    # as in a cluster job whose scheduler exports the size of the job
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ConfigError, match=r"WORLD_SIZE is 2.*unset WORLD_SIZE") as caught:
        train(cohort(), quick(), tmp_path)
    assert "\n" not in str(caught.value)


def test_a_batch_that_leaves_a_process_one_patch_is_refused_before_it_trains():
    from wsi_assets.learning.distributed import Group

    from wsi_assets.learning.training import _check_parts

    cpu, gpu = torch.device("cpu"), torch.device("cuda:0")
    with pytest.raises(ModelError, match=r"batches of 6 patches are too small for 4 processes.*16 or more"):
        _check_parts(48, 7, cpu, Group(0, 4))
    _check_parts(48, 7, gpu, Group(0, 4))  # statistics are those of all GPUs there
    _check_parts(48, 16, cpu, Group(0, 4))
    _check_parts(5, 2, cpu, Group())


def test_batch_statistics_are_learnt_from_training_patches_alone(tmp_path):
    # A step too small to move a weight, so that the statistics can be computed again.
    from wsi_assets.learning.augmentation import normalise

    store, options = cohort(), quick(max_epochs=1, batch_size=999, lr=1e-12, **OFF)
    result = train(store, options, tmp_path)
    layers = load_model(result.best_path).model
    with torch.inference_mode():
        seen = layers[0](normalise(torch.from_numpy(store.patches[result.split.train])))
    assert int(layers[1].num_batches_tracked) == 1
    torch.testing.assert_close(layers[1].running_mean, seen.mean(dim=(0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layers[1].running_var, seen.var(dim=(0, 2, 3)), rtol=1e-4, atol=1e-5)


def test_running_statistics_forget_their_start_after_the_first_epoch():
    from wsi_assets.learning.engine import batch_norm_statistics, correct_batch_norm

    layer = torch.nn.Sequential(torch.nn.BatchNorm2d(3))
    generator = torch.Generator().manual_seed(0)
    batch = torch.randn(8, 3, 4, 4, generator=generator) * 5 + 40
    start = batch_norm_statistics(layer)
    for _ in range(4):
        layer(batch)
    assert layer[0].running_mean.max() < 20
    correct_batch_norm(layer, start, 4)
    torch.testing.assert_close(layer[0].running_mean, batch.mean(dim=(0, 2, 3)))
    torch.testing.assert_close(layer[0].running_var, batch.transpose(0, 1).reshape(3, -1).var(dim=1))


def test_a_channel_that_went_dead_stays_finite_when_its_start_is_forgotten():
    """Of a large pretrained variance rounding leaves a little less than nothing, whose root is no number."""
    from wsi_assets.learning.engine import batch_norm_statistics, correct_batch_norm

    layer = torch.nn.Sequential(torch.nn.BatchNorm2d(1000))
    layer[0].running_var.copy_(torch.linspace(1, 60, 1000))
    start, constant = batch_norm_statistics(layer), torch.full((2, 1000, 2, 2), 0.7)
    for _ in range(2):
        layer(constant)
    correct_batch_norm(layer, start, 2)
    assert layer.eval()(constant).isfinite().all()
