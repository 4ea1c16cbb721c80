import json
import shutil

import numpy as np
import pytest
import torch

from wsi_assets.errors import ConfigError, ModelError
from wsi_assets.learning import load_model
from wsi_assets.learning.data import BatchReader
from wsi_assets.learning.imbalance import IDLE, Imbalance
from wsi_assets.learning.training import make_learner, update_batch_norm
from wsi_assets.learning.validation import threshold_at, validation_loss
from wsi_assets_tests.learning.made import Patches, cohort, quick, run

OFF = {"use_augmentation": False, "use_class_weights": False, "use_focal_loss": False, "use_ohem": False}


def weights_of(path):
    return torch.load(path, weights_only=True)


def assert_same_weights(first, second):
    for key, value in weights_of(first).items():
        assert torch.equal(value, weights_of(second)[key]), key


SAVES = "wsi_assets.learning.training.SECONDS_BETWEEN_SAVES"
EVEN = Imbalance(1, 1, 1, (1.0, 1.0))


class KilledError(Exception):
    pass


@pytest.fixture
def saved_each_epoch(monkeypatch):
    monkeypatch.setattr(SAVES, 0)


def stop_after(epoch):
    def on_epoch(record):
        if record.epoch == epoch:
            raise KilledError

    return on_epoch


def test_a_training_writes_its_files_under_their_names(tmp_path):
    run(cohort(), quick(max_epochs=5, save_interval=2), tmp_path)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "best.json",
        "best.pt",
        "ckpt_epoch_2.pt",
        "ckpt_epoch_4.pt",
    ]
    lines = (tmp_path / "epoch_losses.csv").read_text().splitlines()
    assert lines[0] == "epoch,train_loss,train_acc,val_loss,val_acc"
    assert [line.split(",")[0] for line in lines[1:]] == ["1", "2", "3", "4", "5"]


def test_the_files_of_a_training_may_lie_elsewhere(tmp_path):
    places = {"checkpoint_dir": tmp_path / "c", "loss_csv": tmp_path / "l.csv"}
    result = run(cohort(), quick(max_epochs=1), tmp_path, **places)
    assert result.best_path == tmp_path / "c" / "best.pt"
    assert {path.name for path in tmp_path.iterdir()} >= {"c", "l.csv"}
    assert not (tmp_path / "checkpoints").exists()


def test_best_pt_loads_into_torchvision_and_best_json_describes_it(tmp_path):
    from torchvision import models

    result = run(cohort(), quick(model_name="resnet18", max_epochs=1), tmp_path)
    models.resnet18(num_classes=2).load_state_dict(weights_of(result.best_path), strict=True)
    card = json.loads((tmp_path / "checkpoints" / "best.json").read_text())
    assert card == result.card
    assert card["model"]["name"] == "resnet18"
    assert card["classes"] == ["normal", "tumor"]
    assert (card["patch_size"], card["level"]) == (32, 4)
    assert card["normalization"]["mean"] == [0.485, 0.456, 0.406]
    assert card["thresholds"]["preds"] == 0.5
    assert card["thresholds"]["validation"]["specificity"] >= 0.95
    assert {row["side"] for row in card["split"]["rows"]} == {"train", "validation"}


def test_best_pt_is_of_the_epoch_with_the_lowest_validation_loss(tmp_path):
    result = run(cohort(separable=False), quick(max_epochs=8, lr=0.02), tmp_path)
    losses = [record.val_loss for record in result.epochs]
    assert result.best.epoch == 1 + int(np.argmin(losses))
    assert (result.card["epoch"], result.card["val_loss"]) == (result.best.epoch, min(losses))
    assert [record.is_best for record in result.epochs] == [
        loss < min(losses[:i], default=np.inf) for i, loss in enumerate(losses)
    ]


@pytest.mark.parametrize("switches", [{}, OFF])
def test_the_validation_loss_can_be_computed_again_whatever_is_optimized(tmp_path, switches):
    store = cohort(normals=3)
    result = run(store, quick(tta=False, **switches), tmp_path)
    part = result.split.validation
    with torch.inference_mode():
        p = load_model(result.best_path).classifier()(torch.from_numpy(store.pixels[part]))[:, 1].numpy()
    y = store.labels[part].astype(int)
    assert result.best.val_loss == pytest.approx(validation_loss(y, p), rel=1e-3)


