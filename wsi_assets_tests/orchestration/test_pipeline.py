"""The asset graph on a real instance: batches of slides, new levels, and what is made again when."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import dagster as dg
import pytest

from wsi_assets.errors import ConfigError, ModelError
from wsi_assets.files import read_plain_pickle
from wsi_assets.index import is_test
from wsi_assets.orchestration.artefact import all_artefacts, level_chain
from wsi_assets.orchestration.asset_checks import (
    CHECKS,
    Level,
    annotations_fit_their_slides,
    evaluate,
    nothing_assumed,
)
from wsi_assets.orchestration.build import build_definitions
from wsi_assets.orchestration.cli_run import CommandLineRun
from wsi_assets.orchestration.config import ParameterSet, parse_settings
from wsi_assets.orchestration.evaluation_metadata import report_context
from wsi_assets.orchestration.io_managers import PatchStoreIOManager
from wsi_assets.orchestration.mlflow import MlflowResource, log_finished
from wsi_assets.orchestration.partitions import LEVELS, SLIDES
from wsi_assets.orchestration.resources import SlideFolderResource
from wsi_assets.orchestration.slide_folder import SLIDE_IMAGE, known_slides, observe_all, register
from wsi_assets.orchestration.slide_layers import layers_of
from wsi_assets.orchestration.storage import store_named_by
from wsi_assets.viewer import SlideLayers
from wsi_assets.viewer.server import heat_picture
from wsi_assets_tests.orchestration.conftest import (
    QUICK,
    Graph,
    annotate,
    fault_of,
    write_cohort,
    write_slide,
)
from wsi_assets_tests.slides.made import halved, picture, write_pyramid

ASSETS = {artefact.name: artefact for artefact in all_artefacts()}
TISSUE, ANNOTATION = ASSETS["tissue_regions"], ASSETS["annotation_regions"]
LEVEL = "0"


def see(graph: Graph) -> None:
    """Register the slides of the folder, as the sensor and the command line do."""
    listing = SlideFolderResource.of(graph.settings).list()
    known = known_slides(graph.instance, [slide.slide_id for slide in listing.slides])
    seen, unread = observe_all(listing.slides, known)
    assert unread == {}
    register(graph.instance, graph.storage, known, seen, known)


def latest(graph: Graph, asset: str, partition: str) -> dg.AssetMaterialization:
    records = graph.instance.fetch_materializations(
        dg.AssetRecordsFilter(dg.AssetKey(asset), asset_partitions=[partition]), limit=1
    ).records
    return records[0].asset_materialization


def versions(graph: Graph) -> dict[str, str]:
    found = {
        name: graph.storage.record(artefact, LEVEL) for name, artefact in ASSETS.items() if artefact.by_level
    }
    return {name: record.version for name, record in found.items() if record}


class TestSlides:
    """Batches of slides."""

    def test_a_batch_records_the_inputs_of_each_slide(self, graph):
        write_cohort(graph.home, ("normal_001", "tumor_001"))
        see(graph)
        assert graph.make("tissue_regions", slides=("normal_001", "tumor_001")).success
        for slide_id in graph.slides():
            event = latest(graph, "tissue_regions", slide_id)
            assert event.tags["dagster/code_version"] == TISSUE.code_version
            assert "dagster/input_event_pointer/slide_image" in event.tags, "by it Dagster knows it as stale"
            record = graph.storage.record(TISSUE, slide_id)
            assert event.metadata["version"].value == record.version
            seen = known_slides(graph.instance, [slide_id])[slide_id]
            assert record.inputs == {SLIDE_IMAGE: seen[SLIDE_IMAGE].version}

    def test_a_broken_slide_fails_alone(self, graph):
        write_cohort(graph.home, ("normal_001", "tumor_001"))
        (graph.home / "images" / "broken_001.tif").write_bytes(b"no slide")
        see(graph)
        result = graph.make("tissue_regions", slides=("broken_001", "tumor_001"))
        assert "broken_001.tif" in fault_of(result)
        made = {slide_id for slide_id in graph.slides() if graph.storage.record(TISSUE, slide_id)}
        assert made == {"normal_001", "tumor_001"}
        logged = graph.instance.get_materialized_partitions(TISSUE.key)
        assert set(logged) == made

    def test_annotation_regions_fails_if_all_annotations_are_gone(self, graph):
        write_cohort(graph.home, ("tumor_001", "tumor_002"))
        see(graph)
        both = ("tumor_001", "tumor_002")
        assert graph.make("tissue_regions", "annotation_regions", slides=both).success
        before = graph.storage.record(ANNOTATION, "tumor_001").version
        for file in (graph.home / "annotations").iterdir():
            file.unlink()
        for slides in (both, ("tumor_001", "tumor_001")):
            fault_of(graph.make("annotation_regions", slides=slides))
        assert graph.storage.record(ANNOTATION, "tumor_001").version == before
        believed = {"annotation_regions": {"annotations_gone": True}}
        assert graph.make("annotation_regions", slides=both, **believed).success
        assert read_plain_pickle(graph.storage.artefact(ANNOTATION, "tumor_001"))["regions"] is None

    def test_assumptions_about_a_slide_are_printed_once_and_shown_by_a_check(self, graph):
        write_cohort(graph.home, ("normal_001", "tumor_001"))
        whole = picture(256, 224, 0)
        write_pyramid(graph.home / "images" / "tumor_001.tif", [whole, halved(whole, 1)], tile=64, mpp=None)
        run = CommandLineRun(graph.instance, graph.settings, ParameterSet({}))
        notices = [line for line in run.run_slides().notices if line.startswith("tumor_001: ")]
        assert notices
        assert run.run_slides().notices == []
        assert graph.make("slide_index", partition="0").success
        passed, text = nothing_assumed(Level("0", graph.storage, run.folder, graph.instance))
        assert not passed
        assert all(line in text for line in notices)

    def test_a_partition_key_that_is_not_a_level_fails_in_one_line(self, graph):
        write_cohort(graph.home, ("tumor_001",))
        see(graph)
        graph.make("tissue_regions", "annotation_regions", partition="tumor_001")
        graph.instance.add_dynamic_partitions(LEVELS.name, ["four"])
        assert "'four'" in fault_of(graph.make("slide_index", partition="four"))

    def test_an_index_is_not_made_while_most_slides_are_gone(self, graph):
        write_cohort(graph.home)
        see(graph)
        for file in sorted((graph.home / "images").iterdir())[1:]:
            file.unlink()
        assert "not mounted" in fault_of(graph.make("slide_index", partition="0"))

    def test_an_impossible_parameter_in_the_file_fails_in_one_line_with_its_place(self, graph):
        write_cohort(graph.home, ("tumor_001",))
        see(graph)
        graph.storage.root.mkdir()
        graph.storage.parameters.path.write_text("levels: {'0': {patch_size: -3}}\n")
        fault = fault_of(graph.make("tissue_regions", partition="tumor_001"))
        assert "parameters.yaml" in fault
        assert "levels.0.patch_size" in fault


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A level that was made as by `wsi-assets run`; tests that would change it use a copy."""
    home = tmp_path_factory.mktemp("made")
    write_cohort(home)
    with dg.instance_for_test() as instance:
        graph = Graph(home, instance)
        run = CommandLineRun(instance, graph.settings, ParameterSet(QUICK))
        slides, level = run.run_slides(), run.run_level(LEVEL)
        assert level.failure is None
        assert slides.left_out == {}
        graph.first = (slides, level)
        yield graph


