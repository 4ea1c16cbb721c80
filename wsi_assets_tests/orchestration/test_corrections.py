"""Corrections of annotations: what is stale and made again after one is added, on a real instance."""

from __future__ import annotations

import json

import dagster as dg
import pytest
import shapely
from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus
from dagster._core.loader import LoadingContextForTest
from shapely import box

from wsi_assets.annotations import TumorRegions
from wsi_assets.errors import ConfigError
from wsi_assets.files import read_plain_pickle
from wsi_assets.orchestration.asset_checks import Level, names_agree_with_annotations
from wsi_assets.orchestration.build import build_definitions
from wsi_assets.orchestration.cli_run import CommandLineRun
from wsi_assets.orchestration.config import ParameterSet
from wsi_assets.orchestration.resources import SlideFolderResource
from wsi_assets_tests.orchestration.conftest import QUICK, fault_of, write_cohort
from wsi_assets_tests.orchestration.test_pipeline import ANNOTATION, LEVEL, TISSUE, latest, see

MPP = 0.25
MADE = ("tissue_regions", "annotation_regions", "slide_index", "sampled_index")


def stale(graph) -> set[tuple[str, str]]:
    """(asset, partition) pairs that Dagster shows as stale."""
    assets = build_definitions(graph.settings).resolve_asset_graph()
    resolver = CachingStaleStatusResolver(graph.instance, assets, LoadingContextForTest(graph.instance))
    wanted = [(name, slide_id) for name in MADE[:2] for slide_id in graph.slides()]
    wanted += [(name, LEVEL) for name in MADE[2:]]
    return {one for one in wanted if resolver.get_status(dg.AssetKey(one[0]), one[1]) == StaleStatus.STALE}


def correct(graph, name: str, *features: tuple[str, shapely.Geometry]) -> None:
    folder = graph.home / "annotations" / "corrections"
    folder.mkdir(exist_ok=True)
    drawn = [
        {
            "type": "Feature",
            "geometry": json.loads(shapely.to_geojson(area)),
            "properties": {"objectType": "annotation", "classification": {"name": group}},
        }
        for group, area in features
    ]
    path = folder / f"{name}.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": drawn}))


def make_slides(graph, *assets: str) -> dg.ExecuteInProcessResult:
    see(graph)
    return graph.make(*assets, slides=(graph.slides()[0], graph.slides()[-1]))


def make_level(graph) -> None:
    names = ("slide_index", "sampled_index")
    assert graph.make(*names, partition=LEVEL, slide_index=QUICK["slide_index"]).success


def regions_of(graph, name: str) -> TumorRegions:
    return TumorRegions.from_plain(read_plain_pickle(graph.storage.artefact(ANNOTATION, name))["regions"])


def test_a_correction_makes_only_the_annotation_and_its_downstream_assets_stale(graph):
    write_cohort(graph.home)
    assert make_slides(graph, *MADE[:2]).success
    make_level(graph)
    assert stale(graph) == set()
    tissue = graph.storage.record(TISSUE, "tumor_001")
    before = regions_of(graph, "tumor_001").geometry.area
    correct(
        graph,
        "tumor_001",
        ("Tumor", box(150, 20, 170, 30)),
        ("Not tumor", box(10, 20, 30, 40)),
        ("Ignore*", box(100, 100, 110, 110)),
    )
    see(graph)
    assert stale(graph) == {("annotation_regions", "tumor_001")}, "Dagster goes one step at a time"
    planned = CommandLineRun(graph.instance, graph.settings, ParameterSet(QUICK)).plan(["0"], "sampled_index")
    named = [line.split(" of ")[0] for line in planned if " of " in line]
    assert named == ["annotation_regions", *MADE[2:]]
    assert graph.make("annotation_regions", partition="tumor_001").success
    assert stale(graph) == {("slide_index", LEVEL)}
    after = regions_of(graph, "tumor_001")
    assert after.geometry.area == before + 200 - 400 - 100
    assert graph.storage.record(TISSUE, "tumor_001") == tissue
    rows = graph.storage.record(ANNOTATION, "tumor_001").facts["audit"]
    changed = {row["role"]: (row["changed"], row["changed_um2"]) for row in rows}
    assert changed == {
        role: (area, round(area * MPP**2, 1))
        for role, area in (("tumor", 200), ("exclusion", 400), ("ignore", 100))
    }
    metadata = latest(graph, "annotation_regions", "tumor_001").metadata
    assert len(metadata["corrections"].records) == 3
    make_level(graph)
    assert stale(graph) == set()


