"""One bad slide costs itself only; whatever is wrong is one clear line and the right exit status."""

from __future__ import annotations

import pickle
import shutil

import pytest

from wsi_assets.patches import open_store


@pytest.fixture(scope="module")
def mixed(command_line, real_data, tmp_path_factory):
    """A real SVS beside a slide that does not open and one that opens and does not read."""
    home = tmp_path_factory.mktemp("mixed")
    (home / "images").mkdir()
    for name in ("CMU-1-Small-Region.svs", "unreadable.svs", "unopenable.tiff"):
        shutil.copy(real_data / "slides" / name, home / "images")
    return home, command_line("run", "--level", 0, "--upto", "patch_store", cwd=home)


def test_bad_slides_are_named_left_out_and_cost_nothing_else(mixed):
    home, done = mixed
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    for name in ("unreadable", "unopenable"):
        (line,) = [line for line in done.stdout.splitlines() if line.strip().startswith(f"{name}:")]
        assert len(line) > len(name) + 20
    assert list(pickle.loads((home / "storage/level_0/index_level_0.pkl").read_bytes())) == [
        "CMU-1-Small-Region"
    ]


def test_a_slide_without_annotation_and_with_one_level_is_indexed_and_extracted(mixed):
    home, _ = mixed
    (entry,) = pickle.loads((home / "storage/level_0/index_level_0.pkl").read_bytes()).values()
    assert entry["annotation_path"] is None
    assert entry["magnification"] == 20.0
    assert entry["mpp"] == 0.499
    assert entry["patches"]
    assert not any(is_tumor for _, _, is_tumor in entry["patches"])
    assert all(y <= 2967 - 256 and x <= 2220 - 256 for y, x, _ in entry["patches"])
    store = open_store(home / "storage/level_0/patches_lmdb")
    assert len(store) > 0
    assert store.get(0).shape == (256, 256, 3)


def test_a_level_that_no_slide_has_ends_in_one_clear_line(mixed, command_line):
    home, _ = mixed
    done = command_line("run", "--level", 6, "--upto", "slide_index", cwd=home)
    assert done.returncode == 1
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("error:")]
    assert "level 6" in line
    assert "Traceback" not in done.stdout + done.stderr


def test_everything_lives_under_the_current_folder(mixed):
    home, _ = mixed
    assert {path.name for path in home.iterdir()} == {"images", "storage"}
    assert (home / "storage/dagster_home/dagster.yaml").is_file()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--set", "max_epoch=3"], "max_epochs"),
        (["--set", "patch_size=0"], "patch_size=0"),
        (["--upto", "the_end"], "the_end"),
        (["--images", "nowhere"], "nowhere"),
    ],
)
def test_a_users_mistake_is_one_line_and_status_1(mixed, command_line, arguments, says):
    home, _ = mixed
    done = command_line("run", "--level", 0, *arguments, cwd=home)
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error:")
    assert says in line


def test_an_impossible_variable_is_one_line(mixed, command_line):
    home, _ = mixed
    done = command_line("run", "--level", 0, cwd=home, WSI_TIMEZONE="Mars/Olympus")
    assert done.returncode == 1
    assert "Mars/Olympus" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_doctor_prints_a_row_a_slide_and_fails_for_bad_ones(mixed, command_line):
    home, _ = mixed
    done = command_line("doctor", cwd=home)
    assert done.returncode == 1
    (good,) = [line for line in done.stdout.splitlines() if "CMU-1-Small-Region" in line]
    for fact in ("aperio", "2220 x 2967", "20 (", "0.499"):
        assert fact in good
    assert "unreadable" in done.stdout
    assert "unopenable" in done.stdout
    assert "3 slides, 2 with a problem" in done.stdout
