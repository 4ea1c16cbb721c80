import threading

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from wsi_assets.errors import StoreError
from wsi_assets.learning.data import BatchReader, epoch_positions, ordered_batches, shuffled_batches
from wsi_assets_tests.learning.fakes import cohort, quick


def test_tumour_patches_are_repeated_and_normal_ones_are_not():
    labels = np.array([0, 1, 0, 1, 1])
    train = np.array([0, 1, 3])
    assert epoch_positions(train, labels, quick(aug_factor=3)).tolist() == [0, 1, 1, 1, 3, 3, 3]
    assert epoch_positions(train, labels, quick(use_augmentation=False)).tolist() == [0, 1, 3]


@given(count=st.integers(2, 300), batch_size=st.integers(2, 70), epoch=st.integers(1, 5))
def test_an_epoch_has_every_position_once_and_no_batch_of_one(count, batch_size, epoch):
    batches = shuffled_batches(np.arange(count), batch_size, seed=1, epoch=epoch)
    assert sorted(np.concatenate(batches)) == list(range(count))
    sizes = [len(batch) for batch in batches]
    assert min(sizes) >= 2
    assert max(sizes) <= batch_size + 1
    assert max(sizes) - min(sizes) <= 1


def test_each_epoch_has_its_own_order():
    first, again, second = (
        np.concatenate(shuffled_batches(np.arange(50), 8, seed=1, epoch=epoch)) for epoch in (1, 1, 2)
    )
    assert (first == again).all()
    assert (first != second).any()


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_batches_come_in_order_however_many_read(workers):
    store = cohort()
    batches = ordered_batches(np.arange(len(store))[::-1], 5)
    with BatchReader(store, workers=workers) as reader:
        for batch, patches in zip(batches, reader.read(batches), strict=True):
            np.testing.assert_array_equal(patches, store.patches[batch])


def test_reading_ahead_is_bounded():
    store = cohort(patients=20)
    with BatchReader(store, workers=2) as reader:
        stream = reader.read(ordered_batches(np.arange(len(store)), 2))
        next(stream)
        for thread in threading.enumerate():
            if thread.name.startswith("patches"):
                thread.join(0.02)
        assert store.reads <= 2 * (1 + 4)
        stream.close()


def test_an_unreadable_patch_ends_the_reading_with_its_own_error():
    class Broken(type(cohort())):
        def get_many(self, indices):
            raise StoreError("patch 7 cannot be read", path="store")

    broken = cohort()
    broken.__class__ = Broken
    with BatchReader(broken, workers=2) as reader, pytest.raises(StoreError, match="patch 7"):
        list(reader.read([np.arange(3), np.arange(3)]))
