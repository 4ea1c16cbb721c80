"""Facts of the plan: keys, order, identity, and how work is cut."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_assets.errors import SlideIndexError
from wsi_assets.patches import ExtractionOptions, patch_key, plan_patches
from wsi_assets.patches.plan import read_batches


def made(name="a", patches=((0, 0, False), (0, 256, True)), **fields):
    """An index of one slide."""
    entry = {
        "slide_path": f"/slides/{name}.tif",
        "level": 0,
        "patch_size": 256,
        "stride": 256,
        "patches": list(patches),
        "fingerprint": name * 32,
        "downsample": 1.0,
    }
    return {name: {**entry, **fields}}


def test_a_key_counts_over_all_slides_in_index_order():
    plan = plan_patches(made("a") | made("b"), ExtractionOptions())
    assert list(plan.keys()) == ["a_000000", "a_000001", "b_000002", "b_000003"]
    assert patch_key("tumor_001", 1234567) == "tumor_001_1234567"


@pytest.mark.parametrize(
    "index",
    [
        {},
        made(patches=[]),
        made("a") | made("b", level=1),
        made("a") | made("b", patch_size=128),
        made(patches=[(0, 1)]),
        made(patches=[(2**32 + 5, 0, 0)]),
        made(patch_size=-5),
        {"a": {name: value for name, value in made()["a"].items() if name != "slide_path"}},
        {"a": None},
        made("__info"),
        made("a/b"),
    ],
)
def test_an_index_that_makes_no_store_is_refused_in_one_line(index):
    with pytest.raises(SlideIndexError) as error:
        plan_patches(index, ExtractionOptions())
    assert "\n" not in str(error.value)


def test_the_keys_of_the_specification_are_enough():
    entry = {
        **{"slide_path": "/s/a.tif", "label": "a", "annotation_path": None, "level": 4, "work_level": 7},
        **{"magnification": 2.5, "visualisation_coords": [], "patches": [(0, 0, False), (0, 128, True)]},
    }
    plan = plan_patches({"a": entry}, ExtractionOptions())
    assert (plan.level, plan.patch_size, plan.labels.tolist()) == (4, 256, [0, 1])
    assert plan_patches({"a": entry}, ExtractionOptions(), patch_size=128).patch_size == 128
    with pytest.raises(SlideIndexError):
        plan_patches(made(), ExtractionOptions(), patch_size=128)


def test_the_slide_id_is_the_key_of_the_index_whatever_the_file_name():
    plan = plan_patches(made("a", slide_path="/slides/scan 17.tif"), ExtractionOptions())
    assert list(plan.keys()) == ["a_000000", "a_000001"]


def test_the_digest_follows_what_the_store_holds_and_nothing_else():
    plan = plan_patches(made("a"), ExtractionOptions())
    same = plan_patches(made("a", slide_path="/moved/a.tif"), ExtractionOptions(extraction_workers=7))
    assert plan.digest() == same.digest()
    others = [
        plan_patches(made("a", fingerprint="f" * 32), ExtractionOptions()),
        plan_patches(made("a", patches=[(0, 0, 0), (0, 256, 0)]), ExtractionOptions()),
        plan_patches(made("a", patches=[(0, 0, 0), (0, 257, 1)]), ExtractionOptions()),
        plan_patches(made("a"), ExtractionOptions(jpeg_quality=94)),
        plan_patches(made("a"), ExtractionOptions(codec="png")),
    ]
    assert len({plan.digest(), *(other.digest() for other in others)}) == 6
    assert plan.digest("hdf5") == others[3].digest("hdf5"), "JPEG quality is nothing to an HDF5 store"


coordinates = st.lists(st.tuples(st.integers(0, 60_000), st.integers(0, 60_000)), max_size=300)


@settings(max_examples=60, deadline=None)
@given(coordinates, st.sampled_from([64, 224, 256, 512, 2048]))
def test_batches_hold_every_patch_once_and_are_bounded(places, size):
    coords = np.array(places, np.int32).reshape(-1, 2)
    batches = read_batches(coords, size)
    together = np.concatenate(batches) if batches else np.zeros(0, int)
    assert sorted(together.tolist()) == list(range(len(coords)))
    assert all(0 < len(batch) * size * size <= 1024 * 256**2 for batch in batches)


def test_a_dense_slide_is_cut_at_tile_borders_so_no_tile_is_read_twice():
    coords = np.array([(y, x) for y in range(0, 32768, 256) for x in range(0, 32768, 256)], np.int32)
    tiles = [set(map(tuple, (coords[batch] // 512).tolist())) for batch in read_batches(coords, 256)]
    assert sum(map(len, tiles)) == 64 * 64


def test_importing_the_package_and_its_options_loads_nothing_heavy():
    code = (
        "import sys; import wsi_assets.patches; from wsi_assets.patches.options import ExtractionOptions;"
        "print([m for m in ('numpy','cv2','lmdb','h5py','openslide','tifffile','torch') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
