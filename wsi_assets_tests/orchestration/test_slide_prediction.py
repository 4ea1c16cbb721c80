"""Prediction of slides from the command line, with a folder of slides and a model."""

from __future__ import annotations

import csv
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import dagster as dg
import numpy as np
import pytest
import shapely
import tifffile
from click.testing import CliRunner

from wsi_assets.cli import main
from wsi_assets.errors import DiskError
from wsi_assets.orchestration.assets.slide_prediction import SLIDE_PREDICTION
from wsi_assets.orchestration.assets.slides import TISSUE_REGIONS
from wsi_assets.orchestration.build import build_definitions
from wsi_assets.orchestration.cli_run import CommandLineRun
from wsi_assets.orchestration.config import ParameterSet
from wsi_assets.orchestration.instance import open_instance
from wsi_assets.orchestration.io_managers import ReportIOManager
from wsi_assets.orchestration.mlflow import MlflowResource
from wsi_assets.orchestration.mlflow_pyfunc import log_model
from wsi_assets.orchestration.partitions import LEVELS
from wsi_assets.orchestration.settings import Settings
from wsi_assets.orchestration.slide_layers import layers_of
from wsi_assets.orchestration.storage import StorageResource
from wsi_assets_tests.learning.tiny import write_darkness
from wsi_assets_tests.orchestration.conftest import QUICK, write_cohort
from wsi_assets_tests.slides.made import halved, picture, write_pyramid

SQUARE = shapely.box(336, 208, 528, 400)
"""The tumor region, darker than the rest of the slide, aligned with the grid of patches that is used."""


def write_slide(path: Path, seed: int, dark: bool) -> None:
    whole = picture(600, 800, seed)
    if dark:
        x0, y0, x1, y1 = map(int, SQUARE.bounds)
        whole[y0:y1, x0:x1] = whole[y0:y1, x0:x1] * (0.4, 0.1, 0.4)
    write_pyramid(path, [whole, halved(whole, 1)], mpp=0.25)


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """A folder of two slides, a model file, and the command."""
    for name in ("home", "images"):
        (tmp_path / name).mkdir()
    for number, name in enumerate(("new_1", "new_2")):
        write_slide(tmp_path / "images" / f"{name}.tif", number, name == "new_1")
    for name, folder in (
        ("DAGSTER_HOME", "home"),
        ("WSI_IMAGES_DIR", "images"),
        ("WSI_ANNOTATIONS_DIR", ""),
        ("WSI_STORAGE_DIR", "storage"),
    ):
        monkeypatch.setenv(name, str(tmp_path / folder) if folder else "")
    monkeypatch.chdir(tmp_path)
    return Lab(tmp_path)


class Lab:
    def __init__(self, home: Path):
        self.home, self.storage = home, StorageResource(storage_dir=str(home / "storage"))
        self.model = write_darkness(home / "model", 32, "1", gain=4)

    def predict(self, *arguments, level="1"):
        return CliRunner().invoke(main, ["predict", "--level", level, *map(str, arguments)])

    def summary(self, slide_id, level="level_1"):
        return json.loads((self.home / "storage/slides" / slide_id / level / "prediction.json").read_text())


def test_a_folder_of_slides_and_a_model_file_are_enough(lab):
    (lab.home / "images" / "broken.tif").write_bytes(b"no slide")
    said = lab.predict("--model", lab.model, "--set", "detection_smoothing_um=4")
    assert said.exit_code == 2, said.output
    assert "broken" in said.output
    assert said.output.index("new_1 ") < said.output.index("new_2 "), "ranked by score"
    folder = lab.home / "storage/slides/new_1/level_1"
    found = lab.summary("new_1")
    assert found["score"] > 0.9 > lab.summary("new_2")["score"]
    assert found["area_mm2"] == pytest.approx(SQUARE.area * 0.25**2 / 1e6)
    assert found["model"]["source"] == "file"
    with (folder / "new_1.csv").open() as lines:
        places = [shapely.Point(float(x), float(y)) for _, x, y in csv.reader(lines)]
    assert len(places) == found["detections"] > 0
    assert all(map(SQUARE.contains, places))
    features = json.loads((folder / "new_1.geojson").read_text())["features"]
    regions = [shapely.from_geojson(json.dumps(one["geometry"])) for one in features]
    tumor = shapely.union_all([one for one in regions if one.area])
    assert all(one.is_valid for one in regions)
    assert tumor.symmetric_difference(SQUARE).area == pytest.approx(0, abs=1e-6)
    with tifffile.TiffFile(folder / "new_1_likelihood_map.tif") as file:
        likely = file.asarray()
    scale = 600 // likely.shape[0]
    y, x = np.nonzero(likely > 0.85)
    assert (x.min() * scale, y.min() * scale) == pytest.approx(SQUARE.bounds[:2])
    (layer,) = layers_of(lab.storage, "new_1").heat
    assert layer.probability_map == folder / "new_1_likelihood_map.tif"


