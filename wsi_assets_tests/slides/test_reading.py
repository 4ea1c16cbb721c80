"""Facts about reading: a level's pixels are the file's, and tissue stays where it is at every level."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_assets.errors import SlideError
from wsi_assets.slides import open_slide
from wsi_assets.slides.openslide_file import OpenSlideFile, whole_start
from wsi_assets_tests.slides.made import halved, padded, picture, write_pyramid


def pages(path):
    """Every level of a TIFF as tifffile decodes it, the largest first."""
    with tifffile.TiffFile(path) as file:
        tiled = [page for page in file.pages if page.is_tiled]
        return [page.asarray() for page in sorted(tiled, key=lambda page: -page.imagewidth)]


def random_windows(rng, height, width, count):
    """(y, x, h, w) inside a level."""
    for _ in range(count):
        h, w = (int(rng.integers(1, min(side, 300) + 1)) for side in (height, width))
        yield int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1)), h, w


@pytest.mark.parametrize(
    "name",
    [
        "tumor_001_padded.tif",
        "downsample_4_0058.tif",
        "boxes.tiff",
        "CMU-1-Small-Region.svs",
        "tumor_001_level5.tif",
        "rgba_3level.tif",
    ],
)
def test_a_window_of_any_level_is_the_files_own_pixels_whichever_way_it_is_read(real_data, name):
    path = real_data / "slides" / name
    rng = np.random.default_rng(6)
    slow = OpenSlideFile(path)
    with open_slide(path) as slide:
        for level, image in zip(slide.levels, pages(path), strict=True):
            for y, x, h, w in random_windows(rng, level.height, level.width, 12):
                truth = image[y : y + h, x : x + w, :3]
                np.testing.assert_array_equal(slide.read_region(level.index, y, x, h, w).pixels, truth)
                pixels, present = slow.read(level.index, y, x, h, w)
                np.testing.assert_array_equal(pixels, truth)
                assert present.all()
    slow.close()


def test_plain_read_region_of_the_padded_pyramid_would_be_wrong(real_data):
    # What this package is for: the same place asked of OpenSlide by level-0 coordinates.
    import openslide

    path = real_data / "slides/tumor_001_padded.tif"
    y, x, side = 1400, 300, 128
    naive = openslide.OpenSlide(path).read_region((x * 4, y * 4), 2, (side, side))
    with open_slide(path) as slide:
        right = slide.read_region(2, y, x, side, side).pixels
    assert np.abs(np.asarray(naive)[..., :3].astype(int) - right).mean() > 5


def shift_against_level_0(slide, level, y, x, side):
    """(dy, dx) in the level's pixels between its window and the same place of level 0, area-averaged."""
    scale = level.downsample
    small = slide.read_region(level.index, y, x, side, side).pixels
    rows = (int(np.floor(y * scale)), int(np.ceil((y + side) * scale)))
    cols = (int(np.floor(x * scale)), int(np.ceil((x + side) * scale)))
    large = slide.read_region(0, rows[0], cols[0], rows[1] - rows[0], cols[1] - cols[0]).pixels
    reference = cv2.resize(large, (side, side), interpolation=cv2.INTER_AREA)
    grey = [cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float64) for image in (reference, small)]
    if min(image.std() for image in grey) < 8:
        return None
    (dx, dy), _ = cv2.phaseCorrelate(*grey, cv2.createHanningWindow((side, side), cv2.CV_64F))
    return dy, dx


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("slides/tumor_001_padded.tif", 64),
        ("slides/downsample_4_0058.tif", 64),
        ("cohort/images/tumor_001_node_1.tif", 64),
    ],
)
def test_the_same_tissue_lands_at_the_same_place_at_every_level(real_data, name, side):
    with open_slide(real_data / name) as slide:
        for level in slide.levels[1:]:
            if min(level.height, level.width) < side:
                continue
            found = []
            # Windows up to the far corner, where a wrong scale shows most.
            for y in np.linspace(0, level.height - side, 7).astype(int):
                for x in np.linspace(0, level.width - side, 4).astype(int):
                    shift = shift_against_level_0(slide, level, int(y), int(x), side)
                    if shift is not None:
                        found.append(shift)
            assert found
            assert np.abs(np.median(found, axis=0)).max() < 0.5
            assert np.quantile(np.abs(found).max(axis=1), 0.9) < 1