BUILDER = """
import sys
from wsi_assets.index import load_index
from wsi_assets.patches import ExtractionOptions, build_store, plan_patches
build_store(plan_patches(load_index(sys.argv[1]), ExtractionOptions()), sys.argv[2], "lmdb")
"""


def test_while_a_run_extracts_or_stores_patches_no_other_process_builds_the_store(graph, monkeypatch):
    write_cohort(graph.home)
    see(graph)
    slides = graph.slides()
    graph.make("tissue_regions", "annotation_regions", slides=(slides[0], slides[-1]))
    assert graph.make(
        "slide_index", "sampled_index", partition=LEVEL, slide_index=QUICK["slide_index"]
    ).success
    index = graph.storage.artefact(ASSETS["sampled_index"], LEVEL)
    command = [sys.executable, "-c", BUILDER, str(index), str(index.parent / "patches_lmdb")]
    said = []

    def build_too(*_):
        said.append(subprocess.run(command, capture_output=True, text=True).stderr.strip().splitlines()[-1:])

    store = PatchStoreIOManager.store

    def watched(self, path, value):
        build_too()
        stored = store(self, path, value)
        build_too()
        return stored

    monkeypatch.setattr(PatchStoreIOManager, "store", watched)
    assert graph.make("patch_store", partition=LEVEL).success
    assert len(said) == 2
    assert all("is being built by another process" in line for (line,) in said)
    build_too()
    assert said[-1] == [], "once it is stored it is nobody's"


