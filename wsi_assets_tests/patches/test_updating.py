"""Facts of bringing a store up to date: what is taken over, and what is left as it was."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import h5py
import lmdb
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wsi_assets.errors import StoreError
from wsi_assets.patches import (
    STORE_NAMES,
    ExtractionOptions,
    build_store,
    open_store,
    plan_patches,
    verify_store,
)
from wsi_assets_tests.patches.compared import (
    held_by_other_readers,
    is_the_same_store,
    only_the_store_is_left,
)
from wsi_assets_tests.patches.made import ONE, entry, grid, index_of, texture, write_mosaic_slide, write_slide


def test_nothing_is_read_or_written_when_nothing_changed(entries, backend, tmp_path):
    path = tmp_path / STORE_NAMES[backend]
    build_store(plan_patches(index_of(*entries), ONE), path, backend)
    before = path.stat().st_ino, path.stat().st_mtime_ns
    report = build_store(plan_patches(index_of(*entries), ONE), path, backend)
    assert (report.decoded, report.reused, report.patches) == (0, 208, 208)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == before


def test_a_new_slide_costs_that_slide_whatever_it_does_to_the_keys(entries, backend, tmp_path):
    path = tmp_path / "level_0" / STORE_NAMES[backend]
    build_store(plan_patches(index_of(*entries[1:]), ONE), path, backend)
    # Slides of which nothing is new are not even opened.
    gone = [{**row, "slide_path": f"/no/where{row['slide_path']}"} for row in entries[1:]]
    index = index_of(entries[0], *gone)
    report = build_store(plan_patches(index, ONE), path, backend)
    assert (report.decoded, report.reused, report.quarantined) == (96, 112, [])
    fresh = tmp_path / "fresh" / path.name
    build_store(plan_patches(index_of(*entries), ONE), fresh, backend)
    assert is_the_same_store(path, fresh)
    with open_store(path) as store:
        assert store.keys[96] == "test_001_000096"
    assert only_the_store_is_left(path)


def test_an_open_store_stays_as_it_was_while_another_takes_its_place(entries, backend, tmp_path):
    path = tmp_path / STORE_NAMES[backend]
    build_store(plan_patches(index_of(*entries[1:]), ONE), path, backend)
    with open_store(path) as old:
        patches = [patch.tobytes() for patch in old]
        sent = pickle.dumps(old)
        assert build_store(plan_patches(index_of(*entries), ONE), path, backend).reused == 112
        assert old.keys[0] == "test_001_000000"
        if backend == "fs":
            with pytest.raises(StoreError):
                old.get(0)
        else:
            assert [old.get(index).tobytes() for index in range(112)] == patches
        with open_store(path) as new:
            assert [new.get(96 + index).tobytes() for index in range(112)] == patches
    with pytest.raises(StoreError):
        len(pickle.loads(sent))


def test_a_store_that_lmdb_itself_compacted_or_rewrote_is_updated_all_the_same(entries, tmp_path):
    path, copy = tmp_path / "patches_lmdb", tmp_path / "copy" / "patches_lmdb"
    small = [{**row, "patch_size": 8} for row in entries]
    build_store(plan_patches(index_of(*small[1:]), ONE), path, "lmdb")
    copy.mkdir(parents=True)
    with lmdb.open(str(path), map_size=1 << 26) as environment:
        with environment.begin(write=True) as change:
            for key, value in list(change.cursor()):
                change.delete(key)
                change.put(key, value)
        environment.copy(str(copy), compact=True)
    for changed in (path, copy):
        report = build_store(plan_patches(index_of(*small), ONE), changed, "lmdb")
        assert (report.decoded, report.reused) == (96, 112)
        with open_store(changed) as store:
            assert verify_store(store, index_of(*small), 1.0).ok


def test_a_store_in_which_another_program_added_or_removed_patches_is_refused_and_built_again(
    entries, tmp_path
):
    index = index_of(*entries[2:])
    database, file = tmp_path / "patches_lmdb", tmp_path / "patches.h5"
    build_store(plan_patches(index, ONE), database, "lmdb")
    build_store(plan_patches(index, ONE), file, "hdf5")
    with lmdb.open(str(database), map_size=1 << 26) as environment, environment.begin(write=True) as change:
        change.put(b"mine_000001", change.get(b"tumor_001_000000"))
    with h5py.File(file, "r+") as opened:
        opened["images"].resize(60, 0)
    for path, backend in ((database, "lmdb"), (file, "hdf5")):
        with pytest.raises(StoreError) as error:
            open_store(path)
        assert "unfinished" not in str(error.value)
        assert build_store(plan_patches(index, ONE), path, backend).patches == 48
        assert len(open_store(path)) == 48


def test_a_removed_slide_goes_and_a_renamed_one_is_not_read_again(entries, backend, tmp_path):
    path = tmp_path / STORE_NAMES[backend]
    build_store(plan_patches(index_of(*entries), ONE), path, backend)
    moved = tmp_path / "aaa_001.tif"
    shutil.copy(entries[2]["slide_path"], moved)
    rows = [{**entries[2], "slide_path": str(moved)}, entries[0]]
    report = build_store(plan_patches(index_of(*rows), ONE), path, backend)
    assert (report.decoded, report.reused) == (0, 144)
    with open_store(path) as store:
        assert verify_store(store, index_of(*rows), 1.0).ok
        assert {name for name, _, _ in store.origins} == {"aaa_001", "normal_001"}


@pytest.mark.parametrize(
    "other", [ExtractionOptions(codec="png"), ExtractionOptions(codec="jpeg", jpeg_quality=80)]
)
def test_another_encoding_is_made_from_the_slides_again(entries, tmp_path, other):
    path = tmp_path / "patches_lmdb"
    build_store(plan_patches(index_of(*entries[2:]), ExtractionOptions(codec="jpeg")), path, "lmdb")
    assert build_store(plan_patches(index_of(*entries[2:]), other), path, "lmdb").decoded == 48


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_an_updated_store_is_the_store_built_from_nothing(data, entries, backend, tmp_path_factory):
    folder = tmp_path_factory.mktemp("updated")
    path, fresh = folder / STORE_NAMES[backend], folder / "fresh" / STORE_NAMES[backend]
    seen: set = set()
    for _ in range(2):
        rows = []
        for row in entries:
            patches = data.draw(st.lists(st.sampled_from(row["patches"][:12]), unique=True, max_size=6))
            rows.append({**row, "patches": sorted(patches)})
        if not any(row["patches"] for row in rows):
            return
        report = build_store(plan_patches(index_of(*rows), ONE), path, backend)
        now = {(row["slide_path"], y, x) for row in rows for y, x, _ in row["patches"]}
        assert report.decoded == len(now - seen)
        seen = now
    build_store(plan_patches(index_of(*rows), ONE), fresh, backend)
    assert is_the_same_store(path, fresh)


@pytest.fixture
def copied(entries, tmp_path):
    """A slide, its copy under another name (test_049 of CAMELYON16 is one), and another slide."""
    copy = tmp_path / "test_copy.tif"
    shutil.copy(entries[2]["slide_path"], copy)
    return [entries[2], {**entries[2], "slide_path": str(copy)}, entries[1]]


def test_a_slide_and_its_copy_are_stored_twice_and_updated_without_reading_them(copied, backend, tmp_path):
    path, fresh = tmp_path / STORE_NAMES[backend], tmp_path / "fresh" / STORE_NAMES[backend]
    assert build_store(plan_patches(index_of(*copied[:2]), ONE), path, backend).decoded == 96
    report = build_store(plan_patches(index_of(*copied), ONE), path, backend)
    assert (report.decoded, report.reused) == (64, 96)
    build_store(plan_patches(index_of(*copied), ONE), fresh, backend)
    assert is_the_same_store(path, fresh)
    with open_store(path) as store:
        assert verify_store(store, index_of(*copied), 1.0).ok
    assert build_store(plan_patches(index_of(*copied[1:]), ONE), path, backend).decoded == 0


def test_a_patch_listed_twice_is_stored_twice(entries, backend, tmp_path):
    path = tmp_path / STORE_NAMES[backend]
    twice = {**entries[2], "patches": entries[2]["patches"][:8] * 2}
    build_store(plan_patches(index_of(twice), ONE), path, backend)
    report = build_store(plan_patches(index_of(twice, entries[1]), ONE), path, backend)
    assert (report.decoded, report.reused) == (64, 16)
    assert held_by_other_readers(path).keys() == set(plan_patches(index_of(twice, entries[1]), ONE).keys())


def test_a_stricter_limit_for_missing_pixels_holds_for_stored_patches_too(backend, tmp_path):
    written = np.array([[True, False], [True, True]])
    slide = write_mosaic_slide(tmp_path / "slides" / "tumor_001.tif", 2, 2, tile=256, written=written)
    half = [(0, 128, True), (256, 256, False), (128, 0, False)]  # the first lies half in the missing tile
    rows = [entry(slide, half, 256)]
    path, fresh = tmp_path / STORE_NAMES[backend], tmp_path / "fresh" / STORE_NAMES[backend]
    loose, strict = ONE.model_copy(update={"max_no_data": 0.9}), ONE.model_copy(update={"max_no_data": 0.0})
    assert build_store(plan_patches(index_of(*rows), loose), path, backend).patches == 3
    report = build_store(plan_patches(index_of(*rows), strict), path, backend)
    expected = build_store(plan_patches(index_of(*rows), strict), fresh, backend)
    assert report.patches == expected.patches < 3
    assert report.quarantined == expected.quarantined


def test_a_handle_does_not_read_a_store_that_was_built_again(entries, backend, tmp_path):
    """What is quarantined shifts the rows of the patches after it (not in HDF5), whatever the index says."""
    slide = Path(entries[1]["slide_path"])
    away = tmp_path / slide.name
    path = tmp_path / STORE_NAMES[backend]
    slide.rename(away)
    try:
        assert len(build_store(plan_patches(index_of(*entries), ONE), path, backend).quarantined) == 64
    finally:
        away.rename(slide)
    old = open_store(path)
    sent, digest = pickle.dumps(old), old.info["digest"]
    report = build_store(plan_patches(index_of(*entries), ONE), path, backend)
    assert (report.patches, report.quarantined) == (208, [])
    old.close()
    for handle in (old, pickle.loads(sent)):
        with pytest.raises(StoreError):
            handle.get(100)
    with open_store(path) as new:
        assert new.info["digest"] != digest
        assert new.info["plan_digest"] == plan_patches(index_of(*entries), ONE).digest(backend)


def test_a_slide_changed_under_an_index_without_fingerprints_is_read_again(backend, tmp_path):
    slide = write_slide(tmp_path / "slides" / "normal_001.tif", texture(256, 256, seed=1))
    rows = [entry(slide, grid(256, 256, 128), 128, fingerprint=None)]
    path = tmp_path / STORE_NAMES[backend]
    build_store(plan_patches(index_of(*rows), ONE), path, backend)
    assert build_store(plan_patches(index_of(*rows), ONE), path, backend).decoded == 0
    write_slide(slide, texture(256, 256, seed=2))
    assert build_store(plan_patches(index_of(*rows), ONE), path, backend).decoded == 4
    with open_store(path) as store:
        assert verify_store(store, index_of(*rows), 1.0).ok


def test_a_store_of_another_version_is_refused_and_built_again(entries, backend, tmp_path, monkeypatch):
    path = tmp_path / STORE_NAMES[backend]
    monkeypatch.setattr("wsi_assets.patches.plan.FORMAT", 2)
    build_store(plan_patches(index_of(*entries[2:]), ONE), path, backend)
    monkeypatch.undo()
    with pytest.raises(StoreError, match="format 2"):
        open_store(path)
    assert build_store(plan_patches(index_of(*entries[2:]), ONE), path, backend).decoded == 48
