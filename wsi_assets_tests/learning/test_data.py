import threading

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from wsi_assets.errors import StoreError
from wsi_assets.learning.data import (
    NEITHER,
    BatchReader,
    Draw,
    epoch_draw,
    locate,
    ordered_batches,
    shuffled_batches,
)
from wsi_assets_tests.learning.fakes import MemoryStore, cohort, index_of, quick


def test_tumor_patches_come_plain_and_in_augmented_copies_and_normal_ones_once():
    labels = np.array([0, 1, 0, 1, 1])
    train = np.array([0, 1, 3])
    draw = epoch_draw(train, labels, quick(aug_factor=3), epoch=1)
    assert draw.rows.tolist() == [0, 1, 1, 1, 1, 3, 3, 3, 3]
    assert draw.plain[1:].tolist() == [True, False, False, False] * 2
    off = epoch_draw(train, labels, quick(use_augmentation=False), epoch=1)
    assert off.rows.tolist() == [0, 1, 3]
    assert off.plain.all()


def test_augmentation_does_not_tell_the_classes_apart():
    labels = np.arange(6000) % 2
    draw = epoch_draw(np.arange(6000), labels, quick(aug_factor=5), epoch=1)
    for label in (0, 1):
        assert draw.plain[labels[draw.rows] == label].mean() == pytest.approx(1 / 6, abs=0.02)


@given(count=st.integers(2, 300), batch_size=st.integers(2, 70), epoch=st.integers(1, 5))
def test_an_epoch_has_every_position_once_and_no_batch_of_one(count, batch_size, epoch):
    draw = Draw(np.arange(count), np.arange(count) % 3 == 0)
    batches = shuffled_batches(draw, batch_size, seed=1, epoch=epoch)
    rows = np.concatenate([batch.rows for batch in batches])
    assert sorted(rows) == list(range(count))
    assert (np.concatenate([batch.plain for batch in batches]) == (rows % 3 == 0)).all()
    sizes = [len(batch.rows) for batch in batches]
    assert min(sizes) >= 2
    assert max(sizes) <= batch_size + 1
    assert max(sizes) - min(sizes) <= 1


def test_each_epoch_has_its_own_order():
    draw = Draw(np.arange(50), np.zeros(50, bool))
    first, again, second = (
        np.concatenate([batch.rows for batch in shuffled_batches(draw, 8, seed=1, epoch=epoch)])
        for epoch in (1, 1, 2)
    )
    assert (first == again).all()
    assert (first != second).any()


def test_patches_are_found_by_keys_that_count_over_the_whole_index():
    store = cohort(patients=3)
    order = np.random.default_rng(0).permutation(len(store))
    shuffled = MemoryStore(
        store.patches[order],
        store.labels[order],
        [store.slide_ids[i] for i in order],
        keys=[store.keys[i] for i in order],
    )
    shuffled.coords = store.coords[order]
    table = locate(shuffled, index_of(store))
    np.testing.assert_array_equal(shuffled.patches[table.positions], store.patches)
    assert table.labels.tolist() == store.labels.tolist()


def test_an_unreadable_patch_has_no_position_and_one_of_neither_class_is_not_usable():
    store = cohort(patients=3)
    index = index_of(store, config={"label_rule": "fraction"})
    for entry in index.values():
        entry["tumor_fraction"] = [0.3] * 8
    store.info["quarantined"] = [{"key": store.keys[5]}]
    table = locate(store, index)
    assert (table.positions < 0).nonzero()[0].tolist() == [5]
    assert (table.labels == np.where(store.labels == 1, 1, NEITHER)).all()
    assert table.usable.sum() == 11


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
    class Broken(MemoryStore):
        def get_many(self, indices):
            raise StoreError("patch 7 cannot be read", path="store")

    broken = cohort()
    broken.__class__ = Broken
    with BatchReader(broken, workers=2) as reader, pytest.raises(StoreError, match="patch 7"):
        list(reader.read([np.arange(3), np.arange(3)]))
