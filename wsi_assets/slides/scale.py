"""The scale of a slide: true downsample of each level, magnification and pixel size of level 0."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

MPP_RANGE = (0.05, 20.0)
"""Plausible size of a level-0 pixel in um. Values outside are defaults of programs, such as 1000 or 352.8."""

STANDARD_MAGNIFICATIONS = (1.25, 2.5, 5.0, 10.0, 20.0, 40.0, 60.0, 80.0, 100.0)

_AGREE = 1.4
"""Factor by which objective power and 10 / mpp may differ: scanners of one power differ in pixel size."""

_SQUARE = 1.1
"""Largest ratio of a pixel's sides at which their mean is used as mpp."""

_MICROMETRES = dict.fromkeys(("um", "\u00b5m", "\u03bcm", "micron", "microns"), 1.0)
_UNITS = {**_MICROMETRES, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6, "in": 25_400.0}
"""Units of OME-XML -> um."""

_NEAR = 1e-3
_TINY = 32
_MIN_UNIT = 64


@dataclass(frozen=True)
class Level:
    """One level of a slide.

    Attributes:
        index: its number; 0 is the full resolution.
        width, height: size in its own pixels, without padding that reaches beyond level 0.
        downsample: level-0 pixels per pixel.
    """

    index: int
    width: int
    height: int
    downsample: float


@dataclass(frozen=True)
class Scale:
    """Magnification and pixel size of level 0, each with its source.

    Attributes:
        base_magnification: magnification of level 0.
        magnification_source: "cohort", "objective", "mpp" or "base_mag".
        mpp: um per level-0 pixel, None if unknown.
        mpp_source: "cohort"; "file"; None if the file says nothing; or a text that begins with "refused".
        notices: lines on what was assumed, contradicted or not believed.
    """

    base_magnification: float
    magnification_source: str
    mpp: float | None
    mpp_source: str | None
    notices: tuple[str, ...] = ()

    def magnification(self, downsample: float) -> float:
        """The effective magnification of a level of this true downsample."""
        return self.base_magnification / downsample


def true_downsamples(level_sizes: Sequence[tuple[int, int]], reported: Sequence[float]) -> list[float]:
    """True downsample of each level.

    OpenSlide reports the mean of the ratios of widths and of heights, which is wrong if a program padded each
    level to whole tiles. The rules, in this order:

    1. **Padded file**: powers of two. (3072, 7168), (1536, 3584), (1024, 2048) is 1, 2, 4, not 1, 2, 3.25.
    2. **Near a power of two**: 2^k, if the sides of the level are those of level 0 divided by 2^k to within
       one pixel, and the ratio is within 0.1 % of 2^k or a side is under 32 px, where rounding dominates.
    3. **Otherwise the exact ratio**: 4.0058 for (368, 172) in (1472, 690). Where the mean of both ratios does
       not explain the longer side of a narrow level: 2^k if that fits, else the ratio of the longer sides.

    Formats that store their scale (Philips, MIRAX) report ratios other than those of their sizes; these are
    kept, or rounded to 2^k if within 0.1 % of it.

    Args:
        level_sizes: (width, height) of each level as stored.
        reported: downsample of each level that OpenSlide reports.
    """
    base, *rest = sizes = [(int(width), int(height)) for width, height in level_sizes]
    ratios = [(base[0] / w + base[1] / h) / 2 for w, h in sizes]
    from_sizes = [abs(found / ratio - 1) < _NEAR for found, ratio in zip(reported, ratios, strict=True)]
    if all(from_sizes) and (padded := _padded_run(sizes)):
        return padded
    result = [1.0]
    for size, found, by_size in zip(rest, reported[1:], from_sizes[1:], strict=True):
        power = 2.0 ** max(0, round(math.log2(found)))
        near = abs(found / power - 1) <= _NEAR
        if by_size:
            believed = _is_rounding(base, size, found)
            near = _is_rounding(base, size, power) and (near or not believed or min(size) < _TINY)
            if not believed:
                found = max((side, whole / side) for whole, side in zip(base, size, strict=True))[1]
        result.append(power if near else float(found))
    return result


