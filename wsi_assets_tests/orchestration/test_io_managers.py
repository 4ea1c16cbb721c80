"""The IO managers in small graphs of their own."""

import dagster as dg
import numpy as np
import pytest

from wsi_assets.files import read_plain_pickle
from wsi_assets.orchestration.io_managers import (
    Hdf5IOManager,
    LmdbIOManager,
    ModelIOManager,
    PickleIOManager,
    PngFolderIOManager,
    ReportIOManager,
)
from wsi_assets.orchestration.storage import Record, read_record

KEYS = dg.StaticPartitionsDefinition(["a", "b"])


@dg.asset(partitions_def=KEYS, io_manager_key="io")
def part(context: dg.AssetExecutionContext) -> dict:
    return {"key": context.partition_key}


@dg.asset(ins={"part": dg.AssetIn(partition_mapping=dg.AllPartitionMapping())}, io_manager_key="io")
def whole(part: dict) -> list:
    return [part[key]["key"] for key in part]


@dg.asset(partitions_def=KEYS, io_manager_key="io")
def again(part: dict) -> str:
    return part["key"] * 2


def run(tmp_path, io, *assets, **options):
    options.setdefault("selection", list(assets))
    return dg.materialize([part, whole, again], resources={"io": io(storage_dir=str(tmp_path))}, **options)


@pytest.mark.parametrize("made", [["a"], ["a", "b"]])
def test_several_partitions_load_as_a_mapping_even_if_there_is_one(tmp_path, made):
    for key in made:
        run(tmp_path, PickleIOManager, part, partition_key=key)
        run(tmp_path, PickleIOManager, again, partition_key=key)
        assert read_plain_pickle(tmp_path / "again" / key) == key * 2
    run(tmp_path, PickleIOManager, whole)
    assert read_plain_pickle(tmp_path / "whole") == made


def test_the_path_template_is_used_and_provenance_is_written_beside_the_artefact(tmp_path):
    record = {"asset": "x", "partition": None, "code_version": "1", "parameters": {}, "inputs": {}}
    record |= {"recipe": "r", "version": "v", "facts": {"n": 1}, "run_id": None}

    @dg.asset(metadata={"path_template": "deep/x.pkl"})
    def x():
        return dg.MaterializeResult(value=[1], metadata={"provenance": dg.MetadataValue.json(record)})

    dg.materialize([x], resources={"io_manager": PickleIOManager(storage_dir=str(tmp_path))})
    assert read_plain_pickle(tmp_path / "deep" / "x.pkl") == [1]
    assert read_record(tmp_path / "deep" / "x.pkl.provenance.json") == Record(**record)


def test_the_old_record_is_removed_before_an_artefact_is_replaced(tmp_path):
    manager = PickleIOManager(storage_dir=str(tmp_path))
    path = tmp_path / "x.pkl"
    manager.publish(path, [1], {"asset": "x"})
    with pytest.raises(TypeError):
        manager.publish(path, [object()], {"asset": "x"})
    assert not path.with_name("x.pkl.provenance.json").exists(), "a kill in between leaves it unmade"


def test_a_pickle_that_names_a_class_is_refused_in_one_line(tmp_path):
    import pickle

    run(tmp_path, PickleIOManager, part, partition_key="a")
    (tmp_path / "part" / "a").write_bytes(pickle.dumps(run))
    result = run(tmp_path, PickleIOManager, again, partition_key="a", raise_on_error=False)
    (failed,) = [event for event in result.all_events if event.is_step_failure]
    assert "\n" not in failed.step_failure_data.user_failure_data.description


def test_a_model_is_published_and_its_training_folder_removed(tmp_path):
    training = tmp_path / "training"
    (training / "checkpoints").mkdir(parents=True)
    for name in ("best.pt", "best.json", "resume.tmp"):
        (training / "checkpoints" / name).write_text(name)
    (training / "epoch_losses.csv").write_text("epoch\n")
    manager = ModelIOManager(storage_dir=str(tmp_path))
    manager.publish(tmp_path / "level_1" / "checkpoints", training, None)
    assert manager.load(tmp_path / "level_1" / "checkpoints").read_text() == "best.pt"
    assert sorted(p.name for p in (tmp_path / "level_1" / "checkpoints").iterdir()) == [
        "best.json",
        "best.pt",
    ]
    assert (tmp_path / "level_1" / "epoch_losses.csv").exists()
    assert not training.exists()


def test_a_report_replaces_the_old_one(tmp_path):
    manager, target = ReportIOManager(storage_dir=str(tmp_path)), tmp_path / "report"
    for text in ("old", "new"):
        pages = tmp_path / "in_progress"
        (pages / "plots").mkdir(parents=True)
        (pages / "report.html").write_text(text)
        (pages / "plots" / f"{text}.png").write_text(text)
        manager.publish(target, pages, None)
        assert not pages.exists()
    assert manager.load(target).joinpath("report.html").read_text() == "new"
    assert [file.name for file in (target / "plots").iterdir()] == ["new.png"]


@pytest.mark.parametrize("io_manager", [LmdbIOManager, Hdf5IOManager, PngFolderIOManager])
def test_triples_of_any_asset_are_stored_in_a_patch_store_and_read_back(tmp_path, io_manager):
    patches = [(f"slide_{n:06d}", np.full((16, 16, 3), 40 * n, np.uint8), n % 2) for n in range(4)]

    @dg.asset
    def patches_of_mine():
        return iter(patches)

    store_io = io_manager(storage_dir=str(tmp_path))
    assert dg.materialize([patches_of_mine], resources={"io_manager": store_io}).success
    with store_io.load(tmp_path / "patches_of_mine") as store:
        assert list(store.labels) == [0, 1, 0, 1]
        assert [round(store.get(position).mean()) for position in range(4)] == [0, 40, 80, 120]
