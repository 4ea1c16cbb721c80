"""The SQLite databases of the Dagster home that a command writes to."""

from __future__ import annotations

import dagster as dg
import psutil

from wsi_assets.orchestration.instance import open_instance
from wsi_assets.orchestration.partitions import SLIDES
from wsi_assets.orchestration.settings import Settings


def test_events_of_a_command_are_in_the_database_file_when_it_ends(tmp_path, monkeypatch):
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    with open_instance(Settings.from_environment({}, home=tmp_path)) as instance:
        instance.add_dynamic_partitions(SLIDES.name, ["tumor_001"])
    assert not [*tmp_path.rglob("*.db-wal"), *tmp_path.rglob("*.db-shm")]
    with dg.DagsterInstance.get() as again:
        assert again.get_dynamic_partitions(SLIDES.name) == ["tumor_001"]


def test_a_home_whose_creation_was_killed_is_finished_by_the_next_command(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    (tmp_path / "home/history/runs").mkdir(parents=True)
    (tmp_path / "home/history/runs/index.db").touch()  # as after the first moment of its creation
    with open_instance(Settings.from_environment({}, home=tmp_path)) as instance:
        instance.add_dynamic_partitions(SLIDES.name, ["tumor_001"])
        assert instance.get_dynamic_partitions(SLIDES.name) == ["tumor_001"]
    assert capfd.readouterr().err == ""


def test_two_commands_write_to_one_home_at_the_same_time(tmp_path, monkeypatch):
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    settings = Settings.from_environment({}, home=tmp_path)
    with open_instance(settings) as one, open_instance(settings) as other:
        one.add_dynamic_partitions(SLIDES.name, ["tumor_001"])
        other.add_dynamic_partitions(SLIDES.name, ["tumor_002"])
        assert set(one.get_dynamic_partitions(SLIDES.name)) == {"tumor_001", "tumor_002"}


def test_open_files_do_not_grow_with_the_runs_of_a_command(tmp_path, monkeypatch):
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    opened = []
    with open_instance(Settings.from_environment({}, home=tmp_path)) as instance:
        for _ in range(20):
            assert nothing.execute_in_process(instance=instance).success
            opened.append(psutil.Process().num_fds())
        assert len(instance.get_runs()) == 20
    assert opened[-1] <= opened[9]


@dg.job
def nothing():
    pass
