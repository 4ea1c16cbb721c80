"""The interface of the store backends: reader, writer and metadata."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wsi_assets.errors import StoreError
from wsi_assets.files import disk_fault
from wsi_assets.patches.codecs import decode
from wsi_assets.slides.closing import Closing

FORMAT = 7
"""Version of the metadata; a store of another version is built again."""

MAX_STORED_PATCH_SIZE = 1 << 14
"""Largest patch side accepted from a file; a larger one means that the file is corrupt."""

UNKNOWN_LABEL = 255
"""Label of a patch that could not be read (HDF5 keeps its row), or whose class the store lacks."""

ERRORS = (OSError, ValueError, LookupError, TypeError, ArithmeticError, RuntimeError)
"""Errors that reading a damaged file can raise."""


@dataclass(frozen=True)
class StoreMetadata:
    """What a store holds, without the patches.

    Attributes:
        info: plain values. Every store has ``backend, patch_size, codec, quarantined``. Stores of this
        package
            also have ``format, quality, patches, tumor, normal`` and ``digest`` (equal digests mean equal
            keys, labels and patches). Stores built from an index also have ``level, stride, max_no_data,
            plan_digest`` and ``slides`` (id, fingerprint, level, step, downsample, mpp and magnification of
            each slide).
        keys: key of each patch.
        labels: uint8 (n,): 1 is tumor, 0 normal, or :data:`UNKNOWN_LABEL`.
        origins: int32 (n, 3): number of the slide in ``info["slides"]``, then y, x in pixels of the target
            level; None if the store lacks them.
    """

    info: dict[str, Any]
    keys: Sequence[str]
    labels: np.ndarray
    origins: np.ndarray | None

    def to_json(self) -> bytes:
        """The metadata as JSON."""
        origins = None if self.origins is None else self.origins.tolist()
        arrays = {"keys": list(self.keys), "labels": self.labels.tolist(), "origins": origins}
        return json.dumps({"info": self.info, **arrays}, sort_keys=True).encode()

    @classmethod
    def from_json(cls, data: bytes) -> StoreMetadata:
        """The inverse of :meth:`to_json`; the values are not checked, see :meth:`check`."""
        found = json.loads(data)
        origins = found["origins"]
        return cls(
            dict(found["info"]),
            list(map(str, found["keys"])),
            np.array(found["labels"], np.uint8),
            None if origins is None else np.array(origins, np.int32).reshape(-1, 3),
        )

    def check(self, path: Path, stored: int) -> StoreMetadata:
        """Check that the metadata are consistent, and fit the number of patches stored.

        Raises:
            UnusableStoreError: the store is of another version, or another program added or removed patches.
            ValueError, TypeError, KeyError: the metadata are inconsistent, so the file is corrupt.
        """
        info, count = self.info, len(self.keys)
        if info["format"] != FORMAT:
            raise UnusableStoreError(
                f"is of format {info['format']}, but this version of wsi-assets needs {FORMAT}",
                path=path,
                remedy="Build it again: run the level, or materialize its patch_store",
            )
        if stored != count:
            raise UnusableStoreError(
                f"holds {stored} patches and its metadata list {count}: another program changed it",
                path=path,
                remedy="Build it again",
            )
        kinds = {"patch_size": int, "codec": str, "digest": str, "backend": str, "quarantined": list}
        right = all(type(info.get(name)) is kind for name, kind in kinds.items())
        right = right and 0 < info["patch_size"] <= MAX_STORED_PATCH_SIZE and self.labels.shape == (count,)
        if right and self.origins is not None:
            slides, numbers = info["slides"], self.origins[:, 0]
            names = [slide[name] for slide in slides for name in ("slide_id", "fingerprint")]
            in_order = (np.diff(numbers, prepend=0, append=len(slides) - 1) >= 0).all()
            right = len(numbers) == count and in_order and all(isinstance(name, str) for name in names)
        if not right:
            raise ValueError("its metadata are inconsistent")
        return self


class StoreReader(Closing):
    """A complete store, open for reading in this process; threads may share it.

    Raises:
        StoreError: it is damaged, unfinished, or not a patch store.
    """

    library_errors: tuple[type[Exception], ...] = ()

    def __init__(self, path: Path):
        self.path = path
        try:
            self.metadata: StoreMetadata = self.open()
        except StoreError:
            self.close()
            raise
        except (*ERRORS, *self.library_errors) as error:
            self.close()
            fault = disk_fault(error, path)
            if fault is None:
                raise damaged(path, error) from error
            raise StoreError(fault.fault, path=path, remedy=fault.remedy) from error

    @abstractmethod
    def open(self) -> StoreMetadata:
        """Open the files and return the metadata."""

    @abstractmethod
    def read(self, row: int) -> bytes | memoryview:
        """The encoded patch, as bytes that the caller owns; StoreError if it is missing or unreadable."""

    def pixels(self, row: int, out: np.ndarray) -> np.ndarray:
        """A patch as uint8 (P, P, 3) RGB: ``out``, or a new array."""
        return decode(self.read(row), out)

    def problems(self) -> list[str]:
        """Damage that a full check of the files finds, if the backend has one, one line each; slow."""
        return []


class StoreWriter(Closing):
    """Writes a new store at ``path``; ``count`` is the number of patches if known. Disk errors are
    OSErrors."""

    @abstractmethod
    def __init__(self, path: Path, count: int | None, patch_size: int): ...

    @abstractmethod
    def write(self, row: int, key: str, label: int, value: bytes | memoryview) -> None:
        """Write one encoded patch; ``row`` is its number in the plan."""

    def keep(self, row: int, key: str, label: int, old: StoreReader, old_row: int) -> None:
        """Copy a patch of another store of this kind."""
        self.write(row, key, label, old.read(old_row))

    @abstractmethod
    def finish(self, metadata: StoreMetadata) -> None:
        """Write the metadata and sync everything to disk; without this the store is unfinished."""


class UnusableStoreError(StoreError):
    """A store of this package that is unfinished or damaged; a build replaces it."""


def foreign_info(backend: str, codec: str, patch_size: int) -> dict[str, Any]:
    """``info`` of a store that another program wrote."""
    return {"backend": backend, "codec": codec, "patch_size": patch_size, "quarantined": []}


def damaged(path: Path, why: object) -> StoreError:
    """The error of a damaged store."""
    return UnusableStoreError(f"is damaged ({why})", path=path, remedy="Delete it and build it again")


def no_patch_store(path: Path, why: str) -> StoreError:
    """The error of a database, file or folder that is not a patch store."""
    return StoreError(f"is not a patch store ({why})", path=path, remedy="Check the path")
