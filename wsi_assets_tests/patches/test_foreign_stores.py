"""Stores that other programs wrote, from the specification alone, open and read; others are refused truly."""

from __future__ import annotations

import pickle
from pathlib import Path

import cv2
import h5py
import lmdb
import numpy as np
import pytest

from wsi_assets.errors import StoreError
from wsi_assets.patches import build_store, open_store, patch_key, plan_patches, verify_store
from wsi_assets.patches.patch_reader import PatchReader
from wsi_assets_tests.patches.made import ONE, index_of, texture


@pytest.fixture(scope="module")
def patches(index):
    """(key, pixels, is tumor) of every patch of the index, as a script of the specification finds them."""
    found, count = [], 0
    for slide_id, entry in index.items():
        reader = PatchReader(entry["slide_path"], entry["level"])
        pixels = dict(reader.read(np.array([patch[:2] for patch in entry["patches"]]), 128))
        reader.close()
        for number, (_, _, tumor) in enumerate(entry["patches"]):
            found.append((patch_key(slide_id, count), pixels[number].pixels.copy(), tumor))
            count += 1
    return found


def image(pixels, suffix=".png"):
    return cv2.imencode(suffix, cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))[1].tobytes()


def write_lmdb(path: Path, items, **options) -> Path:
    with (
        lmdb.open(str(path), map_size=1 << 28, **options) as environment,
        environment.begin(write=True) as change,
    ):
        for key, value in items:
            change.put(key if isinstance(key, bytes) else key.encode(), value)
    return path


def write_hdf5(path: Path, patches, **options) -> Path:
    with h5py.File(path, "w") as file:
        file.create_dataset("images", data=np.stack([pixels for _, pixels, _ in patches]), **options)
        file.create_dataset("labels", data=np.array([tumor for *_, tumor in patches], np.int64))
    return path


def write_folder(path: Path, patches, suffix=".png") -> Path:
    for key, pixels, tumor in patches:
        file = path / ("tumor" if tumor else "normal") / f"{key}{suffix}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(image(pixels, suffix))
    return path


def is_read(store, patches, *, exactly=True):
    """Whether each key of the index gives its patch."""
    for key, pixels, _ in patches:
        found = store.get(store.key_index(key))
        assert np.abs(found.astype(int) - pixels).mean() < (0.01 if exactly else 4)


@pytest.mark.parametrize("suffix", [b"", b".png"])
def test_an_lmdb_of_png_values_opens_with_its_keys(suffix, patches, index, tmp_path):
    items = [(key.encode() + suffix, image(pixels)) for key, pixels, _ in patches]
    items += [(b"__len__", pickle.dumps(len(items))), (b"__keys__", pickle.dumps([key for key, _ in items]))]
    with open_store(write_lmdb(tmp_path / "patches_lmdb", items)) as store:
        assert sorted(store.keys) == sorted(key for key, *_ in patches)
        assert (store.info["patch_size"], store.info["codec"]) == (128, "png")
        assert {"level", "stride", "slides", "digest"}.isdisjoint(store.info)
        assert set(store.labels.tolist()) == {255}
        assert store.coords is None
        is_read(store, patches)
        again = pickle.loads(pickle.dumps(store))
        assert np.array_equal(again.get(7), store.get(7))


@pytest.mark.parametrize("subdir", [True, False])
def test_an_lmdb_of_jpeg_values_opens_also_as_a_single_file(subdir, patches, tmp_path):
    items = [(key, image(pixels, ".jpg")) for key, pixels, _ in patches]
    with open_store(write_lmdb(tmp_path / "patches", items, subdir=subdir)) as store:
        assert store.info["codec"] == "jpeg"
        is_read(store, patches, exactly=False)


@pytest.mark.parametrize("options", [{}, {"chunks": (4, 128, 128, 3), "compression": "gzip"}])
def test_hdf5_of_images_and_labels_opens_and_a_row_is_a_count(options, patches, tmp_path):
    with open_store(write_hdf5(tmp_path / "patches.h5", patches, **options)) as store:
        assert store.info["patch_size"] == 128
        assert store.labels.tolist() == [int(tumor) for *_, tumor in patches]
        assert store.key_index(patches[17][0]) == 17
        is_read(store, patches)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_folder_of_images_by_class_opens(suffix, patches, index, tmp_path):
    with open_store(write_folder(tmp_path / "image_patches", patches, suffix)) as store:
        labels = dict(zip(store.keys, store.labels.tolist(), strict=True))
        assert labels == {key: int(tumor) for key, _, tumor in patches}
        is_read(store, patches, exactly=suffix == ".png")


