"""What the name of a slide says: its id, its patient, and whether it is a test slide."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from wsi_assets.errors import ConfigError


def endings(names: str) -> frozenset[str]:
    """File endings from their names: "svs tif" are ``.svs`` and ``.tif``."""
    return frozenset(f".{name}" for name in names.split())


SLIDE_SUFFIXES = endings(
    "svs tif tiff btf tf2 tf8 ptif ptiff qptiff ndpi vms vmu mrxs scn svslide bif dcm czi"
)
"""Endings of the files OpenSlide opens, in lower case."""

UNREAD_SLIDE_SUFFIXES = endings(
    "isyntax i2syntax vsi ets kfb kfbf tmap sdpc dyqx mdsx mds zvi lif lsm oir afi svsx tron ims nd2 "
    "zarr jp2 jpx j2k"
)
"""Endings of slides in formats that OpenSlide does not open."""

ANNOTATION_SUFFIXES = frozenset({".xml", ".geojson", ".json"})
"""Endings of annotation files, in lower case."""

UNREAD_ANNOTATION_SUFFIXES = frozenset(
    {".ndpa", ".qpdata", ".sqlite", ".db", ".annotations", ".afxml", ".roi", ".imzann"}
)
"""Endings of annotations in formats that are not read."""

PACKED_SUFFIXES = frozenset({".gz", ".zip"})
"""Endings of compressed annotation files, which are read too."""

DEFAULT_PATIENT_PATTERN = (
    r"^((?:TCGA-[A-Z0-9]{2}-[A-Z0-9]{4}|TARGET-[0-9]{2}-[A-Z0-9]{6}|C3[LN]-[0-9]{5}|GTEX-[A-Z0-9]{4,5})"
    r"(?![A-Z0-9])|.*?(?=(?:_node_\d+)?$))"
)
"""Group 1 is the patient: ``patient_004`` of ``patient_004_node_4`` and ``patient_004_node_2``;
``TCGA-A1-A0SB`` of ``TCGA-A1-A0SB-01Z-00-DX1``, and similarly for TARGET, CPTAC and GTEx; of other names, the
whole id."""

DEFAULT_TEST_PATTERN = "test"
"""``test_001`` and ``Test_001`` are test slides."""


def slide_id_of(path: str | Path) -> str:
    """The id of a slide: its file name without the ending; of a DICOM folder, whose name may be a UID with
    full stops, the whole name."""
    path = Path(path)
    return path.stem if path.suffix.lower() in SLIDE_SUFFIXES | ANNOTATION_SUFFIXES else path.name


def annotation_ending(name: str) -> str:
    """The ending of an annotation file in lower case (``.xml``, ``.geojson.gz``); "" if it is not read."""
    path = Path(name)
    last, inner = path.suffix.lower(), Path(path.stem).suffix.lower()
    if last in ANNOTATION_SUFFIXES:
        return last
    if last in PACKED_SUFFIXES and inner in ANNOTATION_SUFFIXES:
        return inner + last
    return ".zip" if last == ".zip" else ""


def patient_of(slide_id: str, pattern: str = DEFAULT_PATIENT_PATTERN) -> str:
    """The patient of a slide: group 1 of ``pattern`` in the id, without regard to case, else the whole id.

    Raises:
        ConfigError: the pattern is not a regular expression, or has no group.
    """
    return _patient(slide_id, pattern) or slide_id


def patients_of(slide_ids: Iterable[str], pattern: str = DEFAULT_PATIENT_PATTERN) -> dict[str, str]:
    """Slide id -> its patient (:func:`patient_of`), in one spelling for each patient.

    ``Patient_004_node_4`` and ``patient_004_node_2`` are of one patient, spelled as in the first of the ids.

    Raises:
        ConfigError: as for :func:`patient_of`, or the pattern finds a patient in none of the ids.
    """
    found = {slide_id: _patient(slide_id, pattern) for slide_id in sorted(set(slide_ids))}
    if found and not any(found.values()) and pattern != DEFAULT_PATIENT_PATTERN:
        raise ConfigError(
            f"patient_pattern {pattern!r} finds a patient in none of the {len(found)} slide ids, "
            f"e.g. {next(iter(found))!r:.60}",
            remedy="Correct the pattern: its first group must match the patient in a slide id",
        )
    spelled: dict[str, str] = {}
    named = ((slide_id, patient or slide_id) for slide_id, patient in found.items())
    return {slide_id: spelled.setdefault(normalize_id(patient), patient) for slide_id, patient in named}


def is_test_slide(slide_id: str, pattern: str = DEFAULT_TEST_PATTERN) -> bool:
    """Whether a slide is kept for testing: ``pattern`` occurs in its id, without regard to case.

    Raises:
        ConfigError: the pattern is not a regular expression.
    """
    return _compiled("test_pattern", pattern, DEFAULT_TEST_PATTERN).search(slide_id) is not None


def normalize_id(name: str) -> str:
    """The form in which ids and patients are compared: lower case, Unicode form NFC (macOS uses NFD)."""
    return unicodedata.normalize("NFC", name).lower()


def _patient(slide_id: str, pattern: str) -> str | None:
    compiled = _compiled("patient_pattern", pattern, DEFAULT_PATIENT_PATTERN)
    if not compiled.groups:
        raise ConfigError(
            f"patient_pattern {pattern!r} has no group",
            remedy=f"Put parentheses around the patient, as in {DEFAULT_PATIENT_PATTERN}",
        )
    match = compiled.search(slide_id)
    return (match.group(1) or None) if match else None


@lru_cache(maxsize=64)
def _compiled(setting: str, pattern: str, example: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern, re.IGNORECASE)
    except re.error as error:
        raise ConfigError(
            f"{setting} {pattern!r} is not a regular expression ({error})",
            remedy=f"Use one such as {example}",
        ) from error
