"""Facts about direct tiles: OpenSlide's pixels or none, and damage never passes for a picture."""

from __future__ import annotations

import concurrent.futures
import io
import shutil
import tracemalloc

import numpy as np
import openslide
import pytest
import tifffile
from PIL import Image

from wsi_assets.errors import SlideError
from wsi_assets.slides import ReferenceReader, open_slide, open_tiles
from wsi_assets.slides.jpeg_data import hole_in
from wsi_assets.slides.openslide_file import OpenSlideFile, blends
from wsi_assets_tests.slides.made import halved, padded, picture, write_pyramid
from wsi_assets_tests.slides.vendors import write_dicom, write_jp2k_svs

JPEG_SLIDES = [
    "slides/CMU-1-Small-Region.svs",
    "slides/tumor_001_padded.tif",
    "slides/downsample_4_0058.tif",
    "cohort/images/tumor_064_node_1.tif",
]


def places(level):
    return np.ndindex(level.rows, level.cols)


@pytest.mark.parametrize("name", JPEG_SLIDES)
def test_every_tile_is_what_openslide_reads_there(real_data, name):
    slide = OpenSlideFile(real_data / name)
    for index, size in enumerate(slide.sizes):
        with open_tiles(real_data / name, index) as level:
            assert (level.index, (level.width, level.height)) == (index, size)
            for row, col in list(places(level))[:40]:
                tile = level.read_tile(row, col)
                y, x = row * level.tile_height, col * level.tile_width
                h, w = min(level.tile_height, level.height - y), min(level.tile_width, level.width - x)
                np.testing.assert_array_equal(tile[:h, :w], slide.read(index, y, x, h, w)[0])
    slide.close()


@pytest.mark.parametrize("name", ["rgba_3level.tif", "unreadable.svs"])
def test_damaged_and_other_than_rgb_tiffs_are_left_to_openslide(real_data, name):
    assert open_tiles(real_data / "slides" / name, 0) is None


def test_a_file_that_does_not_open_is_an_error(real_data, tmp_path):
    with pytest.raises(SlideError):
        open_tiles(real_data / "slides/unopenable.tiff", 0)
    with pytest.raises(SlideError):
        open_tiles(tmp_path / "missing.tif", 0)


@pytest.mark.parametrize("photometric", ["rgb", "ycbcr"])
def test_any_photometric_gives_openslides_colors(tmp_path, photometric):
    image = picture(300, 500)
    path = write_pyramid(tmp_path / "s.tif", [image, halved(image, 1)], photometric=photometric)
    with tifffile.TiffFile(path) as file:
        assert file.pages[0].photometric.name.lower() == photometric
    with open_tiles(path, 0) as level:
        tile = level.read_tile(1, 2)
    assert np.abs(tile.astype(int) - image[128:256, 256:384]).mean() < 8


def test_a_missing_tile_is_none(tmp_path):
    path = write_pyramid(tmp_path / "s.tif", [picture(384, 384)], photometric="rgb", missing={(0, 1), (2, 2)})
    with open_tiles(path, 0) as level:
        absent = {place for place in places(level) if level.read_tile(*place) is None}
    assert absent == {(0, 1), (2, 2)}


def test_a_picture_larger_than_its_list_of_tiles_is_refused(tmp_path):
    path = write_pyramid(tmp_path / "s.tif", [picture(384, 384)])
    with tifffile.TiffFile(path, mode="r+") as file:
        file.pages[0].tags["ImageWidth"].overwrite(8_388_608)
    with pytest.raises(SlideError):
        open_slide(path)


def test_a_tile_outside_the_grid_is_refused(real_data):
    with open_tiles(real_data / JPEG_SLIDES[1], 0) as level, pytest.raises(IndexError):
        level.read_tile(14, 0)
    with pytest.raises(SlideError):
        open_tiles(real_data / JPEG_SLIDES[1], 5)


