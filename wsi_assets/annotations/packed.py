"""Open an annotation file, also a packed one: .geojson.gz, .xml.gz, or a .zip that holds one of them."""

from __future__ import annotations

import gzip
import io
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from wsi_assets.annotations.annotation import MAX_JSON_BYTES, MAX_XML_BYTES, damaged
from wsi_assets.slides.naming import ANNOTATION_SUFFIXES, PACKED_SUFFIXES


@contextmanager
def opened(path: Path) -> Iterator[tuple[bool, IO[bytes]]]:
    """(whether it is XML, its bytes) of an annotation file.

    Raises:
        AnnotationError: it is empty, no regular file, larger than any annotations, of an ending that is not
            read, cannot be unpacked, or is an archive that does not hold just one annotation file.
    """
    try:
        size = path.stat().st_size
        if not path.is_file():  # a pipe would be waited for
            raise damaged(path, "is not a file")
        if size == 0:
            raise damaged(path, "is empty")
        if path.suffix.lower() not in PACKED_SUFFIXES:
            is_xml = _is_xml(path, path.name)
            _check_size(path, is_xml, size)
            with path.open("rb") as stream:
                yield is_xml, stream
            return
    except OSError as error:
        raise damaged(path, f"cannot be read ({error.strerror or error})") from error
    yield _unpacked(path)


def _unpacked(path: Path) -> tuple[bool, IO[bytes]]:
    try:
        if path.suffix.lower() == ".gz":
            is_xml = _is_xml(path, path.stem)
            with gzip.open(path) as stream:
                return is_xml, _bounded(path, is_xml, stream)
        with zipfile.ZipFile(path) as archive:
            names = [one for one in archive.namelist() if _is_annotation(one)]
            if len(names) != 1:
                raise damaged(path, f"is an archive of {len(names)} annotation files, not of one")
            is_xml = _is_xml(path, names[0])
            with archive.open(names[0]) as stream:
                return is_xml, _bounded(path, is_xml, stream)
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise damaged(path, f"cannot be unpacked ({error})") from error


def _bounded(path: Path, is_xml: bool, stream: IO[bytes]) -> IO[bytes]:
    # An archive of some kB can hold GB of nothing.
    data = stream.read(_most(is_xml) + 1)
    _check_size(path, is_xml, len(data))
    return io.BytesIO(data)


def _check_size(path: Path, is_xml: bool, size: int) -> None:
    most = _most(is_xml)
    if size > most:
        raise damaged(path, f"has {size / 2**20:.0f} MB, more than any annotations need ({most // 2**20})")


def _most(is_xml: bool) -> int:
    return MAX_XML_BYTES if is_xml else MAX_JSON_BYTES


def _is_annotation(name: str) -> bool:
    inside = Path(name)
    return inside.suffix.lower() in ANNOTATION_SUFFIXES and not (
        inside.name.startswith(".") or "__MACOSX" in inside.parts
    )


def _is_xml(path: Path, name: str) -> bool:
    ending = Path(name).suffix.lower()
    if ending not in ANNOTATION_SUFFIXES:
        known = ", ".join(sorted(ANNOTATION_SUFFIXES))
        raise damaged(path, f"is not an annotation format known here ({known}, also in .gz or .zip)")
    return ending == ".xml"
