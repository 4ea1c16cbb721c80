"""What every kind of store offers to readers and to builders."""

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
"""Version of our metadata; a store of another version is built again."""

MAX_PATCH_SIZE = 1 << 14
"""Largest patch side accepted from a file; more means that it is corrupt."""

UNKNOWN_LABEL = 255
"""Label of a patch that could not be read (HDF5 keeps its row), or whose class the store does not know."""

ERRORS = (OSError, ValueError, LookupError, TypeError, ArithmeticError, RuntimeError)
"""What reading a damaged file can raise."""


@dataclass(frozen=True)
class StoreMetadata:
    """What a store holds, without the patches.

    Attributes:
        info: plain values. Every store: ``backend, patch_size, codec, quarantined``. A store of ours also
            ``format, quality, patches, tumor, normal`` and ``digest`` (of what it holds: equal ones mean
            equal keys, labels and patches). One that was built from an index also ``level, stride,
            max_no_data, plan_digest`` (of what was asked for) and ``slides`` (id, fingerprint, level,
            step, downsample, mpp, magnification of each).
        keys: one a patch.
        labels: uint8 (n,), 1 is tumor, 0 normal, :data:`UNKNOWN_LABEL`.
        origins: int32 (n, 3): slide number in ``info["slides"]``, y, x in pixels of the level; None where the
            store does not know.
    """

    info: dict[str, Any]
    keys: Sequence[str]
    labels: np.ndarray
    origins: np.ndarray | None

    def to_json(self) -> bytes:
        """All of it as JSON."""
        origins = None if self.origins is None else self.origins.tolist()
        arrays = {"keys": list(self.keys), "labels": self.labels.tolist(), "origins": origins}
        return json.dumps({"info": self.info, **arrays}, sort_keys=True).encode()

    @classmethod
    def from_json(cls, data: bytes) -> StoreMetadata:
        """The inverse of :meth:`to_json`; a damaged file may say anything: :meth:`check` it."""
        found = json.loads(data)
        origins = found["origins"]
        return cls(
            dict(found["info"]),
            list(map(str, found["keys"])),
            np.array(found["labels"], np.uint8),
            None if origins is None else np.array(origins, np.int32).reshape(-1, 3),
        )

    def check(self, path: Path, stored: int) -> StoreMetadata:
        """See that metadata of ours fit each other and the number of patches stored.

        Raises:
            UnusableStoreError: it is of another version, or another program added or removed patches.
            ValueError, TypeError, KeyError: they do not fit, so the file is corrupt.
        """
        info, count = self.info, len(self.keys)
        if info["format"] != FORMAT:
            raise UnusableStoreError(
                f"is of format {info['format']}, and this version of wsi-assets writes {FORMAT}",
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
        right = right and 0 < info["patch_size"] <= MAX_PATCH_SIZE and self.labels.shape == (count,)
        if right and self.origins is not None:
            slides, numbers = info["slides"], self.origins[:, 0]
            names = [slide[name] for slide in slides for name in ("slide_id", "fingerprint")]
            in_order = (np.diff(numbers, prepend=0, append=len(slides) - 1) >= 0).all()
            right = len(numbers) == count and in_order and all(isinstance(name, str) for name in names)
        if not right:
            raise ValueError("its metadata do not fit each other")
        return self


class StoreReader(Closing):
    """A published store, open for reading in this process; threads may share it.

    Raises:
        StoreError: it is damaged, incomplete, or holds no patches.
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
        """Open the files and say what the store holds."""

    @abstractmethod
    def read(self, row: int) -> bytes | memoryview:
        """The encoded patch, the caller's own; StoreError if it is gone or does not read."""

    def pixels(self, row: int, out: np.ndarray) -> np.ndarray:
        """A patch as uint8 (P, P, 3) RGB: ``out``, or an array that the library itself made."""
        return decode(self.read(row), out)

    def problems(self) -> list[str]:
        """What the library's own checker finds wrong with the files, where it has one; slow."""
        return []


class StoreWriter(Closing):
    """Fills a store at ``path``, for ``count`` patches if that is known. The disk's faults are OSErrors."""

    @abstractmethod
    def __init__(self, path: Path, count: int | None, patch_size: int): ...

    @abstractmethod
    def write(self, row: int, key: str, label: int, value: bytes | memoryview) -> None:
        """Put one encoded patch; ``row`` is its number in the plan."""

    def keep(self, row: int, key: str, label: int, old: StoreReader, old_row: int) -> None:
        """Put a patch of another store of this kind, unchanged."""
        self.write(row, key, label, old.read(old_row))

    @abstractmethod
    def finish(self, metadata: StoreMetadata) -> None:
        """Write the metadata and have all bytes on disk; a store without is incomplete."""


class UnusableStoreError(StoreError):
    """A store of ours that is half-built or damaged: building replaces it."""


def foreign_info(backend: str, codec: str, patch_size: int) -> dict[str, Any]:
    """``info`` of a store that another program wrote."""
    return {"backend": backend, "codec": codec, "patch_size": patch_size, "quarantined": []}


def damaged(path: Path, why: object) -> StoreError:
    """The error of a store that cannot be understood."""
    return UnusableStoreError(f"is damaged ({why})", path=path, remedy="Delete it and build it again")


def no_patch_store(path: Path, why: str) -> StoreError:
    """The error of a database or folder of something else."""
    return StoreError(f"is no patch store ({why})", path=path, remedy="Check the path")
