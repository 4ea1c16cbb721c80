"""The resolution of patches (a pyramid level, a magnification or a pixel size), and which level gives it.

The pixel size is 10 um divided by the magnification: 10x is 1.0 um a pixel on every scanner, 20x is 0.5 um.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wsi_assets.errors import ConfigError, SlideIndexError

if TYPE_CHECKING:
    from wsi_assets.slides.scale import Level, Scale

MAX_LEVEL = 19
"""2^19 level-0 pixels are wider than any slide."""
PIXEL_SIZES = (0.05, 1000.0)
"""Smallest and largest pixel size that may be asked for, in um."""
MAX_STEP = 64.0
"""Most pixels of a level, each way, that are averaged to one; beyond it a patch would read too many."""

_KEY = re.compile(r"([0-9]+(?:\.[0-9]+)?)(x|um)")


@dataclass(frozen=True)
class Resolution:
    """A pyramid level (``level``) or a pixel size in um (``mpp``), and the partition key: 4, 10x, 0.5um."""

    key: str
    level: int | None = None
    mpp: float | None = None

    @classmethod
    def parse(cls, key: str | int) -> Resolution:
        """The resolution of a partition key.

        Raises:
            ConfigError: it is not a resolution, or not in the standard spelling ("10.0x").
        """
        key = str(key)
        if key.isascii() and key.isdigit() and str(int(key)) == key and int(key) <= MAX_LEVEL:
            return cls(key, level=int(key))
        if found := _KEY.fullmatch(key):
            number, unit = float(found[1]), found[2]
            mpp = number if unit == "um" else 10 / number if number else math.inf
            if PIXEL_SIZES[0] <= mpp <= PIXEL_SIZES[1] and f"{number:g}{unit}" == key:
                return cls(key, mpp=mpp)
        raise ConfigError(
            f"{key!r} is not a level, magnification or pixel size",
            remedy=f"Write a pyramid level as 0 to {MAX_LEVEL}, a magnification as 10x or 2.5x, a pixel "
            "size as 0.5um; delete such a partition and add the one that is meant",
        )

    @property
    def name(self) -> str:
        """Its name in file and folder names: level_4, 10x, 0.5um."""
        return name_of(self.key)

    def __str__(self) -> str:
        return words_of(self.key)


def name_of(key: str) -> str:
    """The name of any key, valid or not, in file and folder names: level_4, 10x, 0.5um."""
    return key if _KEY.fullmatch(key) else f"level_{key}"


def words_of(key: str | int) -> str:
    """A key in words: "level 4", "10x", "0.5um"."""
    return name_of(str(key)).replace("_", " ")


def option_of(key: str) -> str:
    """A key as a command-line option: "--level 4", "--mag 10", "--mpp 0.5"."""
    found = _KEY.fullmatch(key)
    if found is None:
        return f"--level {key}"
    return f"--mag {found[1]}" if found[2] == "x" else f"--mpp {found[1]}"


@dataclass(frozen=True)
class Place:
    """How a slide is read at a resolution.

    Attributes:
        level: the level that is read.
        step: pixels of that level, each way, that are averaged to one; 1 means no averaging.
        downsample: level-0 pixels per pixel of the resolution.
        width, height: size of the slide in pixels of the resolution.
        mpp: um per pixel of the resolution, None if unknown.
    """

    level: Level
    step: float
    downsample: float
    width: int
    height: int
    mpp: float | None


def locate(levels: Sequence[Level], scale: Scale, resolution: Resolution, tolerance: float = 0.01) -> Place:
    """How a slide is read at a resolution.

    A level whose pixels are within ``tolerance`` (a share) of the wanted size is read without averaging; else
    the coarsest level with smaller pixels is averaged. If the pixel size is unknown, it is 10 um divided by
    the ``base_mag`` of the cohort table.

    Raises:
        SlideIndexError: the slide has no such level, its pixels are larger, or their size is unknown.
    """
    mpp = scale.mpp
    if resolution.level is not None:
        for level in levels:
            if level.index == resolution.level:
                size = mpp and mpp * level.downsample
                return Place(level, 1.0, level.downsample, level.width, level.height, size)
        raise SlideIndexError(
            f"has no level {resolution.level} (its levels: {ranges({level.index for level in levels})})",
            remedy="Choose a level that the slide has",
        )
    if mpp is None and scale.magnification_source == "cohort":
        mpp = 10 / scale.base_magnification
    if mpp is None:
        raise SlideIndexError(
            f"its pixel size is not known, so it has no {resolution.key}",
            remedy="Give mpp or base_mag of the slide in cohort.csv",
        )
    wanted = resolution.mpp / mpp
    nearest = min(levels, key=lambda level: abs(level.downsample / wanted - 1))
    if abs(nearest.downsample / wanted - 1) <= tolerance:
        size = mpp * nearest.downsample
        return Place(nearest, 1.0, nearest.downsample, nearest.width, nearest.height, size)
    finer = [level for level in levels if level.downsample < wanted]
    if not finer:
        raise SlideIndexError(
            f"its pixels are {mpp:.4g} um, larger than the {resolution.mpp:.4g} um of {resolution.key}, and "
            "nothing is enlarged",
            remedy="Choose a lower magnification, or a larger level_tolerance if they are nearly it",
        )
    level = max(finer, key=lambda level: level.downsample)
    step = wanted / level.downsample
    if step > MAX_STEP:
        raise SlideIndexError(
            f"{resolution.key} has pixels {step:.0f} times as wide as its coarsest level; at most "
            f"{MAX_STEP:g} pixels are averaged to one",
            remedy="Choose a higher magnification",
        )
    width, height = (int(side / step + 1e-6) for side in (level.width, level.height))
    return Place(level, step, wanted, width, height, resolution.mpp)


def ranges(numbers: set[int]) -> str:
    """Write {0, 1, 2, 5} as "0 to 2, 5"."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ", ".join(f"{a} to {b}" if b > a else str(a) for a, b in parts) or "none"
