"""What other processes run in the tests of handles; light to import, as a worker imports it."""

from __future__ import annotations


def sums(store, indices) -> list[int]:
    """The sum over each patch."""
    return [int(store.get(index).sum()) for index in indices]


class Patches:
    """A map-style dataset over a store."""

    def __init__(self, store):
        self.store = store

    def __len__(self):
        return len(self.store)

    def __getitem__(self, index):
        return self.store.get(index), index
