"""Masks of annotated areas."""

import numpy as np
import shapely

from wsi_assets.index.coverage import cell_areas


def rasterize(geometry: shapely.Geometry, height: int, width: int, downsample: float) -> np.ndarray:
    """Pixels of a mask that lie by more than half in an area of level-0 coordinates."""
    rows, columns = (np.arange(side + 1) * downsample for side in (height, width))
    return cell_areas(geometry, rows, columns) > downsample**2 / 2
