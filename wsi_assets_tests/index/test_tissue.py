"""Tissue is found whatever surrounds it, and none is invented."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest

from wsi_assets.annotations import read_annotation
from wsi_assets.errors import SlideIndexError
from wsi_assets.files import read_plain_pickle, write_plain_pickle
from wsi_assets.index import TissueOptions, TissueRegions, find_tissue
from wsi_assets.index.masking import otsu, tissue_mask
from wsi_assets.index.tissue import work_level_for
from wsi_assets.slides import Level, open_slide
from wsi_assets_tests.index.fakes import ArraySlide
from wsi_assets_tests.slides.made import halved, padded, write_pyramid

OPTIONS = TissueOptions()
SCALE = 16
# Boxes (y0, x0, y1, x1) on tumor_001 at its level 5, read off the picture.
CROSSES = [(340, 340, 610, 620), (310, 2560, 590, 2850)]
GLASS = [(5300, 100, 6700, 2950), (60, 20, 420, 3000), (450, 700, 800, 2500), (1600, 2820, 4100, 3000)]
UNSCANNED = [(800, 1250, 1600, 2700), (1300, 0, 1800, 250), (6912, 0, 7168, 3056), (0, 3056, 7168, 3072)]


@pytest.fixture(scope="module")
def tumor_001(real_data):
    """The scanned part of tumor_001 at level 5: (6912, 3056, 3), whose mask pixels are whole."""
    with open_slide(real_data / "slides" / "tumor_001_level5.tif") as slide:
        return slide.read_region(0, 0, 0, 6912, 3056).pixels


def reduce(pixels: np.ndarray, scale: int = SCALE) -> np.ndarray:
    size = (pixels.shape[1] // scale, pixels.shape[0] // scale)
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)


def mask_of(pixels: np.ndarray, no_data: np.ndarray | None = None, options: TissueOptions = OPTIONS):
    return tissue_mask(pixels, np.zeros(pixels.shape[:2], bool) if no_data is None else no_data, options)[0]


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return 2 * (one & other).sum() / (one.sum() + other.sum())


def test_tumor_001_crosses_glass_and_unscanned_area_are_not_tissue_and_its_tumor_is(real_data):
    with open_slide(real_data / "slides" / "tumor_001_level5.tif") as slide:
        tissue = find_tissue(slide, OPTIONS, "f")
    full = cv2.resize(tissue.mask.astype(np.uint8), (3072, 7168), interpolation=cv2.INTER_NEAREST)
    for boxes in (CROSSES, GLASS, UNSCANNED):
        called = [full[y0:y1, x0:x1] for y0, x0, y1, x1 in boxes]
        assert sum(part.sum() for part in called) / sum(part.size for part in called) < 0.005
    tumor = np.zeros(full.shape, np.uint8)
    for polygon in read_annotation(real_data / "slides" / "tumor_001_level5.xml").geometry.geoms:
        cv2.fillPoly(tumor, [np.array(polygon.exterior.coords).round().astype(np.int32)], 1)
    assert full[tumor == 1].mean() > 0.9
    assert 0.05 < tissue.tissue_share < 0.2


@pytest.mark.parametrize("amount", [256, 2048])
@pytest.mark.parametrize(
    "color",
    [(0, 0, 0), (255, 255, 255), (128, 128, 128), (200, 200, 200), (230, 230, 232), (254, 254, 254), None],
    ids=["black", "white", "mid grey", "light grey", "tinted grey", "CAMELYON padding", "transparent"],
)
def test_padding_of_any_color_leaves_the_mask_as_it_was(tumor_001, color, amount):
    plain = mask_of(reduce(tumor_001))
    height, width = tumor_001.shape[:2]
    padded = np.empty((height + 2 * amount, width + amount, 3), np.uint8)
    padded[:] = color or (255, 255, 255)
    padded[amount : amount + height, :width] = tumor_001
    no_data = np.ones((padded.shape[0] // SCALE, padded.shape[1] // SCALE), bool)
    rows = slice(amount // SCALE, amount // SCALE + plain.shape[0])
    no_data[rows, : plain.shape[1]] = False
    if color is not None:
        no_data[:] = False
    mask = mask_of(reduce(padded), no_data)
    assert dice(mask[rows, : plain.shape[1]], plain) > 0.98
    assert mask.sum() == mask[rows, : plain.shape[1]].sum()


def test_a_slide_padded_in_its_file_gives_the_same_mask(real_data):
    masks = []
    for name in ("tumor_001_level5.tif", "tumor_001_padded.tif"):
        with open_slide(real_data / "slides" / name) as slide:
            masks.append(find_tissue(slide, OPTIONS, "f").mask)
    assert dice(*masks) > 0.98


@pytest.fixture(scope="module")
def cropped(tumor_001):
    """Levels 0 to 4 of a part of tumor_001 whose sides are no multiples of 512."""
    return [halved(tumor_001[3000:6800, :2900], k) for k in range(5)]


@pytest.fixture(scope="module")
def unpadded(cropped, tmp_path_factory):
    path = write_pyramid(tmp_path_factory.mktemp("plain") / "s.tif", cropped, tile=512)
    with open_slide(path) as slide:
        return find_tissue(slide, TissueOptions(work_level=3), "f")


@pytest.mark.parametrize("missing", [frozenset(), {(7, 5), (2, 5), (7, 0)}], ids=["all", "missing"])
@pytest.mark.parametrize("color", [0, 128, 240, 254, 255])
def test_a_pyramid_padded_like_the_older_release_gives_the_mask_it_had(
    cropped, unpadded, tmp_path, color, missing
):
    levels = [padded(level, 512, color) for level in cropped]
    path = write_pyramid(tmp_path / "s.tif", levels, tile=512, missing=missing)
    with open_slide(path) as slide:
        assert [level.downsample for level in slide.levels] == [1, 2, 4, 8, 16]
        tissue = find_tissue(slide, TissueOptions(work_level=3), "f")
    height, width = unpadded.mask.shape
    assert dice(tissue.mask[:height, :width], unpadded.mask) > 0.995
    assert tissue.mask.sum() == tissue.mask[:height, :width].sum()
    # Padding is no data: it is not counted as glass.
    assert tissue.tissue_share == pytest.approx(unpadded.tissue_share, rel=0.03)


@pytest.mark.parametrize("tint", [(1, 0.98, 0.88), (0.93, 0.96, 1), (1, 0.95, 0.8)])
def test_tinted_glass_is_still_glass(tumor_001, tint):
    plain = reduce(tumor_001)
    assert dice(mask_of((plain * np.array(tint)).astype(np.uint8)), mask_of(plain)) > 0.95


def test_a_slide_stained_half_as_strongly_keeps_its_tissue(tumor_001):
    plain = reduce(tumor_001)
    pale = (245 - (245 - plain.astype(float)) * 0.5).clip(0, 255).astype(np.uint8)
    assert dice(mask_of(pale), mask_of(plain)) > 0.95


def test_glass_that_the_scanner_made_pure_white_costs_no_pale_tissue(tumor_001):
    plain = reduce(tumor_001)
    mask = mask_of(plain)
    white = np.where(mask[..., None], plain, 255).astype(np.uint8)
    assert dice(mask_of(white), mask) > 0.97
    assert mask_of(white).sum() > 0.97 * mask.sum()


def test_glass_with_its_edges_and_crosses_alone_holds_no_tissue(tumor_001):
    assert mask_of(reduce(tumor_001[5300:6700, 100:2900])).sum() == 0
    assert mask_of(reduce(tumor_001[0:800])).mean() < 0.005


def test_a_slide_of_tissue_only_is_all_tissue(real_data):
    for name in ("test_073_node_1", "tumor_001_node_2", "tumor_064_node_2"):
        with open_slide(real_data / "cohort" / "images" / f"{name}.tif") as slide:
            pixels = slide.read_region(0, 512, 512, 512, 768).pixels
        assert mask_of(reduce(pixels, 4)).mean() > 0.97


def test_a_noisy_empty_scan_holds_no_tissue():
    noise = np.random.default_rng(0).normal(235, 3, (400, 400, 3)).clip(0, 254).astype(np.uint8)
    assert mask_of(noise).sum() == 0


@pytest.mark.parametrize("color", [(0, 0, 0), (255, 255, 255)])
def test_a_slide_without_data_has_no_threshold_and_no_tissue(color):
    pixels = np.empty((300, 300, 3), np.uint8)
    pixels[:] = color
    mask, threshold = tissue_mask(pixels, np.zeros((300, 300), bool), OPTIONS)
    assert threshold is None
    assert not mask.any()


@pytest.mark.parametrize("ink", [(40, 60, 180), (30, 150, 90), (20, 20, 22)], ids=["blue", "green", "black"])
def test_pen_strokes_are_not_tissue(tumor_001, ink):
    pixels = tumor_001[1800:4400].copy()
    plain = mask_of(reduce(pixels))
    stroke = np.zeros(pixels.shape[:2], np.uint8)
    cv2.ellipse(stroke, (2500, 700), (350, 280), 0, 0, 360, 1, 50)
    drawn = reduce(np.where(stroke[..., None] == 1, np.uint8(ink), pixels))
    under = reduce(stroke * 255) > 200
    assert mask_of(drawn)[under].mean() < 0.05
    away = cv2.dilate(reduce(stroke * 255), np.ones((9, 9))) == 0
    assert dice(mask_of(drawn) & away, plain & away) > 0.98


def test_pen_rejection_can_be_switched_off_for_blue_stains():
    rng = np.random.default_rng(0)
    pixels = rng.normal(240, 1, (200, 200, 3))
    pixels[60:140, 60:140] = rng.normal((90, 130, 190), 5, (80, 80, 3))
    pixels = pixels.clip(0, 254).astype(np.uint8)
    assert mask_of(pixels).sum() == 0
    assert mask_of(pixels, options=TissueOptions(reject_pen=False))[64:136, 64:136].all()


def test_otsu_of_two_peaks_lies_between_them():
    values = np.concatenate([np.full(9000, 2.0), np.full(100, 30.0)])
    assert 2.0 < otsu(values) < 30.0
    rng = np.random.default_rng(0)
    assert 8 < otsu(np.concatenate([rng.normal(2, 1, 5000), rng.normal(20, 2, 5000)])) < 14


def test_small_slides_have_a_finer_working_level():
    assert work_level_for(221_184, 97_792, OPTIONS) == 7
    assert work_level_for(2048, 2048, OPTIONS) == 3
    assert work_level_for(100, 60, OPTIONS) == 0
    assert work_level_for(221_184, 97_792, TissueOptions(work_level=5)) == 5


def test_the_cohort_slides_have_the_tissue_they_were_composed_of(real_data):
    truth = json.loads((real_data / "cohort" / "truth.json").read_text())
    for path in sorted((real_data / "cohort" / "images").iterdir()):
        with open_slide(path) as slide:
            tissue = find_tissue(slide, OPTIONS, "f")
            area = slide.levels[0].width * slide.levels[0].height
        assert tissue.tissue_share == pytest.approx(len(truth[path.stem]) * 256**2 / area, rel=0.08)


def test_tissue_survives_as_a_pickle_of_plain_types(tmp_path):
    pixels = np.full((333, 517, 3), 240, np.uint8)
    pixels[100:200, 50:300] = np.random.default_rng(0).normal((160, 70, 150), 20, (100, 250, 3)).clip(0, 255)
    slide = ArraySlide("/slides/a.tif", pixels)
    slide.bounds, slide.notices = (16, 32, 400, 200), ("40x is assumed",)
    tissue = find_tissue(slide, OPTIONS, "f" * 32)
    write_plain_pickle(tmp_path / "tissue.pkl", tissue.to_plain())
    back = TissueRegions.from_plain(read_plain_pickle(tmp_path / "tissue.pkl"))
    assert back.mask.any()
    assert np.array_equal(back.mask, tissue.mask)
    assert back.to_plain() == tissue.to_plain()
    assert (back.bounds, back.notices) == (slide.bounds, slide.notices)


def test_something_else_is_refused_as_tissue():
    with pytest.raises(SlideIndexError):
        TissueRegions.from_plain({"mask": b""})


class HugeSlide(ArraySlide):
    """A slide of 97,792 x 221,184 pixels that does not fit in memory."""

    def __init__(self):
        super().__init__("/slides/huge.tif", np.full((8, 8, 3), 200, np.uint8))
        self.levels = (Level(0, 97_792, 221_184, 1.0),)

    def reduced(self, downsample):
        raise MemoryError("Unable to allocate 60.4 GiB")


@pytest.mark.parametrize(
    ("level", "said"),
    [
        (0, r"97792 x 221184 pixels, more than 536870912\. Set work_level to 3 or more"),
        (2, r"24448 x 55296 pixels, more than 536870912\. Set work_level to 3 or more"),
        (3, r"12224 x 27648 pixels, for which there is not enough memory\. Set work_level to 4 or more"),
    ],
)
def test_a_working_level_too_fine_for_the_slide_is_one_line(level, said):
    with pytest.raises(SlideIndexError, match=f"work_level {level} makes a tissue mask of {said}") as caught:
        find_tissue(HugeSlide(), TissueOptions(work_level=level), "f")
    assert str(caught.value).startswith("/slides/huge.tif: ")
    assert "\n" not in str(caught.value)
