"""The demo cohort as a scanner's and a pathologist's files: geometry, scale, labels that fit the pixels."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import cv2
import numpy as np
import openslide
import pytest
import shapely
import tifffile

from wsi_assets.annotations import read_annotation
from wsi_assets.demo import DEMO_LEVEL, DEMO_PARAMETERS, DEMO_PATCH_SIZE, make_cohort
from wsi_assets.demo.cohort import _COHORT, _make_slide
from wsi_assets.demo.painting import EOSIN, HEMATOXYLIN
from wsi_assets_tests.masks import rasterize


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return make_cohort(tmp_path_factory.mktemp("cohort"))


@pytest.fixture(scope="module")
def slides(cohort):
    return {slide.slide_id: slide for slide in cohort.slides}


def level(slide, number):
    return tifffile.imread(slide.path, key=number)


def tumor_mask(slide, downsample):
    shape = (slide.height // downsample, slide.width // downsample)
    if slide.annotation_path is None:
        return np.zeros(shape, bool)
    return rasterize(read_annotation(slide.annotation_path).geometry, *shape, downsample)


def tissue_mask(pixels):
    """Coloured pixels: neither glass, nor a black cross, nor an unscanned strip."""
    return cv2.blur(np.ptp(pixels, axis=2).astype(np.float32), (9, 9)) > 12


def stains(pixels):
    """Hematoxylin and eosin by color deconvolution, (height, width) each."""
    density = -np.log(np.maximum(pixels, 1) / 243.0)
    return np.moveaxis(density @ np.linalg.pinv(np.stack([HEMATOXYLIN, EOSIN])), -1, 0)


def test_training_and_test_slides_lie_beside_each_other_with_and_without_tumor(cohort, slides):
    assert sorted(path.name for path in cohort.images.iterdir()) == sorted(f"{name}.tif" for name in slides)
    with_tumor = {name for name, slide in slides.items() if slide.tumor}
    assert {path.stem for path in cohort.annotations.iterdir()} == with_tumor
    for part in ("test", ""):
        names = {name for name in slides if ("test" in name) == bool(part)}
        assert names & with_tumor
        assert names - with_tumor
    assert {"patient_010_node_1", "patient_010_node_2"} <= slides.keys()


def test_every_slide_is_a_pyramid_that_halves_exactly_at_forty_times(slides):
    for slide in slides.values():
        with openslide.OpenSlide(slide.path) as opened:
            assert opened.level_downsamples == (1, 2, 4, 8, 16, 32)
            assert opened.dimensions == (slide.width, slide.height)
            assert float(opened.properties["openslide.mpp-x"]) == pytest.approx(0.243)
            assert float(opened.properties["openslide.mpp-y"]) == pytest.approx(0.243)


def test_a_slide_is_jpeg_tiles_in_a_bigtiff(slides):
    with tifffile.TiffFile(slides["tumor_001"].path) as tiff:
        assert tiff.is_bigtiff
        for number, page in enumerate(tiff.pages):
            assert (page.compression.name, page.photometric.name) == ("JPEG", "YCBCR")
            assert (page.tilewidth, page.tilelength, page.subfiletype) == (256, 256, int(number > 0))


def test_every_level_shows_the_same_tissue_at_the_same_place(slides):
    pixels = level(slides["test_001"], 0).astype(np.float32)
    for number in range(1, 6):
        side = pixels.shape[0] >> number
        averaged = cv2.resize(pixels, (side, side), interpolation=cv2.INTER_AREA)
        here = level(slides["test_001"], number).astype(np.float32)
        shift, _ = cv2.phaseCorrelate(averaged.mean(axis=2), here.mean(axis=2))
        assert np.abs(shift).max() < 0.1
        assert abs((averaged - here).mean()) < 0.5


def test_annotations_read_back_as_the_polygons_drawn(slides):
    for slide in slides.values():
        if slide.annotation_path is None:
            continue
        regions = read_annotation(slide.annotation_path)
        drawn = shapely.union_all(slide.tumor).difference(shapely.union_all(slide.excluded))
        assert {row.action for row in regions.audit} == {"kept"}
        assert regions.geometry.symmetric_difference(drawn).area < 1e-3
        assert regions.excluded.area == pytest.approx(sum(part.area for part in slide.excluded))
        assert shapely.box(0, 0, slide.width, slide.height).contains(regions.geometry)


def test_tumor_differs_from_lymph_node_and_a_cut_out_does_not(slides):
    for slide in slides.values():
        if slide.annotation_path is None:
            continue
        pixels = level(slide, 0)
        tumor, tissue = tumor_mask(slide, 1), tissue_mask(pixels)
        dark = stains(pixels)[0] > 1.15  # the dense chromatin of lymphocytes
        share = dark[tumor].mean()
        elsewhere = dark[tissue & ~tumor].mean()
        assert share < 0.1 < 0.2 < elsewhere
        if slide.excluded:
            hole = rasterize(slide.excluded[0], slide.height, slide.width, 1)
            assert dark[hole].mean() > 2.5 * share


def test_tissue_has_the_hues_of_hematoxylin_and_eosin(slides):
    pixels = level(slides["normal_001"], 0)
    hematoxylin, eosin = stains(pixels)
    nuclei, collagen = (
        pixels[hematoxylin > 1.2].mean(axis=0),
        pixels[(eosin > 0.6) & (hematoxylin < 0.2)].mean(axis=0),
    )
    red, green, blue = nuclei
    assert blue > red > green
    red, green, blue = collagen
    assert red > blue > green
    assert tumor_mask(slides["normal_001"], 1).sum() == 0


def test_glass_is_light_gray_with_little_noise_and_unscanned_parts_are_pure_white(slides):
    glass = level(slides["normal_003"], 0)[:40, :40]
    assert 238 < glass.mean() < 248
    assert 0 < glass.std() < 3
    strip = level(slides["normal_002"], 0)[:, -126:]  # JPEG smears color over a pixel where tissue is cut
    assert (strip == 255).all()
    assert not (level(slides["normal_002"], 0)[:, :-160] == 255).all(axis=2).any()


def test_some_slides_have_a_black_registration_cross_off_the_tissue(slides):
    for name in ("normal_001", "tumor_001", "test_002"):
        pixels = level(slides[name], 0)
        black = pixels.max(axis=2) < 40
        assert black.sum() > 1500
        assert not (
            cv2.dilate(black.astype(np.uint8), np.ones((15, 15))).astype(bool) & tissue_mask(pixels)
        ).any()


def test_the_cohort_gives_a_few_hundred_patches_at_its_level(slides):
    counts = {"train": [0, 0], "test": [0, 0]}
    for name, slide in slides.items():
        tissue = tissue_mask(level(slide, DEMO_LEVEL))
        tumor = tumor_mask(slide, 2**DEMO_LEVEL)
        rows, columns = (side // DEMO_PATCH_SIZE for side in tissue.shape)

        def shares(mask, rows=rows, columns=columns):
            size = DEMO_PATCH_SIZE
            cut = mask[: rows * size, : columns * size]
            return cut.reshape(rows, size, columns, size).mean(axis=(1, 3))

        kept = shares(tissue) >= 0.5
        positive = kept & (shares(tumor) >= 0.5)
        part = counts["test" if "test" in name else "train"]
        part[0] += int((kept & ~positive).sum())
        part[1] += int(positive.sum())
    assert 75 <= counts["train"][1] <= 125
    assert counts["train"][0] > 2 * counts["train"][1]
    assert 150 <= sum(counts["test"]) <= 300
    assert counts["test"][1] >= 25


def test_the_same_seed_gives_the_same_bytes_and_another_seed_other_tissue(slides, tmp_path):
    plan = next(plan for plan in _COHORT if plan.slide_id == "test_001")
    first = {
        path.suffix: digest(path) for path in (slides["test_001"].path, slides["test_001"].annotation_path)
    }
    other = _make_slide(plan, tmp_path, tmp_path, 8)
    assert digest(other.path) != first[".tif"]
    assert digest(other.annotation_path) != first[".xml"]
    again = _make_slide(plan, tmp_path, tmp_path, 7)
    assert {path.suffix: digest(path) for path in (again.path, again.annotation_path)} == first


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("seed", range(20, 26))
def test_any_seed_gives_tumors_apart_from_each_other_and_cut_outs_within(seed):
    from wsi_assets.demo.layout import GLASS, lay_out

    for tumors, cut_out in ((1, True), (2, False)):
        layout = lay_out(np.random.default_rng(seed), 640, 640, tumors, cut_out)
        assert all(polygon.is_valid for polygon in (*layout.tumor, *layout.excluded))
        assert sum(part.area for part in layout.tumor) == pytest.approx(shapely.union_all(layout.tumor).area)
        assert all(layout.tumor[0].contains(part) for part in layout.excluded)
        inside = rasterize(shapely.union_all(layout.tumor), 640, 640, 1)
        assert not (layout.compartments[inside] == GLASS).any()


def test_progress_is_called_and_naming_the_package_loads_no_image_library(tmp_path, monkeypatch):
    monkeypatch.setattr("wsi_assets.demo.cohort._COHORT", _COHORT[:2])
    calls = []
    make_cohort(tmp_path, progress=lambda done, total, what: calls.append((done, total)))
    assert calls == [(0, 2), (1, 2), (2, 2)]
    code = "import sys, wsi_assets.demo; print({'cv2', 'tifffile', 'numpy'} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


def test_the_demos_parameters_are_options_of_the_package():
    from wsi_assets.index.options import IndexOptions
    from wsi_assets.learning.options import TrainingOptions

    training = {
        name: value for name, value in DEMO_PARAMETERS.items() if name in TrainingOptions.model_fields
    }
    index = {name: value for name, value in DEMO_PARAMETERS.items() if name in IndexOptions.model_fields}
    assert TrainingOptions(**training).model_dump().items() >= training.items()
    assert IndexOptions(**index).patch_size == DEMO_PATCH_SIZE
    assert training.keys() | index.keys() == DEMO_PARAMETERS.keys()
