"""Prediction of any slide from its file: correct positions, as from a store, in constant memory."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from wsi_assets.errors import ModelError, SlideError
from wsi_assets.index import IndexOptions, TissueRegions
from wsi_assets.index.slide_regions import SlideOptions, read_tissue
from wsi_assets.learning import (
    PredictionOptions,
    SlidePredictionOptions,
    load_model,
    predict,
    slide_grid,
    slide_probabilities,
)
from wsi_assets.patches import ExtractionOptions, build_store, open_store, plan_patches
from wsi_assets.slides import open_slide
from wsi_assets_tests.learning.tiny import write_darkness
from wsi_assets_tests.slides.made import halved, picture, write_pyramid

CPU = {"device": "cpu", "num_workers": 2}
SIZE = 32


def tissue_of(path):
    options = SlideOptions(min_work_pixels=64)
    return TissueRegions.from_plain(read_tissue(path.stem, path, options))


def pyramid(folder, mpp=0.25, **changes):
    """A slide of noise with a dark square at x 320 to 512, y 192 to 384."""
    whole = picture(600, 800)
    whole[192:384, 320:512] //= 4
    return write_pyramid(
        folder / "tumor_1.tif", [whole, halved(whole, 1), halved(whole, 2)], mpp=mpp, **changes
    )


@pytest.mark.parametrize(
    ("slide", "level", "stride"),
    [
        ("pyramid", 1, None),
        ("no mpp", 2, 8),
        ("pyramid", "12.5x", 24),
        ("tumor_001_padded.tif", 3, None),
    ],
)
def test_each_probability_is_of_the_pixels_at_its_place_on_level_0(slide, level, stride, tmp_path, request):
    if slide.endswith(".tif"):
        path = request.getfixturevalue("real_data") / "slides" / slide
    else:
        path = pyramid(tmp_path, mpp=None if slide == "no mpp" else 0.25)
    entry = slide_grid(tissue_of(path), level, IndexOptions(), SIZE, stride)
    model = write_darkness(tmp_path, SIZE, level)
    found = slide_probabilities(entry, model, SlidePredictionOptions(**CPU))
    assert entry["stride"] == (stride or SIZE // 2)
    assert len(found) > 60
    with open_slide(path) as reader:
        whole = reader.reduced(1.0).pixels
    side = SIZE * entry["downsample"]
    for (y, x, _), probability in zip(entry["patches"], found, strict=True):
        top, left = y * entry["downsample"], x * entry["downsample"]
        there = whole[round(top) : round(top + side), round(left) : round(left + side)]
        assert probability == pytest.approx(1 - there.mean() / 255, abs=0.01)


@pytest.mark.parametrize(("codec", "tolerance"), [("png", 0), ("jpeg", 0.01)])
def test_the_same_patches_from_a_store_get_the_same_probabilities(codec, tolerance, tmp_path):
    # A JPEG store compresses patches once more, so probabilities differ a little.
    path = pyramid(tmp_path, missing={(1, 2), (2, 5)})
    tissue, level = tissue_of(path), 0
    options = SlidePredictionOptions(**CPU, prediction_batch_size=16)
    entry = slide_grid(tissue, level, IndexOptions(), 64, 64)
    model = load_model(write_darkness(tmp_path, 64, level, gain=3))
    extraction = ExtractionOptions(codec=codec, extraction_workers=1, max_no_data=0.4)
    build_store(plan_patches({"test_1": entry}, extraction), tmp_path / "patches_lmdb", "lmdb")
    with open_store(tmp_path / "patches_lmdb") as store:
        stored = predict(store, {"test_1": entry}, model, PredictionOptions(**CPU))["test_1"]["probs"]
    found = slide_probabilities(entry, model, options, max_no_data=0.4)
    assert 0 < np.isnan(found).sum() < len(found) / 4, "those on missing tiles"
    np.testing.assert_allclose(found, stored, rtol=0, atol=tolerance)


def test_a_model_of_another_size_or_level_and_a_changed_slide_are_refused(tmp_path):
    path = pyramid(tmp_path)
    entry = slide_grid(tissue_of(path), 1, IndexOptions(), SIZE)
    for size, level in ((64, 1), (SIZE, 2)):
        with pytest.raises(ModelError):
            slide_probabilities(entry, write_darkness(tmp_path, size, level), SlidePredictionOptions(**CPU))
    model = write_darkness(tmp_path, SIZE, 1)
    pyramid(tmp_path, mpp=0.5)
    with pytest.raises(SlideError):
        slide_probabilities(entry, model, SlidePredictionOptions(**CPU))


MEMORY = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from wsi_assets.learning import SlidePredictionOptions, load_model, slide_probabilities
from wsi_assets_tests.benchmarks.rows import peak_memory
from wsi_assets_tests.learning.tiny import write_darkness
from wsi_assets_tests.patches.made import entry, grid, write_mosaic_slide
folder, peaks = Path(sys.argv[1]), []
model = load_model(write_darkness(folder, 128, 0))
for tiles in (17, 51):
    slide = write_mosaic_slide(folder / f"{tiles}.tif", tiles, tiles)
    of_slide = entry(slide, grid(tiles * 512, tiles * 512, 128, 256), 128, stride=256)
    slide_probabilities(of_slide, model, SlidePredictionOptions(device="cpu", prediction_batch_size=16))
    peaks.append(peak_memory())
print((peaks[1] - peaks[0]) >> 20)
"""


def test_memory_is_the_same_for_a_slide_of_nine_times_the_size(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 100, "MiB; the larger slide has 1,700 MiB of pixels more"
