"""The contract of a patch store, stated once and run on every kind."""

from __future__ import annotations

import errno
import io
import os
import pickle
import shutil
import struct
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import lmdb
import numpy as np
import pytest
from PIL import Image

from wsi_assets.errors import SlideError, StoreError
from wsi_assets.patches import (
    STORE_NAMES,
    ExtractionOptions,
    PatchStore,
    build_store,
    mosaic_png,
    open_store,
    plan_patches,
    verify_store,
)
from wsi_assets.patches.patch_reader import PatchReader
from wsi_assets.slides import ReferenceReader
from wsi_assets_tests.patches.made import index_of
from wsi_assets_tests.patches.reading import Patches, sums

LOSSLESS = ExtractionOptions(codec="png", extraction_workers=1)


@pytest.fixture(scope="session", params=["lmdb", "hdf5", "fs"])
def built(request, entries, tmp_path_factory):
    """One lossless store of each kind."""
    path = tmp_path_factory.mktemp("built") / STORE_NAMES[request.param]
    build_store(plan_patches(index_of(*entries), LOSSLESS), path, request.param)
    return path


def test_a_store_holds_exactly_the_slides_pixels_under_the_plans_keys(built, entries):
    with open_store(built) as store:
        plan, info = plan_patches(index_of(*entries), LOSSLESS), store.info
        assert (info["level"], info["patch_size"], info["quarantined"]) == (0, 128, [])
        assert info["patches"] == info["tumor"] + info["normal"] == len(store)
        assert [slide["downsample"] for slide in info["slides"]] == [1.0] * 3
        assert store.keys == list(plan.keys())
        assert store.labels.tolist() == plan.labels.tolist()
        assert store.labels.dtype == np.uint8
        number = 0
        for row in entries:
            reader = PatchReader(row["slide_path"], 0)
            patches = dict(reader.read(np.array(row["patches"])[:, :2], 128))
            reader.close()
            for count, (y, x, _) in enumerate(row["patches"]):
                patch = store.get(number)
                assert patch.dtype == np.uint8
                assert np.array_equal(patch, patches[count].pixels)
                assert store.origins[number][1:] == (y, x)
                number += 1
        assert number == len(store) == len(list(store))


def test_keys_find_their_patches_and_patches_come_in_the_order_asked_for(built):
    with open_store(built) as store:
        assert store.key_index(store.keys[57]) == 57
        many = store.get_many([5, 2, 5])
        assert many.shape == (3, 128, 128, 3)
        assert np.array_equal(many[0], many[2])
        assert np.array_equal(many[1], store[2])
        patch = store.get(0)
        patch[:] = 0
        assert store.get(0).any(), "a patch given out is the caller's own"
        for index in (-1, len(store)):
            with pytest.raises(IndexError):
                store.get(index)


@pytest.mark.parametrize(
    ("method", "workers"),
    [
        ("fork", 4),
        ("spawn", 2),
        pytest.param("spawn", 8, marks=pytest.mark.trial),  # each imports torch
    ],
)
def test_a_torch_loader_reads_every_patch_right(built, method, workers):
    with open_store(built) as store:
        expected = sums(store, range(len(store)))
        import torch

        loader = torch.utils.data.DataLoader(
            Patches(store), batch_size=16, shuffle=True, num_workers=workers, multiprocessing_context=method
        )
        seen = {}
        for patches, indices in loader:
            seen.update(zip(indices.tolist(), patches.sum(dim=(1, 2, 3)).tolist(), strict=True))
        assert [seen[index] for index in range(len(store))] == expected


def test_plain_lmdb_and_any_image_library_read_the_lmdb_store(entries, tmp_path):
    build_store(plan_patches(index_of(*entries[2:]), ExtractionOptions()), tmp_path / "patches_lmdb", "lmdb")
    keys = []
    with lmdb.open(str(tmp_path / "patches_lmdb"), readonly=True) as environment, environment.begin() as view:
        for key, value in view.cursor():
            if not key.startswith(b"__"):
                keys.append(key.decode())
                assert Image.open(io.BytesIO(value)).size == (128, 128)
    assert keys == list(plan_patches(index_of(*entries[2:]), ExtractionOptions()).keys())


