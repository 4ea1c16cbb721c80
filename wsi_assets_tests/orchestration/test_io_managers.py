"""IO managers: plain, one-partition and many-partition loads; nothing half-written; light handles."""

from __future__ import annotations

import pickle

import dagster as dg
import pytest

from wsi_assets.files import read_plain_pickle, write_plain_pickle
from wsi_assets.orchestration.io_managers.plain_pickle import LazyPickles, PlainPickleIOManager
from wsi_assets.orchestration.partitions import EVERY_PARTITION, LEVELS, SLIDES


@pytest.fixture
def instance():
    with dg.DagsterInstance.ephemeral() as ephemeral:
        yield ephemeral


def run(instance, tmp_path, *assets, partition=None):
    return dg.materialize(
        list(assets),
        instance=instance,
        partition_key=partition,
        resources={"io_manager": PlainPickleIOManager(storage_dir=str(tmp_path))},
        raise_on_error=False,
    )


def test_an_asset_without_partitions_round_trips(instance, tmp_path):
    @dg.asset
    def numbers():
        return [1, 2, 3]

    seen = []

    @dg.asset
    def doubled(numbers):
        seen.extend(numbers)

    assert run(instance, tmp_path, numbers, doubled).success
    assert seen == [1, 2, 3]
    assert (tmp_path / "numbers.pkl").is_file()


@dg.asset(partitions_def=SLIDES)
def regions(context):
    return {"slide": context.partition_key}


def test_a_slide_partition_loads_its_own_value(instance, tmp_path):
    seen = {}

    @dg.asset(partitions_def=SLIDES)
    def follower(context, regions):
        seen[context.partition_key] = regions

    instance.add_dynamic_partitions("slides", ["a b", "ü"])
    for slide in ("a b", "ü"):
        assert run(instance, tmp_path, regions, follower, partition=slide).success
    assert seen == {"a b": {"slide": "a b"}, "ü": {"slide": "ü"}}
    assert (tmp_path / "slides" / "ü" / "regions.pkl").is_file()


@pytest.mark.parametrize("slides", [[], ["only"], ["a", "b", "c"], ["3"]])
def test_a_level_takes_all_slides_as_a_mapping_however_many_there_are(instance, tmp_path, slides):
    seen = []

    @dg.asset(partitions_def=LEVELS, ins={"regions": dg.AssetIn(**EVERY_PARTITION)})
    def level(regions):
        seen.append({slide: value["slide"] for slide, value in regions.items()})

    instance.add_dynamic_partitions("slides", slides)
    for slide in slides:
        run(instance, tmp_path, regions, partition=slide)
    assert dg.materialize(
        [regions, level],
        selection=[level],
        instance=instance,
        partition_key="3",
        resources={"io_manager": PlainPickleIOManager(storage_dir=str(tmp_path))},
    ).success
    assert seen == [{slide: slide for slide in slides}]


def test_a_slide_without_a_file_is_missing_from_the_mapping_and_named(tmp_path):
    write_plain_pickle(tmp_path / "a.pkl", 1)
    mapping = LazyPickles({"a": tmp_path / "a.pkl", "b": tmp_path / "b.pkl"})
    assert dict(mapping) == {"a": 1}
    assert mapping.missing == ("b",)
    assert "b" not in mapping
    assert dict(pickle.loads(pickle.dumps(mapping))) == {"a": 1}


def test_metadata_says_where_how_large_and_how_many(instance, tmp_path):
    @dg.asset
    def numbers():
        return [1, 2, 3]

    result = run(instance, tmp_path, numbers)
    metadata = result.asset_materializations_for_node("numbers")[0].metadata
    assert metadata["path"].value == str(tmp_path / "numbers.pkl")
    assert metadata["size_bytes"].value == (tmp_path / "numbers.pkl").stat().st_size
    assert metadata["count"].value == 3


def test_a_value_that_is_not_plain_leaves_the_old_file(instance, tmp_path):
    values = [[1], [object()]]

    @dg.asset
    def numbers():
        return values.pop(0)

    assert run(instance, tmp_path, numbers).success
    assert not run(instance, tmp_path, numbers).success
    assert read_plain_pickle(tmp_path / "numbers.pkl") == [1]


def test_a_pickle_that_names_a_class_fails_the_run_with_one_line(instance, tmp_path):
    @dg.asset
    def numbers():
        return [1]

    @dg.asset
    def reader(numbers):
        raise AssertionError("must not be reached")

    run(instance, tmp_path, numbers)
    (tmp_path / "numbers.pkl").write_bytes(pickle.dumps(PlainPickleIOManager))
    result = dg.materialize(
        [numbers, reader],
        selection=[reader],
        instance=instance,
        resources={"io_manager": PlainPickleIOManager(storage_dir=str(tmp_path))},
        raise_on_error=False,
    )
    failure = next(event for event in result.all_events if event.is_step_failure)
    assert "it names" in failure.step_failure_data.user_failure_data.description
