"""How large a slide's pixels are: true downsamples of the levels, magnification, mpp, and where each is from.

Pure functions of what a file says, and the table that overrides it.
"""

from __future__ import annotations

import csv
import html
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from wsi_assets.errors import ConfigError, one_line
from wsi_assets.slides.naming import normalize_id, slide_id_of
from wsi_assets.slides.options import ScaleOptions

MPP_RANGE = (0.05, 20.0)
"""A level-0 pixel outside these um is a writer's default (1000, 352.8), not a measurement."""

STANDARD_MAGNIFICATIONS = (1.25, 2.5, 5.0, 10.0, 20.0, 40.0, 60.0, 80.0, 100.0)

_AGREE = 1.4
"""Objective power and 10 / mpp may differ by this factor: scanners of one power have pixels of many sizes."""

_SQUARE = 1.1
"""Longer over shorter side of a pixel up to which the mean stands for both."""

_UNITS = {
    **dict.fromkeys(("um", "\u00b5m", "\u03bcm", "micron", "microns"), 1.0),
    "nm": 1e-3,
    "mm": 1e3,
    "cm": 1e4,
    "m": 1e6,
    "in": 25_400.0,
}
"""Units of OME-XML -> um."""

_NEAR = 1e-3
_TINY = 32
_MIN_UNIT = 64


@dataclass(frozen=True)
class Level:
    """One level: ``width`` and ``height`` of its content in its own pixels (padding beyond level 0 is not
    counted), and its true ``downsample``: level-0 pixels a pixel."""

    index: int
    width: int
    height: int
    downsample: float


@dataclass(frozen=True)
class Scale:
    """The magnification and pixel size of level 0, each with its source.

    ``magnification_source`` is "table", "objective", "mpp" or "base_mag". ``mpp`` is um per level-0 pixel;
    ``mpp_source`` is "table", "file", None when the file says nothing, or a phrase that begins "refused".
    ``notices``: a line on each thing that was assumed, in which the file contradicts itself, or that it says
    and is not believed.
    """

    base_magnification: float
    magnification_source: str
    mpp: float | None
    mpp_source: str | None
    notices: tuple[str, ...] = ()

    def magnification(self, downsample: float) -> float:
        """The effective magnification of a level of this true downsample."""
        return self.base_magnification / downsample


def true_downsamples(
    level_sizes: Sequence[tuple[int, int]], reported: Sequence[float] | None = None
) -> list[float]:
    """True downsample of each level, from the (width, height) of the levels as stored and what the file says.

    OpenSlide reports the mean of the width's and the height's ratio, which is wrong where a writer pads each
    level up to whole tiles. The rule, in this order:

    1. **Padded file**: every level's sides are multiples of one unit (at least 64 px), an ascending run of
       powers of two explains every level as "content divided, then padded up to the unit", and rounding
       alone does not explain them. Then those powers: (3072, 7168), (1536, 3584), (1024, 2048) is 1, 2, 4,
       not 1, 2, 3.25. If several powers fit a level (it is one unit wide), the run's own step is kept, else
       the smallest. A pyramid whose sides shrink alike by one constant step (1, 3, 9) is believed, not
       taken for padded.
    2. **Near a power of two**: a level within 0.1 % of 2^k whose sides are those of level 0 over 2^k to
       within one pixel has 2^k. So has a level with a side under 32 px, however far off: there the rounding
       of that side makes the ratio worthless ((4, 3) of 2048 x 1792 says 554.67; it is 512).
    3. **Otherwise the exact ratio**, as a float: 4.0058 of (368, 172) in (1472, 690) stays. The writer may
       have dropped the odd row (4) or squeezed it in (4.0116); between them the ratio is at most half a
       pixel of that level off at its far edge. In a long narrow level the mean of the two ratios can miss
       the long side by many pixels; then 2^k if that fits both sides to within a pixel, else the longer
       side's ratio.

    A format that knows its scale reports ratios that its sizes do not give (Philips, MIRAX); those are kept,
    or rounded to the 2^k they are within 0.1 % of.
    """
    sizes = [(int(width), int(height)) for width, height in level_sizes]
    (width, height), *rest = sizes
    ratios = [(width / w + height / h) / 2 for w, h in sizes]
    said = [float(value) for value in reported] if reported is not None else ratios
    if all(abs(s / r - 1) < _NEAR for s, r in zip(said, ratios, strict=True)):
        padded = _padded_run(sizes)
        if padded:
            return padded
    result = [1.0]
    for (w, h), ratio, own in zip(rest, ratios[1:], said[1:], strict=True):
        power = _nearest_power(own)
        near = abs(own / power - 1) <= _NEAR
        from_sizes = abs(own / ratio - 1) < _NEAR
        rounded = _is_rounding(width, w, power) and _is_rounding(height, h, power)
        if not from_sizes:
            result.append(power if near else own)
            continue
        believed = _is_rounding(width, w, own) and _is_rounding(height, h, own)
        if rounded and (near or not believed or min(w, h) < _TINY):
            result.append(power)
        else:
            result.append(own if believed else max((w, width / w), (h, height / h))[1])
    return result


