"""Separate tissue from glass in one coarse RGB image.

The feature is *chroma*, ``max(R, G, B) - min(R, G, B)`` after the color balance that makes glass neutral.
Stains are colored; glass, coverslip edges, padding and registration crosses are not, at any brightness.

The threshold is Otsu's on the square root of chroma; the root keeps a few strongly stained spots from pulling
the threshold above pale tissue. It is kept between two bounds, because Otsu always splits, even a slide that
is only glass or only tissue. No-data and frames of one color do not count in the histogram. If a scanner
clips glass to pure white, all glass is no-data, and Otsu would split pale tissue from dark tissue; so with
almost no glass in the histogram the threshold is at most the middle of the bounds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from wsi_assets.index.options import TissueOptions

CHROMA_BOUNDS = (6.0, 20.0)
"""Smallest and largest threshold, in gray levels of chroma: scanner and JPEG noise on smoothed glass stays
under 6, and H&E tissue under 20 is pale."""
MIN_GLASS = 0.1
"""Least share of pixels under the lower bound if there is glass: 0.14 and more on slides with glass, 0.06 on
a CAMELYON16 slide whose glass was painted white."""
BLACK = (90.0, 0.36)
"""Black ink and registration crosses are darker than the first value in every channel, and their chroma is a
smaller share of their brightness than the second (0.1 to 0.34 on a CAMELYON16 slide). Nuclei as dark have
0.45 and more."""
PEN = 0.08
"""Least difference of optical density, red minus green, of blue and green ink. In H&E slides of four
laboratories it stays under 0.03, down to single nuclei; surgical and felt-pen ink has 0.1 to 0.8."""


def tissue_mask(
    pixels: NDArray[np.uint8], no_data: NDArray[np.bool_], options: TissueOptions
) -> tuple[NDArray[np.bool_], float | None]:
    """Separate tissue from glass in a coarse RGB image.

    Args:
        pixels: (h, w, 3) RGB.
        no_data: (h, w), pixels that were not scanned; pure black and pure white pixels are added to them.

    Returns:
        The tissue mask (h, w), and the threshold in gray levels of chroma; None if no pixel has data.
    """
    no_data = no_data | (pixels.min(axis=2) == 255) | (pixels.max(axis=2) == 0) | _frame(pixels)
    if no_data.all():
        return no_data & False, None
    balanced = _balance(_smooth(pixels, no_data), no_data)
    brightest = balanced.max(axis=2)
    chroma = brightest - balanced.min(axis=2)
    chroma[(brightest < BLACK[0]) & (chroma < BLACK[1] * brightest)] = 0
    data, (low, high) = chroma[~no_data], CHROMA_BOUNDS
    if np.mean(data < low) < MIN_GLASS:
        high = (low * high) ** 0.5
    threshold = float(np.clip(otsu(np.sqrt(data)) ** 2, low, high))
    mask = (chroma >= threshold) & ~no_data
    pen = _pen(balanced) if options.reject_pen else np.zeros_like(mask)
    mask = _tidy(mask & ~pen, options.fill_holes)
    return mask & ~pen & ~no_data, threshold


def otsu(values: NDArray[np.floating], bins: int = 512) -> float:
    """Otsu's threshold (IEEE Trans. SMC 9:62, 1979), which maximizes the between-class variance.

    If several thresholds are equally good, as between two separate peaks, it is their middle.
    """
    low, high = float(values.min()), float(values.max())
    if high - low < 1e-6:
        return low
    counts, edges = np.histogram(values, bins=bins, range=(low, high))
    centers = (edges[:-1] + edges[1:]) / 2
    weight = np.cumsum(counts)[:-1].astype(float)
    moment = np.cumsum(counts * centers)
    rest = weight[-1] + counts[-1] - weight
    with np.errstate(divide="ignore", invalid="ignore"):
        between = (moment[-1] * weight / (weight + rest) - moment[:-1]) ** 2 / (weight * rest)
    between = np.nan_to_num(between, nan=0.0, posinf=0.0)
    best = np.flatnonzero(between >= between.max() * (1 - 1e-12))
    return float(edges[1:-1][best].mean())


def _smooth(pixels: NDArray[np.uint8], no_data: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Blur by one pixel, without the pixels that have no data: chroma is never negative, so noise adds to
    it."""
    import cv2

    weight = (~no_data).astype(np.float32)
    values = cv2.GaussianBlur(pixels * weight[..., None], (0, 0), 1.0)
    return values / np.maximum(cv2.GaussianBlur(weight, (0, 0), 1.0), 1e-6)[..., None]


def _balance(values: NDArray[np.float32], no_data: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Scale the channels so that tinted glass becomes neutral; without clear glass nothing changes.

    Glass is a narrow, bright peak of the color histogram: a tenth of the pixels within a cube of side 8, with
    all channels over 180. Stained tissue has texture and makes no such peak. A peak with less green than red
    and blue may still be evenly stained tissue, so it counts as glass only if it is almost neutral.
    """
    bright = values[(values.min(axis=2) > 180) & ~no_data]
    if not len(bright):
        return values
    cubes = (bright / 8).astype(np.int32) @ np.array([1024, 32, 1])
    counts = np.bincount(cubes)
    if counts.max() < 0.1 * np.count_nonzero(~no_data):
        return values
    glass = bright[cubes == counts.argmax()].mean(axis=0)
    if np.ptp(glass) > (10 if glass.argmin() == 1 else 60):
        return values
    return np.minimum(values * (glass.max() / glass), 255).astype(np.float32)


def _frame(pixels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Whole rows and columns of one color at the border, which are padding."""
    height, width = pixels.shape[:2]
    top, bottom, left, right = 0, height, 0, width

    def flat(line: NDArray[np.uint8]) -> bool:
        return bool((np.ptp(line.astype(np.int16), axis=0) <= 1).all())

    while top < bottom and flat(pixels[top, left:right]):
        top += 1
    while bottom > top and flat(pixels[bottom - 1, left:right]):
        bottom -= 1
    while left < right and top < bottom and flat(pixels[top:bottom, left]):
        left += 1
    while right > left and top < bottom and flat(pixels[top:bottom, right - 1]):
        right -= 1
    frame = np.ones((height, width), bool)
    frame[top:bottom, left:right] = False
    return frame


def _pen(balanced: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Blue and green ink, which absorbs red more than green; hematoxylin and eosin absorb green most.

    Paler pixels of the same hue count as ink if they are next to strong ink.
    """
    import cv2

    density = -np.log10((balanced[..., :2] + 1) / 256)
    cool = density[..., 0] - density[..., 1]
    core = (cool > PEN).astype(np.uint8)
    near = cv2.dilate(core, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (7, 7)))
    return (near > 0) & (cool > 0.02)


def _tidy(mask: NDArray[np.bool_], hole: int) -> NDArray[np.bool_]:
    """Close gaps of a pixel or two, fill holes up to ``hole`` pixels and drop specks of under 4 pixels."""
    import cv2

    disk = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5))
    padded = cv2.copyMakeBorder(mask.astype(np.uint8), 2, 2, 2, 2, cv2.BORDER_REPLICATE)
    tidy = cv2.morphologyEx(padded, cv2.MORPH_CLOSE, disk)[2:-2, 2:-2].copy()
    for value, limit, connectivity in ((0, hole, 4), (1, 3, 8)):
        _, labels, stats, _ = cv2.connectedComponentsWithStats(
            (tidy == value).astype(np.uint8), connectivity=connectivity
        )
        small = stats[:, cv2.CC_STAT_AREA] <= limit
        small[0] = False
        tidy[small[labels]] = 1 - value
    return tidy.astype(bool)
