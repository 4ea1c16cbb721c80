"""What worker processes of slide batches load before their first task, so that none of them waits for it."""

import cv2
import imagecodecs
import numpy
import shapely
import tifffile

from wsi_assets import annotations, index, slides
from wsi_assets.index import slide_regions, tissue

__all__ = [
    *("annotations", "cv2", "imagecodecs", "index", "numpy", "shapely", "slide_regions", "slides", "tifffile"),
    "tissue",
]
