"""The bytes of an annotation file, also of a packed one: .geojson.gz, .xml.gz, or a .zip that holds one."""

from __future__ import annotations

import gzip
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from wsi_assets.annotations.annotation import MAX_BYTES, damaged
from wsi_assets.slides.naming import ANNOTATION_SUFFIXES


def read_bytes(path: Path) -> tuple[bool, bytes]:
    """(whether it is XML, its bytes) of an annotation file.

    Raises:
        AnnotationError: it is empty, no regular file, larger than any annotations, of an ending that is not
            read, cannot be unpacked, or is an archive that does not hold just one annotation file.
    """
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise damaged(path, "is not a file")
    try:
        with _opened(path) as (name, stream):
            ending = Path(name).suffix.lower()
            if ending not in ANNOTATION_SUFFIXES:
                known = ", ".join(sorted(ANNOTATION_SUFFIXES))
                raise damaged(path, f"is not an annotation format known here ({known}, also in .gz or .zip)")
            data = stream.read(MAX_BYTES + 1)  # an archive of some kB can hold GB of nothing
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        fault = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise damaged(path, f"cannot be read ({fault})") from error
    if not data:
        raise damaged(path, "is empty")
    if len(data) > MAX_BYTES:
        raise damaged(path, f"has more than {MAX_BYTES // 2**20} MB, which no annotations need")
    return ending == ".xml", data


@contextmanager
def _opened(path: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """(name of what is packed in the file, its bytes)."""
    if path.suffix.lower() == ".gz":
        with gzip.open(path) as stream:
            yield path.stem, stream
    elif path.suffix.lower() == ".zip":
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if _is_annotation(Path(name))]
            if len(names) != 1:
                raise damaged(path, f"is an archive of {len(names)} annotation files, not of one")
            with archive.open(names[0]) as stream:
                yield names[0], stream
    else:
        with path.open("rb") as stream:
            yield path.name, stream


def _is_annotation(inside: Path) -> bool:
    hidden = inside.name.startswith(".") or "__MACOSX" in inside.parts
    return inside.suffix.lower() in ANNOTATION_SUFFIXES and not hidden
