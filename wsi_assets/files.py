"""Atomic writes of files and folders, locks, disk errors as one line, and pickles that cannot run code."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import io
import json
import os
import pickle
import secrets
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wsi_assets.errors import DiskError, WsiAssetsError

STAGING_PREFIX = ".partial-"
"""Prefix of unfinished files and folders. What a killed process left is removed by the next process that
publishes into the same folder."""

_EXCHANGE, _AT_FDCWD = 2, -100
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_DISK_ERRORS = _FULL | {errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE}
_SQLITE_DISK_ERRORS = {
    sqlite3.SQLITE_FULL: errno.ENOSPC,
    sqlite3.SQLITE_READONLY: errno.EROFS,
    sqlite3.SQLITE_CANTOPEN: errno.EACCES,
    sqlite3.SQLITE_IOERR: errno.EIO,
}


@contextlib.contextmanager
def publish_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` to write to; on success it is renamed to ``path``, else removed.

    The rename is atomic and the bytes are on disk before it, so a reader sees the old file or the new one,
    also after a power cut.

    Raises:
        DiskError: the disk is full or cannot be written.
    """
    path = Path(path)
    with _staging(path, folder=False) as staged:
        yield staged
        fsync(staged)
        publish(staged, path)


@contextlib.contextmanager
def publish_folder(path: str | Path) -> Iterator[Path]:
    """Yield an empty temporary folder beside ``path`` to fill; on success it replaces ``path``.

    :func:`publish` says what readers see meanwhile, and what is there after a kill.

    Raises:
        DiskError: the disk is full or cannot be written.
    """
    path = Path(path)
    with _staging(path, folder=True) as staged:
        yield staged
        for file in staged.rglob("*"):
            if file.is_file():
                fsync(file)
        publish(staged, path)


def publish(staged: Path, path: Path) -> None:
    """Replace ``path`` by a finished file or folder and remove the old one.

    The caller has synced the files to disk. A file is replaced atomically. So is a folder where the file
    system can exchange two names (Linux). Elsewhere the folder is missing for a moment between two renames;
    after a kill in that moment both the old and the new folder exist, and :func:`recover` completes the
    change.
    """
    retired = None
    if not staged.is_dir():
        staged.replace(path)
    else:
        fsync(staged)
        with _locked(path.parent, wait=True):
            if not path.exists():
                staged.rename(path)
            elif exchange(staged, path):
                retired = staged
            else:
                new, retired = _names_between_renames(path)
                staged.rename(new)
                path.rename(retired)
                new.rename(path)
    fsync(path.parent)
    if retired is not None:
        remove(retired)


def recover(path: str | Path) -> None:
    """Complete a :func:`publish` of the folder ``path`` that was killed between its renames."""
    path = Path(path)
    if any(name.exists() for name in _names_between_renames(path)):
        with _locked(path.parent, wait=True):
            _recover(path)


def _recover(path: Path) -> None:
    new, old = _names_between_renames(path)
    if new.exists():
        if path.exists():
            remove(old)
            path.rename(old)
        new.rename(path)
    elif old.exists() and not path.exists():
        old.rename(path)
    remove(old)


def exchange(one: Path, other: Path) -> bool:
    """Swap two names in one step (Linux); False where system or file system cannot."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    return rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _EXCHANGE) == 0


def fsync(path: Path) -> None:
    """Make a file's bytes, or a folder's names, survive a power cut.

    Raises:
        OSError: a file's bytes cannot be written. (Some network file systems do not let folders be synced.)
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        if not path.is_dir():
            raise
    finally:
        os.close(handle)


@contextlib.contextmanager
def file_lock(path: Path, wait: bool = False) -> Iterator[None]:
    """Hold an exclusive lock on the lock file ``path``, which is made if missing.

    The operating system releases the lock when the process ends, however it ends. Where the file system has
    no locks, nothing is held.

    Args:
        wait: wait until the lock is free.

    Raises:
        BlockingIOError: another process, or another part of this one, holds the lock and ``wait`` is False.
    """
    with _locked(path, os.O_RDWR | os.O_CREAT, wait=wait):
        yield


def disk_fault(error: BaseException, path: str | Path | None = None) -> DiskError | None:
    """A one-line error if ``error`` comes from a full, read-only or failing disk, else None.

    The causes of an error are searched too, because databases wrap disk errors in their own.

    Args:
        path: the file or folder to name if the error names none.
    """
    seen: BaseException | None = error
    while seen is not None:
        code = getattr(seen, "errno", None)
        if isinstance(seen, sqlite3.Error):
            # The low byte is the kind of error, the rest its details.
            code = _SQLITE_DISK_ERRORS.get((getattr(seen, "sqlite_errorcode", None) or 0) & 0xFF)
        if code in _DISK_ERRORS:
            what, remedy = (
                f"cannot be read or written ({os.strerror(code)})",
                "Check the disk and its permissions",
            )
            if code in _FULL:
                what, remedy = "cannot be written (the disk is full)", "Free some space"
            path = getattr(seen, "filename", None) or path
            return DiskError(what, path=path, remedy=f"{remedy}, then run again; it continues")
        seen = seen.__cause__ or seen.__context__
    return None


