"""Facts of reading and coding pixels."""

from __future__ import annotations

import io

import cv2
import imagecodecs
import numpy as np
import openslide
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from wsi_assets.errors import SlideError
from wsi_assets.patches import ExtractionOptions, build_store, open_store, plan_patches, verify_store
from wsi_assets.patches import pixels as pixels_module
from wsi_assets.patches.codecs import decoder, encoder
from wsi_assets.patches.extract import Task, close_reader, extract
from wsi_assets.patches.pixels import PatchReader
from wsi_assets.slides import TileLevel, fingerprint
from wsi_assets_tests.patches.made import entry, grid, texture, write_mosaic_slide


def openslide_pixels(path, level, y, x, size):
    with openslide.OpenSlide(path) as slide:
        scale = slide.level_downsamples[level]
        return np.asarray(slide.read_region((round(x * scale), round(y * scale)), level, (size, size)))[
            ..., :3
        ]


@pytest.mark.parametrize("codec", ["png", "qoi", "raw"])
def test_a_lossless_codec_keeps_every_pixel_and_any_image_library_reads_it(codec):
    patch = texture(96, 96, seed=3)
    data = encoder(codec)(patch)
    assert np.array_equal(decoder(codec, 96)(data), patch)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")), patch)


def test_jpeg_keeps_full_colour_resolution_and_stays_close():
    patch = texture(128, 128, seed=4)
    data = encoder("jpeg", 95)(patch)
    image = Image.open(io.BytesIO(data))
    assert [component[1:3] for component in image.layer] == [(1, 1)] * 3, "4:4:4"
    assert np.abs(decoder("jpeg", 128)(data).astype(int) - patch).mean() < 3


@pytest.mark.parametrize("codec", ["png", "qoi", "raw", "jpeg"])
def test_bytes_that_are_no_patch_are_an_error_not_a_patch(codec):
    data = encoder(codec)(texture(64, 64))
    with pytest.raises(Exception):  # noqa: B017, PT011  (each library has its own; the store makes one of them)
        decoder(codec, 64)(data[:-20])


@settings(max_examples=25, deadline=None)
@given(
    places=st.lists(st.tuples(st.integers(0, 896), st.integers(0, 1408)), min_size=1, max_size=6),
    direct=st.booleans(),
)
def test_patches_anywhere_are_openslides_pixels_whichever_way_they_are_read(cohort, places, direct):
    reader = PatchReader(cohort[0])
    assert reader.direct(0)
    if not direct:
        reader._tiles = {0: None}
    patches = dict(reader.read(0, np.array(places, np.int32), 128))
    reader.close()
    assert sorted(patches) == list(range(len(places)))
    for number, patch in patches.items():
        assert (patch.fault, patch.missing) == (None, 0)
        assert np.array_equal(patch.pixels, openslide_pixels(cohort[0], 0, *places[number], 128))


@pytest.fixture(scope="module")
def holed(tmp_path_factory):
    """A slide of 3 x 3 tiles of 512 px, two of them never written."""
    written = np.array([[True, False, True], [True, True, True], [False, True, True]])
    return write_mosaic_slide(tmp_path_factory.mktemp("holed") / "s.tif", 3, 3, written=written)


@settings(max_examples=25, deadline=None)
@given(
    places=st.lists(st.tuples(st.integers(-300, 1700), st.integers(-300, 1700)), min_size=1, max_size=8),
    size=st.sampled_from([64, 200, 512, 700]),
)
def test_both_ways_of_reading_agree_on_pixels_and_on_what_is_missing(holed, places, size):
    found = []
    for direct in (True, False):
        reader = PatchReader(holed)
        assert reader.direct(0)
        if not direct:
            reader._tiles = {0: None}
        found.append(dict(reader.read(0, np.array(places, np.int32), size)))
        reader.close()
    for number in range(len(places)):
        direct, through = found[0][number], found[1][number]
        assert (direct.fault, through.fault) == (None, None)
        assert direct.missing == through.missing
        assert direct.pixels.shape == through.pixels.shape == (size, size, 3)
        assert np.array_equal(direct.pixels, through.pixels)


def test_every_touched_tile_is_decoded_once_and_in_file_order(cohort, monkeypatch):
    reader = PatchReader(cohort[0])
    assert reader.direct(0)
    read = []
    original = TileLevel.read_tile
    monkeypatch.setattr(TileLevel, "read_tile", lambda s, r, c: read.append((r, c)) or original(s, r, c))
    coords = np.array([(y, x) for x in range(0, 1000, 100) for y in range(0, 800, 100)], np.int32)
    assert len(list(reader.read(0, coords, 128))) == len(coords)
    assert read == [(row, column) for row in range(2) for column in range(3)]


def task(path, coords, size=256, **fields):
    settings = {"fingerprint": None, "level": 0, "codec": "png", "quality": None, "max_no_data": 0.5}
    return Task(
        slide_path=str(path), coords=np.array(coords, np.int32), patch_size=size, **{**settings, **fields}
    )


