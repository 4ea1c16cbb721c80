"""What an instance recorded comes back as it was told."""

from __future__ import annotations

import gc

import dagster as dg
import pytest

from wsi_assets.orchestration import lineage
from wsi_assets.orchestration.lineage import DATA_VERSION_TAG, recorded, recorded_metadata
from wsi_assets.orchestration.partitions import LEVELS
from wsi_assets.orchestration.reporting import table


@pytest.fixture
def instance():
    with dg.DagsterInstance.ephemeral() as ephemeral:
        yield ephemeral


def tell(instance, partition, version, **metadata):
    instance.report_runless_asset_event(
        dg.AssetMaterialization(
            "slide_index", partition=partition, metadata=metadata, tags={DATA_VERSION_TAG: version}
        )
    )


def test_the_latest_materialization_of_each_partition_counts(instance):
    for partition, version in (("0", "old"), ("1", "one"), ("0", "new")):
        tell(instance, partition, version)
    found = recorded(instance, "slide_index", LEVELS.get_partition_keys())
    assert {partition: record.version for partition, record in found.items()} == {"0": "new", "1": "one"}


def test_records_are_read_a_few_at_a_time_and_let_go(instance, monkeypatch):
    monkeypatch.setattr(lineage, "PARTITIONS_A_QUERY", 10)
    monkeypatch.setattr(lineage, "RECORDS_A_PAGE", 4)
    slides = [f"slide_{number:02d}" for number in range(33)]
    for turn in range(3):
        for number, slide_id in enumerate(slides[:-1]):
            if number % 3 >= turn:
                tell(instance, slide_id, str(turn))
    read, held = instance.fetch_materializations, []

    def alive() -> int:
        return sum(isinstance(thing, dg.EventLogRecord) for thing in gc.get_objects())

    def counted(*args, **kwargs):
        held.append(alive())
        return read(*args, **kwargs)

    of_others = alive()
    monkeypatch.setattr(instance, "fetch_materializations", counted)
    found = recorded(instance, "slide_index", slides)
    assert {slide_id: int(latest.version) for slide_id, latest in found.items()} == {
        slide_id: number % 3 for number, slide_id in enumerate(slides[:-1])
    }
    assert len(held) > 8
    assert max(held) <= of_others + 4


def test_a_table_comes_back_as_rows_in_its_own_column_order(instance):
    rows = [{"slide": "a", "patches": 3, "share": 0.5}, {"slide": "b", "patches": 0, "share": None}]
    tell(instance, "4", "v", counts=table(rows), note="text", number=2.5)
    metadata = recorded_metadata(instance, "slide_index", "4")
    assert metadata["counts"] == rows
    assert list(metadata["counts"][0]) == ["slide", "patches", "share"]
    assert (metadata["note"], metadata["number"]) == ("text", 2.5)
    assert recorded_metadata(instance, "slide_index", "5") == {}


def test_the_last_learning_rates_of_a_training_are_not_shown_as_zero():
    (record,) = table([{"lr": 1.23456e-05, "val_loss": 0.123456}]).records
    assert record.data == {"lr": 1.235e-05, "val_loss": 0.1235}
