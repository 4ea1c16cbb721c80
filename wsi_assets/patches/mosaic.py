"""A picture of some patches of a store, normal beside tumor."""

from __future__ import annotations

import numpy as np

from wsi_assets.drawing import NORMAL, TUMOR, png_of, rgb
from wsi_assets.patches.store import PatchStore

_GAP = 4
_TITLE = 28


def mosaic_png(store: PatchStore, *, columns: int = 6, rows: int = 4, side: int = 128) -> bytes:
    """A PNG of up to ``rows`` x ``columns`` patches of each class, normal left, tumor right.

    Patches are chosen evenly over the store, and so over its slides, and resized to ``side`` pixels.
    """
    import cv2

    panels = []
    for label, name, color in ((0, "normal", NORMAL), (1, "tumor", TUMOR)):
        of_class = np.flatnonzero(store.labels == label)
        height = _TITLE + rows * (side + _GAP) + _GAP
        panel = np.full((height, columns * (side + _GAP) + _GAP, 3), 255, np.uint8)
        panel[: _TITLE - _GAP, : 3 * _GAP] = rgb(color)
        text = f"{name}: {len(of_class):,} patches of {_width(store)}"
        at = 4 * _GAP, 20
        cv2.putText(panel, text, at, cv2.FONT_HERSHEY_SIMPLEX, 0.6, (40, 40, 40), 1, cv2.LINE_AA)
        shown = min(len(of_class), rows * columns)
        for place, index in enumerate(of_class[np.linspace(0, len(of_class) - 1, shown).astype(int)]):
            patch = cv2.resize(store.get(int(index)), (side, side), interpolation=cv2.INTER_AREA)
            y = _TITLE + place // columns * (side + _GAP)
            x = _GAP + place % columns * (side + _GAP)
            panel[y : y + side, x : x + side] = patch
        panels.append(panel)
    divider = np.full((panels[0].shape[0], 2, 3), 160, np.uint8)
    picture = np.hstack([panels[0], divider, panels[1]])
    return png_of(picture)


def _width(store: PatchStore) -> str:
    """The width of a patch in pixels and, if the slides' mpp is known, in um."""
    pixels = store.info["patch_size"]
    mpps = [slide["mpp"] for slide in store.info.get("slides", []) if slide["mpp"]]
    widths = sorted({f"{pixels * mpp:.0f}" for mpp in (min(mpps), max(mpps))}, key=float) if mpps else []
    return f"{pixels} px" + (f", {' to '.join(widths)} um" if widths else "")