@settings(max_examples=40, deadline=None)
@given(
    y=st.integers(-80, 500),
    x=st.integers(-80, 500),
    height=st.integers(1, 200),
    width=st.integers(1, 200),
    level=st.integers(0, 2),
)
def test_a_window_over_the_edge_is_white_and_without_data_there(padded_slide, y, x, height, width, level):
    slide, images = padded_slide
    size = slide.levels[level]
    region = slide.read_region(level, y, x, height, width)
    expected = np.full((height, width, 3), 255, np.uint8)
    outside = np.ones((height, width), bool)
    top, bottom, left, right = max(0, y), min(size.height, y + height), max(0, x), min(size.width, x + width)
    if top < bottom and left < right:
        window = (slice(top - y, bottom - y), slice(left - x, right - x))
        expected[window] = images[level][top:bottom, left:right]
        outside[window] = False
    np.testing.assert_array_equal(region.pixels, expected)
    assert region.no_data[outside].all()


@settings(max_examples=40, deadline=None)
@given(
    y=st.integers(-20, 460),
    x=st.integers(-20, 330),
    height=st.integers(1, 120),
    width=st.integers(1, 120),
    level=st.integers(0, 2),
)
def test_no_data_does_not_depend_on_the_window(padded_slide, y, x, height, width, level):
    slide, _ = padded_slide
    size = slide.levels[level]
    whole = slide.read_region(level, -20, -20, size.height + 200, size.width + 200)
    part = slide.read_region(level, y, x, height, width)
    high, wide = whole.no_data.shape
    common = (slice(0, max(0, high - y - 20)), slice(0, max(0, wide - x - 20)))
    inner = whole.no_data[y + 20 :, x + 20 :][:height, :width]
    np.testing.assert_array_equal(part.no_data[common], inner)


@pytest.fixture(scope="module")
def padded_slide(tmp_path_factory):
    """A pyramid padded with 254 to 128 px, with black and white holes; (reader, levels without padding)."""
    image = picture(470, 340)
    image[100:160, 40:90] = 255
    image[300:420, 200:216] = 0
    image[50:59, 250:259] = 255  # the smallest area that counts
    image[70:78, 250:330] = 255  # a strip too thin to count
    levels = [padded(halved(image, k), 128) for k in range(3)]
    path = write_pyramid(
        tmp_path_factory.mktemp("slides") / "padded.tif", levels, compression=None, photometric="rgb"
    )
    with open_slide(path) as slide:
        yield slide, levels


def test_padding_is_not_part_of_a_levels_size(padded_slide):
    slide, _ = padded_slide
    assert [(level.width, level.height, level.downsample) for level in slide.levels] == [
        (384, 512, 1),
        (192, 256, 2),
        (96, 128, 4),
    ]


def test_padding_holes_and_outside_are_no_data_and_tissue_is_data(padded_slide):
    slide, _ = padded_slide
    missing = slide.read_region(0, 0, 0, 512, 384).no_data
    expected = np.zeros_like(missing)
    expected[470:], expected[:, 340:] = True, True
    expected[100:160, 40:90], expected[300:420, 200:216], expected[50:59, 250:259] = True, True, True
    np.testing.assert_array_equal(missing, expected)


def test_even_a_window_of_one_pixel_knows_the_area_it_lies_in(padded_slide):
    slide, _ = padded_slide
    for y in (50, 58):
        for x in (250, 258):
            assert slide.read_region(0, y, x, 1, 1).no_data.all()
    around = [(49, 250), (59, 258), (50, 249), (58, 259)]
    for y, x in around + [(y, 290) for y in range(70, 78)]:
        assert not slide.read_region(0, y, x, 1, 1).no_data.any()


def test_a_missing_tile_is_white_and_no_data(tmp_path):
    image = picture(400, 400)
    for compression in ("jpeg", None):
        path = tmp_path / f"{compression}.tif"
        write_pyramid(
            path, [image, halved(image, 1)], compression=compression, photometric="rgb", missing={(1, 1)}
        )
        with open_slide(path) as slide:
            region = slide.read_region(0, 0, 0, 400, 400)
        hole = np.zeros((400, 400), bool)
        hole[128:256, 128:256] = True
        np.testing.assert_array_equal(region.no_data, hole)
        assert (region.pixels[hole] == 255).all()