def test_only_what_is_missing_or_out_of_date_is_predicted(lab):
    assert lab.predict("new_2", "--model", lab.model).exit_code == 0
    first = lab.summary("new_2")
    assert not (lab.home / "storage/slides/new_1").exists()
    assert lab.predict("nobody").exit_code == 1
    said = lab.predict()
    assert "1 predicted" in said.output, "the model is remembered"
    assert lab.summary("new_2") == first
    write_slide(lab.home / "images" / "new_2.tif", 7, dark=True)
    assert "1 predicted" in lab.predict().output
    assert lab.summary("new_2")["score"] > first["score"]
    write_darkness(lab.home / "model", 32, "1", gain=1)
    assert "2 predicted" in lab.predict().output
    assert "0 predicted" in lab.predict().output
    assert "2 predicted" in lab.predict("--set", "prediction_stride=32").output
    shutil.rmtree(lab.home / "home")
    (lab.home / "home").mkdir()
    assert "0 predicted" in lab.predict().output
    with open_instance(Settings.from_environment(home=lab.home)) as instance:
        known = instance.get_materialized_partitions(SLIDE_PREDICTION.key)
    assert known == {"1|new_1", "1|new_2"}, "a new Dagster home learns from the storage folder"


def test_a_model_of_another_level_is_reported_in_one_line(lab):
    for arguments in (["--model", lab.model], ["--model", lab.home / "nothing.pt"], ["--model", "newest"]):
        said = lab.predict(*arguments, level="0")
        assert said.exit_code == 1, said.output


def test_the_champion_predicts(lab):
    away = lab.predict("--model", "champion")
    assert away.exit_code == 1
    assert len(away.output.strip().splitlines()) == 1
    mlflow = MlflowResource.of(Settings.from_environment(home=lab.home)).client()
    mlflow.create_experiment("models", (lab.home / "artifacts").as_uri())
    mlflow.set_experiment("models")
    for gain in (4, 1):
        write_darkness(lab.home / "model", 32, "1", gain=gain)
        log_model(mlflow, lab.home / "model", "wsi-level-1", 32, "a model")
    mlflow.MlflowClient().set_registered_model_alias("wsi-level-1", "champion", 1)
    said = lab.predict("--model", "champion")
    assert said.exit_code == 0, said.output
    assert lab.summary("new_1")["model"]["version"] == "1"
    mlflow.MlflowClient().set_registered_model_alias("wsi-level-1", "champion", 2)
    assert "2 predicted" in lab.predict().output
    assert lab.summary("new_1")["model"]["version"] == "2"


def test_a_full_disk_ends_the_command_at_the_first_run(lab, monkeypatch):
    tried = []

    def store(_, path, value):
        tried.append(path)
        raise DiskError("cannot be written (the disk is full)", path=path)

    assert lab.predict("--model", lab.model).exit_code == 0
    monkeypatch.setattr("wsi_assets.orchestration.cli_run.SLIDES_A_RUN", 1)
    monkeypatch.setattr(ReportIOManager, "store", store)
    said = lab.predict("--set", "prediction_stride=32")
    assert said.exit_code == 1, said.output
    assert "error: " in said.output
    assert len(tried) == 1


KILLED = """
import sys
from wsi_assets_tests.learning.tiny import register
register()
from wsi_assets.cli import main
from wsi_assets.errors import DiskError
main(["predict", "--level", "1", "--model", sys.argv[1]])
"""


