"""Find the slides of a cohort, with the annotation and the correction of each, by file names alone."""

from __future__ import annotations

import difflib
import os
import re
import stat
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from wsi_assets.errors import SlideError, one_line
from wsi_assets.slides.cohort import EMPTY_ROW, Cohort, SlideRow
from wsi_assets.slides.file_access import stat_or_none
from wsi_assets.slides.image_files import OTHER_NAMES, SUMS, ImageFiles, passed_over
from wsi_assets.slides.naming import UNREAD_ANNOTATION_SUFFIXES, annotation_ending, normalize_id, slide_id_of

MAX_ID_BYTES = 240
"""Longest slide id in bytes: file systems must take the name of a patch's file, which is id and number."""

_APPENDED_WORD = re.compile(
    r"[ ._-]*(masks?|annotations?|annos?|labels?|rois?|gt|tumou?rs?|regions?|geojson)$"
)
"""Words that tools append to a slide's name to name its annotation."""
_MIN_SIMILARITY = 0.7
"""Similarity, 0 to 1, from which two names with the same numbers differ by a typing error only."""

_FilesByName = dict[str, list[tuple[str, Path]]]
"""Normalized name -> (name, file) of each file of that name."""

CORRECTIONS = "corrections"
"""Subfolder of the annotation folder whose files correct annotations."""


@dataclass(frozen=True)
class SlideFile:
    """A slide on disk.

    Attributes:
        path: its file, or the folder of a DICOM slide.
        annotation_path, correction_path: its annotation and the file that corrects it, None without one.
        cohort_row: its row of ``cohort.csv``.
    """

    slide_id: str
    path: Path
    annotation_path: Path | None
    cohort_row: SlideRow = EMPTY_ROW
    correction_path: Path | None = None


@dataclass(frozen=True)
class SlideListing:
    """The slides and annotations in a cohort's folders.

    Attributes:
        slides: sorted by id.
        left_out: slide id (``*.dcm`` for DICOM files without a folder of their own) -> reason, in one line.
        notices: one line on each file that was not used.
        strays: the notices on corrections without a slide, which are always a mistake.
    """

    slides: tuple[SlideFile, ...]
    left_out: dict[str, str]
    notices: tuple[str, ...]
    strays: tuple[str, ...] = ()


def find_slides(
    images_dir: str | Path, annotations_dir: str | Path | None = None, cohort: Cohort | None = None
) -> SlideListing:
    """List the slides under ``images_dir`` and match annotations and corrections to them by name.

    **Slides.** Subfolders are searched and links followed; hidden files and folders are ignored. A slide is a
    file with the ending of a slide format, a file that OpenSlide opens, or a folder with DICOM files. The
    folder beside a .mrxs file is part of that slide.

    **Annotations.** An annotation has the slide's id, without regard to case or to how accents are encoded;
    or the slide's whole file name (``a.svs.geojson``), with or without its ``.ome``. A file of that name in a
    format that is not read still counts as the annotation, and reading it fails: a slide whose annotation
    cannot be read must not become a normal slide.

    **Corrections.** Files in the subfolder ``corrections`` of ``annotations_dir`` correct the annotation of
    the slide they are named after, by the same rules.

    **Left out** are slides that share an id, slides whose id cannot name files, slides that cannot be read,
    and, unless ``cohort`` says that the slide is normal, a slide without annotation if an annotation without
    slide has nearly its name. Files that are not used, such as annotations without a slide, become notices.

    Args:
        images_dir: folder of slides.
        annotations_dir: folder of annotations; None if there are none.
        cohort: the table of the cohort, whose rows become :attr:`SlideFile.cohort_row`.

    Raises:
        SlideError: a folder is missing, or cannot be reached or listed. It never counts as empty.
    """
    images = ImageFiles(existing_folder(images_dir))
    for place, folders, files in _walk(images.root):
        images.add(place, folders, files)
    return _match(images, *_annotations(annotations_dir, images), cohort or Cohort())


