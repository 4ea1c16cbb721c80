"""What a read of a slide gives. Reading it belongs elsewhere."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Region:
    """``pixels``: uint8 (h, w, 3) RGB; ``no_data``: bool (h, w), True where the slide has nothing."""

    pixels: np.ndarray
    no_data: np.ndarray
