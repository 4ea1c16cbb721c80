"""How large a slide's pixels are: true downsamples of the levels, magnification and mpp, with sources."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

MPP_RANGE = (0.05, 20.0)
"""A level-0 pixel outside these um is a writer's default (1000, 352.8), not a measurement."""

STANDARD_MAGNIFICATIONS = (1.25, 2.5, 5.0, 10.0, 20.0, 40.0, 60.0, 80.0, 100.0)

_AGREE = 1.4
"""Objective power and 10 / mpp may differ by this factor: scanners of one power have pixels of many sizes."""

_SQUARE = 1.1
"""Longer over shorter side of a pixel up to which the mean stands for both."""

_MICROMETRES = dict.fromkeys(("um", "\u00b5m", "\u03bcm", "micron", "microns"), 1.0)
_UNITS = {**_MICROMETRES, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6, "in": 25_400.0}
"""Units of OME-XML -> um."""

_NEAR = 1e-3
_TINY = 32
_MIN_UNIT = 64


@dataclass(frozen=True)
class Level:
    """One level: size of its content in its own pixels, without padding beyond level 0, and how many level-0
    pixels its pixels are wide."""

    index: int
    width: int
    height: int
    downsample: float


@dataclass(frozen=True)
class Scale:
    """The magnification and pixel size of level 0, each with its source.

    ``magnification_source`` is "cohort", "objective", "mpp" or "base_mag". ``mpp`` is um per level-0 pixel;
    ``mpp_source`` is "cohort", "file", None when the file says nothing, or a phrase that begins "refused".
    ``notices``: a line on each thing that was assumed, contradicted or not believed.
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
    """True downsample of each level, from the (width, height) of the levels as stored and OpenSlide's.

    OpenSlide reports the mean of the width's and the height's ratio, which is wrong where a writer pads each
    level up to whole tiles. The rule, in this order:

    1. **Padded file**: powers of two. (3072, 7168), (1536, 3584), (1024, 2048) is 1, 2, 4, not 1, 2, 3.25.
    2. **Near a power of two**: a level within 0.1 % of 2^k, or with a side under 32 px, where rounding makes
       the ratio worthless, has 2^k if its sides are those of level 0 over 2^k to within one pixel.
    3. **Otherwise the exact ratio**: 4.0058 of (368, 172) in (1472, 690) stays. Where the mean of the two
       ratios misses the long side of a narrow level: 2^k if that fits, else the longer side's ratio.

    A format that knows its scale reports ratios that its sizes do not give (Philips, MIRAX); those are kept,
    or rounded to the 2^k they are within 0.1 % of.
    """
    base, *rest = sizes = [(int(width), int(height)) for width, height in level_sizes]
    ratios = [(base[0] / w + base[1] / h) / 2 for w, h in sizes]
    from_sizes = [abs(said / ratio - 1) < _NEAR for said, ratio in zip(reported, ratios, strict=True)]
    if all(from_sizes) and (padded := _padded_run(sizes)):
        return padded
    result = [1.0]
    for size, said, by_size in zip(rest, reported[1:], from_sizes[1:], strict=True):
        power = 2.0 ** max(0, round(math.log2(said)))
        near = abs(said / power - 1) <= _NEAR
        if by_size:
            believed = _is_rounding(base, size, said)
            near = _is_rounding(base, size, power) and (near or not believed or min(size) < _TINY)
            if not believed:
                said = max((side, whole / side) for whole, side in zip(base, size, strict=True))[1]
        result.append(power if near else float(said))
    return result


def content_size(base: tuple[int, int], stored: tuple[int, int], downsample: float) -> tuple[int, int]:
    """(width, height) of a level without padding that reaches beyond level 0, by its true downsample."""
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
    """Scale of a slide from OpenSlide's properties, and from what the cohort's table says, which comes first.

    Magnification: the table's; else the file's objective power, unless its mpp, which is measured, says
    clearly another; else from mpp (:func:`magnification_from_mpp`); else ``base_mag``, with a notice.

    mpp: the table's; else the file's, by OpenSlide, by the OME-XML of an OME-TIFF, or by a TIFF's resolution
    in inches; what is no size of a square pixel on a slide is not believed, and a notice.
    """
    ome = _ome(properties)
    mpp, mpp_source, notices = known_mpp, "cohort", []
    corrected = mpp is not None
    if not corrected:
        mpp, mpp_source, notices = _mpp_of_file(properties, ome)
    if known_mag:
        return Scale(known_mag, "cohort", mpp, mpp_source, tuple(notices))
    objective = _number(properties.get("openslide.objective-power")) or ome.get("objective")
    # A table that corrects mpp says the file is wrong about its scale, the objective included.
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
        f"the file says no magnification: {base_mag:g}x is assumed. Give base_mag or mpp of the slide in "
        "cohort.csv if it is another"
    )
    return Scale(base_mag, "base_mag", None, mpp_source, tuple(notices))


def agree(mpp: float, magnification: float) -> bool:
    """Whether a pixel size and a magnification can be of one slide: scanners differ by up to 1.4."""
    return 1 / _AGREE <= 10 / mpp / magnification <= _AGREE


def magnification_from_mpp(mpp: float) -> float:
    """10 / mpp (0.25 um is 40x), taken to the nearest standard magnification within 15 % (0.226 um too)."""
    exact = 10.0 / mpp
    standard = min(STANDARD_MAGNIFICATIONS, key=lambda value: abs(math.log(value / exact)))
    return standard if abs(standard / exact - 1) <= 0.15 else round(exact, 3)


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
    """The powers of two of a pyramid padded to whole units, or None if padding is not what it shows.

    An ascending run of powers explains every level as "content divided, then padded up to the unit", and
    neither rounding alone nor one constant step (1, 3, 9) does.
    """
    base, *rest = sizes
    unit = math.gcd(*(side for size in rest for side in size)) if rest else 0
    # Two levels say little about the unit; writers use tiles of at most 1024 px.
    while unit > 1024 and unit % 2 == 0:
        unit //= 2
    if unit < _MIN_UNIT:
        return None
    step = base[0] / rest[0][0]
    if all(_is_rounding(base, size, step**k) for k, size in enumerate(sizes)):
        return None
    run = [1.0]
    for size in rest:
        powers = [2.0**k for k in range(1, math.ceil(math.log2(max(base))) + 1)]
        fits = [power for power in powers if power > run[-1] and _is_padding(base, size, power, unit)]
        if not fits:
            return None
        # Several fit a level of one unit: the run's own step is kept, else the smallest.
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
