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

from wsi_assets.patches import (
    ExtractionOptions,
    build_store,
    open_store,
    plan_patches,
    verify_store,
)
from wsi_assets.patches.codecs import codec_of, decode, encoder
from wsi_assets.patches.extraction import ExtractTask, _encoded, close_reader
from wsi_assets.patches.patch_reader import PatchReader
from wsi_assets.slides import TileLevel, fingerprint
from wsi_assets_tests.patches.made import entry, grid, index_of, texture, write_mosaic_slide


def openslide_pixels(path, level, y, x, size):
    with openslide.OpenSlide(path) as slide:
        scale = slide.level_downsamples[level]
        return np.asarray(slide.read_region((round(x * scale), round(y * scale)), level, (size, size)))[
            ..., :3
        ]


def empty(size):
    return np.empty((size, size, 3), np.uint8)


def test_png_keeps_every_pixel_and_any_image_library_reads_it():
    patch = texture(96, 96, seed=3)
    data = encoder("png")(patch)
    assert np.array_equal(decode(data, empty(96)), patch)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")), patch)


def test_jpeg_keeps_full_color_resolution_and_stays_close():
    patch = texture(128, 128, seed=4)
    data = encoder("jpeg", 95)(patch)
    image = Image.open(io.BytesIO(data))
    assert [component[1:3] for component in image.layer] == [(1, 1)] * 3, "4:4:4"
    assert np.abs(decode(data, empty(128)).astype(int) - patch).mean() < 3


@pytest.mark.parametrize("codec", ["png", "jpeg"])
def test_bytes_that_are_not_an_image_are_an_error(codec):
    data = encoder(codec)(texture(64, 64))
    with pytest.raises(Exception):  # noqa: B017, PT011  (each library has its own; the store makes one of them)
        decode(data[:-20], empty(64))
    with pytest.raises(ValueError, match="65"):
        decode(data, empty(65))
    assert codec_of(data) == codec


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
        reader = PatchReader(holed, 0)
        if not direct:
            reader.tiles.close()
            reader.tiles = None
        found.append(dict(reader.read(np.array(places, np.int32), size)))
        reader.close()
    for number in range(len(places)):
        direct, through = found[0][number], found[1][number]
        assert (direct.fault, through.fault) == (None, None)
        assert direct.missing == through.missing
        assert direct.pixels.shape == through.pixels.shape == (size, size, 3)
        assert np.array_equal(direct.pixels, through.pixels)


def test_every_touched_tile_is_decoded_once(cohort, monkeypatch):
    read = []
    original = TileLevel.read_tile
    monkeypatch.setattr(TileLevel, "read_tile", lambda s, r, c: read.append((r, c)) or original(s, r, c))
    reader = PatchReader(cohort[0], 0)
    read.clear()  # what was compared with OpenSlide
    coords = np.array([(y, x) for x in range(0, 1000, 100) for y in range(0, 800, 100)], np.int32)
    assert len(list(reader.read(coords, 128))) == len(coords)
    assert sorted(read) == [(row, column) for row in range(2) for column in range(3)]


def extract(path, coords, size=256, **options):
    """Encoded patches, None where unreadable, and the reasons."""
    content = {"level": 0, "patch_size": size, "codec": "png", "quality": None, "max_no_data": 0.5}
    mark = options.pop("mark", None) or fingerprint(path)
    rows = np.arange(len(coords))
    content |= options
    task = ExtractTask(rows, str(path), True, mark, 0, 1.0, np.array(coords, np.int32), content)
    reasons: dict[int, str] = {}
    values = dict(_encoded(task, reasons))
    close_reader()
    assert values.keys() | {coords[number] for number in reasons} == set(coords)
    return [values.get(place) for place in coords], reasons


def test_a_patch_over_missing_tiles_is_quarantined_and_one_partly_over_them_is_white_there(tmp_path):
    written = np.array([[True, False], [True, True]])
    path = write_mosaic_slide(tmp_path / "holes.tif", 2, 2, written=written)
    values, reasons = extract(path, [(0, 0), (0, 512), (0, 400), (0, 300)])
    assert [value is None for value in values] == [False, True, True, False]
    assert reasons[1] == "the slide has no pixels for 100% of it"
    patch = decode(values[3])
    assert (patch[:, 512 - 300 :] == 255).all()
    assert (patch[:, : 512 - 300] < 255).any()
    assert extract(path, [(0, 300)], max_no_data=0.0)[0] == [None]


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
        reader = PatchReader(path, level)
        patches = dict(reader.read(np.array(places, np.int32), size))
        reader.close()
        assert len(patches) == len(places)
        for number, patch in patches.items():
            if not patch.missing:
                expected = openslide_pixels(path, level, *places[number], size)
                assert np.array_equal(patch.pixels, expected), (path.name, places[number])