def test_plain_h5py_reads_the_hdf5_store(entries, tmp_path):
    plan = plan_patches(index_of(*entries[2:]), ExtractionOptions())
    build_store(plan, tmp_path / "patches.h5", "hdf5")
    with h5py.File(tmp_path / "patches.h5") as file, open_store(tmp_path / "patches.h5") as store:
        assert file["images"].shape == (48, 128, 128, 3)
        assert file["images"].dtype == np.uint8
        assert file["images"].chunks == (1, 128, 128, 3)
        assert np.array_equal(file["images"][7], store.get(7))
        assert file["labels"][:].tolist() == plan.labels.tolist()
        assert [key.decode() for key in file["keys"][:]] == store.keys


def test_torchvision_reads_the_png_folder_as_it_is(entries, tmp_path):
    build_store(plan_patches(index_of(*entries[2:]), LOSSLESS), tmp_path / "image_patches", "fs")
    from torchvision.datasets import ImageFolder

    folder = ImageFolder(tmp_path / "image_patches")
    assert folder.classes == ["normal", "tumor"]
    with open_store(tmp_path / "image_patches") as store:
        assert len(folder) == len(store) == 48
        assert sorted(label for _, label in folder.samples) == sorted(store.labels.tolist())
        for file, label in folder.samples:
            index = store.key_index(Path(file).stem)
            assert label == store.labels[index]
    one_class = [{**entries[2], "patches": [(y, x, False) for y, x, _ in entries[2]["patches"]]}]
    build_store(plan_patches(index_of(*one_class), LOSSLESS), tmp_path / "image_patches", "fs")
    assert ImageFolder(tmp_path / "image_patches", allow_empty=True).classes == ["normal", "tumor"]


def test_an_incomplete_store_is_refused_in_one_line(tmp_path):
    (tmp_path / "file").write_text("text")
    (tmp_path / "folder").mkdir()
    (tmp_path / ".patches_lmdb.partial").mkdir()
    for name, said in [("none", "exist"), ("file", "not"), ("folder", "not"), ("patches_lmdb", "unfinished")]:
        with pytest.raises(StoreError, match=said) as error:
            open_store(tmp_path / name)
        assert "\n" not in str(error.value)


def test_a_damaged_store_is_refused(built, tmp_path):
    copy = tmp_path / built.name
    if built.is_dir():
        shutil.copytree(built, copy)
        victim = copy / ("data.mdb" if (copy / "data.mdb").exists() else "manifest.json")
        victim.write_bytes(victim.read_bytes()[:100])
    else:
        copy.write_bytes(built.read_bytes()[:5000])
    with pytest.raises(StoreError) as error:
        open_store(copy)
    assert "\n" not in str(error.value)


def test_a_store_without_read_permission_is_not_reported_as_damaged(built, monkeypatch):
    def denied(path, *how, **options):
        if str(path).startswith(str(built)) or path == "manifest.json":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, *how, **options)

    where = {"patches_lmdb": (Path, "open"), "patches.h5": (h5py, "File"), "image_patches": (os, "open")}
    opened = getattr(*where[built.name])
    monkeypatch.setattr(*where[built.name], denied)
    with pytest.raises(StoreError, match="Permission denied") as error:
        open_store(built)
    assert "Delete" not in str(error.value)


