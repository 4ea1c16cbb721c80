"""Patch stores, models and reports through their IO managers: plain, one level, many levels."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path

import cv2
import dagster as dg
import numpy as np
import pytest

from wsi_assets.orchestration.io_managers.models import ModelIOManager
from wsi_assets.orchestration.io_managers.patch_stores import (
    Hdf5IOManager,
    LmdbIOManager,
    PatchStoreIOManager,
    PngFolderIOManager,
)
from wsi_assets.orchestration.io_managers.reports import Report, ReportIOManager
from wsi_assets.orchestration.partitions import EVERY_PARTITION, LEVELS
from wsi_assets.patches import STORE_NAMES, ExtractionOptions, plan_patches

BACKENDS = {"lmdb": LmdbIOManager, "hdf5": Hdf5IOManager, "fs": PngFolderIOManager}
SIZE = 32
PNG = cv2.imencode(".png", np.zeros((2, 2, 3), np.uint8))[1].tobytes()


@pytest.fixture
def instance():
    with dg.DagsterInstance.ephemeral() as ephemeral:
        yield ephemeral


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    """Four patches of a small tiled TIFF: quarters of one colour each."""
    import tifffile

    path = tmp_path_factory.mktemp("slide") / "slide_1.tif"
    pixels = np.zeros((2 * SIZE, 2 * SIZE, 3), np.uint8)
    corners = [(y, x) for y in (0, SIZE) for x in (0, SIZE)]
    for place, (y, x) in enumerate(corners):
        pixels[y : y + SIZE, x : x + SIZE] = (60 * place + 20, 90, 200 - 40 * place)
    tifffile.imwrite(path, pixels, tile=(SIZE, SIZE), photometric="rgb", compression="deflate")
    from wsi_assets.slides import fingerprint

    entry = {
        "slide_path": str(path),
        "label": "slide_1",
        "annotation_path": None,
        "level": 0,
        "patches": [(y, x, place % 2) for place, (y, x) in enumerate(corners)],
        "patch_size": SIZE,
        "stride": SIZE,
        "downsample": 1.0,
        "mpp": None,
        "magnification": 40.0,
        "fingerprint": fingerprint(path),
    }
    return plan_patches({"slide_1": entry}, ExtractionOptions(codec="png", extraction_workers=1))


def materialize(instance, assets, manager, partition=None, selection=None):
    result = dg.materialize(
        assets,
        instance=instance,
        partition_key=partition,
        selection=selection,
        resources={"io_manager": manager, "out": dg.mem_io_manager},
        raise_on_error=False,
    )
    assert result.success
    return result


def described(store):
    return len(store), store.labels.tolist(), [tuple(map(int, store.get(i)[0, 0])) for i in range(len(store))]


EXPECTED = (4, [0, 1, 0, 1], [(20, 90, 200), (80, 90, 160), (140, 90, 120), (200, 90, 80)])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("level", [None, "4"])
def test_a_plan_becomes_a_store_and_loads_as_one_whatever_the_reader_is_set_to(
    instance, tmp_path, plan, backend, level
):
    partitions = None if level is None else LEVELS
    seen = []

    @dg.asset(partitions_def=partitions)
    def patch_store():
        return plan

    @dg.asset(partitions_def=partitions, io_manager_key="out")
    def reader(patch_store):
        seen.append(described(pickle.loads(pickle.dumps(patch_store))))

    manager = BACKENDS[backend](storage_dir=str(tmp_path))
    result = materialize(instance, [patch_store], manager, level)
    metadata = result.asset_materializations_for_node("patch_store")[0].metadata
    folder = tmp_path / ("patch_store" if level is None else "level_4")
    assert metadata["path"].value == str(folder / STORE_NAMES[backend])
    assert metadata["count"].value == 4
    assert metadata["size_bytes"].value > 0
    other = PatchStoreIOManager(storage_dir=str(tmp_path), backend="lmdb")
    materialize(instance, [patch_store, reader], other, level, selection=[reader])
    assert seen == [EXPECTED]


def test_many_levels_load_as_a_mapping_of_those_that_were_made(instance, tmp_path, plan):
    seen = []

    @dg.asset(partitions_def=LEVELS)
    def patch_store():
        return plan

    @dg.asset(ins={"patch_store": dg.AssetIn(**EVERY_PARTITION)}, io_manager_key="out")
    def overview(patch_store):
        seen.append({level: len(store) for level, store in patch_store.items()})

    manager = PatchStoreIOManager(storage_dir=str(tmp_path))
    for level in ("0", "3"):
        materialize(instance, [patch_store], manager, level)
    materialize(instance, [patch_store, overview], manager, selection=[overview])
    assert seen == [{"0": 4, "3": 4}]


def test_a_change_of_backend_names_the_store_it_leaves_behind(instance, tmp_path, plan):
    @dg.asset(partitions_def=LEVELS)
    def patch_store():
        return plan

    materialize(instance, [patch_store], LmdbIOManager(storage_dir=str(tmp_path)), "0")
    result = materialize(instance, [patch_store], Hdf5IOManager(storage_dir=str(tmp_path)), "0")
    metadata = result.asset_materializations_for_node("patch_store")[0].metadata
    assert metadata["older_stores_of_other_backends"].value == ["patches_lmdb"]


@dataclass
class Trained:
    """What the model's IO manager needs of a training result."""

    best_path: Path


