"""Facts about formats: what OpenSlide opens is a slide, with its id, its scale and its own pixels."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import tifffile

from wsi_assets.errors import SlideError
from wsi_assets.slides import ReferenceReader, find_slides, fingerprint, open_slide, open_tiles
from wsi_assets.slides.openslide_file import OpenSlideFile
from wsi_assets_tests.slides.made import halved, picture, write_pyramid
from wsi_assets_tests.slides.vendors import write_dicom, write_philips, write_scn, write_svs

IMAGE = picture(456, 600)
"""Whole at levels 1 and 2, and no multiple of the tiles."""


def error(pixels: np.ndarray, truth: np.ndarray) -> float:
    """Mean difference in brightness: JPEG keeps color at half the resolution."""
    gray = [cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(int) for image in (pixels, truth)]
    return float(np.abs(gray[0] - gray[1]).mean())


@pytest.mark.parametrize("compression", ["lzw", "zlib", "packbits", "zstd", None])
def test_a_lossless_tiff_gives_its_pixels_exactly(tmp_path, compression):
    levels = [IMAGE, halved(IMAGE, 1), halved(IMAGE, 2)]
    with open_slide(write_pyramid(tmp_path / "s.tif", levels, compression=compression)) as slide:
        for level, image in zip(slide.levels, levels, strict=True):
            region = slide.read_region(level.index, 0, 0, level.height, level.width)
            np.testing.assert_array_equal(region.pixels, image)
            assert not region.no_data.any()


@pytest.mark.parametrize("subsampling", [(1, 1), (2, 1), (2, 2)])
@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_subsampled_color_in_jpeg_is_decoded_as_openslide_does(tmp_path, subsampling, byteorder):
    path = tmp_path / "s.tif"
    with tifffile.TiffWriter(path, bigtiff=True, byteorder=byteorder) as file:
        for k in range(2):
            file.write(
                halved(IMAGE, k),
                tile=(128, 128),
                photometric="rgb",
                compression="jpeg",
                compressionargs={"level": 80, "outcolorspace": "ycbcr"},
                subsampling=subsampling,
                subfiletype=int(k > 0),
                metadata=None,
            )
    slow = OpenSlideFile(path)
    with open_slide(path) as slide:
        assert len(slide.levels) == 2
        for level in slide.levels:
            assert open_tiles(path, level.index)
            window = (level.index, 0, 0, level.height, level.width)
            np.testing.assert_array_equal(slide.read_region(*window).pixels, slow.read(*window)[0])
    slow.close()


@pytest.mark.parametrize("compression", ["jpeg", "lzw", None])
def test_a_grayscale_tiff_reads_as_gray_rgb(tmp_path, compression):
    gray = cv2.cvtColor(IMAGE, cv2.COLOR_RGB2GRAY)
    path = tmp_path / "s.tif"
    tifffile.imwrite(path, gray, tile=(128, 128), photometric="minisblack", compression=compression)
    with open_slide(path) as slide:
        pixels = slide.read_region(0, 0, 0, 456, 600).pixels
    assert np.abs(pixels.astype(int) - gray[..., None]).mean() < 3
    assert np.ptp(pixels, axis=2).max() == 0


@pytest.mark.parametrize("size", [(1, 1), (5, 3), (20, 300), (255, 255)])
def test_a_slide_smaller_than_a_tile_or_a_patch_is_a_slide(tmp_path, size):
    image = IMAGE[: size[0], : size[1]]
    with open_slide(write_pyramid(tmp_path / "s.tif", [image], compression=None)) as slide:
        np.testing.assert_array_equal(slide.read_region(0, 0, 0, *size).pixels, image)
        assert slide.reduced(1000).pixels.shape == (1, 1, 3)
        assert slide.thumbnail(64).shape[:2] <= (64, 64)


def test_an_svs_has_its_levels_without_thumbnail_and_label(tmp_path):
    path = write_svs(tmp_path / "Case 7.svs", IMAGE, "AppMag = 20|MPP = 0.4990")
    with open_slide(path) as slide:
        assert (slide.slide_id, slide.vendor) == ("Case 7", "aperio")
        assert [(level.width, level.height, level.downsample) for level in slide.levels] == [
            (600, 456, 1),
            (150, 114, 4),
        ]
        assert (slide.scale.base_magnification, slide.scale.mpp) == (20, 0.499)
        assert error(slide.read_region(1, 0, 0, 114, 150).pixels, halved(IMAGE, 2)) < 4


def test_a_philips_slide_has_its_own_spacing(tmp_path):
    with open_slide(write_philips(tmp_path / "p.tiff", IMAGE, 0.25)) as slide:
        assert slide.vendor == "philips"
        assert [level.downsample for level in slide.levels] == [1, 2, 4]
        assert (slide.scale.base_magnification, slide.scale.mpp) == (40, 0.25)
        for level in slide.levels:
            truth = halved(IMAGE, level.index)
            assert error(slide.read_region(level.index, 0, 0, *truth.shape[:2]).pixels, truth) < 4
        missing = slide.read_region(0, 0, 0, 512, 640).no_data
    assert missing[472:].all()
    assert not missing[:448, :592].any()


def test_a_dicom_folder_opens_as_one_slide_with_the_folders_name(tmp_path):
    path = write_dicom(tmp_path / "1.2.840.7", IMAGE, 0.25)
    assert [slide.path for slide in find_slides(tmp_path).slides] == [path]
    assert fingerprint(path)
    with open_slide(path) as slide:
        assert (slide.slide_id, slide.vendor) == ("1.2.840.7", "dicom")
        assert [level.downsample for level in slide.levels] == [1, 2, 4]
        assert (slide.scale.base_magnification, slide.scale.mpp) == (40, 0.25)
        for level in slide.levels:
            truth = halved(IMAGE, level.index)
            assert error(slide.read_region(level.index, 0, 0, *truth.shape[:2]).pixels, truth) < 4


def test_an_image_that_is_not_a_slide_is_refused_with_a_remedy(tmp_path):
    path = tmp_path / "plain.tif"
    tifffile.imwrite(path, IMAGE, photometric="rgb")
    with pytest.raises(SlideError) as caught:
        open_slide(path)
    assert caught.value.remedy


def test_a_slide_with_bounds_has_its_scanned_area(tmp_path):
    path = write_scn(tmp_path / "s.scn", IMAGE, (256, 128), (1200, 900), 0.25)
    with open_slide(path) as slide:
        assert (slide.levels[0].width, slide.levels[0].height) == (1200, 900)
        assert slide.bounds == (256, 128, 600, 456)
        region = slide.read_region(0, 128, 256, 456, 600)
        assert error(region.pixels, IMAGE) < 4
        assert slide.read_region(0, 0, 0, 120, 250).no_data.all()
    with open_slide(write_pyramid(tmp_path / "whole.tif", [IMAGE])) as slide:
        assert slide.bounds is None


@pytest.mark.parametrize("compression", ["jpeg", "zlib"])
def test_an_ome_tiff_has_the_levels_below_its_first_page_and_its_own_scale(tmp_path, compression):
    path = tmp_path / "case.ome.tif"
    levels = [IMAGE, halved(IMAGE, 1), halved(IMAGE, 2)]
    tiled = {"tile": (128, 128), "photometric": "rgb", "compression": compression}
    size = {"PhysicalSizeX": 0.5, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": 0.5, "PhysicalSizeYUnit": "µm"}
    with tifffile.TiffWriter(path, bigtiff=True, ome=True) as file:
        file.write(IMAGE, subifds=2, metadata={"axes": "YXS", **size}, **tiled)
        for level in levels[1:]:
            file.write(level, subfiletype=1, **tiled)
    with open_slide(path) as slide:
        assert [level.downsample for level in slide.levels] == [1, 2, 4]
        assert (slide.scale.base_magnification, slide.scale.mpp, slide.notices) == (20, 0.5, ())
        for level, image in zip(slide.levels, levels, strict=True):
            window = (level.index, 0, 0, level.height, level.width)
            pixels = slide.read_region(*window).pixels
            assert error(pixels, image) < (4 if compression == "jpeg" else 1e-9)
            with ReferenceReader(path, level.index) as reference:
                np.testing.assert_array_equal(reference.read_window(*window[1:])[0], pixels)
        assert slide.reduced(4.0).pixels.shape == (114, 150, 3)


def picture_of_a_label(height: int, width: int) -> np.ndarray:
    label = np.full((height, width, 3), 235, np.uint8)
    return cv2.putText(label, "S19-1234", (5, height // 2), cv2.FONT_HERSHEY_SIMPLEX, 1, (0, 0, 0), 3)


@pytest.mark.parametrize(
    ("size", "said"),
    [
        ((96, 224), {}),
        ((114, 200), {}),
        ((64, 64), {}),
        ((57, 75), {"description": "Label image"}),
        ((57, 75), {"resolution": (100.0, 100.0), "resolutionunit": "CENTIMETER"}),
    ],
)
def test_an_image_that_is_not_a_reduction_of_the_slide_is_not_a_level(tmp_path, size, said):
    """OpenSlide takes every tiled page of a TIFF for a level."""
    path = tmp_path / "s.tif"
    levels = [IMAGE, halved(IMAGE, 1), picture_of_a_label(*size)]
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        for k, image in enumerate(levels):
            own = said if k == 2 else {"resolution": (4e4 / 2**k, 4e4 / 2**k), "resolutionunit": "CENTIMETER"}
            tiled = {"tile": (64, 64), "photometric": "rgb", "compression": "zlib"}
            file.write(image, **tiled, subfiletype=int(k > 0), metadata=None, **own)
    with open_slide(path) as slide:
        assert [level.downsample for level in slide.levels] == [1, 2]
        assert len(slide.notices) == 1
        assert f"{size[1]} x {size[0]}" in slide.notices[0]


def test_a_label_larger_than_the_last_level_is_named_where_openslide_refuses_the_file(tmp_path):
    label = picture_of_a_label(128, 320)
    path = write_pyramid(tmp_path / "s.tif", [IMAGE, halved(IMAGE, 1), halved(IMAGE, 2), label], tile=64)
    with pytest.raises(SlideError, match="320 x 128"):
        open_slide(path)


def test_a_folder_of_two_dicom_series_is_refused(tmp_path):
    folder = write_dicom(tmp_path / "one", IMAGE, 0.25)
    for file in write_dicom(tmp_path / "two", IMAGE, 0.25).iterdir():
        data = file.read_bytes().replace(b"1.2.3.8", b"1.2.3.7")
        (folder / f"other_{file.name}").write_bytes(data)
    with pytest.raises(SlideError):
        open_slide(folder)


def test_dicom_files_are_found_by_their_content(tmp_path):
    """As a PACS exports them, and with a report above them."""
    folder = write_dicom(tmp_path / "patient", IMAGE, 0.25)
    for file in sorted(folder.iterdir()):
        file.rename(folder / f"IM{file.stem[-1]:0>6}")
    (folder / "DICOMDIR").write_bytes(bytes(128) + b"DICM" + bytes(400))
    (slide,) = find_slides(tmp_path).slides
    assert (slide.slide_id, slide.path) == ("patient", folder)
    with open_slide(slide.path) as opened:
        assert len(opened.levels) == 3


@pytest.mark.parametrize("name", ["a.btf", "a.qptiff", "a.ptif", "a.scan", "a"])
def test_what_openslide_opens_is_a_slide_whatever_its_ending(tmp_path, name):
    write_pyramid(tmp_path / name, [IMAGE])
    (slide,) = find_slides(tmp_path).slides
    assert slide.slide_id == "a"
    with open_slide(slide.path) as opened:
        assert len(opened.levels) == 1