def test_the_threshold_is_chosen_on_probabilities_of_the_finished_model(tmp_path):
    store, options = cohort(normals=3), quick(val_specificity=0.8)
    result = run(store, options, tmp_path)
    part, classifier = result.split.validation, load_model(result.best_path).classifier()
    assert classifier.tta
    with torch.inference_mode():
        p = classifier(torch.from_numpy(store.pixels[part]))[:, 1].numpy()
    expected = threshold_at(store.labels[part].astype(int), p, 0.8)
    assert result.card["thresholds"]["validation"] == pytest.approx(expected, abs=1e-4)


def test_with_every_strategy_off_the_first_loss_is_plain_cross_entropy(tmp_path):
    # One batch of all training patches: its loss is that of the untrained network.
    store, options = cohort(), quick(model_name="tiny_plain", max_epochs=1, batch_size=999, **OFF)
    result = run(store, options, tmp_path)
    torch.manual_seed(options.seed)
    learner = make_learner(32, EVEN, options, torch.device("cpu"))
    part = result.split.train
    logits = learner.model(learner.architecture.inputs(torch.from_numpy(store.pixels[part])))
    expected = torch.nn.functional.cross_entropy(logits, torch.from_numpy(store.labels[part]).long())
    assert result.epochs[0].objective == pytest.approx(expected.item(), rel=1e-5)
    assert result.card["class_weights"] == [1.0, 1.0]
    assert result.counts["seen_tumor"] == result.counts["train_tumor"]


@pytest.mark.parametrize("switch", OFF)
def test_each_strategy_changes_the_training(tmp_path, switch):
    store = cohort(per_patient=10, normals=4)
    options = quick(max_epochs=2, ohem_ratio=1.5, aug_factor=1)
    with_it = run(store, options, tmp_path / "on")
    assert not any(code.endswith(IDLE) for code in with_it.warnings)
    without = run(store, options.model_copy(update={switch: False}), tmp_path / "off")
    assert with_it.csv_path.read_text() != without.csv_path.read_text()


def test_at_the_defaults_every_strategy_acts_and_the_rate_falls(tmp_path):
    """Default aug_factor, ohem_ratio and gamma, with the class ratio that sampling gives by default."""
    from wsi_assets.index import SamplingOptions
    from wsi_assets.learning import TrainingOptions

    ratio = int(SamplingOptions().normal_per_tumor)
    store = cohort(patients=6, per_patient=2 * (ratio + 1), size=8, normals=ratio)
    options = TrainingOptions(
        **{name: quick().model_dump()[name] for name in ("model_name", "weights", "num_workers", "device")}
    )
    result = run(store, options, tmp_path)
    counts = result.counts
    assert counts["seen_tumor"] == 6 * counts["train_tumor"]
    assert counts["seen_tumor"] < counts["seen_normal"] / 2
    assert 0.1 < 1 - counts["kept_normal"] / counts["seen_normal"] < 0.5
    assert result.card["class_weights"][1] > 1.5 > 1 > result.card["class_weights"][0]
    assert not any(code.endswith(IDLE) for code in result.warnings)
    assert result.epochs[-1].lr < 0.1 * max(record.lr for record in result.epochs)


@pytest.mark.parametrize(("normals", "idle"), [(1, True), (2, True), (9, False)])
def test_mining_without_effect_is_warned_of(tmp_path, normals, idle):
    store = cohort(per_patient=40, normals=normals)
    result = run(store, quick(max_epochs=1, aug_factor=1, ohem_ratio=3.0), tmp_path)
    assert (f"hard_example_mining{IDLE}" in result.warnings) is idle


def test_class_weights_count_back_propagated_patches(tmp_path):
    result = run(cohort(per_patient=40, normals=9), quick(max_epochs=1, aug_factor=1), tmp_path)
    normal, tumor = result.counts["kept_normal"], result.counts["seen_tumor"]
    assert normal < result.counts["seen_normal"]
    assert tuple(result.card["class_weights"]) == pytest.approx(
        ((normal + tumor) / 2 / normal, (normal + tumor) / 2 / tumor)
    )


def test_the_split_of_the_index_is_kept(tmp_path):
    patches = cohort()
    index = patches.index()
    for number, entry in enumerate(index.values()):
        entry["split"] = "validation" if number in (1, 4) else "train"
    result = run(patches, quick(max_epochs=1), tmp_path, index)
    validating = {row["patient"] for row in result.split.rows if row["side"] == "validation"}
    assert validating == {"patient_001", "patient_004"}


