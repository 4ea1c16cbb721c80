"""What the command line says of slide folders, and the status it ends with."""

from __future__ import annotations

import shutil

import pytest
from rich.console import Console

from wsi_assets import console
from wsi_assets.errors import ConfigError
from wsi_assets.orchestration.config import build_configs
from wsi_assets.orchestration.runner import LevelOutcome
from wsi_assets.orchestration.settings import Settings


@pytest.fixture
def home(tmp_path, real_data):
    for folder in ("images", "annotations"):
        (tmp_path / folder).mkdir()
    shutil.copy(real_data / "slides/CMU-1-Small-Region.svs", tmp_path / "images")
    return tmp_path


def test_an_annotation_without_a_slide_is_told_and_fails_nothing(home, capsys):
    (home / "annotations/other.xml").write_text("<ASAP_Annotations/>")
    assert console.examine_slides(Settings.from_environment({}, home=home)) == console.OK
    said = capsys.readouterr().out
    assert f"note: annotation without a slide: {home / 'annotations/other.xml'}" in said
    assert "1 slides, 0 with a problem" in said


def test_on_a_narrow_terminal_ids_are_whole_and_every_problem_is_one_line(
    home, real_data, capsys, monkeypatch
):
    monkeypatch.setattr(console, "console", Console(width=80, highlight=False))
    for name in ("unreadable.svs", "tumor_001_padded.tif"):
        shutil.copy(real_data / "slides" / name, home / "images")
    assert console.examine_slides(Settings.from_environment({}, home=home)) == console.FAILED
    said = capsys.readouterr().out
    assert {"CMU-1-Small-Region", "unreadable", "tumor_001_padded"} < set(said.split())
    assert said.count("…") == 1  # of the downsamples 1, 2 … 16; nothing else is cut
    (problem,) = [line for line in said.splitlines() if line.startswith("problem:")]
    assert "unreadable: does not read" in problem
    assert problem.endswith("copy or scan it again")


@pytest.mark.parametrize(("level", "upto"), [(12, "evaluation"), (0, "training")])
def test_a_level_or_asset_that_is_none_is_told_before_any_slide_is_read(home, level, upto):
    settings = Settings.from_environment({}, home=home)
    with pytest.raises(ConfigError, match="there is no level"):
        console.run_and_report(settings, build_configs({}), [1, level], upto)
    assert not settings.storage_dir.exists()


def test_a_slide_that_is_left_out_is_named_and_fails(home, capsys):
    for name in ("twice.tif", "TWICE.svs"):
        (home / "images" / name).write_bytes(b"x")
    assert console.examine_slides(Settings.from_environment({}, home=home)) == console.FAILED
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("left out:")]
    assert "share this id" in line


def test_on_a_narrow_terminal_the_report_s_path_can_be_copied(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(console, "console", Console(width=80, highlight=False))
    storage = tmp_path / ("a folder with a long name " * 4) / "storage"
    page = storage / "level_4/report/report.html"
    outcome = LevelOutcome(4, made=["evaluation"], metadata={"evaluation": {"path": str(page)}})
    console._print_level(outcome, storage)
    assert f"report: {page}\n" in capsys.readouterr().out
