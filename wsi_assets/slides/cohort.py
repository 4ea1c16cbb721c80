"""``cohort.csv``: facts about single slides that a user states, which override their names and files."""

from __future__ import annotations

import csv
import difflib
import io
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from wsi_assets.errors import ConfigError, one_line
from wsi_assets.files import digest, publish_file
from wsi_assets.slides.naming import DEFAULT_PATIENT_PATTERN, normalize_id, patients_of, slide_id_of
from wsi_assets.slides.scale import MPP_RANGE, agree, magnification_from_mpp

COHORT_FILE = "cohort.csv"
Side = Literal["train", "validation", "test"]

_COLUMNS = {
    "slide_id": "slide slide_name image image_name image_id image_path wsi wsi_path filename file sample_id",
    "patient": "patient_id case case_id submitter_id",
    "split": "side dataset",
    "label": "class slide_label",
    "base_mag": "base_magnification magnification objective objective_power mag",
    "mpp": "mpp_x microns_per_pixel um_per_pixel",
}
"""Field -> other names of its column, as QuPath, CLAM, TRIDENT, STAMP and Slideflow use them."""
_WORDS = {
    "split": {"train": "train training", "validation": "validation valid val", "test": "test testing"},
    "label": {
        "tumor": "tumor tumour tumor_tissue",
        "normal": "normal normal_tissue",
        "unknown": "unknown unlabeled",
    },
}
_BOUNDS = {"base_mag": (1.0, 200.0), "mpp": MPP_RANGE}
_NOTHING = {"", "na", "nan", "none", "null"}
_REMEDY = f"Write a CSV with any of the columns {', '.join(_COLUMNS)}; an empty cell says nothing"


@dataclass(frozen=True)
class SlideRow:
    """A slide's row of the cohort table; None where the table says nothing.

    Attributes:
        patient: the patient; None: by the slide's name.
        split: "train", "validation" or "test".
        label: "normal": a normal slide, even if its annotation is missing or not understood. "tumor": left
            out until its tumor is annotated. "unknown": in no index, but it can be predicted.
        base_mag: magnification of level 0.
        mpp: um per level-0 pixel.
    """

    patient: str | None = None
    split: Side | None = None
    label: Literal["tumor", "normal", "unknown"] | None = None
    base_mag: float | None = None
    mpp: float | None = None

    @property
    def digest(self) -> str:
        """Hex digits that change with the row's content."""
        return digest(asdict(self))


EMPTY_ROW = SlideRow()


@dataclass(frozen=True)
class Cohort:
    """The cohort table; empty where there is none.

    Attributes:
        path: its file.
        rows: normalized slide id -> row.
    """

    path: Path | None = None
    rows: Mapping[str, SlideRow] = field(default_factory=dict)

    def row(self, slide_id: str) -> SlideRow:
        """The row of a slide, an empty one if it is not in the table."""
        return self.rows.get(normalize_id(slide_id), EMPTY_ROW)

    def unknown(self, slide_ids: Iterable[str]) -> list[str]:
        """A line for each row whose slide is not among ``slide_ids``."""
        lost = sorted(self.rows.keys() - set(map(normalize_id, slide_ids)))
        return [f"{self.path} names a slide that is not there: {name}" for name in lost]

    def patients(self, slide_ids: Iterable[str], pattern: str = DEFAULT_PATIENT_PATTERN) -> dict[str, str]:
        """Slide id -> patient, from the table or else :func:`patients_of`; one spelling for each patient."""
        slide_ids = sorted(slide_ids)
        named = {name: self.row(name).patient for name in slide_ids}
        found = patients_of([name for name in slide_ids if named[name] is None], pattern)
        spelled: dict[str, str] = {}
        both = {name: named[name] or found[name] for name in slide_ids}
        return {name: spelled.setdefault(normalize_id(patient), patient) for name, patient in both.items()}

    def sides(self, patients: Mapping[str, str]) -> dict[str, Side]:
        """Slide id -> "train", "validation" or "test", as the table says of the slide or of its patient.

        Slides of patients without an entry are missing.

        Args:
            patients: slide id -> patient.

        Raises:
            ConfigError: a patient is on two sides.
        """
        first: dict[str, tuple[str, Side]] = {}
        for name, patient in sorted(patients.items()):
            if side := self.row(name).split:
                other, theirs = first.setdefault(patient, (name, side))
                if theirs != side:
                    raise ConfigError(
                        f"puts patient {patient} on two sides: {other} on {theirs}, {name} on {side}",
                        path=self.path,
                        remedy="Put all slides of a patient on one side, or name their patients",
                    )
        return {name: first[patient][1] for name, patient in patients.items() if patient in first}


