"""Files that are never seen half-written, and pickles that cannot run code.

Any room may use this module; it knows no slide, patch or model.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import io
import json
import mmap
import os
import pickle
import re
import shutil
import sqlite3
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from wsi_assets.errors import WsiAssetsError

ASIDE_PREFIX = ".aside-"
"""Unfinished files and folders begin with this; a killed process's are removed by the next one that publishes
into the same folder."""

_EXCHANGE, _AT_FDCWD = 2, -100
_DISK_ERRORS = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE}
)
_DATABASE_FAULTS = ("is full", "readonly database", "unable to open database", "disk I/O error")
"""What SQLite says of its disk."""


@contextlib.contextmanager
def publish_file(path: str | Path) -> Iterator[Path]:
    """Yield a path beside ``path`` to write to; on success it is renamed to ``path``, else removed.

    The rename is atomic and the bytes are on disk before it, so a reader sees the old file or the new one,
    also after a power cut.
    """
    path = Path(path)

    def make() -> Path:
        handle, name = tempfile.mkstemp(prefix=ASIDE_PREFIX, suffix=path.suffix, dir=path.parent)
        os.close(handle)
        return Path(name)

    with _owned(path, make) as aside:
        try:
            yield aside
            aside.chmod(0o666 & ~_umask())
            _fsync(aside)
            aside.replace(path)
            _fsync(path.parent)
        finally:
            aside.unlink(missing_ok=True)


@contextlib.contextmanager
def publish_folder(path: str | Path) -> Iterator[Path]:
    """Yield an empty folder beside ``path`` to fill; on success it takes the place of ``path``.

    Where the file system can exchange two names at once (Linux), a reader always finds the old folder or the
    new one. Elsewhere there is none for the moment between two renames, never half of one.
    """
    path = Path(path)

    def make() -> Path:
        return Path(tempfile.mkdtemp(prefix=ASIDE_PREFIX, dir=path.parent))

    with _owned(path, make) as aside:
        aside.chmod(0o777 & ~_umask())
        try:
            yield aside
            for file in aside.rglob("*"):
                if file.is_file():
                    _fsync(file)
            if not path.exists():
                aside.replace(path)
            elif not exchange(aside, path):
                retired = aside.with_name(aside.name + "-old")
                path.replace(retired)
                aside.replace(path)
                shutil.rmtree(retired, ignore_errors=True)
            _fsync(path.parent)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def disk_fault(error: BaseException, path: str | Path | None = None) -> WsiAssetsError | None:
    """The one line for a full, read-only or failing disk behind ``error``; None if it is another fault.

    What led to an error is looked at too: databases wrap what the disk said in errors of their own.

    Args:
        path: the file or folder to name where the error names none.
    """
    seen: BaseException | None = error
    while seen is not None:
        text = str(seen)
        if isinstance(seen, OSError) and seen.errno in _DISK_ERRORS:
            full = seen.errno in (errno.ENOSPC, errno.EDQUOT)
            named = path if seen.filename is None else seen.filename
        elif isinstance(seen, sqlite3.OperationalError) and any(one in text for one in _DATABASE_FAULTS):
            full, named = "is full" in text, path
        else:
            seen = seen.__cause__ or seen.__context__
            continue
        why = "the disk is full" if full else os.strerror(seen.errno) if isinstance(seen, OSError) else text
        remedy = "Free some space" if full else "Check the disk and its permissions"
        what = "be written" if full else "be read or written"
        return WsiAssetsError(
            f"cannot {what} ({why})", path=named, remedy=f"{remedy}, then run again; it continues"
        )
    return None


def exchange(one: Path, other: Path) -> bool:
    """Swap two names in one step (Linux); False where system or file system cannot."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    return rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _EXCHANGE) == 0


@contextlib.contextmanager
def _owned(path: Path, make: Callable[[], Path]) -> Iterator[Path]:
    """What ``make`` makes beside ``path``, locked while this is open; what killed processes left is removed.

    The lock goes with the process, so what is unlocked has no owner. Where the file system has no locks,
    leftovers stay.

    Raises:
        WsiAssetsError: the disk is full or cannot be written.
    """
    handle = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for leftover in path.parent.glob(f"{ASIDE_PREFIX}*"):
            _remove_if_left(leftover)
        while True:
            aside = make()
            handle = _lock(aside)
            if aside.exists():
                break
            # Somebody swept it up in the moment before it was locked.
            _close(handle)
        yield aside
    except OSError as error:
        fault = disk_fault(error)
        if fault is None:
            raise
        raise WsiAssetsError(fault.fault, path=path, remedy=fault.remedy) from error
    finally:
        _close(handle)


