"""Which images of a slide file are levels of its pyramid, by their sizes and their TIFF tags."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import tifffile

from wsi_assets.slides.tiff_pages import Size, size_of

_PAGE_NAME, _X_RESOLUTION, _RESOLUTION_UNIT = 285, 282, 296
_PER_CM = {2: 1 / 2.54, 3: 1.0}
_SAME_SCALE = 1.5
_OTHER_PICTURES = re.compile(r"\b(label|macro|overview|thumbnail)\b", re.IGNORECASE)


def true_levels(
    sizes: Sequence[Size], tile_of: Callable[[int], Size], pages: Sequence[tifffile.TiffPage]
) -> tuple[list[int], tuple[str, ...]]:
    """Numbers of the images that are levels of the pyramid, and a line on each that is not.

    An image is a level if it is the first image divided by one downsample, is not named label or macro, and
    has no TIFF resolution that contradicts its size.

    Args:
        sizes: (width, height) of the images, in OpenSlide's order.
        tile_of: number of an image -> (width, height) of its tiles.
        pages: the pages of the TIFF.
    """
    by_size = {size_of(page): page for page in reversed(pages)}
    (width, height), pads = sizes[0], True
    numbers, lines = [0], []
    for number, size in enumerate(sizes[1:], start=1):
        tile = tile_of(number)
        reductions = reductions_to(sizes[0], size, tile if pads else (1, 1))
        if reductions is None:
            why = f"it is not {width} x {height} pixels reduced; it may be a macro or label image"
        else:
            why = _said_otherwise(by_size.get(sizes[0]), by_size.get(size), reductions)
        if why:
            lines.append(f"an image of {size[0]} x {size[1]} pixels in the file is not a level: {why}")
        else:
            numbers.append(number)
            # A program that pads to whole tiles pads every level, except perhaps level 0.
            pads = pads and (size[0] % tile[0], size[1] % tile[1]) == (0, 0)
    return numbers, tuple(lines)


def reductions_to(base: Size, size: Size, tile: Size = (1, 1)) -> tuple[float, float] | None:
    """Smallest and largest downsample by which ``base`` can be reduced to ``size``, None if it cannot.

    Sides may be off by a pixel, or by padding if they are a whole number of tiles.
    """
    least, most = [], []
    for whole, side, unit in zip(base, size, tile, strict=True):
        padding = unit if side % unit == 0 else 1
        least.append(whole / (side + 1))
        most.append(whole / max(side - padding, 0.5))
    return (max(least), min(most)) if max(least) <= min(most) else None


def odd_picture(pages: Sequence[tifffile.TiffPage]) -> Size | None:
    """Size of the first tiled TIFF page that is not a reduction of the first one; None if all are."""
    tiled = [page for page in pages if page.is_tiled]
    for page in tiled[1:]:
        if reductions_to(size_of(tiled[0]), size_of(page), (page.tilewidth, page.tilelength)) is None:
            return size_of(page)
    return None


def _said_otherwise(
    first: tifffile.TiffPage | None, page: tifffile.TiffPage | None, reductions: tuple[float, float]
) -> str | None:
    """Why the TIFF tags of a page say that it is not a level, None if they do not."""
    if page is None or first is None:
        return None
    # Fields behind the first | hold free text.
    text = f"{page.description.partition('|')[0]} {page.tags.valueof(_PAGE_NAME, '')}"
    named = None if "<" in text else _OTHER_PICTURES.search(text)
    if named:
        return f"the file names it {named[0].lower()}"
    fine, coarse = _resolution(first), _resolution(page)
    # Many programs give all levels the resolution of the first, or none.
    if fine and coarse and fine > coarse * 1.01:
        ratio = fine / coarse
        if not reductions[0] / _SAME_SCALE < ratio < reductions[1] * _SAME_SCALE:
            return f"by its resolution its pixels are {ratio:.3g} times as large as those of level 0"
    return None


def _resolution(page: tifffile.TiffPage) -> float | None:
    """Pixels per cm of a TIFF page, None if unknown."""
    number = page.tags.valueof(_X_RESOLUTION)
    unit = _PER_CM.get(page.tags.valueof(_RESOLUTION_UNIT, 0))
    if unit is None or not isinstance(number, tuple) or len(number) != 2 or min(number) <= 0:
        return None
    return number[0] / number[1] * unit