def test_a_patch_over_missing_tiles_is_quarantined_and_one_partly_over_them_is_white_there(tmp_path):
    written = np.array([[True, False], [True, True]])
    path = write_mosaic_slide(tmp_path / "holes.tif", 2, 2, written=written)
    got = extract(task(path, [(0, 0), (0, 512), (0, 400), (0, 300)]))
    assert [value is None for value in got.values] == [False, True, True, False]
    assert got.reasons[1] == "the slide has no pixels for 100% of it"
    patch = decoder("png", 256)(got.values[3])
    assert (patch[:, 512 - 300 :] == 255).all()
    assert (patch[:, : 512 - 300] < 255).any()
    strict = extract(task(path, [(0, 300)], max_no_data=0.0))
    assert strict.values == [None]
    close_reader()


def test_a_slide_that_ends_early_loses_only_the_patches_of_the_tiles_it_lacks(tmp_path):
    path = write_mosaic_slide(tmp_path / "cut.tif", 4, 4)
    with tifffile.TiffFile(path) as file:
        place = file.pages[0].dataoffsets[3 * 4]
    data = path.read_bytes()
    if place < data.rfind(b"\xff\xd9"):
        broken = bytearray(data)
        broken[place : place + 3000] = bytes(3000)
        path.write_bytes(broken)
    got = extract(task(path, [(0, 0), (1536, 0), (1536, 1024)]))
    assert got.values[0] is not None
    assert got.values[1] is None
    assert got.values[2] is not None
    assert "row 3, column 0" in got.reasons[1] or "does not read" in got.reasons[1]
    close_reader()


def test_a_slide_that_does_not_open_quarantines_all_its_patches_with_one_reason(tmp_path):
    path = tmp_path / "bad.tif"
    path.write_bytes(b"not a slide")
    got = extract(task(path, [(0, 0), (0, 256)]))
    assert got.values == [None, None]
    assert len(set(got.reasons.values())) == 1


def test_a_slide_changed_since_it_was_indexed_is_refused(tmp_path):
    path = write_mosaic_slide(tmp_path / "s.tif", 2, 2)
    before = fingerprint(path)
    assert extract(task(path, [(0, 0)], fingerprint=before)).reasons == {}
    write_mosaic_slide(path, 2, 3)
    assert extract(task(path, [(0, 0)], fingerprint=before)).reasons == {0: "changed since it was indexed"}
    close_reader()


def test_a_fault_beside_a_patch_does_not_fail_it_when_openslide_reads(cohort, monkeypatch):
    reader = PatchReader(cohort[0])
    reader._tiles = {0: None}
    original = pixels_module.OpenSlideFile.read

    def faulty(self, level, y, x, height, width):
        if y < 200 <= y + height and x < 200 <= x + width:
            raise SlideError("does not read", path=self.path)
        return original(self, level, y, x, height, width)

    monkeypatch.setattr(pixels_module.OpenSlideFile, "read", faulty)
    patches = dict(reader.read(0, np.array([(128, 128), (256, 256), (0, 512)], np.int32), 128))
    assert [patches[number].fault for number in range(3)] == ["does not read", None, None]
    assert [patches[number].missing for number in (1, 2)] == [0, 0]
    assert np.array_equal(patches[1].pixels, openslide_pixels(cohort[0], 0, 256, 256, 128))


def test_real_slides_give_openslides_pixels(real_data):
    for path, level, size in [
        (real_data / "slides" / "CMU-1-Small-Region.svs", 0, 224),
        (next((real_data / "cohort" / "images").glob("*.tif")), 1, 128),
        (real_data / "slides" / "rgba_3level.tif", 0, 100),
    ]:
        with openslide.OpenSlide(path) as slide:
            width, height = slide.level_dimensions[level]
        places = [
            (y, x) for y in range(0, height - size, 3 * size) for x in range(0, width - size, 2 * size)
        ][:24]
        reader = PatchReader(path)
        patches = dict(reader.read(level, np.array(places, np.int32), size))
        reader.close()
        assert len(patches) == len(places)
        for number, patch in patches.items():
            if not patch.missing:
                expected = openslide_pixels(path, level, *places[number], size)
                assert np.array_equal(patch.pixels, expected), (path.name, places[number])


