"""Output and exit status of the command line."""

from __future__ import annotations

import os
import shutil

import pytest
from click.testing import CliRunner
from rich.console import Console

from wsi_assets import console
from wsi_assets.cli import main
from wsi_assets.errors import USAGE
from wsi_assets.orchestration.cli_run import LevelOutcome
from wsi_assets.orchestration.instance import prepare_home
from wsi_assets.orchestration.settings import Settings
from wsi_assets.orchestration.storage import Record


@pytest.fixture
def home(tmp_path, real_data):
    for folder in ("images", "annotations"):
        (tmp_path / folder).mkdir()
    shutil.copy(real_data / "slides/CMU-1-Small-Region.svs", tmp_path / "images")
    return tmp_path


def test_an_annotation_without_a_slide_is_only_a_notice(home, capsys):
    (home / "annotations/other.xml").write_text("<ASAP_Annotations/>")
    assert console.examine_slides(Settings.from_environment({}, home=home)) == console.OK
    said = capsys.readouterr().out
    assert f"note: annotation without a slide: {home / 'annotations/other.xml'}" in said
    assert "1 slides, 0 with a problem" in said


@pytest.fixture
def mixed(home, real_data):
    """A slide with one level, one with five levels, and one that cannot be read."""
    for name in ("unreadable.svs", "tumor_001_padded.tif"):
        shutil.copy(real_data / "slides" / name, home / "images")
    return Settings.from_environment({}, home=home)


def test_a_narrow_terminal_omits_columns_and_folds_no_word(mixed, capsys, monkeypatch):
    terminal = Console(width=80, highlight=False, force_terminal=True, color_system=None)
    monkeypatch.setattr(console, "console", terminal)
    assert console.examine_slides(mixed) == console.FAILED
    said = capsys.readouterr().out
    (padded,) = [line for line in said.splitlines() if line.split()[:1] == ["tumor_001_padded"]]
    assert padded.split() == ["tumor_001_padded", "3072", "x", "7168", "0-4", "40", "(base_mag)", "none"]
    assert "…" not in said
    assert (
        "note: the terminal is too narrow for downsamples, format, tissue, 40x, 20x, 10x, 5x from level"
        in said
    )
    assert len([line for line in said.splitlines() if line.startswith("problem: unreadable: ")]) == 1


def test_output_to_a_file_has_every_column_and_one_line_per_slide(mixed, capsys, monkeypatch):
    monkeypatch.setattr(console, "console", Console(width=80, highlight=False))
    assert console.examine_slides(mixed) == console.FAILED
    said = capsys.readouterr().out
    assert "too narrow" not in said
    assert "note: - means: the slide's pixels are larger than that" in said
    for slide, facts in {
        "CMU-1-Small-Region": ("aperio", "2220 x 2967", " 0 ", "20 (objective)", "0.499"),
        "tumor_001_padded": ("generic-tiff", "3072 x 7168", "0-4", "1, 2 … 16", "40 (base_mag)", "unknown"),
        "unreadable": ("aperio, does not read",),
    }.items():
        (line,) = [line for line in said.splitlines() if line.split()[:1] == [slide]]
        assert all(fact in line for fact in facts)


def test_a_slide_is_left_out_if_an_annotation_has_nearly_its_name(home, capsys):
    other = home / "annotations/CMU-1_Small-Region.xml"
    other.write_text("<ASAP_Annotations/>")
    assert console.examine_slides(Settings.from_environment({}, home=home)) == console.FAILED
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("left out: CMU-1")]
    assert str(other) in line


def test_doctor_shows_the_cohort_table_and_writes_a_first_one(home, capsys):
    settings = Settings.from_environment({}, home=home)
    assert console.examine_slides(settings, write_cohort=True) == console.OK
    table = home / "images/cohort.csv"
    assert table.read_text().splitlines()[1] == "CMU-1-Small-Region,CMU-1-Small-Region,,,,"
    table.write_text("slide,patient,split,mpp\nCMU-1-Small-Region.svs,P7,test,0.25\nother,P8,,\n")
    assert console.examine_slides(settings) == console.OK
    said = capsys.readouterr().out
    assert all(word in said for word in ("P7", "test", "0.25", f"{table} names a slide"))