def content_size(base: tuple[int, int], stored: tuple[int, int], downsample: float) -> tuple[int, int]:
    """(width, height) of a level without padding that reaches beyond level 0, by its true downsample."""
    width, height = (
        side if _is_rounding(whole, side, downsample) else min(side, math.ceil(whole / downsample))
        for whole, side in zip(base, stored, strict=True)
    )
    return width, height


def scale_of(slide_id: str, properties: Mapping[str, str], options: ScaleOptions) -> Scale:
    """Scale of a slide from OpenSlide's properties, the options and their table.

    Magnification: the table's; else the file's objective power, unless the file's mpp says clearly another
    (an optical adapter, or a wrong entry: mpp is what was measured); else 10 / mpp (the field's convention:
    0.25 um is 40x), taken to the nearest standard magnification within 15 % (0.226 and 0.243 um are 40x);
    else ``base_mag``, which is assumed and a notice.

    mpp: the table's; else the file's, by OpenSlide, by the OME-XML of an OME-TIFF, or by a TIFF's resolution
    in inches; what is no size of a square pixel on a slide is not believed, and a notice.

    Raises:
        ConfigError: the table is missing or damaged.
    """
    row = _table_of(options.scale_table).get(normalize_id(slide_id), {}) if options.scale_table else {}
    ome = _ome(properties)
    mpp, mpp_source, notices = row.get("mpp"), "table", []
    if mpp is None:
        mpp, mpp_source, notices = _mpp_of_file(properties, ome)
    objective = _number(properties.get("openslide.objective-power")) or ome.get("objective")
    if "base_mag" in row:
        return Scale(row["base_mag"], "table", mpp, mpp_source, tuple(notices))
    # A table that corrects mpp says the file is wrong about its scale, the objective included.
    if objective is not None and 1 <= objective <= 200 and "mpp" not in row:
        if mpp is None or 1 / _AGREE <= 10 / mpp / objective <= _AGREE:
            return Scale(objective, "objective", mpp, mpp_source, tuple(notices))
        notices.append(
            f"the file says {objective:g}x and {mpp:.6g} um a pixel, which is "
            f"{magnification_from_mpp(mpp):g}x: the pixel size is believed"
        )
    if mpp is not None:
        return Scale(magnification_from_mpp(mpp), "mpp", mpp, mpp_source, tuple(notices))
    notices.append(
        f"the file says no magnification: {options.base_mag:g}x is assumed. Give base_mag or mpp of the "
        "slide in a table if it is another"
    )
    return Scale(options.base_mag, "base_mag", None, mpp_source, tuple(notices))


def magnification_from_mpp(mpp: float) -> float:
    """10 / mpp, taken to the nearest standard magnification if that is within 15 %."""
    exact = 10.0 / mpp
    standard = min(STANDARD_MAGNIFICATIONS, key=lambda value: abs(math.log(value / exact)))
    return standard if abs(standard / exact - 1) <= 0.15 else round(exact, 3)


def read_scale_table(path: str | Path) -> dict[str, dict[str, float]]:
    """Normalized slide id -> {"base_mag", "mpp"}, only what a row fills in.

    The header is read without regard to case; a slide may be named by its file.

    Raises:
        ConfigError: the file is missing, has not the columns it should, repeats a slide or holds an odd
            number.
    """

    def refused(fault: str) -> ConfigError:
        remedy = (
            "Write a CSV with the columns slide_id, base_mag, mpp; leave a cell empty to override nothing"
        )
        return ConfigError(f"scale_table {fault}", path=path, remedy=remedy)

    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, skipinitialspace=True)
            reader.fieldnames = names = [name.strip().lower() for name in reader.fieldnames or ()]
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise refused(f"cannot be read ({one_line(error)})") from error
    bounds = {"base_mag": (1.0, 200.0), "mpp": MPP_RANGE}
    if fault := _header_fault(names, bounds):
        raise refused(fault)
    table: dict[str, dict[str, float]] = {}
    for line, row in enumerate(rows, start=2):
        slide_id = normalize_id(slide_id_of((row.get("slide_id") or "").strip()))
        if not slide_id or slide_id in table:
            raise refused(f"has {f'{slide_id:.60} twice' if slide_id else 'no slide_id'} in line {line}")
        if None in row:
            raise refused(f"has extra cells in line {line}")
        filled = {name: text.strip() for name in bounds if (text := row.get(name) or "").strip()}
        table[slide_id] = {name: _number(text) for name, text in filled.items()}
        for name, value in table[slide_id].items():
            low, high = bounds[name]
            if value is None or not low <= value <= high:
                raise refused(
                    f"has {name} {filled[name]!r:.60} in line {line}, not a number from {low:g} to {high:g}"
                )
    return table


def _header_fault(names: list[str], values: Collection[str]) -> str | None:
    """What is wrong with the columns, if anything: a scale under a name of its own would not be seen.

    Columns of other things are nobody's concern.
    """
    for name in names:
        if name not in ("slide_id", *values) and any(word in name for word in ("slide_id", "mag", "mpp")):
            return f"has an unknown column {name!r:.60}"
        if name in ("slide_id", *values) and names.count(name) > 1:
            return f"has the column {name} twice"
    if "slide_id" not in names:
        return "has no column slide_id"
    return None if set(names) & set(values) else f"has no column {' or '.join(values)}"