def test_a_store_of_another_program_verifies_against_the_index_its_keys_count_over(patches, index, tmp_path):
    shown = [(key, image(pixels)) for key, pixels, _ in patches]
    lossy = [(key, image(pixels, ".jpg")) for key, pixels, _ in patches]
    wrong = [(key, image(np.roll(pixels, 40, axis=1))) for key, pixels, _ in patches[:1]] + shown[1:]
    few = [(f"other_{row:06d}", value) for row, (_, value) in enumerate(shown)]
    for items, suspects in ((shown, []), (lossy, []), (wrong, [patches[0][0]])):
        with open_store(write_lmdb(tmp_path / f"{len(list(tmp_path.iterdir()))}", items)) as store:
            report = verify_store(store, index, 1.0)
            assert report.checked == len(patches)
            assert [key for key, _ in report.problems] == suspects
    with open_store(write_hdf5(tmp_path / "patches.h5", patches)) as store:
        assert verify_store(store, index, 1.0).ok
    with open_store(write_lmdb(tmp_path / "few", few)) as store, pytest.raises(StoreError) as error:
        verify_store(store, index, 1.0)
    assert "\n" not in str(error.value)


def test_a_database_or_file_of_something_else_is_refused_with_the_reason(patches, tmp_path):
    arrays = [(key, pickle.dumps(pixels)) for key, pixels, _ in patches[:3]]
    floats = [(key, pixels.astype(np.float32), tumor) for key, pixels, tumor in patches[:3]]
    few = write_hdf5(tmp_path / "few.h5", patches[:4])
    with h5py.File(few, "r+") as file:
        del file["labels"]
        file["labels"] = np.zeros(3)
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = 1
    (tmp_path / "empty" / "normal").mkdir(parents=True)
    for path, why in [
        (write_lmdb(tmp_path / "arrays", arrays), "no PNG or JPEG"),
        (write_lmdb(tmp_path / "nothing", []), "no keys"),
        (write_hdf5(tmp_path / "floats.h5", floats), "float32"),
        (few, "labels"),
        (tmp_path / "other.h5", "no dataset 'images'"),
        (tmp_path / "empty", "no PNG or JPEG"),
    ]:
        with pytest.raises(StoreError, match=why) as error:
            open_store(path)
        assert "unfinished" not in str(error.value)
        assert "\n" not in str(error.value)


def test_an_image_of_another_size_is_one_line_and_a_gray_one_is_read(patches, tmp_path):
    gray = cv2.imencode(".jpg", np.full((128, 128), 77, np.uint8))[1].tobytes()
    items = [("a_000000", image(patches[0][1])), ("a_000001", image(texture(64, 64))), ("a_000002", gray)]
    with open_store(write_lmdb(tmp_path / "mixed", items)) as store:
        with pytest.raises(StoreError, match="a_000001"):
            store.get(1)
        assert np.abs(store.get(2).astype(int) - 77).max() <= 2


def test_a_store_of_another_program_is_not_built_over(patches, entries, tmp_path):
    for path, backend in [
        (write_lmdb(tmp_path / "lmdb", [(key, image(pixels)) for key, pixels, _ in patches]), "lmdb"),
        (write_hdf5(tmp_path / "patches.h5", patches), "hdf5"),
        (write_folder(tmp_path / "folder", patches), "fs"),
    ]:
        with pytest.raises(StoreError):
            build_store(plan_patches(index_of(*entries), ONE), path, backend)
        assert len(open_store(path)) == len(patches)


def test_a_program_that_holds_the_database_open_in_this_process_is_named(patches, tmp_path):
    path = write_lmdb(tmp_path / "held", [(patches[0][0], image(patches[0][1]))])
    with lmdb.open(str(path), readonly=True), pytest.raises(StoreError):
        open_store(path)
    assert len(open_store(path)) == 1