def test_the_exported_annotation_read_as_a_correction_changes_nothing(graph):
    write_cohort(graph.home, ("normal_001", "tumor_001"))
    assert make_slides(graph, *MADE[:2]).success
    before = regions_of(graph, "tumor_001").geometry
    for name in graph.slides():
        exported = graph.storage.slide_folder(name) / "annotation.geojson"
        correct(graph, name)
        (graph.home / "annotations/corrections" / f"{name}.geojson").write_bytes(exported.read_bytes())
    assert make_slides(graph, "annotation_regions").success
    assert regions_of(graph, "tumor_001").geometry.equals(before)
    stored = read_plain_pickle(graph.storage.artefact(ANNOTATION, "normal_001"))
    assert stored["annotation_path"] is None, "corrected, and normal"
    assert graph.storage.record(ANNOTATION, "normal_001").facts["notices"] == []


def test_a_normal_slide_with_corrected_tumor_must_be_accepted_and_one_with_ignored_areas_need_not(graph):
    write_cohort(graph.home)
    correct(graph, "normal_001", ("Ignore*", box(0, 0, 40, 40)))
    run = CommandLineRun(graph.instance, graph.settings, ParameterSet({}))
    run.check_sides([0])
    assert make_slides(graph, *MADE[:2]).success
    make_level(graph)

    def named() -> tuple[bool, str]:
        level = Level(LEVEL, graph.storage, SlideFolderResource.of(graph.settings), graph.instance)
        level.record = lambda artefact: None  # of the patch store, which is not made here
        return names_agree_with_annotations(level)

    assert named()[0]
    correct(graph, "normal_001", ("Tumor", box(20, 20, 120, 120)))
    assert make_slides(graph, "annotation_regions").success
    make_level(graph)
    index = read_plain_pickle(graph.storage.level_folder(LEVEL) / "index_level_0.pkl")
    assert index["normal_001"]["annotation_path"].endswith("corrections/normal_001.geojson")
    assert any(patch[2] for patch in index["normal_001"]["patches"])
    passed, text = named()
    assert not passed
    assert "normal_001" in text


def test_a_broken_correction_fails_only_its_slide_with_one_line(graph):
    write_cohort(graph.home, ("tumor_001", "tumor_002"))
    correct(graph, "tumor_001", ("Tumor", box(0, 0, 9, 9)))
    (graph.home / "annotations/corrections/tumor_001.geojson").write_text("{")
    result = make_slides(graph, *MADE[:2])
    assert "corrections/tumor_001.geojson" in fault_of(result)
    assert graph.storage.record(ANNOTATION, "tumor_002") is not None
    assert graph.storage.record(ANNOTATION, "tumor_001") is None


def test_corrections_alone_are_annotations_to_train_on(graph):
    write_cohort(graph.home, ("normal_001", "case_001", "test_001"))
    for file in (graph.home / "annotations").glob("*.xml"):
        file.unlink()
    run = CommandLineRun(graph.instance, graph.settings, ParameterSet({}))
    with pytest.raises(ConfigError):
        run.check_sides([0])
    correct(graph, "case_001", ("Tumor", box(20, 20, 120, 120)))
    CommandLineRun(graph.instance, graph.settings, ParameterSet({})).check_sides([0])