MARKS = {"RGB": b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\0", "JFIF": b"\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0"}


def write_tiles(path, pixels, colours, mark=None, side=128):
    """A slide of JPEG tiles whose colours are coded as ``colours`` and told by ``mark``, by none if empty."""
    code = {
        "RGB": {"outcolorspace": "RGB"},
        "4:2:0": {"outcolorspace": "YCBCR", "subsampling": "420"},
        "4:4:4": {"outcolorspace": "YCBCR", "subsampling": "444"},
    }[colours]
    told = MARKS["RGB" if colours == "RGB" else "JFIF"]

    def tiles():
        for y in range(0, pixels.shape[0], side):
            for x in range(0, pixels.shape[1], side):
                tile = np.zeros((side, side, 3), np.uint8)
                part = pixels[y : y + side, x : x + side]
                tile[: part.shape[0], : part.shape[1]] = part
                data = imagecodecs.jpeg8_encode(tile, level=85, colorspace="RGB", **code)
                assert told in data
                yield data if mark is None else data.replace(told, mark)

    tifffile.imwrite(
        path,
        tiles(),
        shape=pixels.shape,
        dtype=np.uint8,
        tile=(side, side),
        photometric="rgb" if colours == "RGB" else "ycbcr",
        compression="jpeg",
        compressionargs={"outcolorspace": code["outcolorspace"]},  # tifffile takes the tag's value from it
        metadata=None,
    )
    return path


def coded_as_jpeg(path, coords, size):
    task = Task(str(path), fingerprint(path), 0, size, np.array(coords, np.int32), "jpeg", 95, 0.5)
    encoded = extract(task)
    close_reader()
    return encoded


def decoded_by_everyone(data, size):
    yield decoder("jpeg", size)(data)
    yield cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    yield np.asarray(Image.open(io.BytesIO(data)))


@pytest.mark.parametrize("mark", [None, b""])
@pytest.mark.parametrize("colours", ["RGB", "4:2:0", "4:4:4"])
def test_a_patch_that_is_a_whole_tile_keeps_the_slides_own_jpeg(colours, mark, tmp_path):
    path = write_tiles(tmp_path / "s.tif", texture(600, 640, seed=5), colours, mark)
    whole, across, over_the_edge = [(0, 0), (128, 384), (128, 384)], [(64, 0)], [(512, 0)]
    values = coded_as_jpeg(path, [*whole, *across, *over_the_edge], 128).values
    with tifffile.TiffFile(path) as file:
        lengths = file.pages[0].databytecounts
    for value, (y, x) in zip(values, whole, strict=False):
        assert 0 <= len(value) - lengths[y // 128 * 5 + x // 128] <= len(MARKS["RGB"])
        pixels = openslide_pixels(path, 0, y, x, 128)
        assert all(np.array_equal(decoded, pixels) for decoded in decoded_by_everyone(value, 128))
    for value in values[3:]:
        image = Image.open(io.BytesIO(value))
        assert [component[1:3] for component in image.layer] == [(1, 1)] * 3, "coded here: 4:4:4"


@pytest.mark.parametrize("mark", ["JFIF", "RGB"])
def test_a_tile_whose_marks_tell_other_colours_is_coded_again(mark, tmp_path):
    colours = "RGB" if mark == "JFIF" else "4:4:4"
    path = write_tiles(tmp_path / "s.tif", texture(256, 256, seed=6), colours, MARKS[mark])
    (value,) = coded_as_jpeg(path, [(0, 128)], 128).values
    pixels = openslide_pixels(path, 0, 0, 128, 128).astype(int)
    for decoded in decoded_by_everyone(value, 128):
        assert 0 < np.abs(decoded - pixels).mean() < 3


def test_a_damaged_tile_is_quarantined_not_kept(tmp_path):
    path = write_tiles(tmp_path / "s.tif", texture(256, 256, seed=7), "4:2:0")
    with tifffile.TiffFile(path) as file:
        offset, length = file.pages[0].dataoffsets[1], file.pages[0].databytecounts[1]
    with path.open("r+b") as file:
        file.seek(offset + length // 3)
        file.write(bytes(length - length // 3))
    encoded = coded_as_jpeg(path, [(0, 0), (0, 128)], 128)
    assert encoded.values[0] is not None
    assert encoded.values[1] is None
    assert "damaged" in encoded.reasons[1]


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("slides/CMU-1-Small-Region.svs", 240),
        ("slides/downsample_4_0058.tif", 512),
        ("slides/tumor_001_padded.tif", 512),
        ("cohort/images/test_073_node_1.tif", 512),
    ],
)
def test_whole_tiles_of_real_slides_are_kept_and_decode_to_openslides_pixels(name, size, real_data, tmp_path):
    path = real_data / name
    with openslide.OpenSlide(path) as slide:
        wide, high = slide.dimensions
    index = {path.stem: entry(path, grid(high, wide, size)[:40], size)}
    options = ExtractionOptions(codec="jpeg", extraction_workers=1)
    build_store(plan_patches(index, options), tmp_path / "patches_lmdb", "lmdb")
    with open_store(tmp_path / "patches_lmdb") as store:
        assert len(store) >= 1
        for number, (_, y, x) in enumerate(store.origins):
            pixels = openslide_pixels(path, 0, y, x, size)
            assert all(np.array_equal(d, pixels) for d in decoded_by_everyone(store.encoded(number), size))
        report = verify_store(store, index, 1.0)
        assert report.ok
        assert report.worst_difference == 0.0
