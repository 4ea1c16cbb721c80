"""Facts of the files written page by page: their own libraries read them, write them and copy them."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import h5py
import lmdb
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wsi_assets.patches import hdf5_pages, lmdb_pages

KEYS = st.binary(min_size=1, max_size=511)
UNHURRIED = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


class Lmdb:
    """An LMDB file written value by value."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.handle = os.open(folder / "data.mdb", os.O_RDWR | os.O_CREAT)
        os.pwrite(self.handle, lmdb_pages.empty_meta(0) + lmdb_pages.empty_meta(1), 0)
        self.end, self.commits = 2 * lmdb_pages.PAGE, 0

    def append(self, value: bytes) -> tuple[int, int]:
        frame = lmdb_pages.overflow_header(self.end // lmdb_pages.PAGE, len(value)) + value
        frame += bytes(-len(frame) % lmdb_pages.PAGE)
        os.pwrite(self.handle, frame, self.end)
        place = self.end + lmdb_pages.OVERFLOW_HEADER, len(value)
        self.end += len(frame)
        return place

    def commit(self, places: dict[bytes, tuple[int, int]]) -> None:
        self.commits += 1
        rows = np.array(list(places.values()), np.int64).reshape(-1, 2)
        tree, (offset, meta) = lmdb_pages.finished(list(places), rows, self.end, self.commits)
        os.pwrite(self.handle, tree, self.end)
        os.pwrite(self.handle, meta, offset)
        self.end += len(tree)

    def holds(self, values: dict[bytes, bytes]) -> None:
        database = lmdb_pages.read_database(self.handle)
        assert database.keys == sorted(values)
        found = [os.pread(self.handle, length, offset) for offset, length in database.places.tolist()]
        assert found == [values[key] for key in sorted(values)]
        with lmdb.open(str(self.folder), readonly=True, lock=False) as environment:
            with environment.begin() as view:
                assert list(view.cursor()) == sorted(values.items())
                assert all(view.get(key) == value for key, value in values.items())
                assert view.get(b"\xff" * 511, None) == values.get(b"\xff" * 511)
            # A compacting copy counts pages: it refuses a file in which some are neither used nor free.
            copy = self.folder / "copy"
            copy.mkdir(exist_ok=True)
            (copy / "data.mdb").unlink(missing_ok=True)
            environment.copy(str(copy), compact=True)
        with lmdb.open(str(copy), readonly=True, lock=False) as environment, environment.begin() as view:
            assert dict(view.cursor()) == values


@pytest.fixture
def written(tmp_path_factory):
    made = []

    def new() -> Lmdb:
        made.append(Lmdb(tmp_path_factory.mktemp("lmdb")))
        return made[-1]

    yield new
    for file in made:
        os.close(file.handle)


@UNHURRIED
@given(
    values=st.dictionaries(KEYS, st.binary(max_size=10_000), min_size=1, max_size=40),
    kept=st.randoms(use_true_random=False),
)
def test_lmdb_reads_updates_and_copies_what_was_written_here(values, kept, written):
    file = written()
    places = {key: file.append(value) for key, value in values.items()}
    file.commit(places)
    file.holds(values)
    # The next commit drops some, gives some a new key, adds one: nothing of it is copied.
    chosen = [key for key in values if kept.random() < 0.7]
    renamed = {bytes([kept.randrange(256)]) + key[:510]: key for key in chosen}
    file.commit({new: places[old] for new, old in renamed.items()} | {b"one more": file.append(b"x" * 5000)})
    wanted = {new: values[old] for new, old in renamed.items()} | {b"one more": b"x" * 5000}
    file.holds(wanted)
    # Any program may go on with the file.
    with lmdb.open(str(file.folder), map_size=1 << 26) as environment:
        for number in range(3):
            with environment.begin(write=True) as change:
                for key in list(wanted)[:3]:
                    change.delete(key)
                    del wanted[key]
                for count in range(40):
                    wanted[b"%d %d" % (number, count)] = bytes([count]) * (100 * count)
                    change.put(b"%d %d" % (number, count), wanted[b"%d %d" % (number, count)])
    file.holds(wanted)


@pytest.mark.parametrize("count", [95, 97, 98, 8_000, 12_000])
def test_lmdb_trees_of_every_depth_are_read(count, written):
    file = written()
    place = file.append(b"the same value for all")
    keys = [b"slide_%06d" % number for number in range(count)]
    # One value under many keys would be counted as many; the depth is what matters here.
    rows = np.array([place] * count, np.int64)
    with pytest.raises(ValueError, match="share a page"):
        lmdb_pages.finished(keys, rows, file.end, 1)
    values = {key: b"%d" % number for number, key in enumerate(keys)}
    file.commit({key: file.append(value) for key, value in values.items()})
    file.holds(values)


@UNHURRIED
@given(
    count=st.sampled_from([0, 1, 63, 64, 65, 130, 4_097]),
    side=st.integers(1, 5),
    gzip=st.sampled_from([0, 6]),
    text=st.text(max_size=200),
    seed=st.integers(0, 9),
)
def test_hdf5_reads_and_updates_what_was_written_here(count, side, gzip, text, seed, tmp_path_factory):
    random = np.random.default_rng(seed)
    path = tmp_path_factory.mktemp("hdf5") / "patches.h5"
    images = random.integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    plain = {
        "keys": np.array([f"schlüssel_{n}".encode() for n in range(count)], "S20"),
        "labels": (np.arange(count) % 2).astype(np.uint8),
        "origins": random.integers(-9, 99_999, (count, 3)).astype(np.int32),
        "info": text.encode() or b"{}",
    }
    places, end = np.zeros((count, 2), np.int64), 4096
    with path.open("wb") as file:
        for row in random.permutation(count).tolist():
            chunk = images[row].tobytes()
            chunk = zlib.compress(chunk, gzip) if gzip else chunk
            file.seek(end)
            file.write(chunk)
            places[row] = end, len(chunk)
            end += len(chunk) + -len(chunk) % 8
        tail, superblock = hdf5_pages.finished(
            {"images": hdf5_pages.Chunks((side, side, 3), places, gzip)}, plain, end
        )
        file.seek(end)
        file.write(tail)
        file.seek(0)
        file.write(superblock)

    def holds() -> None:
        with h5py.File(path) as file:
            assert sorted(file) == ["images", "info", "keys", "labels", "origins"]
            assert file["images"].shape == images.shape
            assert file["images"].dtype == np.uint8
            assert file["images"].chunks == (1, side, side, 3)
            assert file["images"].compression == ("gzip" if gzip else None)
            assert np.array_equal(file["images"][:], images)
            for name in ("keys", "labels", "origins"):
                assert file[name].dtype == plain[name].dtype
                assert np.array_equal(file[name][:], plain[name])
            assert file["info"][()] == plain["info"].rstrip(b"\0")

    holds()
    # Any program may go on with the file.
    more = random.integers(0, 256, (2, side, side, 3), dtype=np.uint8)
    images = np.concatenate([images, more])
    with h5py.File(path, "r+") as file:
        file["images"].resize(count + 2, axis=0)
        file["images"][count:] = more
        file.create_group("mine").create_dataset("notes", data=[1, 2])
        del file["mine"]
    holds()