def again(graph: Graph, *given: str, upto: str = "evaluation", instance: dg.DagsterInstance | None = None):
    """What another `wsi-assets run` makes: (slides, assets of the level)."""
    run = CommandLineRun(instance or graph.instance, graph.settings, parse_settings(list(given)))
    slides, level = run.run_slides(), run.run_level(LEVEL, upto)
    assert level.failure is None
    return slides.made, level.made


def planned(graph: Graph, *given: str) -> list[str]:
    """What `wsi-assets run --dry-run` prints."""
    return CommandLineRun(graph.instance, graph.settings, parse_settings(list(given))).plan([LEVEL])


class TestLevel:
    """Assets of a level, and what is made again after a change."""

    def test_slides_are_made_in_one_run_and_the_level_in_another(self, made):
        slides, level = made.first
        assert slides.made == ["normal_001", "test_001", "tumor_001", "tumor_002"]
        assert level.made == [artefact.name for artefact in level_chain()]
        assert len(made.instance.get_run_records()) == 2
        assert versions(made).keys() == set(level.made)
        for name, version in versions(made).items():
            assert latest(made, name, LEVEL).tags["dagster/data_version"] == version

    def test_the_artefacts_are_at_the_paths_of_the_specification(self, made):
        from torchvision.models import resnet50  # noqa: F401

        folder = made.storage.level_folder(LEVEL)
        index = read_plain_pickle(folder / "index_level_0.pkl")
        predicted = read_plain_pickle(folder / "slide_index_test.pkl")
        assert set(index) == {"normal_001", "test_001", "tumor_001", "tumor_002"}
        assert {"slide_path", "label", "patches", "magnification"} <= set(index["tumor_001"])
        assert set(predicted) == {"test_001"}
        assert len(predicted["test_001"]["probs"]) == len(predicted["test_001"]["patches"])
        assert (folder / "checkpoints" / "best.pt").is_file()
        assert (
            (folder / "epoch_losses.csv")
            .read_text()
            .startswith("epoch,train_loss,train_acc,val_loss,val_acc")
        )
        assert (folder / "report" / "report.html").is_file()
        about = report_context(made.storage, LEVEL)
        assert {tuple(row) for row in about.split} == {("patient", "side", "slides", "tumor", "normal")}

    def test_the_viewer_shows_annotation_heatmap_and_detections_on_a_slide(self, made):
        tumor, test = (layers_of(made.storage, one) for one in ("tumor_001", "test_001"))
        assert tumor.mpp == 0.25
        assert not tumor.heat
        x, y = zip(*tumor.tumor[0], strict=True)
        assert (min(x), min(y), max(x), max(y)) == (10, 20, 130, 150)
        (heat,) = test.heat
        lines = (made.storage.level_folder(LEVEL) / "report/detections/test_001.csv").read_text().splitlines()
        assert [list(one) for one in heat.detections] == [list(map(float, one.split(","))) for one in lines]
        assert heat_picture(heat.probability_map).startswith(b"\x89PNG")
        assert layers_of(made.storage, "unknown") == SlideLayers()

    def test_the_training_is_in_mlflow_and_can_be_logged_again_from_its_files(self, made):
        resource = MlflowResource.of(made.settings)
        client = resource.client().MlflowClient()
        note = json.loads(made.storage.mlflow_run(LEVEL).read_text())
        run = client.get_run(note["run_id"])
        assert run.info.status == "FINISHED"
        assert {"val_loss", "val_loss_best", "test_roc_auc"} <= run.data.metrics.keys()
        assert run.data.tags["split_unit"] == "patient"
        assert {file.path for file in client.list_artifacts(run.info.run_id)} >= {"best.pt", "best.json"}
        pictures = {file.path for file in client.list_artifacts(run.info.run_id, "pictures")}
        assert {"pictures/curves.png", "pictures/confusion.png"} <= pictures
        assert log_finished(resource, LEVEL, pytest.fail) != note["page"]
        versions = client.search_model_versions(f"name='wsi-level-{LEVEL}'")
        assert len({version.run_id for version in versions}) == 2

    def test_given_values_are_stored_and_nothing_is_made_twice(self, made):
        assert again(made) == ([], [])
        assert made.storage.record(ASSETS["slide_index"], LEVEL).parameters["patch_size"] == 32

    def test_after_the_loss_of_the_instance_nothing_is_made_again(self, made):
        with dg.instance_for_test() as instance:
            assert again(made, instance=instance) == ([], [])
            fresh = Graph(made.home, instance)
            assert set(instance.get_dynamic_partitions(SLIDES.name)) == set(made.slides())
            for name, version in versions(made).items():
                assert latest(fresh, name, LEVEL).tags["dagster/data_version"] == version
            assert set(instance.get_materialized_partitions(TISSUE.key)) == set(made.slides())

    def test_only_deleted_artefacts_are_made_again(self, made):
        before = versions(made)
        shutil.rmtree(store_named_by(made.storage.artefact(ASSETS["patch_store"], LEVEL)))
        made.storage.artefact(TISSUE, "tumor_001").unlink()
        assert again(made) == (["tumor_001"], ["patch_store"])
        assert versions(made) == before

    def test_a_changed_parameter_makes_only_affected_artefacts_out_of_date(self, made):
        lines: list[str] = []
        run = CommandLineRun(made.instance, made.settings, parse_settings(["seed=7"]), lines.append)
        assert run.run_level(LEVEL, "sampled_index").made == ["sampled_index"]
        assert any("sampled_index" in line and "seed was 42 and is 7" in line for line in lines)
        level = Level(LEVEL, made.storage, run.folder, made.instance)
        assert self.up_to_date(level, "sampled_index")
        assert not self.up_to_date(level, "patch_store")
        assert again(made, "seed=42", upto="sampled_index") == ([], ["sampled_index"])
        assert again(made) == ([], [])

    def test_the_plan_and_level_checks_report_what_is_out_of_date(self, made):
        kept = made.storage.parameters.path.read_text()
        made.storage.parameters.path.write_text(kept.replace("patch_size: 32", "patch_size: 16"))
        try:
            job = build_definitions(made.settings).resolve_job_def("level_checks")
            tags = {"dagster/partition": LEVEL}  # as the UI launches it
            result = job.execute_in_process(instance=made.instance, tags=tags, raise_on_error=False)
            plan = planned(made, "seed=7")
        finally:
            made.storage.parameters.path.write_text(kept)
        (said,) = [
            check.description
            for check in result.get_asset_check_evaluations()
            if (check.asset_key, check.check_name) == (ASSETS["slide_index"].key, "up_to_date")
        ]
        assert "patch_size was 32 and is 16" in said
        assert "slide_index of level 0: patch_size was 32 and is 16" in plan
        assert "parameters.yaml: sampled_index.seed of level 0 is 7, was 42" in plan
        assert "evaluation of level 0: trained_model is made again" in plan
        assert planned(made) == []

    def test_a_changed_row_of_the_cohort_table_makes_that_slide_again(self, graph):
        write_cohort(graph.home, ("tumor_001", "tumor_002", "test_001"))
        again(graph, upto="sampled_index")
        table = graph.home / "images/cohort.csv"
        table.write_text("slide,case_id,split,mpp\ntumor_002.tif,P7,test,0.5\n")
        assert again(graph, upto="sampled_index") == (["tumor_002"], ["slide_index", "sampled_index"])
        index = read_plain_pickle(graph.storage.artefact(ASSETS["sampled_index"], LEVEL))
        assert {one: (e["label"], e["mpp"], is_test(one, e)) for one, e in index.items()} == {
            "test_001": ("test_001", 0.25, True),
            "tumor_001": ("tumor_001", 0.25, False),
            "tumor_002": ("P7", 0.5, True),
        }
        assert again(graph, upto="sampled_index") == ([], [])

    def test_a_run_first_checks_for_test_slides_annotations_and_contradicting_names(self, graph):
        def sides(**options):
            CommandLineRun(graph.instance, graph.settings, parse_settings([])).check_sides([LEVEL], **options)

        write_cohort(graph.home, ("tumor_001", "normal_001"))
        with pytest.raises(ConfigError, match="test slide"):
            sides()
        sides(no_test=True)
        write_slide(graph.home, "test_001", 9)
        sides()
        write_slide(graph.home, "tumor_009", 10)
        with pytest.raises(ConfigError, match="tumor_009"):
            sides()
        graph.storage.parameters.path.parent.mkdir(exist_ok=True)
        graph.storage.parameters.path.write_text("accepted_slides: [tumor_009]\n")
        sides()
        for path in (graph.home / "annotations").iterdir():
            path.unlink()
        with pytest.raises(ConfigError, match="annotation"):
            sides()

    def test_a_slide_without_annotation_that_is_named_tumor_and_accepted_lacks_no_tumor(self, graph):
        def findings() -> str:
            folder = SlideFolderResource.of(graph.settings)
            return annotations_fit_their_slides(Level(LEVEL, graph.storage, folder, graph.instance))[1]

        write_cohort(graph.home, ("tumor_001", "tumor_002", "test_001"))
        (graph.home / "annotations/tumor_001.xml").unlink()
        again(graph, "patch_size=32", upto="slide_index")
        assert "tumor_001" in findings()
        again(graph, 'accepted_slides=["tumor_001"]', upto="patch_store")
        assert "tumor_001" not in findings()

    def test_a_run_first_checks_the_weights_of_models_that_it_would_train(self, made):
        def weights(*given):
            CommandLineRun(made.instance, made.settings, parse_settings(given)).check_weights([LEVEL])

        weights()
        for given in ("weights=nowhere.pth", "model_name=resnet19"):
            with pytest.raises(ModelError):
                weights(given)

    def test_a_plan_changes_nothing(self, graph):
        write_cohort(graph.home, ("tumor_001",))
        assert planned(graph)[:2] == [
            "tissue_regions of 1 slides: is not made",
            "annotation_regions of 1 slides: is not made",
        ]
        assert not graph.storage.root.exists()
        assert graph.slides() == []

    @staticmethod
    def up_to_date(level: Level, name: str) -> bool:
        from wsi_assets.orchestration.asset_checks import up_to_date

        return up_to_date(ASSETS[name], level)[0]

    def test_everything_made_from_a_changed_slide_is_made_again(self, made, tmp_path):
        home = tmp_path / "copy"
        shutil.copytree(made.home, home)
        with dg.instance_for_test() as instance:
            graph = Graph(home, instance)
            assert again(graph, instance=instance) == ([], []), "the folders have moved"
            write_slide(home, "normal_001", 99)
            annotate(home, "tumor_002", 100)
            slides, level = again(graph, upto="patch_store", instance=instance)
            assert slides == ["normal_001", "tumor_002"]
            assert level == ["slide_index", "sampled_index", "patch_store"]
            store = graph.storage.record(ASSETS["patch_store"], LEVEL)
            assert 0 < store.facts["reused"] < store.facts["count"]

    def test_a_cross_validation_is_made_on_request_and_shown_by_the_next_report(self, made, tmp_path):
        shutil.copytree(made.home, tmp_path / "copy")
        with dg.instance_for_test() as instance:
            graph = Graph(tmp_path / "copy", instance)
            asked = again(graph, "folds=2", upto="cross_validation", instance=instance)
            assert asked == ([], ["cross_validation"])
            folder = graph.storage.artefact(ASSETS["cross_validation"], LEVEL)
            assert {file.name for file in folder.iterdir()} == {"folds.json", "out_of_fold.pkl"}
            predicted = read_plain_pickle(folder / "out_of_fold.pkl")
            assert set(predicted) == {"normal_001", "tumor_001", "tumor_002"}
            assert again(graph, instance=instance) == ([], ["evaluation"])
            assert again(graph, instance=instance) == ([], [])
            about = report_context(graph.storage, LEVEL)
            assert about.cross_validation == json.loads((folder / "folds.json").read_text())

    def test_hard_negatives_are_used_in_the_next_round_and_the_report_compares(self, made, tmp_path):
        shutil.copytree(made.home, tmp_path / "copy")
        with dg.instance_for_test() as instance:
            graph = Graph(tmp_path / "copy", instance)
            few = ("normal_per_tumor=0.5", "hard_negative_threshold=0")
            again(graph, *few, instance=instance)
            asked = again(graph, upto="hard_negatives", instance=instance)
            assert asked == ([], ["hard_negatives"])
            hard = read_plain_pickle(graph.storage.artefact(ASSETS["hard_negatives"], LEVEL))
            sampled = graph.storage.artefact(ASSETS["sampled_index"], LEVEL)
            before = read_plain_pickle(sampled)
            _, level = again(graph, "use_hard_negatives=true", instance=instance)
            assert level == [one.name for one in level_chain()][1:]
            after = read_plain_pickle(sampled)
            added = {
                slide_id: {patch[:2] for patch in entry["patches"]}
                - {p[:2] for p in before[slide_id]["patches"]}
                for slide_id, entry in after.items()
            }
            wanted = {
                slide_id: {(y, x) for y, x, _ in patches} for slide_id, patches in hard["patches"].items()
            }
            assert {slide_id: places for slide_id, places in added.items() if places} == wanted
            assert again(graph, instance=instance) == ([], []), "a new model alone asks for no new round"
            report = (graph.storage.artefact(ASSETS["evaluation"], LEVEL) / "report.html").read_text()
            assert "Both models on the same test slides" in report
            assert "/slide/test_001" in report, "the page of a test slide in the viewer"
            used = graph.storage.record(ASSETS["sampled_index"], LEVEL).facts["hard_negatives"]
            assert used["before"]["tested"] == {"test_001": len(after["test_001"]["patches"])}
            assert again(graph, upto="hard_negatives", instance=instance)[1] == ["hard_negatives"]
            record = graph.storage.record(ASSETS["hard_negatives"], LEVEL)
            assert record.facts["round"] == 2
            assert record.facts["patches"] >= used["patches"], "those of earlier rounds stay"

    def test_checks_fail_where_a_record_or_an_artefact_is_missing(self, made, tmp_path):
        home = tmp_path / "copy"
        shutil.copytree(made.home, home)
        graph = Graph(home, made.instance)
        folder = SlideFolderResource.of(graph.settings)
        for artefact, checks in CHECKS.items():
            record = graph.storage.record_path(artefact, LEVEL)
            kept = record.read_bytes()
            record.unlink()
            for name, check in checks.items():
                passed, text = evaluate(check, Level(LEVEL, graph.storage, folder, made.instance))
                assert not passed, name
                assert "\n" not in text
            record.write_bytes(kept)
        shutil.rmtree(graph.storage.level_folder(LEVEL))
        for checks in CHECKS.values():
            for name, check in checks.items():
                assert not evaluate(check, Level(LEVEL, graph.storage, folder, made.instance))[0], name

    @pytest.mark.parametrize("results", [None, "failed"], ids=["not evaluated", "failed"])
    def test_nothing_is_made_from_a_store_whose_check_has_not_passed(self, made, tmp_path, results):
        home = tmp_path / "copy"
        shutil.copytree(made.home, home)
        graph, store = Graph(home, made.instance), ASSETS["patch_store"]
        kept = graph.storage.artefact(store, LEVEL).with_name("patch_store.json.checks.json")
        if results is None:
            kept.unlink()
        else:
            graph.storage.keep_check_results(store, LEVEL, dict.fromkeys(store.must_pass, (False, "damaged")))
        for _ in range(2):
            result = graph.make("trained_model", partition=LEVEL)
            assert not result.success
            assert "nothing is made from patch_store" in fault_of(result)
        # The command evaluates what was left open or may be mended since; here nothing is wrong.
        again(graph, upto="trained_model")
        assert graph.storage.failed_checks([store], LEVEL) == []

    def test_check_results_count_only_for_the_artefact_that_was_checked(self, made):
        artefact = ASSETS["trained_model"]
        said = made.storage.failed_checks([artefact], LEVEL)
        assert any("every_strategy_acts" in line for line in said)
        record = made.storage.record_path(artefact, LEVEL)
        kept = record.read_text()
        record.write_text(kept.replace(made.storage.record(artefact, LEVEL).version, "another"))
        assert made.storage.failed_checks([artefact], LEVEL) == []
        record.write_text(kept)
