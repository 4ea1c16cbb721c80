import threading

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from wsi_assets.errors import ModelError, StoreError
from wsi_assets.learning.data import (
    NEITHER,
    PIECE,
    BatchReader,
    epoch_batches,
    locate,
    ordered_batches,
    split_patches,
)
from wsi_assets_tests.learning.made import Patches, cohort, quick


def drawn(train, labels, **options):
    batches = epoch_batches(np.asarray(train), np.asarray(labels), quick(**options), epoch=1)
    return np.concatenate([b.rows for b in batches]), np.concatenate([b.plain for b in batches])


def test_tumor_patches_come_plain_and_in_augmented_copies_and_normal_ones_once():
    rows, plain = drawn([0, 1, 3], [0, 1, 0, 1, 1], aug_factor=3)
    assert sorted(rows) == [0, 1, 1, 1, 1, 3, 3, 3, 3]
    assert sorted(rows[plain & (rows != 0)]) == [1, 3]
    rows, plain = drawn([0, 1, 3], [0, 1, 0, 1, 1], use_augmentation=False)
    assert sorted(rows) == [0, 1, 3]
    assert plain.all()


def test_augmentation_does_not_reveal_the_class():
    labels = np.arange(6000) % 2
    rows, plain = drawn(np.arange(6000), labels, aug_factor=5)
    for label in (0, 1):
        assert plain[labels[rows] == label].mean() == pytest.approx(1 / 6, abs=0.02)


@given(count=st.integers(2, 300), batch_size=st.integers(2, 70))
def test_an_epoch_has_every_position_once_in_its_own_order_and_no_batch_of_one(count, batch_size):
    orders = []
    for epoch in (1, 2):
        options = quick(batch_size=batch_size, use_augmentation=False)
        batches = epoch_batches(np.arange(count), np.zeros(count, int), options, epoch)
        orders.append(np.concatenate([batch.rows for batch in batches]).tolist())
        sizes = [len(batch.rows) for batch in batches]
        assert sorted(orders[-1]) == list(range(count))
        assert min(sizes) >= 2
        assert max(sizes) <= batch_size + 1
    assert count < 10 or orders[0] != orders[1]


def test_patches_are_found_by_keys_that_count_over_the_whole_index(tmp_path):
    patches = cohort(patients=3)
    with patches.store(tmp_path, without=(5,)) as store:
        table = locate(store, patches.index())
        assert (table.positions < 0).nonzero()[0].tolist() == [5]
        found = table.positions >= 0
        np.testing.assert_array_equal(store.get_many(table.positions[found]), patches.pixels[found])
    assert table.labels.tolist() == patches.labels.tolist()


def test_a_store_that_lacks_most_patches_of_an_index_is_refused(tmp_path):
    patches = cohort(patients=3)
    with patches.store(tmp_path) as store, pytest.raises(StoreError):
        locate(store, dict(list(patches.index().items())[1:]))


def test_a_patch_of_neither_class_is_not_usable(tmp_path):
    patches = cohort(patients=3)
    index = patches.index(config={"label_rule": "fraction"}, tumor_fraction=[0.3] * 8)
    table = locate(patches.store(tmp_path), index)
    assert (table.labels == np.where(patches.labels == 1, 1, NEITHER)).all()
    assert table.usable.sum() == 12


@pytest.mark.parametrize(("tumor", "normal"), [(0, 9), (9, 0), (1, 9), (0, 0)])
def test_a_class_with_too_few_patches_is_refused(tmp_path, tumor, normal):
    patches = cohort(patients=2, test_patients=1, per_patient=max(1, tumor + normal))
    patches.slides[: 2 * max(1, tumor + normal)] = ["test_000_node_1"] * (2 * max(1, tumor + normal))
    if tumor + normal:
        patches = Patches(
            patches.pixels[: tumor + normal], np.repeat([1, 0], [tumor, normal]), ["a"] * (tumor + normal)
        )
    index = patches.index()
    with pytest.raises(ModelError):
        split_patches(locate(patches.store(tmp_path), index), index, quick())


@pytest.mark.parametrize(("tumor", "normal"), [(2, 2), (2, 60), (60, 2), (30, 30)])
def test_one_slide_is_split_by_patch_with_both_classes_on_both_sides(tmp_path, tumor, normal):
    pixels = np.zeros((tumor + normal, 8, 8, 3), np.uint8)
    patches = Patches(pixels, np.repeat([1, 0], [tumor, normal]), ["a"] * (tumor + normal))
    index = patches.index(split="train")
    split = split_patches(locate(patches.store(tmp_path), index), index, quick(val_size=0.1))
    assert split.unit == "patch"
    assert sorted([*split.train, *split.validation]) == list(range(tumor + normal))
    for part in (split.train, split.validation):
        assert set(patches.labels[part]) == {0, 1}


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_batches_come_in_order_with_any_number_of_workers(tmp_path, workers):
    patches = cohort()
    batches = ordered_batches(np.arange(len(patches.labels))[::-1], 5)
    with BatchReader(patches.store(tmp_path), workers=workers) as reader:
        for batch, pixels in zip(batches, reader.read(batches), strict=True):
            np.testing.assert_array_equal(pixels, patches.pixels[batch])


class Counting:
    info, reads = {"patch_size": 4}, 0

    def get_many(self, positions, out):
        if max(positions) > 1000:
            raise StoreError("patch 1001 cannot be read", path="store")
        self.reads += len(positions)


def test_reading_ahead_is_bounded():
    store = Counting()
    with BatchReader(store, workers=2) as reader:
        stream = reader.read(ordered_batches(np.arange(1000), 40))
        next(stream)
        for thread in threading.enumerate():
            if thread.name.startswith("patches"):
                thread.join(0.02)
        assert store.reads <= 40 + 4 * PIECE + 40
        stream.close()


def test_an_unreadable_patch_ends_the_reading_with_its_own_error():
    with BatchReader(Counting(), workers=2) as reader, pytest.raises(StoreError, match="patch 1001"):
        list(reader.read([np.arange(3), np.array([1001])]))