def _match(
    images: ImageFiles,
    annotations: _FilesByName,
    other_formats: _FilesByName,
    corrections: _FilesByName,
    other_corrections: _FilesByName,
    cohort: Cohort,
) -> SlideListing:
    """Match annotations and corrections to slides: of files with a slide's name, those of a readable format
    come first, then those of other formats."""
    left_out, notices, slides = dict(images.left_out), [], []
    found = _by_id(images.slides)
    for slide_id, path, reason in images.unread:
        for files in (annotations, corrections):
            _take(files, {normalize_id(slide_id)})
        if normalize_id(slide_id) in found:
            notices.append(f"not used, because there is another slide with this id: {path}")
        else:
            left_out[slide_id] = f"it {reason}: {path}"
    names = {}
    for key, ((_, path), *_) in found.items():
        # The whole file name counts too, unless it is the id of another slide.
        file_names = {normalize_id(path.name), normalize_id(path.name.split(".ome.")[0])}
        names[key] = {key} | (file_names - found.keys())
    annotation_of = {key: _take(annotations, names[key]) or _take(other_formats, names[key]) for key in found}
    correction_of = {
        key: _take(corrections, names[key]) or _take(other_corrections, names[key]) for key in found
    }
    nearly = _by_near_name(annotations, other_formats)
    for key, named in found.items():
        slide_id, paths = named[0][0], [path for _, path in named]
        why = _why_left_out(slide_id, paths, annotation_of[key], correction_of[key])
        if not why and not annotation_of[key] and cohort.row(slide_id).label != "normal":
            path = next(filter(None, (nearly(name) for name in names[key])), None)
            why = path and (
                f"no annotation has its name, but this one may belong to it: {path}. Name it {slide_id}"
                f"{annotation_ending(path.name) or '.geojson'}, or say in cohort.csv that the slide is normal"
            )
        if why:
            left_out[slide_id] = why
        else:
            annotation, correction = (next(iter(of[key]), None) for of in (annotation_of, correction_of))
            slides.append(SlideFile(slide_id, paths[0], annotation, cohort.row(slide_id), correction))
    strays = [f"correction without a slide: {path}" for named in corrections.values() for _, path in named]
    notices += cohort.unknown([*left_out, *(slide.slide_id for slide in slides)])
    notices += [f"annotation without a slide: {path}" for named in annotations.values() for _, path in named]
    notices += images.notices({normalize_id(slide.slide_id) for slide in slides if not slide.annotation_path})
    unread = [path for named in (*other_formats.values(), *other_corrections.values()) for _, path in named]
    notices += [*strays, *passed_over(unread, "no annotations")]
    return SlideListing(
        slides=tuple(sorted(slides, key=lambda slide: slide.slide_id)),
        left_out={_printable(name): _printable(why) for name, why in sorted(left_out.items())},
        notices=tuple(sorted(map(_printable, notices))),
        strays=tuple(sorted(map(_printable, strays))),
    )


def _by_near_name(annotations: _FilesByName, other_formats: _FilesByName) -> Callable[[str], Path | None]:
    """A function: normalized name of a slide -> a file without slide that may be its annotation, or None.

    Such a file has the slide's name plus a word that tools append, or is an annotation with a similar name
    and the same numbers: other numbers mean another slide.
    """
    stems = {
        _APPENDED_WORD.sub("", key): files[key][0][1]
        for files in (other_formats, annotations)
        for key in files
    }
    by_numbers = defaultdict(list)
    for key in annotations:
        by_numbers[_numbers(key)].append(key)

    def nearly(name: str) -> Path | None:
        alike = by_numbers.get(_numbers(name), []) if _numbers(name) else []
        close = difflib.get_close_matches(name, alike, n=1, cutoff=_MIN_SIMILARITY)
        return annotations[close[0]][0][1] if close else stems.get(name)

    return nearly


def _numbers(name: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"[0-9]+", name)))


