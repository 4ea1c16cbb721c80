"""What the command line decides: what is made again and what is not, and what it refuses to believe."""

from __future__ import annotations

import shutil
from dataclasses import replace

import dagster as dg
import pytest

from wsi_assets import index
from wsi_assets.errors import EvaluationError, SlideError
from wsi_assets.files import write_json
from wsi_assets.orchestration.config import build_configs, parameters
from wsi_assets.orchestration.lineage import DATA_VERSION_TAG, recorded, recorded_metadata, version_of
from wsi_assets.orchestration.runner import Runner
from wsi_assets.orchestration.settings import Settings

LEVEL = 1
CHAIN = ["slide_index", "sampled_index", "patch_store"]
SMALL = {"patch_size": 128}


class Home:
    """A lab's folders and records; each call is one command."""

    def __init__(self, folder, real_data):
        shutil.copytree(real_data / "cohort" / "images", folder / "images")
        shutil.copytree(real_data / "cohort" / "annotations", folder / "annotations")
        self.folder = folder
        self.settings = Settings.from_environment({}, home=folder)
        self.instance = dg.DagsterInstance.ephemeral()
        self.told: list[str] = []

    def runner(self, values=SMALL, **folders) -> Runner:
        self.told.clear()
        settings = replace(self.settings, **folders)
        return Runner(self.instance, settings, build_configs(values), tell=self.told.append)

    def run(self, values=SMALL, upto="patch_store", **folders):
        runner = self.runner(values, **folders)
        return runner.run_slides(), runner.run_level(LEVEL, upto)

    @property
    def store(self):
        return self.folder / "storage" / f"level_{LEVEL}" / "patches_lmdb"


@pytest.fixture(scope="module")
def home(tmp_path_factory, real_data) -> Home:
    made = Home(tmp_path_factory.mktemp("lab"), real_data)
    _, level = made.run()
    assert level.made == CHAIN, level.failure
    return made


def test_nothing_is_made_again_when_the_slides_have_moved_and_they_are_found_where_they_are(home):
    moved = home.folder / "moved"
    (home.folder / "images").rename(moved)
    try:
        slides, level = home.run(images_dir=moved)
        assert slides.made == []
        assert (level.made, level.up_to_date) == ([], CHAIN)
        shutil.rmtree(home.store)
        _, level = home.run(images_dir=moved)
        assert (level.made, level.failure) == (["patch_store"], None)
        assert recorded_metadata(home.instance, "patch_store", str(LEVEL))["decoded"] > 0
        assert not [line for line in level.failed_checks if line.startswith("patch_store")]
    finally:
        moved.rename(home.folder / "images")


def test_a_store_that_was_deleted_is_made_again(home):
    shutil.rmtree(home.store)
    assert home.run()[1].made == ["patch_store"]
    assert home.store.is_dir()
    home.folder.joinpath(f"storage/level_{LEVEL}/index_level_{LEVEL}.pkl").unlink()
    assert home.run()[1].made == ["slide_index"], "what is below is of the same index still"
    (home.store.parent / "patch_store.json").write_text("{}")
    assert home.run()[1].made == ["patch_store"]


def test_a_folder_of_outlines_that_is_not_there_makes_no_tumour_slide_a_normal_one(home):
    before = recorded(home.instance, "slide_index", [str(LEVEL)])
    with pytest.raises(SlideError, match=r"no slide has an outline any more.*--outlines-gone"):
        home.run(annotations_dir=None)
    empty = home.folder / "empty"
    empty.mkdir()
    with pytest.raises(SlideError, match=r"slide folder is empty.*registered"):
        home.run(images_dir=empty)
    assert recorded(home.instance, "slide_index", [str(LEVEL)]) == before
    assert home.run()[1].up_to_date == CHAIN


def test_outlines_that_are_gone_for_good_are_believed_when_it_is_said(tmp_path, real_data):
    lab = Home(tmp_path, real_data)
    lab.runner().run_slides()
    runner = lab.runner(annotations_dir=None)
    assert runner.run_slides(outlines_gone=True).made
    assert runner.run_slides().made == [], "it is said once"


def test_a_folder_without_slides_is_named_before_anything_else(tmp_path, real_data):
    lab = Home(tmp_path, real_data)
    with pytest.raises(SlideError, match=r"annotations.*holds no slides.*--images"):
        lab.runner(images_dir=lab.folder / "annotations").run_slides()


def test_parameters_that_differ_from_the_last_are_told_before_they_are_used(home):
    home.run({**SMALL, "normal_per_tumor": 2.0})
    assert home.told == [f"level {LEVEL}: sampled_index is made again, with normal_per_tumor from 1.0 to 2.0"]
    home.run()


def test_a_training_that_cannot_start_costs_nothing(home):
    for wrong, said in (({"model_name": "resnet19"}, "resnet19"), ({"weights": "/nope.pt"}, "/nope.pt")):
        before = recorded(home.instance, "slide_index", [str(LEVEL)])
        _, level = home.run({"patch_size": 256, **wrong}, upto="trained_model")
        assert level.made == []
        assert said in level.failure
        assert recorded(home.instance, "slide_index", [str(LEVEL)]) == before


def test_checks_that_failed_are_told_again_when_nothing_is_made(home):
    first, second = home.run()[1], home.run()[1]
    assert second.made == []
    assert second.failed_checks == first.failed_checks
    assert any("slide_index" in line for line in second.failed_checks)


def test_what_a_check_said_last_is_told_until_the_asset_is_made_again(home):
    told = home.run()[1].failed_checks
    said_later = dg.AssetCheckEvaluation(
        asset_key=dg.AssetKey("slide_index"),
        check_name="fits_its_level",
        passed=False,
        metadata={},
        description="shifted",
        partition=str(LEVEL),
    )
    home.instance.report_runless_asset_event(said_later)
    assert sorted(home.run()[1].failed_checks) == sorted([*told, "slide_index fits_its_level: shifted"])
    home.folder.joinpath(f"storage/level_{LEVEL}/index_level_{LEVEL}.pkl").unlink()
    assert home.run()[1].failed_checks == told


def test_an_artefact_is_of_what_it_read_and_not_of_what_came_meanwhile(home, monkeypatch):
    read = recorded(home.instance, "slide_index", [str(LEVEL)])[str(LEVEL)].version
    sample = index.sample_index

    def while_another_index_is_made(*arguments):
        tags = {DATA_VERSION_TAG: "another"}
        event = dg.AssetMaterialization("slide_index", partition=str(LEVEL), tags=tags)
        home.instance.report_runless_asset_event(event)
        return sample(*arguments)

    monkeypatch.setattr(index, "sample_index", while_another_index_is_made)
    values = {**SMALL, "normal_per_tumor": 3.0}
    assert home.run(values, upto="sampled_index")[1].made == ["sampled_index"]
    now = recorded(home.instance, "sampled_index", [str(LEVEL)])[str(LEVEL)].version
    assert now == version_of("sampled_index", parameters(build_configs(values)["sampled_index"]), read)


def test_levels_that_cannot_be_compared_are_said_to_be_so(home):
    write_json(home.folder / "storage/level_2/report/metrics.json", {})
    with pytest.raises(EvaluationError, match=r"cannot be compared: level 2: metrics of version None"):
        home.runner().compare_levels()