def content_size(base: tuple[int, int], stored: tuple[int, int], downsample: float) -> tuple[int, int]:
    """(width, height) of a level without padding that reaches beyond level 0.

    Args:
        base: (width, height) of level 0.
        stored: (width, height) of the level in the file.
        downsample: true downsample of the level.
    """
    width, height = (
        side if _is_rounding((whole,), (side,), downsample) else min(side, math.ceil(whole / downsample))
        for whole, side in zip(base, stored, strict=True)
    )
    return width, height


def scale_of(
    properties: Mapping[str, str],
    base_mag: float,
    *,
    known_mag: float | None = None,
    known_mpp: float | None = None,
) -> Scale:
    """Scale of a slide from OpenSlide's properties and what the cohort table says of it.

    **mpp** is that of the table; else that of the file: OpenSlide's, the OME-XML's of an OME-TIFF, or from a
    TIFF resolution in inches. An implausible size, or one of pixels that are not square, is not believed,
    with a notice.

    **Magnification** is that of the table; else the file's objective power, unless it contradicts mpp, which
    is measured; else from mpp (:func:`magnification_from_mpp`); else ``base_mag``, with a notice.

    Args:
        properties: OpenSlide's properties.
        base_mag: magnification of a slide whose file states none.
        known_mag, known_mpp: magnification and mpp in the cohort table, None if it states none.
    """
    ome = _ome(properties)
    mpp, mpp_source, notices = known_mpp, "cohort", []
    corrected = mpp is not None
    if not corrected:
        mpp, mpp_source, notices = _mpp_of_file(properties, ome)
    if known_mag:
        return Scale(known_mag, "cohort", mpp, mpp_source, tuple(notices))
    objective = _number(properties.get("openslide.objective-power")) or ome.get("objective")
    # If the table corrects mpp, the objective power in the file is probably wrong too.
    if objective is not None and 1 <= objective <= 200 and not corrected:
        if mpp is None or agree(mpp, objective):
            return Scale(objective, "objective", mpp, mpp_source, tuple(notices))
        notices.append(
            f"the file says {objective:g}x and {mpp:.6g} um a pixel, which is "
            f"{magnification_from_mpp(mpp):g}x: the pixel size is believed"
        )
    if mpp is not None:
        return Scale(magnification_from_mpp(mpp), "mpp", mpp, mpp_source, tuple(notices))
    notices.append(
        f"the file states no magnification: {base_mag:g}x is assumed. If that is wrong, give base_mag or mpp "
        "of the slide in cohort.csv"
    )
    return Scale(base_mag, "base_mag", None, mpp_source, tuple(notices))


def agree(mpp: float, magnification: float) -> bool:
    """Whether a pixel size and a magnification can be of one slide: 10 / mpp is within a factor of 1.4."""
    return 1 / _AGREE <= 10 / mpp / magnification <= _AGREE


def magnification_from_mpp(mpp: float) -> float:
    """10 / mpp, rounded to a standard magnification within 15 %: 0.25 um is 40x, and so is 0.226 um."""
    exact = 10.0 / mpp
    standard = min(STANDARD_MAGNIFICATIONS, key=lambda value: abs(math.log(value / exact)))
    return standard if abs(standard / exact - 1) <= 0.15 else round(exact, 3)