def _table_of(path: str) -> dict[str, dict[str, float]]:
    """The scale table, read again only when the file has changed: every slide of a cohort asks for it."""
    try:
        stat = Path(path).stat()
    except OSError:
        return read_scale_table(path)  # which says what is wrong
    return _read_once(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=4)
def _read_once(path: str, changed_ns: int, size: int) -> dict[str, dict[str, float]]:
    return read_scale_table(path)


def _mpp_of_file(
    properties: Mapping[str, str], ome: Mapping[str, float]
) -> tuple[float | None, str | None, list[str]]:
    """mpp, its source and what is to be said of it."""
    axes = [_number(properties.get(f"openslide.mpp-{axis}")) for axis in "xy"]
    if axes == [None, None]:
        axes = [ome.get(axis) for axis in "xy"]
    if axes == [None, None] and properties.get("tiff.ResolutionUnit") == "inch":
        dots = [_number(properties.get(f"tiff.{axis}Resolution")) for axis in "XY"]
        axes = [25_400 / value if value and value > 0 else None for value in dots]
    known = [value for value in axes if value is not None]
    if not known:
        return None, None, []
    said = " x ".join(f"{value:.6g}" for value in dict.fromkeys(known))
    low, high = MPP_RANGE
    if not all(low <= value <= high for value in known):
        why = f"{said} um is outside {low:g} to {high:g}"
    elif max(known) / min(known) > _SQUARE:
        why = f"pixels of {said} um are not square"
    else:
        notices = [f"pixels of {said} um are taken for square"] if max(known) / min(known) > 1.01 else []
        return sum(known) / len(known), "file", notices
    return None, f"refused: {why}", [f"the pixel size in the file is not believed: {why}"]


def _ome(properties: Mapping[str, str]) -> dict[str, float]:
    """What the OME-XML of an OME-TIFF says of its first image: um a pixel as "x" and "y", "objective"."""
    text = properties.get("tiff.ImageDescription", "")
    if "<OME" not in text[:4096]:
        return {}
    found: dict[str, float] = {}
    pixels = re.search(r"<(?:\w+:)?Pixels\b[^>]*>", text)
    for axis in "xy" if pixels else "":
        size = _number(_attribute(pixels[0], f"PhysicalSize{axis.upper()}"))
        unit = _attribute(pixels[0], f"PhysicalSize{axis.upper()}Unit") or "um"
        if size is not None and unit in _UNITS:
            found[axis] = size * _UNITS[unit]
    lens = re.search(r"<(?:\w+:)?Objective\b[^>]*>", text)
    power = _number(_attribute(lens[0], "NominalMagnification")) if lens else None
    return found if power is None else {**found, "objective": power}


def _attribute(element: str, name: str) -> str | None:
    match = re.search(rf"\b{name}\s*=\s*[\"']([^\"']*)[\"']", element)
    return html.unescape(match[1]).strip() if match else None


def _number(text: str | None) -> float | None:
    try:
        value = float((text or "").strip())
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _padded_run(sizes: list[tuple[int, int]]) -> list[float] | None:
    """The powers of two of a pyramid padded to whole units, or None if padding is not what it shows."""
    (width, height), *rest = sizes
    unit = math.gcd(*(side for size in rest for side in size)) if rest else 0
    # Two levels say little about the unit; writers use tiles of at most 1024 px.
    while unit > 1024 and unit % 2 == 0:
        unit //= 2
    if unit < _MIN_UNIT or _shrinks_evenly(sizes):
        return None
    run, rounding = [1.0], True
    for w, h in rest:
        highest = math.ceil(math.log2(max(width, height))) + 1
        fits = [
            power
            for power in (2.0**k for k in range(1, highest))
            if power > run[-1] and _is_padding(width, w, power, unit) and _is_padding(height, h, power, unit)
        ]
        if not fits:
            return None
        step = run[-1] / run[-2] if len(run) > 1 else 2.0
        run.append(run[-1] * step if run[-1] * step in fits else fits[0])
        rounding &= _is_rounding(width, w, run[-1]) and _is_rounding(height, h, run[-1])
    return None if rounding else run


def _shrinks_evenly(sizes: list[tuple[int, int]]) -> bool:
    """Whether both sides shrink alike and each level by the same step, to within a pixel."""
    width, height = sizes[0]
    step = width / sizes[1][0]
    return all(
        _is_rounding(width, w, step**k) and _is_rounding(height, h, step**k) for k, (w, h) in enumerate(sizes)
    )


def _is_padding(base: int, side: int, power: float, unit: int) -> bool:
    # Level 0 may be padded too, so its content ends anywhere within its last unit.
    least = base - unit if base % unit == 0 else base - 1
    return side - unit < base / power and least / power < side


def _is_rounding(base: int, side: int, power: float) -> bool:
    return abs(base / power - side) < 1


def _nearest_power(value: float) -> float:
    return 2.0 ** max(0, round(math.log2(value)))
