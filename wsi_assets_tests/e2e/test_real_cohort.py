"""The main job on real slides: every artefact, every contract, with each of the three backends."""

from __future__ import annotations

import csv
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from wsi_assets.patches import open_store
from wsi_assets_tests.e2e.conftest import QUICK_TRAINING, settings
from wsi_assets_tests.scripts import consumer
from wsi_assets_tests.scripts.test_commands import done

ENTRY_KEYS = {
    *("slide_path", "label", "annotation_path", "level", "work_level", "magnification"),
    *("visualisation_coords", "patches", "patch_size", "stride", "downsample", "mpp"),
    *("tissue_fraction", "tumor_fraction", "fingerprint", "config"),
}


@pytest.fixture(scope="module")
def finished(command_line, cohort, tmp_path_factory):
    """A whole run at level 0, into LMDB with a lossless codec."""
    home = tmp_path_factory.mktemp("cohort")
    done = command_line(
        # The normal node of a tumor patient.
        *("run", "--level", 0, *cohort, "--storage", home / "storage", "--accept", "tumor_004_node_1"),
        *settings(*QUICK_TRAINING, "codec=png"),
        cwd=home,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return home, done


def load(path: Path):
    return pickle.loads(path.read_bytes())


def test_the_index_holds_the_89_true_patches_with_their_labels(finished, truth):
    index = load(finished[0] / "storage/level_0/index_level_0.pkl")
    assert {slide_id: sorted(map(tuple, e["patches"])) for slide_id, e in index.items()} == truth
    assert sum(len(entry["patches"]) for entry in index.values()) == 89


def test_an_index_entry_has_the_contracts_keys_in_plain_types(finished):
    for entry in load(finished[0] / "storage/level_0/index_level_0.pkl").values():
        assert set(entry) >= ENTRY_KEYS
        assert entry["magnification"] == 40.0
        assert entry["mpp"] == pytest.approx(0.243, rel=1e-4)
        assert len(entry["patches"]) == len(entry["tissue_fraction"]) == len(entry["tumor_fraction"])
        assert len(entry["visualisation_coords"]) == len(entry["patches"])
        assert {type(value) for patch in entry["patches"] for value in patch} == {int, bool}


def test_the_patient_is_the_id_without_its_node(finished):
    labels = {entry["label"] for entry in load(finished[0] / "storage/level_0/index_level_0.pkl").values()}
    assert labels == {"tumor_001", "tumor_004", "tumor_064", "test_073"}


def test_the_sampled_index_keeps_every_tumor_patch_and_every_test_patch(finished, truth):
    sampled = load(finished[0] / "storage/level_0/index_level_0_sampled.pkl")
    tumor = sum(patch[2] for entry in sampled.values() for patch in entry["patches"])
    assert tumor == sum(patch[2] for patches in truth.values() for patch in patches) == 44
    for slide_id, entry in sampled.items():
        if "test" in slide_id:
            assert sorted(map(tuple, entry["patches"])) == truth[slide_id]


def test_training_leaves_checkpoints_and_the_loss_curve(finished):
    level = finished[0] / "storage/level_0"
    assert {file.name for file in (level / "checkpoints").iterdir()} == {
        "best.pt",
        "best.json",
        "ckpt_epoch_1.pt",
    }
    rows = list(csv.reader((level / "epoch_losses.csv").open()))
    assert rows[0] == ["epoch", "train_loss", "train_acc", "val_loss", "val_acc"]
    assert [row[0] for row in rows[1:]] == ["1"]
    assert not (level / "training_in_progress").exists()


def test_the_best_checkpoint_is_weights_alone_and_the_file_beside_it_says_of_what(finished):
    import torch

    checkpoints = finished[0] / "storage/level_0/checkpoints"
    best = torch.load(checkpoints / "best.pt", weights_only=True)
    assert all(isinstance(value, torch.Tensor) for value in best.values())
    card = json.loads((checkpoints / "best.json").read_text())
    assert (card["model"]["name"], card["patch_size"], card["level"]) == ("resnet10t", 256, 0)


def test_predictions_follow_the_order_of_the_patches(finished, truth):
    predictions = load(finished[0] / "storage/level_0/slide_index_test.pkl")
    assert set(predictions) == {"test_073_node_1", "test_073_node_2"}
    for slide_id, entry in predictions.items():
        assert [tuple(patch) for patch in entry["patches"]] == truth[slide_id]
        assert len(entry["probs"]) == len(entry["preds"]) == len(entry["patches"])
        assert [int(prob >= 0.5) for prob in entry["probs"]] == entry["preds"]


def test_the_training_is_in_mlflow_with_level_and_run_id(finished):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{finished[0]}/storage/mlflow.db")
    experiment = client.get_experiment_by_name("wsi_assets")
    (run,) = client.search_runs([experiment.experiment_id], "tags.level = '0'")
    assert run.info.status == "FINISHED"
    assert run.data.tags["level"] == "0"
    assert run.data.tags["dagster_run_id"]
    assert run.data.params["max_epochs"] == "1"
    assert {"train_loss", "val_loss", "val_acc", "test_roc_auc"} <= set(run.data.metrics)
    assert {"best.pt", "epoch_losses.csv"} <= {file.path for file in client.list_artifacts(run.info.run_id)}


def test_the_report_is_there_and_the_terminal_says_where(finished):
    home, done = finished
    assert (home / "storage/level_0/report/report.html").stat().st_size > 10_000
    assert str(home / "storage/level_0/report/report.html") in done.stdout


def test_the_same_command_again_does_no_work_and_says_so(finished, command_line, cohort):
    home = finished[0]
    files = {path: path.stat().st_mtime_ns for path in (home / "storage/level_0").rglob("*")}
    again = command_line(
        *("run", "--level", 0, *cohort, "--storage", home / "storage"),
        *settings(*QUICK_TRAINING, "codec=png"),
        cwd=home,
    )
    assert again.returncode == 0
    assert "nothing to do, everything is up to date" in again.stdout
    assert {path: path.stat().st_mtime_ns for path in (home / "storage/level_0").rglob("*")} == files


@pytest.fixture(scope="module")
def stores(finished, command_line, cohort, tmp_path_factory):
    """The three stores of the same patches, losslessly coded."""
    home = finished[0]
    found = {"lmdb": open_store(home / "storage/level_0/patches_lmdb")}
    for backend, name in (("hdf5", "patches.h5"), ("fs", "image_patches")):
        other = tmp_path_factory.mktemp(backend)
        done = command_line(
            *("run", "--level", 0, "--upto", "patch_store", *cohort, "--storage", other / "storage"),
            *("--set", f"patch_store.backend={backend}"),
            cwd=other,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        found[backend] = open_store(other / "storage/level_0" / name)
    return found


def test_three_stores_hold_the_same_keys_labels_and_pixels(stores):
    lmdb = stores["lmdb"]
    assert len(lmdb) == 89
    for other in (stores["hdf5"], stores["fs"]):
        assert list(other.keys) == list(lmdb.keys)
        np.testing.assert_array_equal(other.labels, lmdb.labels)
        for position in range(len(lmdb)):
            np.testing.assert_array_equal(other.get(position), lmdb.get(position))


def test_the_pixels_are_the_slides_own(stores, real_data):
    import openslide

    store = stores["lmdb"]
    slides = {}
    for position, (slide_id, y, x) in enumerate(store.origins):
        slide = slides.setdefault(
            slide_id, openslide.OpenSlide(real_data / "cohort" / "images" / f"{slide_id}.tif")
        )
        pixels = np.asarray(slide.read_region((int(x), int(y)), 0, (256, 256)))[..., :3]
        np.testing.assert_array_equal(store.get(position), pixels)


def test_level_1_with_half_the_patch_size_is_the_same_89_patches(command_line, cohort, truth, tmp_path):
    done = command_line(
        *("run", "--level", 1, "--upto", "patch_store", *cohort, "--storage", tmp_path / "storage"),
        *settings("patch_size=128"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    index = load(tmp_path / "storage/level_1/index_level_1.pkl")
    halved = {slide: [(y // 2, x // 2, t) for y, x, t in patches] for slide, patches in truth.items()}
    assert {slide_id: sorted(map(tuple, e["patches"])) for slide_id, e in index.items()} == halved
    assert {entry["magnification"] for entry in index.values()} == {20.0}


def test_the_verify_command_finds_every_patch_where_the_index_says(finished, command_line, cohort):
    done = command_line(
        *("verify", "--level", 0, "--fraction", 1, *cohort, "--storage", finished[0] / "storage"),
        cwd=finished[0],
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "89 of 89 patches read again, 0 differ" in done.stdout


def test_the_four_commands_give_the_index_keys_labels_and_pixels_of_the_assets(finished, real_data, tmp_path):
    level = finished[0] / "storage/level_0"
    for name in ("images", "annotations"):
        (tmp_path / name).symlink_to(real_data / "cohort" / name)
    done("build_index", "--target_level", 0, cwd=tmp_path)
    built, made = load(tmp_path / "index_level_0.pkl"), load(level / "index_level_0.pkl")
    assert list(built) == list(made)
    for slide_id, entry in made.items():
        same = set(entry) - {"slide_path", "annotation_path"}  # the folders differ
        assert {key: built[slide_id][key] for key in same} == {key: entry[key] for key in same}
    sampled = ("--index_file", level / "index_level_0_sampled.pkl")
    done("save_patches", *sampled, "--codec", "png", cwd=tmp_path)
    with open_store(tmp_path / "patches_lmdb") as saved, open_store(level / "patches_lmdb") as stored:
        assert saved.keys == stored.keys
        assert saved.labels.tolist() == stored.labels.tolist()
        assert all(np.array_equal(saved.get(i), stored.get(i)) for i in range(len(stored)))


def test_a_program_written_from_the_specification_reads_what_the_assets_made(finished, tmp_path):
    level = finished[0] / "storage/level_0"
    # A copy: LMDB refuses to open one file twice in a process, and other tests here may have it open.
    shutil.copytree(level / "patches_lmdb", tmp_path / "patches_lmdb")
    seen = consumer.consume(level / "index_level_0_sampled.pkl", tmp_path / "patches_lmdb")
    assert seen["tumor"] == 44
    assert set(consumer.read_test_index(level / "slide_index_test.pkl")) == {
        "test_073_node_1",
        "test_073_node_2",
    }
