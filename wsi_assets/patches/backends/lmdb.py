"""LMDB: key -> encoded image in the main database; ``__info__`` is :class:`StoreMetadata` as JSON."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from weakref import WeakValueDictionary

import lmdb
import numpy as np

from wsi_assets.errors import StoreError
from wsi_assets.patches.backends.base import (
    UNKNOWN_LABEL,
    StoreMetadata,
    StoreReader,
    StoreWriter,
    damaged,
    foreign_info,
    no_patch_store,
)
from wsi_assets.patches.codecs import codec_of, decode

_METADATA = b"__info__"
_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
_FIRST_MAP_SIZE = 1 << 30
_COMMIT_BYTES = 512 << 10
"""Bytes written by one transaction; larger ones exceed the processor's cache and take three times as long."""
_MIN_FREE = 16 << 20


class LmdbReader(StoreReader):
    """Reader of an LMDB environment, a folder or (``subdir=False``) a single file.

    In one of another program, the keys are those of the main database in their order, without the ending of
    an image file; classes and coordinates of the patches are not known.
    """

    library_errors = (lmdb.Error,)
    _environment: lmdb.Environment | None = None

    def open(self) -> StoreMetadata:
        self._environment = _environment(self.path)
        with self._environment.begin() as view:
            data = view.get(_METADATA)
            if data is not None:
                metadata = StoreMetadata.from_json(data).check(self.path, view.stat()["entries"] - 1)
                self._names = [key.encode() for key in metadata.keys]
                return metadata
            self._names = [
                name for name in view.cursor().iternext(values=False) if not name.startswith(b"__")
            ]
            if not self._names:
                raise no_patch_store(self.path, "it has no keys")
            value = view.get(self._names[0])
        names = [name.decode(errors="replace") for name in self._names]
        codec = codec_of(value)
        if codec is None:
            raise no_patch_store(self.path, f"the value of {names[0]!r:.80} is no PNG or JPEG image")
        keys = [str(Path(n).with_suffix("")) if n.lower().endswith(_IMAGE_SUFFIXES) else n for n in names]
        info = foreign_info("lmdb", codec, len(decode(value)))
        return StoreMetadata(info, keys, np.full(len(keys), UNKNOWN_LABEL, np.uint8), None)

    def read(self, row: int) -> bytes:
        name = self._names[row]
        try:
            with self._environment.begin() as view:
                value = view.get(name)
        except lmdb.Error as error:
            raise damaged(self.path, error) from error
        if value is None:
            raise StoreError(f"{name.decode()} is missing", path=self.path, remedy="Build the store again")
        return value

    def problems(self) -> list[str]:
        from lmdb.verify import VerifyError, verify

        try:
            return verify(str(self.path))
        except VerifyError as error:
            return [str(error)]

    def close(self) -> None:
        with _opening:  # another thread must not open the file while LMDB closes it
            self._environment = None


class LmdbWriter(StoreWriter):
    """Writer of an LMDB folder; the file is compact if keys are written in sorted order."""

    def __init__(self, path: Path, count: int | None, patch_size: int):
        path.mkdir()
        self._path = path
        with _errors_of_the_disk(path):
            self._environment = lmdb.open(str(path), map_size=_FIRST_MAP_SIZE, lock=False, sync=False)
        self._pending: list[tuple[bytes, bytes]] = []
        self._pending_bytes = 0

    def write(self, row: int, key: str, label: int, value: bytes) -> None:
        self._pending.append((key.encode(), value))
        self._pending_bytes += len(value)
        # Commits depend on bytes instead of time, so that equal contents give equal files.
        if self._pending_bytes >= _COMMIT_BYTES:
            self._commit()

    def finish(self, metadata: StoreMetadata) -> None:
        self._pending.append((_METADATA, metadata.to_json()))
        self._commit()
        with _errors_of_the_disk(self._path):
            self._environment.sync(True)

    def close(self) -> None:
        self._environment.close()

    def _commit(self) -> None:
        with _errors_of_the_disk(self._path):
            while self._pending:
                try:
                    with self._environment.begin(write=True) as change:
                        change.cursor().putmulti(self._pending)
                    self._pending, self._pending_bytes = [], 0
                except lmdb.MapFullError:
                    self._environment.set_mapsize(2 * self._environment.info()["map_size"])


@contextlib.contextmanager
def _errors_of_the_disk(path: Path) -> Iterator[None]:
    """Turn LMDB's disk errors into OSErrors with an errno."""
    try:
        yield
    except lmdb.Error as error:
        code = {lmdb.DiskError: errno.ENOSPC, lmdb.ReadonlyError: errno.EROFS}.get(type(error))
        code = code or getattr(error, "code", 0)
        if code == errno.EIO and shutil.disk_usage(path).free < _MIN_FREE:
            code = errno.ENOSPC  # LMDB reports a short write as EIO
        if code > 0:
            raise OSError(code, os.strerror(code), str(path)) from error
        raise


_opening = threading.Lock()
_open_environments: WeakValueDictionary[tuple[int, int], lmdb.Environment] = WeakValueDictionary()
"""Open environments by device and inode. LMDB must not open a file twice in a process, so readers of a file
share its environment, which closes with the last of them."""


def _environment(path: Path) -> lmdb.Environment:
    """The read-only environment at ``path``.

    Raises:
        StoreError: it is cut short, replaced while it was opened, or already open in this process.
    """
    data = path / "data.mdb" if path.is_dir() else path
    options = {"readonly": True, "lock": False, "readahead": False, "max_spare_txns": 64}
    try:
        with _opening:
            with data.open("rb") as stream:  # its errors are clearer than LMDB's
                found = os.fstat(stream.fileno())
            file = found.st_dev, found.st_ino
            environment = _open_environments.get(file)
            if environment is None:
                environment = lmdb.open(str(path), subdir=path.is_dir(), **options)
            if not os.path.samestat(found, data.stat()):
                raise StoreError("was replaced while it was opened", path=path, remedy="Open it again")
            needed = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
            if found.st_size < needed:  # reading past the end would kill the process (SIGBUS)
                raise damaged(path, f"it is cut short: {found.st_size} of {needed} bytes")
            _open_environments[file] = environment
            return environment
    except lmdb.Error as error:
        if "already open" not in str(error):
            raise
        raise StoreError(
            "is already open in this process by lmdb.open", path=path, remedy="Close that first"
        ) from error


def _after_fork() -> None:
    global _opening
    _opening = threading.Lock()
    for environment in list(_open_environments.values()):  # must not be used after a fork
        environment.close()
    _open_environments.clear()


os.register_at_fork(after_in_child=_after_fork)
