"""The LMDB store: one environment, key -> encoded image in the main database.

Names beginning with ``__`` hold the rest: ``__info__`` (JSON), ``__keys__`` (one a line, in index order),
``__labels__`` and ``__origins__`` (npy). How the file grows, and what to extract, is decided elsewhere.
"""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np

from wsi_assets.errors import StoreError
from wsi_assets.patches.appended import AppendedShelf, AppendingWriter
from wsi_assets.patches.contract import Contents, damaged, incomplete
from wsi_assets.patches.lmdb_pages import (
    META_PAGES,
    OVERFLOW_HEADER,
    PAGE,
    empty_meta,
    finished,
    overflow_header,
    pages_of,
    read_database,
)

_INFO, _KEYS, _LABELS, _ORIGINS = b"__info__", b"__keys__", b"__labels__", b"__origins__"
_FILE = "data.mdb"


class LmdbShelf(AppendedShelf):
    """A complete LMDB store, open for reading in this process.

    ``transaction``: number of the commit that made it.
    """

    def __init__(self, path: Path):
        super().__init__(path, path / _FILE)
        try:
            database = read_database(self.handle)
            self.end, self.transaction = database.end, database.transaction
            places = dict(zip(database.keys, database.places.tolist(), strict=True))
            if _INFO not in places:
                raise incomplete(path)
            named = {name: self._value(*places[name]) for name in (_INFO, _KEYS, _LABELS, _ORIGINS)}
            self.contents = Contents(
                info=json.loads(named[_INFO]),
                keys=named[_KEYS].decode().split("\n")[:-1],
                labels=_array(named[_LABELS]),
                origins=_array(named[_ORIGINS]),
            )
            self.contents.check(path)
            rows = [places[key.encode()] for key in self.contents.keys]
            self.places = np.array(rows, np.int64).reshape(-1, 2)
            # LMDB itself keeps small values among the keys, and its pages may have another size.
            at_pages = self.places[:, 0] % PAGE == OVERFLOW_HEADER
            self.grows = database.page == PAGE and bool(at_pages.all())
        except StoreError:
            self.close()
            raise
        except KeyError as error:
            self.close()
            raise damaged(path, f"{error.args[0].decode(errors='replace')} is missing") from error
        except (OSError, ValueError, TypeError, OverflowError, RecursionError, EOFError) as error:
            self.close()
            raise damaged(path, error) from error

    def _value(self, offset: int, length: int) -> bytes:
        return os.pread(self.handle, length, offset)


class LmdbWriter(AppendingWriter):
    """See :class:`wsi_assets.patches.contract.Writer`."""

    head = META_PAGES * PAGE
    before = OVERFLOW_HEADER

    def __init__(self, path: Path, content: dict[str, Any], old: LmdbShelf | None):
        super().__init__(path, content, old)
        self._transaction = 1 if self._old is None else self._old.transaction + 1

    @staticmethod
    def file_of(path: Path) -> Path:
        """See :class:`AppendingWriter`."""
        return path / _FILE

    @staticmethod
    def taken(lengths: Any) -> Any:
        """Whole pages, the last filled with zeros."""
        return pages_of(lengths) * PAGE

    @staticmethod
    def header(offset: int, length: int) -> bytes:
        """The header of the value's first page."""
        return overflow_header(offset // PAGE, length)

    def index(self, places: np.ndarray, contents: Contents) -> tuple[bytes, tuple[int, bytes]]:
        """See :class:`AppendingWriter`."""
        named = {
            _KEYS: "".join(f"{key}\n" for key in contents.keys).encode(),
            _LABELS: _npy(contents.labels),
            _ORIGINS: _npy(contents.origins),
            _INFO: json.dumps(contents.info, sort_keys=True).encode(),
        }
        keys = [key.encode() for key in contents.keys] + list(named)
        places = np.concatenate([places, [self.append(value) for value in named.values()]])
        tree, (offset, meta) = finished(keys, places, self.end, self._transaction)
        if self._transaction == 1:
            return tree, (0, empty_meta(0) + meta)
        return tree, (offset, meta)


def _npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()


def _array(data: bytes) -> np.ndarray:
    try:
        return np.load(io.BytesIO(data), allow_pickle=False)
    except TokenError as error:  # numpy reads the header as Python
        raise ValueError("its arrays have damaged headers") from error
