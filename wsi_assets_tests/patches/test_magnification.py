"""The same tissue from three scanners: at 10x its patches agree, at a level they do not."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
from shapely import box

from wsi_assets.annotations import read_annotation
from wsi_assets.index import IndexOptions, build_indices
from wsi_assets.patches import ExtractionOptions, build_store, open_store, plan_patches, verify_store
from wsi_assets.slides import Cohort, SlideRow, open_slide
from wsi_assets_tests.slides.made import write_pyramid

SCANNERS = {"fine": 0.2328, "usual": 0.25, "coarse": 0.5}
SIDE = 1024
"""Um of tissue each way."""


@pytest.fixture(scope="module")
def scanned(real_data, tmp_path_factory):
    """One piece of tissue of 1 mm, sampled at three pixel sizes; a folder of slides."""
    folder = tmp_path_factory.mktemp("scanners")
    path = next(iter(sorted((real_data / "cohort" / "images").glob("tumor_001*.tif"))))
    with open_slide(path) as slide:
        tissue = slide.read_region(0, 0, 0, 1792, 1792).pixels
    for name, mpp in SCANNERS.items():
        side = round(SIDE / mpp)
        whole = side - side % 8
        base = cv2.resize(tissue, (side, side), interpolation=cv2.INTER_CUBIC)[:whole, :whole]
        sides = [whole // step for step in (1, 2, 4, 8)]
        levels = [cv2.resize(base, (one, one), interpolation=cv2.INTER_AREA) for one in sides]
        write_pyramid(folder / f"{name}.tif", levels, mpp=mpp)
    return folder


def stores(folder, out, target, patch_size=128):
    found = build_indices(
        folder, None, [target], options=IndexOptions(patch_size=patch_size, min_tissue=0.05)
    )
    index = found.levels[target].index
    plan = plan_patches(index, ExtractionOptions())
    build_store(plan, out, "hdf5")
    return index, open_store(out), plan


def at(store, slide_id):
    return {(y, x): store.get(row) for row, (name, y, x) in enumerate(store.origins) if name == slide_id}


def gray(patch):
    return cv2.cvtColor(patch, cv2.COLOR_RGB2GRAY).astype(np.float64)


def test_at_10x_the_patches_of_three_scanners_agree_and_at_a_level_they_do_not(scanned, tmp_path):
    index, store, _ = stores(scanned, tmp_path / "ten.h5", "10x")
    assert [entry["mpp"] for entry in index.values()] == pytest.approx([1.0] * 3)
    assert {name: entry["step"] for name, entry in index.items()} == pytest.approx(
        {"fine": 1 / 0.2328 / 4, "usual": 1.0, "coarse": 1.0}
    )
    places = [set(at(store, name)) for name in SCANNERS]
    shared = set.intersection(*places)
    assert len(shared) >= 0.8 * max(map(len, places)) >= 4
    usual = at(store, "usual")
    for name in ("fine", "coarse"):
        for place in shared:
            one, other = gray(usual[place]), gray(at(store, name)[place])
            shift, _ = cv2.phaseCorrelate(one, other, cv2.createHanningWindow(one.shape, cv2.CV_64F))
            assert np.hypot(*shift) < 0.5
            assert np.abs(one - other).mean() < 3
    assert verify_store(store, index, 1.0).ok
    _, level, _ = stores(scanned, tmp_path / "level.h5", 1)
    unlike = [
        np.abs(gray(patch) - gray(at(level, "coarse")[place])).mean()
        for place, patch in at(level, "usual").items()
        if place in at(level, "coarse")
    ]
    assert np.mean(unlike) > 30


def test_a_slide_with_a_corrected_mpp_is_read_again(scanned, tmp_path):
    _, _, plan = stores(scanned, tmp_path / "store.h5", "10x")
    said = Cohort(rows={"usual": SlideRow(mpp=0.26)})
    found = build_indices(scanned, None, ["10x"], options=IndexOptions(patch_size=128), cohort=said)
    again = plan_patches(found.levels["10x"].index, ExtractionOptions())
    assert again.digest("hdf5") != plan.digest("hdf5")
    staged = build_store(again, tmp_path / "store.h5", "hdf5")
    with open_store(tmp_path / "store.h5") as store:
        assert staged.decoded == len(at(store, "usual"))
        assert verify_store(store, found.levels["10x"].index, 1.0).ok


def test_the_cohorts_tumor_is_exact_at_20x_though_no_level_is_20x(real_data):
    folder = real_data / "cohort"
    truth = json.loads((folder / "truth.json").read_text())
    options = IndexOptions(patch_size=128)
    found = build_indices(folder / "images", folder / "annotations", ["20x"], options=options)
    index = found.levels["20x"].index
    assert set(index) == set(truth)
    for slide_id, entry in index.items():
        side = 128 * entry["downsample"]
        assert entry["downsample"] == pytest.approx(0.5 / 0.243, rel=1e-4)
        true = np.array([place for *place, tumor in truth[slide_id] if tumor]).reshape(-1, 2)
        tumor = entry["annotation_path"] and read_annotation(entry["annotation_path"]).geometry
        for (y, x, is_tumor), share in zip(entry["patches"], entry["tumor_fraction"], strict=True):
            top, left = y * entry["downsample"], x * entry["downsample"]
            square = box(left, top, left + side, top + side)
            exact = tumor.intersection(square).area / square.area if tumor else 0.0
            assert share == pytest.approx(exact, abs=1e-6)
            assert is_tumor == (share > 0)
            near = (np.abs(true - (top, left)) < side + 256).all(axis=1).any()
            assert near or not is_tumor