def read_cohort(images_dir: str | Path, path: str | Path | None = None) -> Cohort:
    """Read the table at ``path``, or ``cohort.csv`` in the slide folder if it is there.

    A CSV file (commas, semicolons or tabs) with a header of any of ``slide_id, patient, split, label,
    base_mag, mpp``, or of the names that other tools give these columns. A slide may be given by its id or
    its file. Empty cells say nothing.

    Raises:
        ConfigError: the file cannot be read, has a column whose name is probably mistyped, a slide twice, an
            unknown word or an impossible number, or contradicts itself.
    """
    where = Path(images_dir, COHORT_FILE) if path is None else Path(path)
    if path is None and not where.exists():
        return Cohort()

    try:
        text = where.read_text(encoding="utf-8-sig")
        separator = max(",;\t", key=text.partition("\n")[0].count)
        lines = list(csv.reader(io.StringIO(text), delimiter=separator, skipinitialspace=True, strict=True))
        rows = _rows(lines or [[]])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"cannot be read ({one_line(error)})", path=where, remedy=_REMEDY) from error
    except ValueError as error:
        raise ConfigError(f"has {error}", path=where, remedy=_REMEDY) from None
    cohort = Cohort(where, rows)
    cohort.sides({name: normalize_id(row.patient) for name, row in rows.items() if row.patient})
    return cohort


def write_cohort(path: str | Path, slides: Mapping[str, tuple[str, str]]) -> None:
    """Write a table of slide id -> (patient, split) for the user to correct and complete.

    Raises:
        ConfigError: the file exists already.
    """
    if Path(path).exists():
        raise ConfigError("exists already", path=path, remedy="Edit it, or move it")
    with publish_file(path) as unfinished, unfinished.open("w", encoding="utf-8", newline="") as stream:
        lines = [(name, *placed, "", "", "") for name, placed in sorted(slides.items())]
        csv.writer(stream).writerows([tuple(_COLUMNS), *lines])


def _rows(lines: list[list[str]]) -> dict[str, SlideRow]:
    """Normalized slide id -> row, from the cells of the header and the lines; ValueError if one is wrong."""
    fields = [_field_of(name) for name in lines[0]]
    known = [name for name in fields if name]
    if "slide_id" not in known or not 1 < len(known) == len(set(known)):
        raise ValueError(f"the columns {', '.join(lines[0])!r:.200}, not slide_id and another, each once")
    rows: dict[str, SlideRow] = {}
    for number, cells in enumerate(lines[1:], start=2):
        if not any(cell.strip() for cell in cells):
            continue
        try:
            if any(cell.strip() for cell in cells[len(fields) :]):
                raise ValueError("more cells than columns")
            values = {name: _value(name, cell) for name, cell in zip(fields, cells, strict=False) if name}
            slide_id = values.pop("slide_id", None)
            if not slide_id or slide_id in rows:
                raise ValueError("a slide of a line above" if slide_id else "no slide_id")
            row = rows[slide_id] = SlideRow(**values)
            if row.mpp and row.base_mag and not agree(row.mpp, row.base_mag):
                meant = magnification_from_mpp(row.mpp)
                raise ValueError(f"{row.base_mag:g}x and {row.mpp:g} um, which is {meant:g}x,")
        except ValueError as error:
            raise ValueError(f"{error} in line {number}") from None
    return rows


def _field_of(column: str) -> str | None:
    """The field that a column holds, None for a column of something else."""
    known = {name: field for field, names in _COLUMNS.items() for name in (field, *names.split())}
    name = re.sub(r"\W+", "_", column.strip().lower()).strip("_")
    close = [] if name in known else difflib.get_close_matches(name, known, 1, 0.8)
    if close:
        raise ValueError(f"a column {column.strip()!r:.60} (did you mean {close[0]}?)")
    return known.get(name)


def _value(name: str, cell: str) -> Any:
    """The value of a cell, None if it is empty; ValueError if it is impossible."""
    text = cell.strip()
    if text.lower() in _NOTHING:
        return None
    if name == "slide_id":
        return normalize_id(slide_id_of(text.replace("\\", "/")))
    if name in _WORDS:
        meant = [word for word, names in _WORDS[name].items() if text.lower() in names.split()]
        if not meant:
            raise ValueError(f"{name} {text!r:.60}, which is not {' or '.join(_WORDS[name])},")
        return meant[0]
    if name in _BOUNDS:
        low, high = _BOUNDS[name]
        number = re.fullmatch(r"\d+([.,]\d+)?|[.,]\d+", text)
        value = float(text.replace(",", ".")) if number else 0.0
        if not low <= value <= high:
            raise ValueError(f"{name} {text!r:.60}, not a number from {low:g} to {high:g},")
        return value
    return text
