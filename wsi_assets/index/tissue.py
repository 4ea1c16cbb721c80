"""Find the tissue of a slide: one mask at a coarse working level, which serves patches of every level."""

from __future__ import annotations

import math
import zlib
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_assets.drawing import jpeg_of, shrunk
from wsi_assets.errors import SlideIndexError
from wsi_assets.index.masking import tissue_mask
from wsi_assets.slides import Level, Scale

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from wsi_assets.index.options import TissueOptions
    from wsi_assets.slides import SlideReader


FINER = 2
"""Pixels are read this many levels finer than the working level and averaged. JPEG halves the resolution of
color, and a coarse level that was compressed again has blurred chroma: the masks of CAMELYON16's tumor_001
and of a copy with a padded pyramid have Dice 0.92 if read at the working level, 0.97 one level finer, 0.98
two."""
MAX_MASK_PIXELS = 1 << 29
"""Largest mask; a slide of 500,000 x 500,000 pixels at level 5 has half as many pixels."""
THUMBNAIL_SIDE = 32
"""Side, in pixels, of the thumbnail by which slides are compared."""
PICTURE_SIDE = 2400
"""Longest side, in pixels, of the picture that is stored of a slide."""


@dataclass(frozen=True)
class TissueRegions:
    """Tissue of one slide, with the levels and the scale needed to index it without opening it again.

    Attributes:
        work_level, work_downsample: the working level, and level-0 pixels per pixel of the mask.
        mask: bool (rows, cols). Pixel (r, c) covers the level-0 square from (r, c) to (r + 1, c + 1) times
            ``work_downsample``, as (y, x).
        threshold: in gray levels of chroma, 0 to 255; None if the slide has no data.
        levels, scale: the slide's levels; magnification and pixel size of level 0.
        tissue_share: tissue pixels over pixels with data, 0 to 1.
        thumbnail: the slide as RGB bytes, ``THUMBNAIL_SIDE`` pixels each way, white where there is no tissue;
            by it the same slide is found under two names.
        picture: the whole slide as a JPEG, its longer side up to ``PICTURE_SIDE`` pixels.
        bounds: (x, y, width, height) of the scanned area in level-0 pixels; None if that is the whole slide.
        notices: lines on what was assumed or ignored of the slide.
        config: the options used.
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
    thumbnail: bytes = b""
    picture: bytes = b""
    bounds: tuple[int, int, int, int] | None = None
    notices: tuple[str, ...] = ()
    config: dict[str, Any] = field(default_factory=dict)

    def to_plain(self) -> dict[str, Any]:
        """The same as plain types, the mask as compressed bits."""
        return {
            **asdict(self),
            "mask_shape": [int(side) for side in self.mask.shape],
            "mask": zlib.compress(np.packbits(self.mask).tobytes()),
        }

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> TissueRegions:
        """The inverse of :meth:`to_plain`.

        Raises:
            SlideIndexError: the values are something else.
        """
        try:
            rows, cols = plain["mask_shape"]
            if not 0 < rows * cols <= MAX_MASK_PIXELS:
                raise ValueError(f"a mask of {rows} x {cols}")
            # No more bytes than the mask needs: damaged data could unpack to any size.
            wanted = -(-rows * cols // 8)
            bits = np.frombuffer(zlib.decompressobj().decompress(plain["mask"], wanted), np.uint8)
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
    """The working level of a slide whose level 0 has ``height`` x ``width`` pixels: ``work_level``, or a
    finer one so that the longer side of the mask has ``min_work_pixels``."""
    finest = math.floor(math.log2(max(max(height, width) / options.min_work_pixels, 1)))
    return min(options.work_level, finest)


def find_tissue(reader: SlideReader, options: TissueOptions, fingerprint: str) -> TissueRegions:
    """Find the tissue of an open slide.

    Args:
        fingerprint: digest of the slide's content, to be stored with the result.

    Raises:
        SlideError: the slide cannot be read.
        SlideIndexError: the working level is too fine for the size of the slide or for the memory.
    """
    import cv2

    from wsi_assets.slides import reduce_mean

    base = reader.levels[0]
    level = work_level_for(base.height, base.width, options)
    rows, columns = (-(-side // 2**level) for side in (base.height, base.width))
    fault = f"work_level {level} makes a tissue mask of {columns} x {rows} pixels"
    if rows * columns > MAX_MASK_PIXELS:
        coarser = math.ceil(math.log(rows * columns / MAX_MASK_PIXELS, 4))
        raise SlideIndexError(
            f"{fault}, more than {MAX_MASK_PIXELS}",
            path=reader.path,
            remedy=f"Set work_level to {level + coarser} or more",
        )
    finer = min(level, FINER)
    try:
        region = reader.reduced(float(2 ** (level - finer)))
        pixels, no_data = reduce_mean(region.pixels, region.no_data, 2**finer)
        picture = jpeg_of(shrunk(region.pixels, PICTURE_SIDE))
        pixels[no_data] = 255
        mask, threshold = tissue_mask(pixels, no_data, options)
    except MemoryError as error:
        raise SlideIndexError(
            f"{fault}, for which there is not enough memory",
            path=reader.path,
            remedy=f"Set work_level to {level + 1} or more",
        ) from error
    data = int(mask.size - np.count_nonzero(no_data))
    shown = np.where(mask[..., None], pixels, 255).astype(np.uint8)
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
        thumbnail=cv2.resize(shown, (THUMBNAIL_SIDE,) * 2, interpolation=cv2.INTER_AREA).tobytes(),
        picture=picture,
        bounds=reader.bounds,
        notices=reader.notices,
        config=options.model_dump(),
    )