def test_transparent_pixels_are_white_and_no_data(tmp_path):
    image = np.dstack([picture(256, 256), np.full((256, 256), 255, np.uint8)])
    image[64:128, 32:200, 3] = 0
    path = write_pyramid(tmp_path / "rgba.tif", [image], compression=None)
    with open_slide(path) as slide:
        region = slide.read_region(0, 0, 0, 256, 256)
    np.testing.assert_array_equal(region.no_data, image[..., 3] == 0)
    assert (region.pixels[region.no_data] == 255).all()
    np.testing.assert_array_equal(region.pixels[~region.no_data], image[..., :3][~region.no_data])


@given(st.integers(0, 200_000), st.floats(1, 600))
def test_a_read_starts_near_and_never_half_a_level_0_pixel_off(position, downsample):
    start, base = whole_start(position, downsample)
    assert 0 <= position - start < 256
    assert abs(base - start * downsample) <= 0.5


@given(
    st.integers(0, 200_000), st.sampled_from([2.0, 3.25, 6.5, 10.0, 4.0161290322580645, 101.75, 689 / 172])
)
def test_a_read_starts_where_openslide_does_not_blend(position, downsample):
    start, base = whole_start(position, downsample)
    assert abs(base / downsample - start) < 1 / 512


def test_a_slide_that_opens_but_does_not_read_is_one_clear_line(real_data):
    path = real_data / "slides/unreadable.svs"
    with open_slide(path) as slide:
        assert (slide.levels[0].width, slide.levels[0].height) == (16, 16)
        for _ in range(2):  # OpenSlide gives up its handle at the first failure
            with pytest.raises(SlideError) as caught:
                slide.read_region(0, 0, 0, 16, 16)
            assert str(path) in str(caught.value)
            assert "\n" not in str(caught.value)
            assert caught.value.remedy


def test_a_damaged_tile_leaves_the_rest_of_the_slide_readable(tmp_path):
    image = picture(512, 512)
    for compression in ("jpeg", "zlib"):
        path = write_pyramid(
            tmp_path / f"{compression}.tif", [image], compression=compression, photometric="rgb"
        )
        with tifffile.TiffFile(path) as file:
            page = file.pages[0]
            start, length = page.dataoffsets[5], page.databytecounts[5]
        with path.open("r+b") as stream:
            stream.seek(start)
            stream.write(b"\0" * length)
        with open_slide(path) as slide:
            before = slide.read_region(0, 0, 0, 100, 100).pixels
            with pytest.raises(SlideError):
                slide.read_region(0, 130, 130, 100, 100)
            np.testing.assert_array_equal(slide.read_region(0, 0, 0, 100, 100).pixels, before)
            assert slide.read_region(0, 300, 300, 100, 100).pixels.std() > 5


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("missing.svs", None),
        ("empty.tif", b""),
        ("notes.tif", b"these are notes, not a slide\n"),
        ("cut.tif", b"II+\0\x08\0\0\0\x10\0\0\0\0\0\0\0"),
        ("endless.tif", b"II+\0\x08\0\0\0\x10\0\0\0\0\0\0\0" + b"\xff" * 64),
        ("unopenable.tiff", "real"),
        ("folder.dcm", "folder"),
    ],
)
def test_a_file_that_is_not_a_slide_is_one_line_with_a_remedy(real_data, tmp_path, name, content):
    path = real_data / "slides" / name if content == "real" else tmp_path / name
    if content == "folder":
        path.mkdir()
        (path / "image.dcm").write_bytes(b"no DICOM")
    elif isinstance(content, bytes):
        path.write_bytes(content)
    with pytest.raises(SlideError) as caught:
        open_slide(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    assert caught.value.remedy


def test_a_missing_level_is_refused(real_data):
    with open_slide(real_data / "slides/boxes.tiff") as slide:
        for level in (-1, 4):
            with pytest.raises(IndexError):
                slide.read_region(level, 0, 0, 10, 10)


@pytest.mark.parametrize("name", ["tumor_001_padded.tif", "CMU-1-Small-Region.svs"])
def test_an_incomplete_copy_of_a_slide_is_named_as_such(real_data, tmp_path, name):
    whole, cut = real_data / "slides" / name, tmp_path / name
    cut.write_bytes(whole.read_bytes()[:300_000])
    with pytest.raises(SlideError, match="300000"):
        open_slide(cut)