def _mpp_of_file(
    properties: Mapping[str, str], ome: Mapping[str, float]
) -> tuple[float | None, str | None, list[str]]:
    """mpp, its source, and notices on it."""
    axes = [_number(properties.get(f"openslide.mpp-{axis}")) for axis in "xy"]
    if axes == [None, None]:
        axes = [ome.get(axis) for axis in "xy"]
    if axes == [None, None] and properties.get("tiff.ResolutionUnit") == "inch":
        dots = [_number(properties.get(f"tiff.{axis}Resolution")) for axis in "XY"]
        axes = [25_400 / value if value and value > 0 else None for value in dots]
    known = [value for value in axes if value is not None]
    if not known:
        return None, None, []
    size = " x ".join(f"{value:.6g}" for value in dict.fromkeys(known))
    low, high = MPP_RANGE
    if not all(low <= value <= high for value in known):
        why = f"{size} um is outside {low:g} to {high:g}"
    elif max(known) / min(known) > _SQUARE:
        why = f"pixels of {size} um are not square"
    else:
        notices = [f"pixels of {size} um are taken for square"] if max(known) / min(known) > 1.01 else []
        return sum(known) / len(known), "file", notices
    return None, f"refused: {why}", [f"the pixel size in the file is not believed: {why}"]


def _ome(properties: Mapping[str, str]) -> dict[str, float]:
    """Scale in the OME-XML of an OME-TIFF's first image: um per pixel as "x" and "y"; "objective"."""
    text = properties.get("tiff.ImageDescription", "")
    if "<OME" not in text[:4096]:
        return {}
    from defusedxml import ElementTree

    try:
        root = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError):
        return {}
    found: dict[str, float | None] = {}
    if (pixels := root.find(".//{*}Pixels")) is not None:
        for axis in "xy":
            size = _number(pixels.get(f"PhysicalSize{axis.upper()}"))
            unit = _UNITS.get(pixels.get(f"PhysicalSize{axis.upper()}Unit", "um"))
            found[axis] = size and unit and size * unit
    if (lens := root.find(".//{*}Objective")) is not None:
        found["objective"] = _number(lens.get("NominalMagnification"))
    return {name: value for name, value in found.items() if value is not None}


def _number(text: str | None) -> float | None:
    try:
        value = float((text or "").strip())
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _padded_run(sizes: list[tuple[int, int]]) -> list[float] | None:
    """The downsamples of a pyramid whose levels are padded to whole units (tiles), None if it is not padded.

    It is padded if ascending powers of two explain every level as level 0 divided and then padded up to the
    unit, while neither rounding alone nor one constant step (1, 3, 9) explains them.
    """
    base, *rest = sizes
    unit = math.gcd(*(side for size in rest for side in size)) if rest else 0
    # Two levels say little about the unit; writers use tiles of at most 1024 px.
    while unit > 1024 and unit % 2 == 0:
        unit //= 2
    if unit < _MIN_UNIT:
        return None
    step = base[0] / rest[0][0]
    # A step of exactly 2, too: of 147 x 297 and 74 x 148 pixels the quotient of the widths is 1.99.
    for constant in (step, 2.0 ** round(math.log2(step))):
        if all(_is_rounding(base, size, constant**k) for k, size in enumerate(sizes)):
            return None
    run = [1.0]
    for size in rest:
        powers = [2.0**k for k in range(1, math.ceil(math.log2(max(base))) + 1)]
        fits = [power for power in powers if power > run[-1] and _is_padding(base, size, power, unit)]
        if not fits:
            return None
        # Several powers fit a level of a single unit: the step so far is preferred, else the smallest.
        expected = run[-1] * (run[-1] / run[-2] if len(run) > 1 else 2.0)
        run.append(expected if expected in fits else fits[0])
    return None if all(map(_is_rounding, [base] * len(run), sizes, run)) else run


def _is_padding(base: tuple[int, int], size: tuple[int, int], power: float, unit: int) -> bool:
    return all(
        # Level 0 may be padded too, so its content ends anywhere within its last unit.
        side - unit < whole / power and (whole - (unit if whole % unit == 0 else 1)) / power < side
        for whole, side in zip(base, size, strict=True)
    )


def _is_rounding(base: tuple[int, ...], size: tuple[int, ...], power: float) -> bool:
    """Whether rounding alone explains the sides of a level."""
    return all(abs(whole / power - side) < 1 for whole, side in zip(base, size, strict=True))
