"""Paint a layout as an H&E image: stain of each compartment, nuclei, then the light that passes both."""

from __future__ import annotations

import cv2
import numpy as np

from wsi_assets.demo.layout import (
    DESMOPLASIA,
    FAT,
    FOLLICLE,
    GLASS,
    LYMPHOID,
    NEST,
    SINUS,
    STROMA,
    Layout,
    smooth_noise,
)
from wsi_assets.demo.nuclei import BLAST, LYMPHOCYTE, SPINDLE, TUMOR_CELL, add_nuclei

HEMATOXYLIN = np.array([0.5626, 0.7201, 0.4062])
EOSIN = np.array([0.2159, 0.8012, 0.5581])
"""Optical density of one unit of stain in red, green and blue (Macenko et al., ISBI 2009, reference
slide)."""

# Amount of (hematoxylin, eosin) between the nuclei.
_GROUND = {
    GLASS: (0.0, 0.0),
    LYMPHOID: (0.22, 0.22),
    FOLLICLE: (0.17, 0.24),
    SINUS: (0.06, 0.16),
    STROMA: (0.05, 0.62),
    NEST: (0.2, 0.33),
    DESMOPLASIA: (0.05, 0.66),
    FAT: (0.0, 0.0),
}


def paint(rng: np.random.Generator, layout: Layout, *, cross: bool, unscanned: int) -> np.ndarray:
    """The slide's level-0 pixels, uint8 (height, width, 3) RGB.

    Color follows the Beer-Lambert law, ``I = I0 * exp(-(H * c_h + E * c_e))``, the inverse of color
    deconvolution. Stain strength and hue vary from slide to slide, as between the batches of a laboratory.

    Args:
        cross: draw a registration cross on the glass.
        unscanned: width in pixels of a pure white strip at the right.
    """
    compartments = layout.compartments
    hematoxylin, eosin, solid = _ground(rng, compartments)
    add_nuclei(rng, hematoxylin, eosin, compartments == LYMPHOID, LYMPHOCYTE)
    add_nuclei(rng, hematoxylin, eosin, compartments == FOLLICLE, BLAST)
    add_nuclei(rng, hematoxylin, eosin, np.isin(compartments, (STROMA, DESMOPLASIA, SINUS)), SPINDLE)
    add_nuclei(rng, hematoxylin, eosin, compartments == NEST, TUMOR_CELL)
    hematoxylin *= solid  # no nucleus reaches beyond its tissue

    glass = rng.uniform(241, 245) + np.array([0.0, -0.5, 0.5])
    vectors = np.stack([HEMATOXYLIN, EOSIN]) + rng.normal(0, 0.012, (2, 3))
    strength = rng.uniform(0.88, 1.12, 2)
    density = np.stack([hematoxylin * strength[0], eosin * strength[1]], axis=-1)
    density = cv2.GaussianBlur(density, (0, 0), 1.0)  # the optics
    light = glass * np.exp(-density @ vectors.astype(np.float32))
    light += rng.normal(0, 1.3, compartments.shape).astype(np.float32)[
        ..., None
    ]  # the camera, mostly luminance
    pixels = np.clip(np.rint(light), 0, 254).astype(np.uint8)  # 255 is kept for what was not scanned
    if cross:
        _draw_cross(pixels, compartments)
    if unscanned:
        pixels[:, -unscanned:] = 255
    return pixels


def _ground(rng: np.random.Generator, compartments: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(hematoxylin, eosin) between the nuclei, and a soft tissue mask 0 to 1; float32 (height, width)
    each."""
    height, width = compartments.shape
    table = np.array([_GROUND[kind] for kind in range(len(_GROUND))], np.float32)
    ground = cv2.GaussianBlur(table[compartments], (0, 0), 3.0)
    # Fibers: ridges of a random field stretched along x, bent by shifting its rows smoothly.
    bend = (60 * smooth_noise(rng, height, width, 300, 1)).astype(np.float32)
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    ridges = smooth_noise(rng, height, width, 9, 2, stretch=7)
    ridges = cv2.remap(ridges, columns, rows + bend, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    thickness = 1 + 0.06 * smooth_noise(rng, height, width, 220)
    grain = smooth_noise(rng, height, width, 5)
    fibrous = cv2.GaussianBlur(np.isin(compartments, (STROMA, DESMOPLASIA)).astype(np.float32), (0, 0), 3.0)
    modulation = thickness * (1 + 0.17 * grain + fibrous * 0.2 * ridges)
    empty = np.isin(compartments, (GLASS, FAT))
    solid = 1 - cv2.GaussianBlur(empty.astype(np.float32), (0, 0), 1.5)
    hematoxylin = np.clip(ground[..., 0] * modulation, 0, None) * solid
    eosin = np.clip(ground[..., 1] * modulation, 0, None) * solid
    # Fat cells have thin walls.
    fat = (compartments == FAT).astype(np.uint8)
    wall = cv2.GaussianBlur(
        cv2.morphologyEx(fat, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) * 0.5, (0, 0), 1.5
    )
    return hematoxylin, eosin + wall.astype(np.float32), solid


def _draw_cross(pixels: np.ndarray, compartments: np.ndarray) -> None:
    """Draw a registration cross in the corner with the least tissue."""
    height, width = compartments.shape
    reach, margin = height // 20, height // 14
    corners = [(y, x) for y in (margin, height - margin) for x in (margin, width - margin - height // 10)]
    y, x = min(
        corners,
        key=lambda at: np.count_nonzero(
            compartments[at[0] - reach : at[0] + reach, at[1] - reach : at[1] + reach]
        ),
    )
    pixels[y - 4 : y + 5, x - reach : x + reach + 1] = 12
    pixels[y - reach : y + reach + 1, x - 4 : x + 5] = 12