def damaged(path, change):
    """Change the bytes of tile (1, 1) of a 512 x 512 slide with tiles of 128."""
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        start, length = page.dataoffsets[5], page.databytecounts[5]
    data = bytearray(path.read_bytes())
    data[start : start + length] = change(bytes(data[start : start + length]))
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    "change",
    [
        lambda data: bytes(len(data)),
        lambda data: data[: len(data) // 2] + bytes(len(data) - len(data) // 2),
        lambda data: data[: len(data) // 2] + b"\xff" * (len(data) - len(data) // 2),
        lambda data: data[: len(data) // 2] + b"\xff\xd9" + bytes(len(data) - len(data) // 2 - 2),
        lambda data: data[:-40] + bytes(40),
        lambda data: data[: len(data) // 2] + bytes(300) + data[len(data) // 2 + 300 :],
        lambda data: data[: len(data) // 2] + bytes(len(data) - len(data) // 2 - 2) + b"\xff\xd9",
    ],
    ids=["zeros", "half zeros", "half ones", "ends early", "tail lost", "hole", "half zeros and an end"],
)
@pytest.mark.parametrize("gray", [False, True])
def test_a_damaged_tile_is_an_error_whichever_way_it_is_read(tmp_path, change, gray):
    """OpenSlide and other decoders make a picture of zeros; a gray slide is read by OpenSlide."""
    path = tmp_path / "s.tif"
    image = picture(512, 512)
    if gray:
        tifffile.imwrite(path, image[..., 0], tile=(128, 128), photometric="minisblack", compression="jpeg")
    else:
        write_pyramid(path, [image], photometric="rgb")
    damaged(path, change)
    slow = OpenSlideFile(path)
    with open_slide(path) as slide:
        assert (open_tiles(path, 0) is None) == gray
        for read in (slide.read_region, slow.read):
            with pytest.raises(SlideError) as caught:
                read(0, 128, 128, 128, 128)
            assert "\n" not in str(caught.value)
        assert slide.read_region(0, 300, 300, 80, 80).pixels.std() > 5
    slow.close()


@pytest.mark.parametrize("quality", [30, 80, 95])
@pytest.mark.parametrize("optimize", [False, True])
@pytest.mark.parametrize("progressive", [False, True])
def test_sound_jpeg_data_of_any_coding_has_no_hole(quality, optimize, progressive):
    """Flat pictures under tables made for them are long runs of zero bytes."""
    for image in (
        picture(256, 256),
        *(np.full((512, 512, 3), value, np.uint8) for value in (0, 128, 243, 255)),
    ):
        stream = io.BytesIO()
        Image.fromarray(image).save(
            stream, "JPEG", quality=quality, optimize=optimize, progressive=progressive
        )
        assert hole_in(stream.getvalue()) is None


@pytest.mark.parametrize("compression", ["zlib", "lzw", None, 33005, 33003])
def test_a_level_whose_ratio_is_just_off_whole_has_its_own_pixels(tmp_path, compression):
    """OpenSlide blends there: 2967 rows in 1483 are 2.0007."""
    image = picture(743, 555)
    levels = [image, halved(image, 1), halved(image, 2)]
    path = tmp_path / "s.tif"
    if isinstance(compression, int):
        truth = write_jp2k_svs(path := tmp_path / "s.svs", levels, compression)
    else:
        truth = levels
        write_pyramid(path, levels, compression=compression)
    assert_exact(path, truth)


def test_a_dicom_level_whose_ratio_is_just_off_whole_has_its_own_pixels(tmp_path):
    path = write_dicom(tmp_path / "d", picture(1486, 1111), 0.25)
    truth = []
    for k in range(3):
        (tmp_path / f"alone{k}").mkdir()
        file = shutil.copy(path / f"level{k}.dcm", tmp_path / f"alone{k}")
        with openslide.OpenSlide(file) as slide:
            truth.append(np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB")))
    with OpenSlideFile(path)._open() as slide:
        assert any(blends(ratio, 1111) for ratio in slide.level_downsamples)
    assert_exact(path, truth)


def assert_exact(path, truth):
    """Every window of every level, by region, by patch and by the reference, is the level's own pixels."""
    rng = np.random.default_rng(3)
    with open_slide(path) as slide:
        assert len(slide.levels) == len(truth)
        for level, image in zip(slide.levels, truth, strict=True):
            with ReferenceReader(path, level.index) as reference:
                for _ in range(12):
                    h, w = (int(rng.integers(1, min(side, 200))) for side in image.shape[:2])
                    y, x = int(rng.integers(0, image.shape[0] - h)), int(rng.integers(0, image.shape[1] - w))
                    wanted = image[y : y + h, x : x + w]
                    np.testing.assert_array_equal(slide.read_region(level.index, y, x, h, w).pixels, wanted)
                    np.testing.assert_array_equal(reference.read_window(y, x, h, w)[0], wanted)


def test_where_openslide_can_only_blend_a_pixel_does_not_depend_on_the_window(tmp_path, monkeypatch):
    image = picture(1500, 1301)
    path = write_pyramid(tmp_path / "s.tif", [image, halved(image, 1)], compression="zlib")
    monkeypatch.setattr("wsi_assets.slides.reader.open_tiles", lambda *_, **__: None)
    with open_slide(path) as slide:
        whole = slide.read_region(1, 0, 0, 750, 650).pixels
        assert np.abs(whole.astype(int) - halved(image, 1)).mean() < 5
        for y, x in ((0, 0), (33, 401), (301, 7), (597, 523)):
            part = slide.read_region(1, y, x, 100, 90).pixels
            np.testing.assert_array_equal(part, whole[y : y + 100, x : x + 90])


def test_a_damaged_tile_that_claims_gigabytes_is_refused_before_it_takes_them(tmp_path):
    path = write_pyramid(tmp_path / "s.tif", [picture(512, 512)], photometric="rgb")

    def enlarged(data):
        at = data.index(b"\xff\xc0") + 5
        return data[:at] + b"\xff\x00\xff\x00" + data[at + 4 :]

    with open_tiles(damaged(path, enlarged), 0) as level:
        tracemalloc.start()
        with pytest.raises(SlideError, match="row 1, column 1"):
            level.read_tile(1, 1)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
        tracemalloc.stop()


def test_gray_padding_is_not_taken_for_damage(tmp_path):
    path = write_pyramid(tmp_path / "s.tif", [padded(picture(200, 200), 256, 128)], photometric="rgb")
    with open_tiles(path, 0) as level:
        assert (level.read_tile(1, 1)[80:, 80:] == 128).all()


def test_suspect_tiles_do_not_open_the_slide_again(tmp_path, monkeypatch):
    path = write_pyramid(tmp_path / "s.tif", [padded(picture(200, 200), 512, 128)], photometric="rgb")
    opened = []
    original = openslide.OpenSlide
    monkeypatch.setattr(openslide, "OpenSlide", lambda path: opened.append(path) or original(path))
    with open_tiles(path, 0) as level:
        assert sum((level.read_tile(*place)[-8:, -8:] == 128).all() for place in places(level)) > 10
    assert len(opened) == 1


def test_only_the_level_asked_for_is_compared_and_none_if_it_was_before(tmp_path, monkeypatch):
    image = picture(600, 500)
    path = write_pyramid(tmp_path / "s.tif", [halved(image, k) for k in range(3)])
    compared = []
    original = OpenSlideFile.read_at_once
    monkeypatch.setattr(
        OpenSlideFile,
        "read_at_once",
        lambda self, level, *rest: compared.append(level) or original(self, level, *rest),
    )
    open_tiles(path, 1).close()
    assert set(compared) == {1}
    compared.clear()
    open_tiles(path, 1, verified=True).close()
    assert compared == []


def test_a_level_whose_pixels_differ_from_openslides_is_left_to_it(tmp_path, monkeypatch):
    path = write_pyramid(tmp_path / "s.tif", [picture(300, 300)])
    original = OpenSlideFile.read_at_once
    monkeypatch.setattr(
        OpenSlideFile,
        "read_at_once",
        lambda self, *window: (original(self, *window)[0] ^ 1, original(self, *window)[1]),
    )
    assert open_tiles(path, 0) is None


def test_tiles_beyond_the_end_of_a_truncated_file_are_errors(tmp_path):
    path = write_pyramid(tmp_path / "s.tif", [picture(1024, 1024)], photometric="rgb")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 2 // 3])
    # Depending on where the file ends, OpenSlide refuses it or one tile at a time fails.
    with pytest.raises(SlideError), open_slide(path) as slide:
        slide.read_region(0, 0, 0, 100, 100)
        slide.read_region(0, 900, 900, 100, 100)


def test_threads_may_share_a_level(real_data):
    with open_tiles(real_data / JPEG_SLIDES[1], 1) as level, concurrent.futures.ThreadPoolExecutor(4) as pool:
        every = list(places(level))
        alone = [level.read_tile(*place) for place in every]
        shared = list(pool.map(lambda place: level.read_tile(*place), every * 3))
    for one, other in zip(alone * 3, shared, strict=True):
        np.testing.assert_array_equal(one, other)