def test_an_lmdb_that_is_cut_short_anywhere_is_refused_before_it_can_end_the_process(built, tmp_path):
    if built.name != STORE_NAMES["lmdb"]:
        pytest.skip("LMDB's file only")
    whole = (built / "data.mdb").read_bytes()
    (tmp_path / "cut").mkdir()
    for size in (5000, 9000, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut" / "data.mdb").write_bytes(whole[:size])
        with pytest.raises(StoreError):
            open_store(tmp_path / "cut")


def test_two_handles_of_one_store_are_independent(built):
    one, two = open_store(built), open_store(built)
    expected = one.get(3)
    one.close()
    assert np.array_equal(two.get(3), expected)
    assert np.array_equal(one.get(3), expected), "a closed handle opens again"
    one.close()
    two.close()


def test_threads_that_first_use_a_handle_open_it_once(built):
    before = len(list(Path("/proc/self/fd").iterdir()))
    sent = pickle.dumps(PatchStore(built))
    assert len(sent) < 500
    store = pickle.loads(sent)
    with ThreadPoolExecutor(8) as threads:
        got = list(threads.map(lambda index: store.get(index).sum(), range(64)))
    assert got == sums(store, range(64))
    store.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_verifying_reads_the_whole_file_with_lmdbs_own_checker(built, tmp_path):
    if built.name != STORE_NAMES["lmdb"]:
        pytest.skip("LMDB's file only")
    shutil.copytree(built, tmp_path / "copy")
    with (tmp_path / "copy" / "data.mdb").open("r+b") as file, open_store(tmp_path / "copy") as store:
        assert store.problems() == []
        # The later of two meta pages, by its transaction's number, names the root of the tree.
        metas = [struct.unpack("<QQQ", file.read(1 << 12)[128:152]) for _ in range(2)]
        root, _, _ = max(metas, key=lambda meta: meta[2])
        file.seek((root << 12) + 16)  # its list of nodes
        file.write(b"\xff" * 64)
        file.flush()
        assert store.problems()


def test_verifying_finds_the_one_patch_that_differs_from_its_slide(built, entries):
    with open_store(built) as store:
        report = verify_store(store, index_of(*entries), 1.0)
        assert report.ok
        assert report.checked == len(store)
        assert verify_store(store, index_of(*entries), 0.1, seed=1).checked == round(0.1 * len(store))
        moved = [(*origin[:2], origin[2] + (row == 5)) for row, origin in enumerate(store.origins)]
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(PatchStore, "origins", moved)
            wrong = verify_store(store, index_of(*entries), 1.0)
        assert [key for key, _ in wrong.problems] == [store.keys[5]]
        absent = verify_store(store, index_of(*entries[1:]), 1.0)
        assert len(absent.problems) == len(entries[0]["patches"])


def test_a_slide_that_fails_while_it_is_verified_has_each_patch_once(built, entries, monkeypatch):
    read, reads = ReferenceReader.read_window, Counter()

    def fails_after_three(reader, *window):
        reads[reader] += 1
        if reads[reader] > 3:
            raise SlideError("cannot be read")
        return read(reader, *window)

    monkeypatch.setattr(ReferenceReader, "read_window", fails_after_three)
    with open_store(built) as store:
        report = verify_store(store, index_of(*entries), 1.0)
        assert len({key for key, _ in report.problems}) == len(report.problems)
        assert len(report.problems) == len(store) - 3 * len(entries)
        assert {fault for _, fault in report.problems} == {"cannot be read"}


def test_a_jpeg_store_is_compared_with_the_slide_encoded_as_jpeg(entries, tmp_path):
    for quality in (95, 60):
        options = ExtractionOptions(codec="jpeg", jpeg_quality=quality)
        path = tmp_path / f"{quality}" / "patches_lmdb"
        build_store(plan_patches(index_of(*entries[2:]), options), path, "lmdb")
        with open_store(path) as store:
            report = verify_store(store, index_of(*entries), 1.0)
            assert report.ok
            assert report.worst_difference == 0.0


def test_a_mosaic_shows_both_classes(built):
    with open_store(built) as store:
        picture = Image.open(io.BytesIO(mosaic_png(store, columns=3, rows=2, side=64)))
        assert picture.size == (2 * (3 * 68 + 4) + 2, 28 + 2 * 68 + 4)
        assert np.asarray(picture)[40:80, 10:60].std() > 5
