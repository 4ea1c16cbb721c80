"""What every kind of store offers to readers and to builders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from wsi_assets.errors import StoreError

FORMAT = 5
"""Version of our metadata; a store of another version is built again."""

MAX_PATCH_SIZE = 1 << 14
"""Largest patch side accepted from a file; more means that it is corrupt."""

UNKNOWN_LABEL = 255
"""Label of a patch that could not be read (HDF5 keeps its row), or whose class the store does not know."""


@dataclass(frozen=True)
class StoreMetadata:
    """What a store holds, without the patches.

    Attributes:
        info: plain values. Every store: ``backend, patch_size, codec``. A store of ours also ``format, level,
            stride, max_no_data, quality, plan_digest`` (of what was asked for), ``digest`` (of what it
            holds: equal ones mean equal keys, labels and patches), ``patches, tumor, normal, slides`` (id,
            fingerprint, downsample, mpp, magnification, patches of each), ``quarantined``.
        keys: one a patch.
        labels: uint8 (n,), 1 is tumor, 0 normal, :data:`UNKNOWN_LABEL`.
        origins: int32 (n, 3): slide number in ``info["slides"]``, y, x in pixels of the level; None where the
            store does not know.
    """

    info: dict[str, Any]
    keys: Sequence[str]
    labels: np.ndarray
    origins: np.ndarray | None

    @property
    def ours(self) -> bool:
        """Whether this package wrote the store."""
        return "format" in self.info

    def check(self, path: Path, *counts: int) -> None:
        """See that metadata of ours fit each other and the patches counted; the file may be corrupt.

        Raises:
            UnusableStoreError: it is of another version, or another program added or removed patches.
            ValueError, TypeError, KeyError: they do not fit.
        """
        info, count = self.info, len(self.keys)
        version = info["format"]
        if isinstance(version, int) and version != FORMAT:
            raise UnusableStoreError(
                f"is of format {version}, and this version of wsi-assets writes {FORMAT}",
                path=path,
                remedy="Build it again: run the level, or materialize its patch_store",
            )
        kinds = {"patch_size": int, "codec": str, "digest": str, "backend": str, "quarantined": list}
        for name, kind in kinds.items():
            if type(info.get(name)) is not kind:
                raise ValueError(f"metadata field {name!r} is missing or has the wrong type")
        if not 0 < info["patch_size"] <= MAX_PATCH_SIZE:
            raise ValueError(f"patch size {info['patch_size']}")
        for found in counts:
            if found != count:
                raise UnusableStoreError(
                    f"holds {found} patches and its metadata list {count}: another program changed it",
                    path=path,
                    remedy="Build it again",
                )
        if self.labels.dtype.kind not in "iu" or self.labels.shape != (count,):
            raise ValueError("keys and labels do not fit")
        if self.origins is not None:
            if self.origins.dtype.kind not in "iu" or self.origins.shape != (count, 3):
                raise ValueError("keys and origins do not fit")
            numbers, slides = self.origins[:, 0], info["slides"]
            texts = [slide[name] for slide in slides for name in ("slide_id", "fingerprint")]
            if not all(isinstance(text, str) for text in texts) or any(
                "mpp" not in slide for slide in slides
            ):
                raise ValueError("metadata field 'slides' is damaged")
            if count and (numbers[0] < 0 or numbers[-1] >= len(slides) or (np.diff(numbers) < 0).any()):
                raise ValueError("origins do not follow the slides")


class StoreReader(Protocol):
    """A published store, open for reading in this process; threads may share it."""

    metadata: StoreMetadata

    def read(self, row: int) -> bytes | memoryview:
        """The encoded patch, the caller's own.

        Raises:
            StoreError: it is gone or does not read.
        """

    def problems(self) -> list[str]:
        """What the library's own checker finds wrong with the file, where it has one; slow."""

    def close(self) -> None:
        """Let go of all files."""


class StoreWriter(Protocol):
    """Fills a store at a staging path. Faults of the disk are OSErrors with their errno."""

    def write(self, row: int, key: str, label: int, value: bytes | memoryview) -> None:
        """Put one encoded patch; ``row`` is its number in the plan."""

    def keep(self, row: int, key: str, label: int, old: StoreReader, old_row: int) -> None:
        """Put a patch of another store of this kind, unchanged."""

    def finish(self, metadata: StoreMetadata) -> None:
        """Write the metadata and have all bytes on disk."""

    def close(self) -> None:
        """Let go of all files; without :meth:`finish` the store is incomplete."""


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