@pytest.mark.parametrize(("patients", "unit"), [(1, "patch"), (6, "patient")])
def test_a_single_patient_is_split_by_patch_and_says_so(tmp_path, patients, unit):
    result = run(cohort(patients=patients, per_patient=24), quick(max_epochs=1), tmp_path)
    assert result.split.unit == unit
    assert ("split_by_patch" in result.warnings) is (unit == "patch")


def test_same_seed_gives_the_same_csv_and_weights_with_any_number_of_readers(tmp_path):
    results = [
        run(cohort(), quick(num_workers=workers, precision="auto"), tmp_path / str(workers))
        for workers in (0, 1, 2)
    ]
    for other in results[1:]:
        assert other.csv_path.read_bytes() == results[0].csv_path.read_bytes()
        assert_same_weights(other.best_path, results[0].best_path)
    seeded = run(cohort(), quick(seed=7), tmp_path / "seeded")
    assert seeded.csv_path.read_bytes() != results[0].csv_path.read_bytes()


def test_training_leaves_torchs_global_generator_alone(tmp_path):
    torch.manual_seed(11)
    expected = torch.rand(4)
    torch.manual_seed(11)
    run(cohort(), quick(max_epochs=1), tmp_path)
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize(("saved", "killed"), [(0, 2), (2, 2), (5, 5), (2, 5)])
def test_a_killed_training_resumes_with_the_same_result(tmp_path, saved, killed, monkeypatch):
    # Patience from the second step on, so that the resumed run goes through every phase.
    monkeypatch.setattr("wsi_assets.learning.schedule.FIRST_STEPS", 1)
    options = quick(max_epochs=7, save_interval=2, lr=0.05, patience=2)
    store = cohort(separable=False)
    whole = run(store, options, tmp_path / "whole")

    def on_epoch(record):
        monkeypatch.setattr(SAVES, 0 if record.epoch < saved else 60)
        stop_after(killed)(record)

    monkeypatch.setattr(SAVES, 0 if saved else 60)
    with pytest.raises(KilledError):
        run(store, options, tmp_path / "stopped", on_epoch=on_epoch)
    seen = []
    resumed = run(store, options, tmp_path / "stopped", on_epoch=seen.append)
    assert (resumed.resumed_from or 0) == saved
    assert [record.epoch for record in seen] == list(range(saved + 1, len(whole.epochs) + 1))
    assert resumed.csv_path.read_bytes() == whole.csv_path.read_bytes()
    assert resumed.card["thresholds"] == whole.card["thresholds"]
    assert_same_weights(resumed.best_path, whole.best_path)
    assert not (tmp_path / "stopped" / "checkpoints" / "resume.pt").exists()


@pytest.mark.usefixtures("saved_each_epoch")
@pytest.mark.parametrize("change", [{"lr": 0.02}, {"num_workers": 1}])
def test_only_a_run_with_the_same_result_is_resumed(tmp_path, change):
    with pytest.raises(KilledError):
        run(cohort(), quick(save_interval=1), tmp_path, on_epoch=stop_after(2))
    again = run(cohort(), quick(save_interval=1).model_copy(update=change), tmp_path)
    assert again.resumed_from == (2 if "num_workers" in change else None)


@pytest.mark.usefixtures("saved_each_epoch")
def test_a_training_on_other_patches_is_not_resumed(tmp_path):
    with pytest.raises(KilledError):
        run(cohort(), quick(), tmp_path, on_epoch=stop_after(2))
    shutil.rmtree(tmp_path / "patches_lmdb")
    assert run(cohort(seed=1), quick(), tmp_path).resumed_from is None


@pytest.mark.usefixtures("saved_each_epoch")
def test_a_training_from_other_weights_under_the_same_name_is_not_resumed(tmp_path):
    started = weights_of(run(cohort(), quick(max_epochs=1), tmp_path / "source").best_path)
    start, folder = tmp_path / "start.pt", tmp_path / "run"
    options = quick(weights=str(start))
    torch.save(started, start)
    with pytest.raises(KilledError):
        run(cohort(), options, folder, on_epoch=stop_after(1))
    torch.save({name: value * 0.5 for name, value in started.items()}, start)
    assert run(cohort(), options, folder).resumed_from is None


