"""A magnification as a partition, from the command line to the report and the comparison of levels."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from wsi_assets.cli import main
from wsi_assets.errors import ConfigError
from wsi_assets.files import read_plain_pickle
from wsi_assets.orchestration.config import ParameterSet
from wsi_assets.orchestration.storage import StorageResource
from wsi_assets_tests.orchestration.conftest import QUICK, write_cohort
from wsi_assets_tests.slides.made import halved, picture, write_pyramid


@pytest.fixture
def wsi_assets(tmp_path, monkeypatch):
    """Runs the command `wsi-assets` on a cohort of slides from two scanners."""
    write_cohort(tmp_path)
    whole = picture(280, 240, 7)
    write_pyramid(tmp_path / "images" / "tumor_002.tif", [whole, halved(whole, 1)], tile=64, mpp=0.2328)
    (tmp_path / "home").mkdir()
    for name, folder in (
        ("DAGSTER_HOME", "home"),
        ("WSI_IMAGES_DIR", "images"),
        ("WSI_ANNOTATIONS_DIR", "annotations"),
        ("WSI_STORAGE_DIR", "storage"),
    ):
        monkeypatch.setenv(name, str(tmp_path / folder))
    (tmp_path / "storage").mkdir()
    (tmp_path / "storage" / "parameters.yaml").write_text(json.dumps(QUICK))

    def run(*arguments):
        return CliRunner().invoke(main, list(arguments))

    return run


def test_a_magnification_is_made_verified_reported_and_compared_with_a_level(wsi_assets, tmp_path):
    made = wsi_assets("run", "--level", "0", "--mag", "20")
    assert made.exit_code == 0, made.output
    folder = tmp_path / "storage" / "20x"
    index = read_plain_pickle(folder / "index_20x.pkl")
    assert {name: entry["step"] for name, entry in index.items()} == pytest.approx(
        {"normal_001": 1.0, "test_001": 1.0, "tumor_001": 1.0, "tumor_002": 0.5 / 0.2328 / 2}
    )
    assert (folder / "checkpoints" / "best.pt").is_file()
    assert "20x" in (folder / "report" / "report.html").read_text()
    assert json.loads((folder / "report" / "metrics.json").read_text())["context"]["level"] == "20x"
    rows = json.loads((tmp_path / "storage" / "level_comparison" / "comparison.json").read_text())
    assert [row["level"] for row in rows] == [0, "20x"]
    page = (tmp_path / "storage" / "level_comparison" / "comparison.html").read_text()
    assert "../20x/report/report.html" in page
    assert wsi_assets("verify", "--mag", "20", "--fraction", "1").exit_code == 0
    logged = wsi_assets("log", "--mag", "20")
    assert logged.exit_code == 0, logged.output
    assert "20x" in logged.output
    assert StorageResource(storage_dir=str(tmp_path / "storage")).levels() == ["0", "20x"]
    assert "nothing to do" in wsi_assets("run", "--mag", "20", "--dry-run").output


@pytest.mark.parametrize("arguments", [["--mag", "0"], ["--mpp", "-1"], ["--level", "-1"]])
def test_an_invalid_level_is_reported_in_one_line(wsi_assets, arguments):
    said = wsi_assets("run", *arguments)
    assert said.exit_code == 1
    assert len(said.output.strip().splitlines()) == 1


def test_parameters_can_be_set_for_a_magnification():
    assert ParameterSet({"levels": {"10x": {"patch_size": 64}}}).content
    with pytest.raises(ConfigError):
        ParameterSet({"levels": {"ten": {"patch_size": 64}}})