def _remove_if_left(path: Path) -> None:
    handle = _lock(path)
    if handle is None:
        return
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
    _close(handle)


def _lock(path: Path) -> int | None:
    """A handle that holds the lock of a file or folder; None where another holds it or there are no locks."""
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle


def _close(handle: int | None) -> None:
    if handle is not None:
        os.close(handle)


def write_json(path: str | Path, value: Any) -> None:
    """Publish ``value`` as readable JSON."""
    with publish_file(path) as aside:
        aside.write_text(
            json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8"
        )


def write_plain_pickle(path: str | Path, value: Any) -> None:
    """Publish ``value``, made of plain types only, as a pickle that loads anywhere.

    Raises:
        TypeError: the value holds something that only a class or function could rebuild.
    """
    data = pickle.dumps(value, protocol=4)
    try:
        _PlainUnpickler(io.BytesIO(data)).load()
    except pickle.UnpicklingError as error:
        raise TypeError(f"not made of plain types: {error}") from error
    with publish_file(path) as aside:
        aside.write_bytes(data)


def read_plain_pickle(path: str | Path) -> Any:
    """Load a pickle of plain types; one that names any class or function is refused, not run.

    Raises:
        WsiAssetsError: the file is missing, damaged or names a class.
    """
    try:
        with Path(path).open("rb") as stream:
            if os.fstat(stream.fileno()).st_size:
                with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
                    _check_claims(data)
            return _PlainUnpickler(stream).load()
    except FileNotFoundError as error:
        raise WsiAssetsError(
            "does not exist", path=path, remedy="Materialize the asset that writes it"
        ) from error
    except Exception as error:  # a hostile pickle can raise nearly anything; nothing of it has been run
        raise WsiAssetsError(
            f"is not a plain pickle ({error!s:.300})",
            path=path,
            remedy="Delete it and materialize its asset again",
        ) from error


_FIXED = re.compile(
    rb"(?:[\x94}\])\x8f\x91(aesu\x90t\x85-\x87N\x88\x89]|[\x80Khq].|M..|[Jj].{4}|[G\x95].{8})*+", re.DOTALL
)
"""A run of a pickle's opcodes for plain values whose arguments are of one length, with these."""

_COUNTED = {
    **dict.fromkeys(b"C\x8c\x8a", "<B"),
    **dict.fromkeys(b"BX\x8b", "<I"),
    **dict.fromkeys(b"\x8e\x8d\x96", "<Q"),
}
"""Opcodes of bytes, text and long integers -> the form of the length before them."""

_LONG_PUT = ord("r")
_NAMES_OR_STOP = frozenset(b"c\x93i.")


def _check_claims(data: mmap.mmap) -> None:
    """Refuse a pickle that claims more than its bytes hold, or needs what plain values do not.

    ``pickle`` takes memory for a number of remembered values that a damaged file may claim: up to 64 GiB.

    Raises:
        UnpicklingError: it does.
    """
    at, size = 0, len(data)
    while True:
        at = _FIXED.match(data, at).end()
        code = data[at] if at < size else None
        if code in _NAMES_OR_STOP:
            return  # a name is refused, with what it names, when it is come to
        if code == _LONG_PUT:
            (number,) = struct.unpack_from("<I", data, at + 1)
            at += 5
        elif code in _COUNTED:
            (number,) = struct.unpack_from(_COUNTED[code], data, at + 1)
            at += 1 + struct.calcsize(_COUNTED[code]) + number
        else:
            what = "it ends early" if code is None else f"code {code:#x} at byte {at}"
            raise pickle.UnpicklingError(what)
        if max(at, number) > size:
            raise pickle.UnpicklingError("it ends early")


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it names {module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it refers to outside objects")


def digest(*values: Any) -> str:
    """A short stable digest of plain values (dict order does not matter): 16 hex digits."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), default=_jsonable)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def size_of(path: str | Path) -> int:
    """Bytes on disk of a file, or of everything in a folder (sparse files count what they occupy)."""
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


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        # Some network file systems do not let folders be synced; the rename is still atomic there.
        with contextlib.suppress(OSError):
            os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
