"""Real pixels that come with the tests: indexed and stored by the command line, against the files' own."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import cv2
import numpy as np
import openslide
import pytest
import shapely

from wsi_assets.annotations import read_annotation
from wsi_assets.patches import open_store
from wsi_assets_tests.e2e.conftest import settings

CROPS = Path(__file__).parents[1] / "slides" / "crops"
SIZE = 64


@pytest.fixture(scope="module")
def made(command_line, tmp_path_factory) -> Path:
    """Index and lossless patches at level 0 and at 8x, in patches of 64 pixels."""
    home = tmp_path_factory.mktemp("crops")
    for folder, ending in (("images", "tif"), ("annotations", "xml")):
        (home / folder).mkdir()
        for file in CROPS.glob(f"*.{ending}"):
            shutil.copy(file, home / folder)
    done = command_line(
        *("run", "--level", 0, "--mag", 8, "--upto", "patch_store", "--no-test"),
        *("--images", home / "images", "--annotations", home / "annotations", "--storage", home / "storage"),
        *settings(f"patch_size={SIZE}", "codec=png", "min_work_pixels=256", "normal_per_tumor=none"),
        cwd=home,
    )
    # Slides of unknown pixel size are left out of 8x, and glass of both: that is what 2 says.
    assert done.returncode == 2, done.stdout + done.stderr
    return home / "storage"


def load(path: Path) -> dict:
    return pickle.loads(path.read_bytes())


def pixels_of(slide: str, level: int = 0) -> np.ndarray:
    with openslide.OpenSlide(str(CROPS / f"{slide}.tif")) as opened:
        region = opened.read_region((0, 0), level, opened.level_dimensions[level])
        return np.asarray(region.convert("RGB"))


def test_glass_gives_no_patch_and_both_tissues_do(made):
    index = load(made / "level_0/index_level_0.pkl")
    assert len(index.get("glass_001", {"patches": []})["patches"]) <= 2
    assert len(index["cmu_1"]["patches"]) > 100
    assert 20 < len(index["tumor_001"]["patches"]) < 180


def test_stained_pixels_are_tissue_and_glass_is_not(made):
    index = load(made / "level_0/index_level_0.pkl")
    for slide in ("cmu_1", "tumor_001"):
        whole = cv2.GaussianBlur(pixels_of(slide), (0, 0), 4).astype(int)
        chroma = whole.max(axis=2) - whole.min(axis=2)
        entry, share = index[slide], []
        for y, x, _ in entry["patches"]:
            share.append((chroma[y : y + SIZE, x : x + SIZE] > 20).mean())
        assert np.corrcoef(share, entry["tissue_fraction"])[0, 1] > 0.75
        taken = {patch[:2] for patch in entry["patches"]}
        for y in range(0, 1024, SIZE):
            for x in range(0, 1024, SIZE):
                if (chroma[y : y + SIZE, x : x + SIZE] > 40).mean() > 0.8:
                    assert (y, x) in taken, f"{slide}: tissue at {y}, {x} is left out"


def test_labels_are_the_exact_areas_of_the_official_polygons(made):
    entry = load(made / "level_0/index_level_0.pkl")["tumor_001"]
    tumor = read_annotation(CROPS / "tumor_001.xml").geometry
    for (y, x, label), fraction in zip(entry["patches"], entry["tumor_fraction"], strict=True):
        area = tumor.intersection(shapely.box(x, y, x + SIZE, y + SIZE)).area / SIZE**2
        assert fraction == pytest.approx(area, abs=1e-6)
        assert label == (area > 0)
    # Both lesions, 9,187 and 1,924 square pixels, lie on tissue.
    assert sum(entry["tumor_fraction"]) * SIZE**2 == pytest.approx(11_111, rel=0.01)


def test_stored_patches_are_the_slides_own_pixels(made):
    index = load(made / "level_0/index_level_0_sampled.pkl")
    with open_store(made / "level_0/patches_lmdb") as store:
        number = 0
        for slide, entry in index.items():
            whole = pixels_of(slide)
            for y, x, label in entry["patches"]:
                assert np.array_equal(store.get(number), whole[y : y + SIZE, x : x + SIZE])
                assert store.labels[number] == label
                number += 1
        assert len(store) == number


def test_at_8x_only_the_slide_of_known_pixel_size_is_averaged(made):
    index = load(made / "8x/index_8x.pkl")
    assert set(index) == {"cmu_1"}
    entry = index["cmu_1"]
    assert entry["downsample"] == pytest.approx(1.25 / 0.499)
    # Of two levels the next finer one is averaged: level 1, whose pixels are two wide.
    step = entry["downsample"] / 2
    assert (entry["level"], entry["step"]) == (1, pytest.approx(step))
    # The integral image, read between pixels, gives the mean of any area exactly.
    sums = np.pad(pixels_of("cmu_1", 1).cumsum(0, dtype=float).cumsum(1), ((1, 0), (1, 0), (0, 0)))

    def averaged(y: int, x: int) -> np.ndarray:
        at = sums
        for axis, first in enumerate((y, x)):
            edges = (first + np.arange(SIZE + 1)) * step
            low = np.minimum(edges.astype(int), len(sums) - 2)
            part = (edges - low).reshape([-1 if i == axis else 1 for i in range(3)])
            at = np.diff(at.take(low, axis) * (1 - part) + at.take(low + 1, axis) * part, axis=axis)
        return at / step**2

    with open_store(made / "8x/patches_lmdb") as store:
        assert len(store) == len(entry["patches"]) > 15
        for number, (y, x, _) in enumerate(entry["patches"]):
            if (max(y, x) + SIZE) * step <= 512:
                assert np.abs(store.get(number) - averaged(y, x)).max() <= 1