def _why_left_out(
    slide_id: str, paths: list[Path], annotations: list[Path], corrections: list[Path]
) -> str | None:
    path = paths[0]
    if len(paths) > 1:
        return f"{len(paths)} slides share this id: {', '.join(sorted(map(str, paths)))}. Rename all but one"
    for what, files in (("annotations", annotations), ("corrections", corrections)):
        if len(files) > 1:
            return f"it has {len(files)} {what}: {', '.join(map(str, files))}. Keep one"
    try:
        found = stat_or_none(path)
    except SlideError as error:
        return f"it {error.fault}: {path}. {error.remedy}"
    if found is None:
        return f"it is a broken link: {path}. Mend the link or remove it"
    if not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode):
        return f"it is a pipe, socket or device instead of a file: {path}. Take it out of the folder"
    text = " ".join(map(str, (path, *annotations, *corrections)))
    if text.encode(errors="ignore").decode() != text:
        name = f"the name of its file or folder is not valid {sys.getfilesystemencoding().upper()}"
        return f"{name}: {path}. Rename it, or set PYTHONUTF8=1"
    reserved = "..." in slide_id or "|" in slide_id or slide_id.startswith("__")
    if reserved or any(ord(letter) < 32 for letter in slide_id):
        return (
            "its id contains three full stops, a vertical bar or a control character, or begins with two "
            f"underscores, all of which are reserved: {path}. Rename it"
        )
    if len(slide_id.encode()) > MAX_ID_BYTES:
        return f"its id has more than {MAX_ID_BYTES} bytes: {path}. Rename it"
    return None


def _printable(text: str) -> str:
    """One line that any terminal and database takes; bytes of a name that are not text are escaped."""
    return one_line(text.encode(errors="backslashreplace").decode())


def _annotations(folder: str | Path | None, images: ImageFiles) -> list[_FilesByName]:
    """Annotations of readable and of other formats, corrections of readable and of other formats."""
    found: dict[tuple[bool, bool], list[tuple[str, Path]]]
    found = {(corrects, read): [] for corrects in (False, True) for read in (True, False)}
    if folder is not None:
        root = existing_folder(folder)
        shared = root.resolve() == images.root.resolve()
        slides = {path for _, path in images.slides}
        for place, folders, files in _walk(root):
            corrects = place != root and place.relative_to(root).parts[0].lower() == CORRECTIONS
            # A folder with the name of an annotation counts as one that cannot be read.
            for name in sorted([*files, *filter(annotation_ending, folders)]):
                ending, last = annotation_ending(name), Path(name).suffix.lower()
                known = last in UNREAD_ANNOTATION_SUFFIXES
                if ending:
                    found[corrects, True].append((name[: -len(ending)], place / name))
                elif known or not (shared or last in SUMS or name in OTHER_NAMES or place / name in slides):
                    found[corrects, False].append((slide_id_of(Path(name).stem), place / name))
    return [_by_id(files) for files in found.values()]


def _by_id(files: Iterable[tuple[str, Path]]) -> _FilesByName:
    found = defaultdict(list)
    for name, path in files:
        found[normalize_id(name)].append((name, path))
    return dict(found)


def _take(files: _FilesByName, keys: set[str]) -> list[Path]:
    return sorted(path for key in keys for _, path in files.pop(key, []))


def _walk(folder: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Like os.walk, without hidden names, and each folder once even if links form a loop.

    Raises:
        SlideError: a folder cannot be listed, or the target of a link cannot be reached.
    """
    seen: set[tuple[int, int]] = set()
    for name, folders, files in os.walk(folder, followlinks=True, onerror=_fail):
        place = Path(name)
        itself = place.stat()
        if (itself.st_dev, itself.st_ino) in seen:
            folders.clear()
            continue
        seen.add((itself.st_dev, itself.st_ino))
        folders[:] = sorted(one for one in folders if not one.startswith("."))
        files = [one for one in files if not one.startswith(".")]
        for one in files:
            # os.walk reports a link to an unreachable folder as a file; a link without an ending may be one.
            # (Path.is_symlink raises in a folder that may be listed but not entered.)
            if not Path(one).suffix and os.path.islink(place / one):  # noqa: PTH114
                stat_or_none(place / one)
        yield place, folders, files


def existing_folder(path: str | Path) -> Path:
    """``path``, if it is a folder.

    Raises:
        SlideError: it does not exist or is something else.
    """
    path = Path(path)
    found = stat_or_none(path)
    if found is None or not stat.S_ISDIR(found.st_mode):
        fault = "does not exist" if found is None else "is not a folder"
        raise SlideError(fault, path=path, remedy="Check the path, or that its disk is mounted")
    return path


def _fail(error: OSError) -> None:
    raise SlideError(
        f"cannot be listed ({error.strerror})", path=error.filename, remedy="Check its permissions"
    ) from error