MARKS = {"RGB": b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\0", "JFIF": b"\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0"}


def write_tiles(path, pixels, colors, mark=None, side=128):
    """A slide of JPEG tiles whose colors are coded as ``colors`` and named by ``mark``, by none if empty."""
    code = {
        "RGB": {"outcolorspace": "RGB"},
        "4:2:0": {"outcolorspace": "YCBCR", "subsampling": "420"},
        "4:4:4": {"outcolorspace": "YCBCR", "subsampling": "444"},
    }[colors]
    named = MARKS["RGB" if colors == "RGB" else "JFIF"]

    def tiles():
        for y in range(0, pixels.shape[0], side):
            for x in range(0, pixels.shape[1], side):
                tile = np.zeros((side, side, 3), np.uint8)
                part = pixels[y : y + side, x : x + side]
                tile[: part.shape[0], : part.shape[1]] = part
                data = imagecodecs.jpeg8_encode(tile, level=85, colorspace="RGB", **code)
                assert named in data
                yield data if mark is None else data.replace(named, mark)

    tifffile.imwrite(
        path,
        tiles(),
        shape=pixels.shape,
        dtype=np.uint8,
        tile=(side, side),
        photometric="rgb" if colors == "RGB" else "ycbcr",
        compression="jpeg",
        compressionargs={"outcolorspace": code["outcolorspace"]},  # tifffile takes the tag's value from it
        metadata=None,
    )
    return path


def coded_as_jpeg(path, coords, size):
    return extract(path, coords, size, codec="jpeg", quality=95)[0]


def decoded_by_everyone(data, size):
    yield decode(data, empty(size))
    yield cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    yield np.asarray(Image.open(io.BytesIO(data)))


@pytest.mark.parametrize("mark", [None, b""])
@pytest.mark.parametrize("colors", ["RGB", "4:2:0", "4:4:4"])
def test_a_patch_that_is_a_whole_tile_keeps_the_slides_own_jpeg(colors, mark, tmp_path):
    path = write_tiles(tmp_path / "s.tif", texture(600, 640, seed=5), colors, mark)
    whole, across, over_the_edge = [(0, 0), (128, 384), (128, 384)], [(64, 0)], [(512, 0)]
    values = coded_as_jpeg(path, [*whole, *across, *over_the_edge], 128)
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
def test_a_tile_whose_markers_name_another_color_space_is_encoded_again(mark, tmp_path):
    colors = "RGB" if mark == "JFIF" else "4:4:4"
    path = write_tiles(tmp_path / "s.tif", texture(256, 256, seed=6), colors, MARKS[mark])
    (value,) = coded_as_jpeg(path, [(0, 128)], 128)
    pixels = openslide_pixels(path, 0, 0, 128, 128).astype(int)
    for decoded in decoded_by_everyone(value, 128):
        assert 0 < np.abs(decoded - pixels).mean() < 3


def test_a_damaged_tile_is_quarantined(tmp_path):
    path = write_tiles(tmp_path / "s.tif", texture(256, 256, seed=7), "4:2:0")
    with tifffile.TiffFile(path) as file:
        offset, length = file.pages[0].dataoffsets[1], file.pages[0].databytecounts[1]
    with path.open("r+b") as file:
        file.seek(offset + length // 3)
        file.write(bytes(length - length // 3))
    values = coded_as_jpeg(path, [(0, 0), (0, 128), (128, 64), (64, 64)], 128)
    assert [value is None for value in values] == [False, True, False, True], "those over the tile"


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
    row = entry(path, grid(high, wide, size)[:40], size)
    options = ExtractionOptions(codec="jpeg", extraction_workers=1)
    build_store(plan_patches(index_of(row), options), tmp_path / "patches_lmdb", "lmdb")
    with open_store(tmp_path / "patches_lmdb") as store:
        assert len(store) >= 1
        for index, (_, y, x) in enumerate(store.origins):
            pixels = openslide_pixels(path, 0, y, x, size)
            assert all(np.array_equal(d, pixels) for d in decoded_by_everyone(store.encoded(index), size))
        report = verify_store(store, index_of(row), 1.0)
        assert report.ok
        assert report.worst_difference == 0.0


@pytest.mark.parametrize(
    ("share", "patches", "allowed"),
    [(0.01, 100_000, 1000), (0.01, 52, 5), (0.01, 20, 2), (0.01, 9, 0), (0.5, 10, 5), (0.0, 1000, 0)],
)
def test_one_damaged_tile_is_allowed_in_a_small_store(share, patches, allowed):
    assert ExtractionOptions(max_quarantined=share).allowed_unreadable(patches) == allowed