def test_a_killed_run_keeps_the_slides_it_finished(lab):
    for number in range(3, 8):
        write_slide(lab.home / "images" / f"new_{number}.tif", number, dark=False)
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(lab.model)])
    done = lab.home / "storage/slides/new_1/level_1.provenance.json"
    deadline = time.monotonic() + 120
    while not done.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = done.stat().st_mtime_ns
    said = lab.predict("--model", lab.model)
    assert said.exit_code == 0, said.output
    assert done.stat().st_mtime_ns == before
    assert all(lab.summary(f"new_{number}") for number in range(1, 8))


def test_a_test_slide_gets_the_numbers_of_its_evaluation(lab):
    shutil.rmtree(lab.home / "images")
    write_cohort(lab.home)
    lab.storage.root.mkdir()
    parameters = {**QUICK, "patch_store": {"codec": "png"}, "slide_prediction": {"prediction_stride": 32}}
    (lab.storage.root / "parameters.yaml").write_text(json.dumps(parameters))
    annotations = ["--annotations", str(lab.home / "annotations")]
    made = CliRunner().invoke(main, ["run", "--level", "0", *annotations])
    assert made.exit_code == 0, made.output
    assert lab.predict("test_001", *annotations, level="0").exit_code == 0
    ours, report = lab.storage.slide_folder("test_001") / "level_0", lab.storage.level_folder("0") / "report"
    ours_map, its_map = (
        tifffile.imread(folder / "test_001_likelihood_map.tif") for folder in (ours, report / "heatmaps")
    )
    np.testing.assert_allclose(ours_map, its_map, rtol=0, atol=1e-6)
    ours_found, its_found = (
        np.loadtxt(path, delimiter=",", ndmin=2)
        for path in (ours / "test_001.csv", report / "detections" / "test_001.csv")
    )
    np.testing.assert_allclose(ours_found, its_found, rtol=0, atol=1e-6)
    names = [layer.name for layer in layers_of(lab.storage, "test_001").heat]
    assert len(set(names)) == 2


def test_real_slides_are_predicted_at_other_levels(lab, real_data):
    shutil.rmtree(lab.home / "images")
    (lab.home / "images").mkdir()
    for name in ("CMU-1-Small-Region.svs", "tumor_001_padded.tif"):
        (lab.home / "images" / name).symlink_to(real_data / "slides" / name)
    model = write_darkness(lab.home / "model", 64, "5x")
    said = CliRunner().invoke(main, ["predict", "--mag", "5", "--model", str(model)])
    assert said.exit_code == 2, said.output  # the pixel size of one of them is not known
    assert lab.summary("CMU-1-Small-Region", "5x")["patches"] > 100
    model = write_darkness(lab.home / "model", 64, "2")
    assert lab.predict("tumor_001_padded", "--model", model, level="2").exit_code == 0
    assert lab.summary("tumor_001_padded", "level_2")["area_mm2"] is None


def test_the_sensor_requests_each_new_slide_once_and_at_its_level_only(lab):
    assert lab.predict("new_2", "--model", lab.model, "--set", "predict_new_slides=true").exit_code == 0
    settings = Settings.from_environment(home=lab.home)
    definitions = build_definitions(settings)
    sensor = definitions.resolve_sensor_def("predict_new_slides")
    assert sensor.default_status == dg.DefaultSensorStatus.STOPPED
    with open_instance(settings) as instance:
        instance.add_dynamic_partitions(LEVELS.name, ["0", "4", "10x"])
        cursor = None

        def ticks() -> list:
            nonlocal cursor
            context = dg.build_sensor_context(
                instance, cursor, definitions=definitions, resources=definitions.resources
            )
            asked = sensor.evaluate_tick(context)
            cursor = asked.cursor
            return [
                (one.partition_key_range.start, one.partition_key_range.end) for one in asked.run_requests
            ]

        assert ticks() == [], "the other slide is not registered"
        CommandLineRun(instance, settings, ParameterSet({})).run_slides((TISSUE_REGIONS,))
        assert ticks() == [("1|new_1", "1|new_1")]
        assert ticks() == []
        write_darkness(lab.home / "model", 32, "1", gain=1)
        assert ticks() == [("1|new_2", "1|new_1")], "in the order in which they were registered"