@pytest.mark.usefixtures("saved_each_epoch")
def test_a_damaged_resume_file_is_ignored(tmp_path):
    with pytest.raises(KilledError):
        run(cohort(), quick(), tmp_path, on_epoch=stop_after(2))
    (tmp_path / "checkpoints" / "resume.pt").write_bytes(b"torn")
    assert run(cohort(), quick(), tmp_path).resumed_from is None


def test_a_few_patches_are_memorized(tmp_path):
    # Random pixels with random labels: only correct gradients lead to a loss near zero.
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (16, 16, 16, 3), dtype=np.uint8)
    store = Patches(pixels, np.arange(16) % 2, [f"p{i // 4}" for i in range(16)])
    options = quick(model_name="resnet18", max_epochs=60, weight_decay=0.0, **OFF)
    result = run(store, options, tmp_path)
    assert result.epochs[-1].objective < 0.05
    assert result.epochs[-1].train_acc == 1.0


def test_visible_tumor_is_found(tmp_path):
    result = run(cohort(patients=10), quick(max_epochs=8, lr=0.01), tmp_path)
    assert result.best.val_auc > 0.95
    assert result.better_than_majority
    assert sum(result.best.confusion) == len(result.split.validation)


def test_random_labels_do_not_beat_the_majority(tmp_path):
    store = cohort(patients=10, separable=False)
    store.pixels[:] = 128
    assert not run(store, quick(max_epochs=2), tmp_path).better_than_majority


def test_a_diverging_training_is_an_error(tmp_path):
    with pytest.raises(ModelError):
        run(cohort(), quick(lr=1e30, model_name="tiny_plain"), tmp_path)
    assert not (tmp_path / "checkpoints" / "best.pt").exists()


@pytest.mark.parametrize("device", ["cuda:99", "abacus", "meta"])
def test_a_missing_device_is_named(tmp_path, device):
    with pytest.raises(ConfigError, match=device):
        run(cohort(), quick(device=device), tmp_path)


def test_batch_norm_statistics_are_those_of_unaugmented_training_patches(tmp_path):
    store, options = cohort(), quick(batch_size=64)
    learner = make_learner(32, EVEN, options, torch.device("cpu"))
    learner.model[1].running_mean.fill_(50.0)
    with BatchReader(store.store(tmp_path), workers=0) as reader:
        update_batch_norm(learner, reader, np.arange(40), epoch=1)
    with torch.inference_mode():
        seen = learner.model[0](learner.architecture.inputs(torch.from_numpy(store.pixels[:40])))
    torch.testing.assert_close(learner.model[1].running_mean, seen.mean(dim=(0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(learner.model[1].running_var, seen.var(dim=(0, 2, 3)), rtol=1e-4, atol=1e-5)


def test_a_frozen_network_keeps_its_weights_and_statistics(tmp_path):
    start = tmp_path / "start.pt"
    torch.save(weights_of(run(cohort(seed=3), quick(max_epochs=1), tmp_path / "source").best_path), start)
    result = run(cohort(), quick(weights=str(start), freeze_backbone=True), tmp_path / "run")
    before, after = weights_of(start), weights_of(result.best_path)
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed == {"9.weight", "9.bias"}


def test_a_pretrained_network_keeps_its_batch_norm_statistics(tmp_path):
    start = tmp_path / "start.pt"
    torch.save(weights_of(run(cohort(seed=3), quick(max_epochs=1), tmp_path / "source").best_path), start)
    result = run(cohort(), quick(weights=str(start), max_epochs=2), tmp_path / "run")
    before, after = weights_of(start), weights_of(result.best_path)
    kept = {key for key in before if torch.equal(before[key], after[key])}
    assert kept == {key for key in before if "running" in key or "num_batches" in key}


def test_pretrained_layers_learn_at_a_tenth_of_the_rate(tmp_path):
    start = tmp_path / "start.pt"
    torch.save(weights_of(run(cohort(), quick(max_epochs=1), tmp_path / "source").best_path), start)
    for weights, shares in (("none", {1.0}), (str(start), {0.1, 1.0})):
        learner = make_learner(32, EVEN, quick(weights=weights), torch.device("cpu"))
        assert {group["share"] for group in learner.optimizer.param_groups} == shares
