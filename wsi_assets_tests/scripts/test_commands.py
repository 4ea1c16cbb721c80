"""The four commands and the assets make files that a program written from the specification reads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from wsi_assets.index import build_slide_index, load_index, save_index
from wsi_assets.patches import open_store, verify_store
from wsi_assets_tests.annotations.files import SQUARE, annotation, asap
from wsi_assets_tests.scripts import consumer
from wsi_assets_tests.slides.made import picture, write_pyramid

SMALL = (
    *("--weights", "none", "--max_epochs", "1", "--batch_size", "16", "--num_workers", "1"),
    *("--use_augmentation", "false"),
)
"""Arguments of a training that is over in seconds."""


def command(name: str, *arguments: object, cwd: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", f"wsi_assets.scripts.{name}", *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


def done(name: str, *arguments: object, cwd: Path) -> str:
    result = command(name, *arguments, cwd=cwd)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def folder(real_data, tmp_path_factory):
    """A folder in which the four commands have run on the real cohort at level 0."""
    home = tmp_path_factory.mktemp("commands")
    for name in ("images", "annotations"):
        (home / name).symlink_to(real_data / "cohort" / name)
    done("build_index", "--target_level", 0, 1, cwd=home)
    done("build_sampled_index", "--index_file", "index_level_0.pkl", cwd=home)
    done("save_patches", "--index_file", "index_level_0.pkl", "--codec", "png", cwd=home)
    done("train", "--index_path", "index_level_0.pkl", "--lmdb_path", "patches_lmdb", *SMALL, cwd=home)
    return home


def test_the_commands_leave_their_files_where_the_specification_has_them(folder):
    for name in (
        *("index_level_0.pkl", "index_level_1.pkl", "index_level_0_sampled.pkl", "patches_lmdb/data.mdb"),
        *("checkpoints/best.pt", "epoch_losses.csv", "slide_index_test.pkl"),
    ):
        assert (folder / name).is_file(), name
    assert (folder / "epoch_losses.csv").read_text().split("\n")[0] == (
        "epoch,train_loss,train_acc,val_loss,val_acc"
    )


def test_the_index_holds_the_true_patches_and_labels(folder, real_data):
    truth = json.loads((real_data / "cohort" / "truth.json").read_text())
    index = load_index(folder / "index_level_0.pkl")
    assert {slide_id: [[*patch] for patch in entry["patches"]] for slide_id, entry in index.items()} == truth


def test_a_program_written_from_the_specification_runs_on_what_the_commands_made(folder):
    seen = consumer.consume(folder / "index_level_0.pkl", folder / "patches_lmdb")
    assert (seen["patches"], seen["tumor"]) == (89, 44)
    model = consumer.load_model(folder / "checkpoints" / "best.pt")
    assert model.fc.out_features == 2
    results = consumer.read_test_index(folder / "slide_index_test.pkl")
    assert set(results) == {"test_073_node_1", "test_073_node_2"}
    assert all(0 <= prob <= 1 for probs, _ in results.values() for prob in probs)


def test_an_index_of_a_magnification_and_of_its_pixel_size_are_one(real_data, tmp_path):
    targets = ("--target_mag", 20, "--target_mpp", 0.5, "--patch_size", 128, "--out_dir", tmp_path)
    done("build_index", *targets, cwd=real_data / "cohort")
    one, other = (load_index(tmp_path / f"index_{name}.pkl") for name in ("20x", "0.5um"))
    assert {slide_id: entry["patches"] for slide_id, entry in one.items()} == {
        slide_id: entry["patches"] for slide_id, entry in other.items()
    }
    assert [entry["mpp"] for entry in one.values()] == pytest.approx([0.5] * len(one))
    done("save_patches", "--index_file", "index_20x.pkl", "--codec", "png", cwd=tmp_path)
    with open_store(tmp_path / "patches_lmdb") as store:
        assert len(store) == sum(len(entry["patches"]) for entry in one.values()) > 0
        assert verify_store(store, one, 1.0).ok


@pytest.mark.parametrize(
    ("backend", "path"), [("fs", "image_patches"), ("hdf5", "patches.h5"), ("lmdb", "patches_lmdb")]
)
def test_every_backend_holds_the_same_pixels_under_the_same_keys(folder, backend, path):
    done(
        "save_patches",
        "--index_file",
        "index_level_0.pkl",
        "--backend",
        backend,
        "--codec",
        "png",
        cwd=folder,
    )
    rows = consumer.keys_and_labels(load_index(folder / "index_level_0.pkl"))
    with open_store(folder / path) as store, open_store(folder / "patches_lmdb") as reference:
        assert store.keys == [key for _, key, _ in rows]
        assert store.labels.tolist() == [label for _, _, label in rows]
        for i in range(0, len(store), 11):
            assert np.array_equal(store.get(i), reference.get(i))
    if backend == "fs":
        found = {file.stem: file.parent.name for file in (folder / path).glob("*/*.png")}
        assert found == {key: "tumor" if label else "normal" for _, key, label in rows}


def test_the_commands_run_on_files_that_another_program_made(tmp_path):
    rng = np.random.default_rng(3)
    slides = {
        slide_id: [
            (np.clip(rng.normal(200 - 90 * label, 20, (64, 64, 3)), 0, 255).astype(np.uint8), label)
            for label in [True] * tumor + [False] * normal
        ]
        for slide_id, tumor, normal in (
            *(("p1_node_1", 4, 20), ("p2_node_1", 4, 20), ("p3_node_1", 3, 20)),
            *(("p4_node_1", 3, 20), ("test_001", 3, 9)),
        )
    }
    index, lmdb_path = consumer.produce(tmp_path, slides)
    done("build_sampled_index", "--index_file", index, "--normal_per_tumor", 2, cwd=tmp_path)
    sampled = load_index(tmp_path / "index_level_0_sampled.pkl").values()
    assert not any("split" in entry for entry in sampled)
    # All tumor patches of the training slides, twice as many normal ones, and the whole test slide.
    assert sum(len(entry["patches"]) for entry in sampled) == 14 + 28 + 12
    done("train", "--index_path", index, "--lmdb_path", lmdb_path, *SMALL, cwd=tmp_path)
    consumer.load_model(tmp_path / "checkpoints" / "best.pt")
    assert set(consumer.read_test_index(tmp_path / "slide_index_test.pkl")) == {"test_001"}


def test_patches_of_an_index_without_our_keys_are_extracted(folder, tmp_path):
    keys = {"slide_path", "label", "annotation_path", "level", "work_level", "magnification", "patches"}
    index = load_index(folder / "index_level_0.pkl")
    foreign = {slide_id: {key: entry[key] for key in keys} for slide_id, entry in index.items()}
    save_index(tmp_path / "index.pkl", foreign)
    done("save_patches", "--index_file", "index.pkl", "--codec", "png", cwd=tmp_path)
    with open_store(tmp_path / "patches_lmdb") as store, open_store(folder / "patches_lmdb") as reference:
        assert store.keys == reference.keys
        assert np.array_equal(store.get(17), reference.get(17))


def test_an_index_is_built_from_a_notebook_in_one_call(real_data):
    index = build_slide_index(real_data / "cohort" / "images", real_data / "cohort" / "annotations", 7, 0)
    assert sum(len(entry["patches"]) for entry in index.values()) == 89
    with pytest.warns(UserWarning, match="smaller than a patch"):
        build_slide_index(real_data / "cohort" / "images", None, target_level=5)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("build_index", ["--images_dir", "nowhere"]),
        ("build_index", ["--images_dir", ".", "--annotations_dir", "none", "--patch_size", 0]),
        ("build_sampled_index", ["--index_file", "nowhere.pkl"]),
        ("build_sampled_index", ["--index_file", "list.pkl"]),
        ("save_patches", ["--index_file", "text.pkl"]),
        ("train", ["--index_path", "nowhere.pkl", "--lmdb_path", "nowhere"]),
    ],
)
def test_bad_input_is_one_line(tmp_path, name, arguments):
    (tmp_path / "text.pkl").write_text("not a pickle")
    save_index(tmp_path / "list.pkl", [{"slide_path": "a.tif", "patches": []}])
    failed = command(name, *arguments, cwd=tmp_path)
    assert failed.returncode == 1
    errors = [line for line in failed.stderr.split("\n") if line.startswith("error: ")]
    assert len(errors) == 1
    assert "Traceback" not in failed.stderr


def test_the_commands_load_no_orchestrator():
    for name in ("build_index", "build_sampled_index", "save_patches", "train"):
        code = f"import sys, wsi_assets.scripts.{name}; print({{'dagster', 'mlflow'}} & set(sys.modules))"
        loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert loaded.stdout.strip() == "set()"


def test_ignored_annotations_are_a_warning(tmp_path):
    for name in ("images", "annotations"):
        (tmp_path / name).mkdir()
    write_pyramid(tmp_path / "images/s.tif", [picture(512, 512)])
    asap(tmp_path / "annotations", [annotation(SQUARE), annotation(SQUARE, "Necrosis")]).rename(
        tmp_path / "annotations/s.xml"
    )
    result = command("build_index", "--level", 0, "--target_level", 0, cwd=tmp_path)
    assert "Necrosis" in result.stderr