def trained_in(folder: Path) -> Trained:
    (folder / "checkpoints").mkdir(parents=True)
    for name in ("best.pt", "ckpt_epoch_5.pt"):
        (folder / "checkpoints" / name).write_text(name)
    (folder / "epoch_losses.csv").write_text("epoch,train_loss,train_acc,val_loss,val_acc\n")
    return Trained(folder / "checkpoints" / "best.pt")


@pytest.mark.parametrize("level", [None, "2"])
def test_a_model_is_put_in_place_when_it_is_whole_and_loads_as_a_path(instance, tmp_path, level):
    partitions = None if level is None else LEVELS
    seen = []

    @dg.asset(partitions_def=partitions)
    def trained_model():
        return trained_in(tmp_path / "in_progress")

    @dg.asset(partitions_def=partitions, io_manager_key="out")
    def reader(trained_model):
        seen.append(trained_model)

    materialize(instance, [trained_model, reader], ModelIOManager(storage_dir=str(tmp_path)), level)
    folder = tmp_path / ("trained_model" if level is None else "level_2")
    assert seen == [folder / "checkpoints" / "best.pt"]
    assert seen[0].read_text() == "best.pt"
    assert (folder / "checkpoints" / "ckpt_epoch_5.pt").is_file()
    assert (folder / "epoch_losses.csv").is_file()
    assert not (tmp_path / "in_progress").exists()


def test_a_report_is_published_whole_and_many_levels_load_as_a_mapping(instance, tmp_path):
    seen = []

    @dg.asset(partitions_def=LEVELS)
    def evaluation():
        def write(folder: Path) -> Path:
            (folder / "report.html").write_text("<p>report")
            (folder / "slide.png").write_bytes(PNG)
            return folder / "report.html"

        return Report(write, {"heatmap_slide": "slide.png", "heatmap_other": "other.png"})

    @dg.asset(ins={"evaluation": dg.AssetIn(**EVERY_PARTITION)}, io_manager_key="out")
    def overview(evaluation):
        seen.append({level: folder.name for level, folder in evaluation.items()})

    manager = ReportIOManager(storage_dir=str(tmp_path))
    result = materialize(instance, [evaluation], manager, "1")
    metadata = result.asset_materializations_for_node("evaluation")[0].metadata
    assert metadata["path"].value == str(tmp_path / "level_1" / "report" / "report.html")
    assert metadata["count"].value == 2
    assert metadata["heatmap_slide"].value.startswith("![heatmap_slide](data:image/png;base64,")
    assert "heatmap_other" not in metadata
    materialize(instance, [evaluation, overview], manager, selection=[overview])
    assert seen == [{"1": "report"}]
