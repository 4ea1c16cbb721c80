"""Where a slide holds tissue: one mask per slide at a coarse working level, whatever level is patched later.

Pixels come in as arrays; the only reading is one reduced image through the slide's reader. Patches, outlines
and labels do not belong here.

How tissue is told from glass. The feature is *chroma*, the spread ``max(R, G, B) - min(R, G, B)`` after the
glass was balanced to neutral: stains are coloured; glass, coverslip edges, grey or black padding and black
registration crosses are not, at any brightness. (Saturation divides by brightness and so turns the noise of
dark pixels into colour.) Otsu's threshold is taken on the square root of chroma, which keeps a few strongly
stained spots from pulling it above pale tissue. It is then held between two bounds: Otsu always splits, also
a slide that is glass only (the lower bound then finds no tissue in noise) or tissue only (the upper one then
finds no glass). No-data and one-coloured frames are not in the histogram.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_assets.errors import SlideIndexError
from wsi_assets.slides import Level, Scale

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from wsi_assets.index.options import TissueOptions
    from wsi_assets.slides import SlideReader

CHROMA_BOUNDS = (6.0, 20.0)
"""Otsu's threshold is kept within these, in grey levels of chroma: scanner and JPEG noise on smoothed glass
stays under 6, H&E tissue paler than 20 is pale."""


@dataclass(frozen=True)
class TissueRegions:
    """Tissue of one slide, with the geometry needed to index it without opening it again.

    ``mask`` is (rows, cols) bool; its pixel (r, c) covers the level-0 square from (r, c) to (r + 1, c + 1)
    times ``work_downsample``, as (y, x). ``threshold`` is in grey levels of chroma, 0 to 255; None if the
    slide holds no data. ``tissue_share`` is tissue over data pixels, 0 to 1.
    """

    slide_id: str
    slide_path: str
    fingerprint: str
    work_level: int
    work_downsample: float
    mask: NDArray[np.bool_]
    threshold: float | None
    levels: tuple[Level, ...]
    scale: Scale
    tissue_share: float
    data_share: float
    config: dict[str, Any]

    def to_plain(self) -> dict[str, Any]:
        """The same as plain types; the mask as compressed bits."""
        return {
            "slide_id": self.slide_id,
            "slide_path": self.slide_path,
            "fingerprint": self.fingerprint,
            "work_level": self.work_level,
            "work_downsample": self.work_downsample,
            "mask_shape": [int(side) for side in self.mask.shape],
            "mask": zlib.compress(np.packbits(self.mask).tobytes()),
            "threshold": self.threshold,
            "levels": [
                {"index": v.index, "width": v.width, "height": v.height, "downsample": v.downsample}
                for v in self.levels
            ],
            "scale": {
                "base_magnification": self.scale.base_magnification,
                "magnification_source": self.scale.magnification_source,
                "mpp": self.scale.mpp,
                "mpp_source": self.scale.mpp_source,
            },
            "tissue_share": self.tissue_share,
            "data_share": self.data_share,
            "config": dict(self.config),
        }

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> TissueRegions:
        """Rebuild what :meth:`to_plain` gave.

        Raises:
            SlideIndexError: it is something else.
        """
        try:
            rows, cols = plain["mask_shape"]
            bits = np.frombuffer(zlib.decompress(plain["mask"]), np.uint8)
            fields = {k: v for k, v in plain.items() if k != "mask_shape"}
            fields["mask"] = np.unpackbits(bits, count=rows * cols).reshape(rows, cols).astype(bool)
            fields["levels"] = tuple(Level(**level) for level in plain["levels"])
            fields["scale"] = Scale(**plain["scale"])
            return cls(**fields)
        except (KeyError, TypeError, ValueError, zlib.error) as error:
            raise SlideIndexError(
                f"not the tissue of a slide ({error!r})", remedy="Materialize tissue_regions again"
            ) from error


def work_level_for(height: int, width: int, options: TissueOptions) -> int:
    """The coarsest level up to ``work_level`` whose mask has ``min_work_pixels`` on its long side.

    Args:
        height, width: of level 0, pixels.
    """
    level = options.work_level
    while level > 0 and max(height, width) / 2**level < options.min_work_pixels:
        level -= 1
    return level


def find_tissue(reader: SlideReader, options: TissueOptions, fingerprint: str) -> TissueRegions:
    """Find the tissue of an open slide.

    Raises:
        SlideError: the slide does not read.
    """
    base = reader.levels[0]
    level = work_level_for(base.height, base.width, options)
    region = reader.reduced(float(2**level))
    mask, threshold = tissue_mask(region.pixels, region.no_data, options)
    data = int(mask.size - np.count_nonzero(region.no_data))
    return TissueRegions(
        slide_id=reader.slide_id,
        slide_path=str(reader.path),
        fingerprint=fingerprint,
        work_level=level,
        work_downsample=float(2**level),
        mask=mask,
        threshold=threshold,
        levels=tuple(reader.levels),
        scale=reader.scale,
        tissue_share=float(np.count_nonzero(mask) / data) if data else 0.0,
        data_share=float(data / mask.size) if mask.size else 0.0,
        config=options.model_dump(),
    )


def tissue_mask(
    pixels: NDArray[np.uint8], no_data: NDArray[np.bool_], options: TissueOptions
) -> tuple[NDArray[np.bool_], float | None]:
    """Tell tissue from glass in a coarse RGB image.

    Args:
        pixels: (h, w, 3) RGB.
        no_data: (h, w), pixels that were not scanned; pure black and pure white ones are added here.

    Returns:
        The mask (h, w), and the chroma threshold, None if no pixel holds data.
    """
    import cv2

    no_data = no_data | (pixels.min(axis=2) == 255) | (pixels.max(axis=2) == 0)
    if no_data.all():
        return np.zeros(no_data.shape, bool), None
    balanced = _balance(pixels, no_data)
    chroma = balanced.max(axis=2) - balanced.min(axis=2)
    chroma[no_data] = 0
    chroma = cv2.GaussianBlur(chroma, (0, 0), 1.0, borderType=cv2.BORDER_REPLICATE)
    counted = ~(no_data | _frame(pixels))
    if not counted.any():
        counted = ~no_data
    threshold = float(np.clip(otsu(np.sqrt(chroma[counted])) ** 2, *CHROMA_BOUNDS))
    mask = (chroma >= threshold) & ~no_data
    pen = _pen(balanced) if options.reject_pen else np.zeros_like(mask)
    mask = _tidy(mask & ~pen, options.fill_holes)
    return mask & ~pen & ~no_data, threshold


def otsu(values: NDArray[np.floating], bins: int = 512) -> float:
    """Otsu's threshold (IEEE Trans. SMC 9:62, 1979) of any values: it maximises the between-class variance.

    Where several thresholds are as good, e.g. between two well separated peaks, their middle is taken.
    """
    low, high = float(values.min()), float(values.max())
    if high - low < 1e-6:
        return low
    counts, edges = np.histogram(values, bins=bins, range=(low, high))
    centres = (edges[:-1] + edges[1:]) / 2
    weight = np.cumsum(counts)[:-1].astype(float)
    moment = np.cumsum(counts * centres)
    rest = weight[-1] + counts[-1] - weight
    with np.errstate(divide="ignore", invalid="ignore"):
        between = (moment[-1] * weight / (weight + rest) - moment[:-1]) ** 2 / (weight * rest)
    between = np.nan_to_num(between, nan=0.0, posinf=0.0)
    best = np.flatnonzero(between >= between.max() * (1 - 1e-12))
    return float(edges[1:-1][best].mean())


def _balance(pixels: NDArray[np.uint8], no_data: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Scale the channels so that tinted glass becomes neutral; the image is left as it is without clear glass.

    Glass is a narrow peak (a tenth of the pixels within one 8-level cube of colour) that is bright (all
    channels over 180) and at most slightly tinted; stained tissue has texture and fills no such peak.
    """
    values = pixels.astype(np.float32)
    bright = (pixels.min(axis=2) > 180) & ~no_data
    if not bright.any():
        return values
    cubes = (pixels[bright] >> 3).astype(np.int32)
    counts = np.bincount(cubes[:, 0] << 10 | cubes[:, 1] << 5 | cubes[:, 2], minlength=1 << 15)
    peak = int(counts.argmax())
    if counts[peak] < 0.1 * np.count_nonzero(~no_data):
        return values
    inside = pixels[bright][(cubes[:, 0] << 10 | cubes[:, 1] << 5 | cubes[:, 2]) == peak]
    glass = inside.mean(axis=0)
    if glass.max() - glass.min() > 40:
        return values
    return np.minimum(values * (glass.max() / glass), 255).astype(np.float32)


def _frame(pixels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Whole rows and columns at the border that hold one colour: padding of any colour, not scanned glass."""
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
    """Blue and green ink: it absorbs red more than green, while haematoxylin and eosin absorb green most.

    A strongly inked core takes its paler surroundings of the same hue with it.
    """
    import cv2

    density = -np.log10((balanced[..., :2] + 1) / 256)
    cool = density[..., 0] - density[..., 1]
    core = (cool > 0.15).astype(np.uint8)
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