@contextlib.contextmanager
def _staging(path: Path, *, folder: bool) -> Iterator[Path]:
    """A new, locked file or folder beside ``path``, removed at the end if it is still there.

    Leftovers of killed processes are removed first: a lock ends with its process, so an unlocked leftover has
    no owner. Where the file system has no locks, leftovers stay.
    """
    staged = path.with_name(f"{STAGING_PREFIX}{secrets.token_hex(6)}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as lock:
            with _locked(path.parent, wait=True):  # else another process could remove it before it is locked
                _recover(path)
                for leftover in path.parent.glob(f"{STAGING_PREFIX}*"):
                    with contextlib.suppress(OSError), _locked(leftover) as held:
                        if held:
                            remove(leftover)
                if folder:
                    staged.mkdir()
                else:
                    staged.touch()
                lock.enter_context(_locked(staged))
            yield staged
    except OSError as error:
        fault = disk_fault(error)
        if fault is None:
            raise
        raise DiskError(fault.fault, path=path, remedy=fault.remedy) from error
    finally:
        remove(staged)


@contextlib.contextmanager
def _locked(path: Path, flags: int = os.O_RDONLY, *, wait: bool = False) -> Iterator[bool]:
    """Hold the lock of a file or folder; False where the file system has no locks.

    Raises:
        BlockingIOError: it is held elsewhere, and ``wait`` is False.
    """
    handle = os.open(path, flags | os.O_CLOEXEC, 0o666)
    try:
        held = True
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise
        except OSError:
            held = False
        yield held
    finally:
        os.close(handle)


def _names_between_renames(path: Path) -> tuple[Path, Path]:
    return path.with_name(f".{path.name}.new"), path.with_name(f".{path.name}.old")


def remove(path: Path) -> None:
    """Remove a file, or a folder with everything in it; what cannot be removed stays, without an error."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def write_json(path: str | Path, value: Any) -> None:
    """Write ``value`` atomically as indented JSON with sorted keys."""
    with publish_file(path) as staged:
        staged.write_text(
            json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8"
        )


def write_plain_pickle(path: str | Path, value: Any) -> None:
    """Write a value of plain Python types as a pickle that loads without this package.

    Raises:
        TypeError: the value holds an object of another type.
    """
    stream = io.BytesIO()
    pickler = pickle.Pickler(stream, protocol=4)
    # Without a memo equal values have equal bytes. With one, bytes also show which equal strings are one
    # object, which depends on the process that made them. Plain values do not refer to themselves.
    pickler.fast = True
    pickler.dump(value)
    data = stream.getvalue()
    try:
        _PlainUnpickler(io.BytesIO(data)).load()
    except pickle.UnpicklingError as error:
        raise TypeError(f"not made of plain types: {error}") from error
    with publish_file(path) as staged:
        staged.write_bytes(data)


def read_plain_pickle(path: str | Path) -> Any:
    """Load a pickle of plain types; a pickle that names any other class or function is refused, not run.

    NumPy numbers become Python numbers, NumPy arrays become lists and paths become text, so that indices
    that other scripts wrote load too.

    Raises:
        WsiAssetsError: the file is missing or damaged, or names a class or function.
    """
    try:
        with Path(path).open("rb") as stream:
            return _LenientUnpickler(stream).load()
    except FileNotFoundError as error:
        raise WsiAssetsError(
            "does not exist", path=path, remedy="Materialize the asset that writes it"
        ) from error
    except Exception as error:  # a hostile pickle can raise nearly anything; none of its code has run
        raise WsiAssetsError(
            f"is not a plain pickle ({error!s:.300})",
            path=path,
            remedy="Delete it and materialize its asset again",
        ) from error


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it names {module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it refers to outside objects")


class _LenientUnpickler(_PlainUnpickler):
    """Rebuilds a few harmless types with our own functions, without running those the pickle names."""

    def find_class(self, module: str, name: str) -> Any:
        package = module.partition(".")[0]
        if package == "pathlib" and name.endswith("Path"):
            return os.path.join
        if (package, name) in _HARMLESS:
            return _HARMLESS[package, name]
        return super().find_class(module, name)


class _DType:
    """A pickled NumPy dtype of numbers or text."""

    def __init__(self, spec: str, *_: Any):
        kind, size = str(spec)[:1], str(spec)[1:]
        if kind not in "biufSU" or not size.isdecimal():
            raise pickle.UnpicklingError(f"it holds NumPy values of type {spec!s:.20}")
        self.spec, self.order = f"{kind}{int(size)}", "="

    def __setstate__(self, state: tuple) -> None:
        self.order = state[1] if state[1] in ("<", ">", "=", "|") else "="

    def values(self, data: bytes) -> Any:
        import numpy as np

        return np.frombuffer(data, np.dtype(self.spec).newbyteorder(self.order))


class _Array(list):
    """A pickled NumPy array, as nested lists."""

    def __init__(self, *_: Any):
        super().__init__()

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, by_column, data = state
        self[:] = dtype.values(data).reshape(shape, order="F" if by_column else "C").tolist()


_HARMLESS = {
    ("collections", "OrderedDict"): dict,
    ("_codecs", "encode"): lambda text, _: text.encode("latin-1"),  # bytes, before protocol 3
    ("numpy", "dtype"): _DType,
    ("numpy", "ndarray"): _Array,
    ("numpy", "scalar"): lambda dtype, data: dtype.values(data)[0].item(),
    ("numpy", "_reconstruct"): _Array,
    ("numpy", "_frombuffer"): lambda data, dtype, shape, order: (
        dtype.values(data).reshape(shape, order=order).tolist()
    ),
}
"""(package, name) that a pickle may name -> what is used in its place."""


def digest(*values: Any) -> str:
    """A short stable digest of plain values (dict order does not matter): 16 hex digits."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), default=_jsonable)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def size_of(path: str | Path) -> int:
    """Bytes on disk of a file, or of all files in a folder; of a sparse file, what it occupies."""
    path = Path(path)
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return sum(min(stat.st_size, stat.st_blocks * 512) for stat in (file.stat() for file in files))


def _jsonable(value: Any) -> Any:
    if isinstance(value, bytes):
        return hashlib.sha256(value).hexdigest()
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"cannot digest a {type(value).__name__}")
