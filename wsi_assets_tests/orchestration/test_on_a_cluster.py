"""The asset graph on a Dask cluster: same artefacts as on one machine, and one line for each fault."""

from __future__ import annotations

from pathlib import Path

import dagster as dg
import pytest
from distributed import LocalCluster

from wsi_assets.orchestration.build import build_definitions
from wsi_assets.orchestration.partitions import LEVELS, SLIDES
from wsi_assets.orchestration.settings import Settings
from wsi_assets_tests.patches.made import texture, write_slide

ANNOTATION = """<ASAP_Annotations><Annotations><Annotation Name="t" Type="Polygon" PartOfGroup="Tumor">
<Coordinates>
<Coordinate Order="0" X="0" Y="0"/><Coordinate Order="1" X="700" Y="0"/><Coordinate Order="2" X="0" Y="700"/>
</Coordinates></Annotation></Annotations></ASAP_Annotations>"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """A folder of two slides and a file that is not a slide, and one annotation."""
    home = tmp_path_factory.mktemp("home")
    for seed, name in enumerate(("normal_001", "tumor_001")):
        write_slide(home / "images" / f"{name}.tif", texture(1024, 1024, seed=seed), levels=3)
    (home / "images" / "broken_001.tif").write_bytes(b"no slide")
    (home / "annotations").mkdir()
    (home / "annotations" / "tumor_001.xml").write_text(ANNOTATION)
    return home


@pytest.fixture(scope="module")
def scheduler():
    size = {"n_workers": 2, "threads_per_worker": 1, "memory_limit": "1GB"}
    with LocalCluster(**size, dashboard_address=":0") as cluster:
        yield cluster.scheduler_address


def materialize(settings: Settings, instance: dg.DagsterInstance, assets: list[str], **run) -> list[str]:
    """Run assets of the graph; returns the messages of failed steps."""
    run["raise_on_error"] = False
    job = build_definitions(settings).resolve_implicit_global_asset_job_def()
    result = job.execute_in_process(
        instance=instance, asset_selection=[dg.AssetKey(asset) for asset in assets], **run
    )
    return [
        event.step_failure_data.user_failure_data.description
        for event in result.all_events
        if event.is_step_failure
    ]


def slides_from(first: str) -> dict[str, str]:
    """Tags of a run of all slides from ``first`` on."""
    return {
        "dagster/asset_partition_range_start": first,
        "dagster/asset_partition_range_end": "tumor_001",
    }


def artefacts(home: Path, storage: str, scheduler: str | None) -> tuple[dict[str, bytes], list[str]]:
    """Make slides, index and store; returns file -> contents, and the messages of failed steps."""
    settings = Settings(home / "images", home / "annotations", home / storage, scheduler=scheduler)
    with dg.instance_for_test() as instance:
        instance.add_dynamic_partitions(SLIDES.name, ["broken_001", "normal_001", "tumor_001"])
        instance.add_dynamic_partitions(LEVELS.name, ["0"])
        faults = materialize(settings, instance, ["tissue_regions"], tags=slides_from("broken_001"))
        faults += materialize(settings, instance, ["annotation_regions"], tags=slides_from("normal_001"))
        level = ["slide_index", "sampled_index", "patch_store"]
        faults += materialize(settings, instance, level, partition_key="0")
    left_out = (".lock", ".parameters", ".json")  # locks, and records of which run made what
    files = [f for f in (home / storage).rglob("*") if f.is_file() and not any(n in f.name for n in left_out)]
    return {str(file.relative_to(home / storage)): file.read_bytes() for file in files}, faults


def test_artefacts_are_the_same_on_a_cluster_and_a_bad_slide_fails_alone(folders, scheduler):
    here, faults_here = artefacts(folders, "here", None)
    there, faults_there = artefacts(folders, "there", scheduler)
    assert {"slides/tumor_001/overlay.jpg", "level_0/patches_lmdb/data.mdb"} < set(here)
    assert {name for name in here if here[name] != there.get(name)} == set()
    assert set(here) == set(there)
    for faults in (faults_here, faults_there):
        (fault,) = faults
        assert fault.startswith("1 of 3 slides failed")
        assert "broken_001.tif" in fault


def test_an_unreachable_scheduler_fails_the_run_with_one_line(folders, monkeypatch):
    monkeypatch.setattr("wsi_assets.patches.dask_executor._CONNECT_SECONDS", 0.3)
    home = folders
    settings = Settings(home / "images", home / "annotations", home / "none", scheduler="tcp://127.0.0.1:1")
    with dg.instance_for_test() as instance:
        instance.add_dynamic_partitions(SLIDES.name, ["tumor_001"])
        (fault,) = materialize(settings, instance, ["tissue_regions"], partition_key="tumor_001")
    assert fault.startswith("no Dask scheduler answers at tcp://127.0.0.1:1")
    assert "\n" not in fault


def test_the_scheduler_is_read_from_the_environment_and_written_to_it():
    given = Settings.from_environment({"WSI_SCHEDULER": "tcp://head:8786"}, Path("/home"))
    assert given.scheduler == "tcp://head:8786"
    assert Settings.from_environment(given.to_environment(), Path("/elsewhere")) == given
    assert Settings.from_environment({"WSI_SCHEDULER": ""}, Path("/home")).scheduler is None
