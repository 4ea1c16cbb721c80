"""Sort the files of the slide folder: slides, slides of unreadable formats, annotations, other files."""

from __future__ import annotations

import stat
from collections import Counter
from functools import lru_cache
from pathlib import Path

from wsi_assets.slides.naming import (
    PACKED_SUFFIXES,
    SLIDE_SUFFIXES,
    UNREAD_ANNOTATION_SUFFIXES,
    UNREAD_SLIDE_SUFFIXES,
    annotation_ending,
    endings,
    normalize_id,
)

SUMS = frozenset({".md5", ".sha1", ".sha256", ".sha512", ".crc"})
"""Endings of checksum files."""

TEXTS = SUMS | endings(
    "txt csv tsv md rst pdf log html htm yaml yml toml ini cfg xls xlsx ods doc docx py sh ipynb lock parquet"
)
"""Endings of texts and tables, which are ignored without a notice."""

OTHER_NAMES = frozenset({"DICOMDIR", "README", "LICENSE", "Thumbs.db", "desktop.ini"})

_PACKED = PACKED_SUFFIXES | {".bz2", ".xz", ".zst", ".7z", ".rar", ".tar", ".tgz"}
_UNFINISHED = frozenset({".part", ".partial", ".crdownload", ".download", ".tmp", ".filepart", ".aria2"})
TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_CZI = b"ZISRAWFILE"
_MIN_BYTES = 132
_CONVERT = "Convert it to a tiled pyramidal TIFF"


class ImageFiles:
    """The files below ``root``, added folder by folder.

    Attributes:
        slides: (slide id, path) of each slide.
        unread: (slide id, path, reason) of slides that cannot be read: other formats, compressed, incomplete.
        left_out: name -> reason, of files that belong to no slide id.
    """

    def __init__(self, root: Path):
        self.root = root
        self.slides: list[tuple[str, Path]] = []
        self.unread: list[tuple[str, Path, str]] = []
        self.left_out: dict[str, str] = {}
        self._beside: list[tuple[str, Path]] = []
        self._strays: list[Path] = []
        self._passed: list[Path] = []

    def add(self, place: Path, folders: list[str], files: list[str]) -> None:
        """Sort the files of the folder ``place``; subfolders that are part of a slide leave ``folders``."""
        suffixes = {name: Path(name).suffix.lower() for name in sorted(files)}
        kinds = {
            name: content_of(place / name)
            for name, suffix in suffixes.items()
            if suffix not in SLIDE_SUFFIXES | UNREAD_SLIDE_SUFFIXES | TEXTS
            and name not in OTHER_NAMES
            and not annotation_ending(name)
        }
        dicoms = [name for name, suffix in suffixes.items() if suffix == ".dcm" or kinds.get(name) == "dicom"]
        if dicoms and place != self.root:
            self.slides.append((place.name, place))
            other = SLIDE_SUFFIXES - {".dcm"}
            self._strays += (place / name for name, suffix in suffixes.items() if suffix in other)
            return
        if len(dicoms) > 1:
            self.left_out["*.dcm"] = (
                f"{len(dicoms)} files lie loose in {place}. Give each slide a folder of its own"
            )
            suffixes = {name: suffix for name, suffix in suffixes.items() if name not in dicoms}
        companions = {Path(name).stem for name, suffix in suffixes.items() if suffix == ".mrxs"}
        folders[:] = [name for name in folders if name not in companions]
        if "Slidedat.ini" in files:
            why = "is the folder of a MIRAX slide without its .mrxs file. Copy that file too"
            self.unread.append((place.name, place, why))
            folders.clear()
            return
        named = place.suffix.lower() in SLIDE_SUFFIXES and place != self.root and not folders
        if named and not SLIDE_SUFFIXES & set(suffixes.values()):
            self.unread.append((place.stem, place, "is a folder that holds no slide. Copy the slide again"))
        hamamatsu = {".vms", ".vmu"} & set(suffixes.values())
        for name, suffix in suffixes.items():
            if not (hamamatsu and suffix in {".jpg", ".opt"}):
                self._sort(place / name, suffix, kinds.get(name))

    def notices(self, without: set[str]) -> list[str]:
        """Lines on files that were not used.

        Args:
            without: normalized ids of the slides without an annotation.
        """
        lines = [
            f"slide file in the folder of a DICOM slide is not used: {path}. Move it if it is a slide"
            for path in self._strays
        ]
        unused = sorted(path for slide_id, path in self._beside if normalize_id(slide_id) in without)
        if unused:
            lines.append(
                f"annotations in the slide folder are not used ({len(unused)}), e.g. {unused[0]}. "
                "To use them, give the slide folder as annotation folder too"
            )
        return lines + passed_over(self._passed, "no slides")

    def _sort(self, path: Path, suffix: str, kind: str | None) -> None:
        ending, inner = annotation_ending(path.name), Path(path.stem)
        of_slide = inner.suffix.lower() in SLIDE_SUFFIXES | UNREAD_SLIDE_SUFFIXES
        if suffix in SLIDE_SUFFIXES or kind in ("slide", "dicom"):
            self.slides.append((path.stem, path))
        elif suffix in UNREAD_SLIDE_SUFFIXES or kind == "tiff":
            self.unread.append((path.stem, path, f"has a format ({suffix}) that is not read. {_CONVERT}"))
        elif of_slide and suffix in _PACKED | _UNFINISHED:
            packed = suffix in _PACKED
            why = "is compressed. Unpack it" if packed else "is not completely copied. Copy it again"
            self.unread.append((inner.stem, path, why))
        elif ending and suffix != ".zip":
            self._beside.append((path.name[: -len(ending)], path))
        elif suffix in UNREAD_ANNOTATION_SUFFIXES:
            self._beside.append((inner.stem if of_slide else path.stem, path))
        elif suffix not in TEXTS and path.name not in OTHER_NAMES:
            self._passed.append(path)


def passed_over(paths: list[Path], what: str) -> list[str]:
    """A line on files that are not used, without texts and tables; none if there is no such file.

    Args:
        what: what the files are, e.g. "no slides".
    """
    paths = sorted(path for path in paths if path.suffix.lower() not in TEXTS)
    if not paths:
        return []
    endings = Counter(path.suffix.lower() or "no ending" for path in paths)
    kinds = ", ".join(f"{ending} ({count})" for ending, count in sorted(endings.items())[:8])
    return [f"files that are {what} are ignored: {kinds}, e.g. {paths[0]}"]


def content_of(path: Path) -> str | None:
    """What a file of unknown ending is: a "slide" that OpenSlide opens, "dicom", another "tiff", or None."""
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode) or found.st_size < _MIN_BYTES:
            return None
        return _content(path, found.st_mtime_ns, found.st_size)
    except (OSError, ValueError):
        return None


@lru_cache(maxsize=65536)
def _content(path: Path, changed_ns: int, size: int) -> str | None:
    with path.open("rb") as stream:
        start = stream.read(_MIN_BYTES)
    if start[128:] == b"DICM":
        return "dicom"
    if not start.startswith((*TIFF_STARTS, _CZI)):
        return None
    import openslide

    return "slide" if openslide.OpenSlide.detect_format(path) else "tiff"
