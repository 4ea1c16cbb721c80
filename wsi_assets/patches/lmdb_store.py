"""The LMDB store: one environment, key -> encoded image in the main database.

Names beginning with ``__`` hold the rest: ``__info__`` (JSON, written last), ``__keys__`` (one a line, in
index order), ``__labels__`` and ``__origins__`` (npy). While building, ``__part_…__`` records say what each
commit brought. What to extract is decided elsewhere.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import lmdb
import numpy as np

from wsi_assets.errors import StoreError
from wsi_assets.patches import aside
from wsi_assets.patches.contract import Contents, Identity, IndexedSource, damaged, incomplete, tables_of
from wsi_assets.patches.lmdb_pages import check_pages

_INFO, _KEYS, _LABELS, _ORIGINS = b"__info__", b"__keys__", b"__labels__", b"__origins__"
_PLAN = b"__plan__"
_PART = b"__part_%08d__"
_FIRST_MAP = 64 << 20
_PAGE = 4096


class LmdbShelf:
    """A complete LMDB store, open for reading in this process."""

    def __init__(self, path: Path):
        self.path = path
        self._environment = _Shared.of(path)
        self._transaction = self._environment.begin()
        try:
            info = self._transaction.get(_INFO)
            if info is None:
                raise incomplete(path)
            self.contents = Contents(
                info=json.loads(bytes(info)),
                keys=bytes(self._named(_KEYS)).decode().split("\n")[:-1],
                labels=_array(self._named(_LABELS)),
                origins=_array(self._named(_ORIGINS)),
            )
            self.contents.check()
        except StoreError:
            self.close()
            raise
        except (ValueError, TypeError, OverflowError, RecursionError, EOFError, lmdb.Error) as error:
            self.close()
            raise damaged(path, error) from error

    def raw(self, index: int) -> memoryview:
        """See :class:`wsi_assets.patches.contract.Shelf`."""
        return self._named(self.contents.keys[index].encode())

    def close(self) -> None:
        """See :class:`wsi_assets.patches.contract.Shelf`."""
        self._environment.end(self._transaction)

    def _named(self, name: bytes) -> memoryview:
        try:
            value = self._transaction.get(name)
        except lmdb.Error as error:
            raise damaged(self.path, error) from error
        if value is None:
            raise damaged(self.path, f"{name.decode()} is missing")
        return value


class _Unfinished(IndexedSource):
    """What an unfinished build committed; locators are keys."""

    def __init__(self, folder: Path):
        self._environment = _Shared.of(folder)
        self._transaction = self._environment.begin()
        items = []
        for record in _parts(self._transaction):
            items += [((fingerprint, y, x), key) for fingerprint, y, x, key in record["items"]]
        super().__init__(tables_of(items))

    def take(self, locator: str) -> memoryview:
        return self._transaction.get(locator.encode())

    def close(self) -> None:
        self._environment.end(self._transaction)


class LmdbWriter:
    """See :class:`wsi_assets.patches.contract.Writer`.

    Every commit starts from a freshly opened environment: LMDB leaves stale bytes of recycled pages in the
    gaps of new ones, and without history in memory a continued build writes the same bytes as an undisturbed
    one.
    """

    def __init__(self, path: Path, digest: str, content: dict[str, Any]):
        self.path = path
        self.parts_done, self.lost = 0, {}
        self.sources: list[_Unfinished] = []
        self._folder = aside.building_folder(path)
        self._content = json.dumps(content, sort_keys=True)
        plan = json.dumps([digest, self._content]).encode()
        self._continue(plan)
        for folder in aside.salvage_folders(path):
            if _content_of(folder) == self._content:
                self.sources.append(_Unfinished(folder))
        self._added: list[tuple[bytes, bytes | memoryview]] = []
        self._items: list[tuple[str, int, int, str]] = []

    def add(self, key: str, label: int, identity: Identity, value: bytes | None, reuse: Any) -> None:
        """See :class:`wsi_assets.patches.contract.Writer`."""
        self._added.append((key.encode(), reuse if value is None else value))
        self._items.append((*identity, key))

    def commit(self, parts_done: int, lost: Sequence[tuple[int, str]]) -> None:
        """See :class:`wsi_assets.patches.contract.Writer`."""
        record = {"parts": parts_done, "lost": list(lost), "items": self._items}
        name = _PART % parts_done
        self._write([*self._added, (name, json.dumps(record, separators=(",", ":")).encode())])
        self._added, self._items = [], []
        self.parts_done = parts_done

    def finish(self, contents: Contents) -> None:
        """See :class:`wsi_assets.patches.contract.Writer`."""
        with _environment(self._folder) as environment, environment.begin() as transaction:
            names = [name for name, _ in _part_items(transaction)]
        self._write(
            [
                (_KEYS, "".join(f"{key}\n" for key in contents.keys).encode()),
                (_LABELS, _npy(contents.labels)),
                (_ORIGINS, _npy(contents.origins)),
                (_INFO, json.dumps(contents.info, sort_keys=True).encode()),
            ],
            [_PLAN, *names],
        )
        self.close()
        aside.publish(self._folder, self.path)
        for folder in aside.salvage_folders(self.path):
            shutil.rmtree(folder, ignore_errors=True)

    def close(self) -> None:
        """See :class:`wsi_assets.patches.contract.Writer`."""
        for source in self.sources:
            source.close()
        self.sources = []

    def _continue(self, plan: bytes) -> None:
        """Take up the unfinished build if it is of this plan, else set it aside and begin."""
        if self._folder.exists():
            try:
                with _environment(self._folder) as environment, environment.begin() as transaction:
                    if transaction.get(_PLAN) == plan:
                        for record in _parts(transaction):
                            self.parts_done = record["parts"]
                            self.lost.update((position, reason) for position, reason in record["lost"])
                        return
                    begun = transaction.get(_PLAN) is not None
            except (lmdb.Error, ValueError):
                begun = False
            if begun:
                aside.set_aside(self.path)
            else:
                shutil.rmtree(self._folder)
        self._folder.mkdir(parents=True)
        self._write([(_PLAN, plan)])

    def _write(self, puts: Sequence[tuple[bytes, bytes | memoryview]], drops: Sequence[bytes] = ()) -> None:
        """One transaction; the map grows until it holds it."""
        with _environment(self._folder) as environment:
            info, size = environment.info(), sum(len(value) + 2 * _PAGE for _, value in puts)
            needed = info["last_pgno"] * _PAGE + 2 * size + _FIRST_MAP
            map_size = info["map_size"]
            while True:
                while map_size < needed:
                    map_size *= 2
                environment.set_mapsize(map_size)
                try:
                    with environment.begin(write=True) as transaction:
                        for name in drops:
                            transaction.delete(name)
                        for name, value in puts:
                            transaction.put(name, value)
                    return
                except lmdb.MapFullError:
                    needed = map_size + 1


class _environment:  # noqa: N801  (used as a function)
    """An environment open for writing for a while; :func:`locked` keeps others out, so LMDB need not."""

    def __init__(self, folder: Path):
        path = str(folder)
        fresh = not (folder / "data.mdb").exists()
        self._environment = lmdb.open(
            path, map_size=_FIRST_MAP if fresh else 0, lock=False, metasync=False, mode=0o644
        )

    def __enter__(self) -> lmdb.Environment:
        return self._environment

    def __exit__(self, *_: object) -> None:
        self._environment.close()


class _Shared:
    """An environment open for reading; LMDB allows one a file and process, so handles share it.

    A forked child closes what it inherited, which without LMDB's lock table touches nothing of the parent's,
    and opens its own.
    """

    _open: ClassVar[dict[tuple[int, int], _Shared]] = {}
    _guard: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, folder: Path, identity: tuple[int, int]):
        self._identity = identity
        self._process = os.getpid()
        self._users = 0
        try:
            check_pages(folder)
            self._environment = lmdb.open(
                str(folder), readonly=True, lock=False, readahead=False, create=False
            )
        except lmdb.Error as error:
            if "already open" in str(error):
                raise StoreError(
                    "is open in this process already, not by a patch store",
                    path=folder,
                    remedy="Close it there",
                ) from error
            raise damaged(folder, error) from error
        except (ValueError, OSError) as error:
            raise damaged(folder, error) from error

    @classmethod
    def of(cls, folder: Path) -> _Shared:
        """The environment of a folder."""
        status = (folder / "data.mdb").stat()
        identity = (status.st_dev, status.st_ino)
        with cls._guard:
            shared = cls._open.get(identity)
            if shared is not None and shared._process != os.getpid():
                shared._environment.close()
                shared = None
            if shared is None:
                shared = cls._open[identity] = cls(folder, identity)
            shared._users += 1
            return shared

    def begin(self) -> lmdb.Transaction:
        """A transaction that gives views of the file, not copies."""
        return self._environment.begin(buffers=True)

    def end(self, transaction: lmdb.Transaction) -> None:
        """Give the transaction back; the last one closes the environment."""
        if self._process != os.getpid():
            return
        with self._guard:
            transaction.abort()
            self._users -= 1
            if self._users == 0:
                self._environment.close()
                del self._open[self._identity]


def _part_items(transaction: lmdb.Transaction):
    with transaction.cursor() as cursor:
        prefix = _PART.partition(b"%")[0]
        found = cursor.set_range(prefix)
        while found and bytes(cursor.key()).startswith(prefix):
            yield bytes(cursor.key()), bytes(cursor.value())
            found = cursor.next()


def _parts(transaction: lmdb.Transaction) -> list[dict[str, Any]]:
    return [json.loads(value) for _, value in _part_items(transaction)]


def _content_of(folder: Path) -> str | None:
    try:
        with _environment(folder) as environment, environment.begin() as transaction:
            return json.loads(transaction.get(_PLAN))[1]
    except (lmdb.Error, ValueError, TypeError):
        return None


def _npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()


def _array(data: memoryview) -> np.ndarray:
    return np.load(io.BytesIO(bytes(data)), allow_pickle=False)