def test_doctor_names_a_correction_without_a_slide(home, capsys):
    (home / "annotations/corrections").mkdir()
    stray = home / "annotations/corrections/CMU-1.geojson"
    stray.write_text('{"type": "FeatureCollection", "features": []}')
    assert console.examine_slides(Settings.from_environment({}, home=home)) == console.FAILED
    assert f"problem: correction without a slide: {stray}" in capsys.readouterr().out.replace("\n", "")


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """Environment variables of a user who already has a Dagster home, folders and an MLflow server."""
    folders = {name: str(tmp_path / "lab" / name) for name in ("DAGSTER_HOME", "WSI_STORAGE_DIR")}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WSI_")}
    monkeypatch.setattr(os, "environ", {**kept, **folders, "MLFLOW_TRACKING_URI": "http://lab"})
    return tmp_path / "lab"


def test_the_demo_uses_only_its_folder_and_ignores_the_variables(lab, tmp_path, capsys, monkeypatch):
    def run_and_report(settings, *_):
        prepare_home(settings)
        return console.OK

    monkeypatch.setattr("wsi_assets.demo.make_cohort", lambda home, progress: None)
    monkeypatch.setattr(console, "run_and_report", run_and_report)
    demo = tmp_path / "demo"
    assert console.run_demo(demo) == console.OK
    assert os.environ["DAGSTER_HOME"] == str(demo / "storage/dagster_home")
    assert "MLFLOW_TRACKING_URI" not in os.environ
    assert not lab.exists()
    assert f"wsi-assets ui --home {demo}\n" in capsys.readouterr().out


def test_the_ui_of_the_demo_ignores_the_variables(lab, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr("wsi_assets.orchestration.ui.serve", lambda settings, *_: shown.append(settings))
    assert CliRunner().invoke(main, ["ui", "--home", str(tmp_path)]).exit_code == 0
    assert shown == [Settings.from_environment({}, home=tmp_path)]
    assert not {"DAGSTER_HOME", "WSI_STORAGE_DIR", "MLFLOW_TRACKING_URI"} & os.environ.keys()


@pytest.mark.parametrize(
    "line",
    [
        "--nothing",
        "nothing",
        "run",
        "run --level one",
        "ui --port 99999",
        "ui --port -1",
        "ui --mlflow-port 70000",
        "ui --home nowhere",
        "ui --home . --images .",
        "verify --level 0 --seed -5",
    ],
)
def test_an_invalid_command_line_has_its_own_exit_status(line):
    result = CliRunner().invoke(main, line.split())
    assert result.exit_code == USAGE
    assert "Error: " in result.output


@pytest.mark.parametrize("line", ["run --level 1 --level 99", "run --level 0 --upto training"])
def test_an_unknown_level_or_asset_is_reported_before_any_slide_is_read(home, line):
    folders = ["--images", str(home / "images"), "--storage", str(home / "storage")]
    result = CliRunner().invoke(main, [*line.split(), *folders])
    assert result.exit_code == console.FAILED
    assert not (home / "storage").exists()


def test_doctor_names_a_slide_that_is_left_out_and_fails(home, capsys):
    for name in ("twice.tif", "TWICE.svs"):
        (home / "images" / name).write_bytes(b"x")
    assert console.examine_slides(Settings.from_environment({}, home=home)) == console.FAILED
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("left out:")]
    assert "share this id" in line


def test_doctor_has_no_problem_with_a_slide_whose_name_is_accepted(home, capsys):
    (home / "images/CMU-1-Small-Region.svs").rename(home / "images/tumor_1.svs")
    settings = Settings.from_environment({}, home=home)
    assert console.examine_slides(settings) == console.FAILED
    (home / "storage").mkdir()
    (home / "storage/parameters.yaml").write_text("accepted_slides: [tumor_1]\n")
    assert console.examine_slides(settings) == console.OK


def outcome() -> LevelOutcome:
    """The outcome of a level whose report was made."""
    facts = {"roc_auc": 0.98, "average_precision": 0.97}
    record = Record("evaluation", "4", "1", {}, {}, "r", "v", facts)
    return LevelOutcome("4", made=["evaluation"], records={"evaluation": record})


def test_the_path_of_the_report_is_not_folded_on_a_narrow_terminal(tmp_path, capsys, monkeypatch):
    terminal = Console(width=80, highlight=False, force_terminal=True, color_system=None)
    monkeypatch.setattr(console, "console", terminal)
    storage = tmp_path / ("a folder with a long name " * 4) / "storage"
    console._print_level(outcome(), storage)
    assert f"report: {storage / 'level_4/report/report.html'}\n" in capsys.readouterr().out


def test_the_table_of_a_level_is_not_folded_in_a_file(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(console, "console", Console(width=80, highlight=False))
    console._print_level(outcome(), tmp_path)
    (row,) = [line for line in capsys.readouterr().out.splitlines() if "│ evaluation" in line]
    assert "roc_auc 0.980, average_precision 0.970" in row
    assert "level_4/report" in row
