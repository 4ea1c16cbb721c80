"""Draw nuclei: their positions, shapes and stain."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np


@dataclass(frozen=True)
class Kind:
    """The appearance of one kind of nucleus; lengths in level-0 pixels (0.243 um).

    Attributes:
        spacing: mean distance of neighbors.
        radius: mean radius.
        spread: standard deviation of the radius, as a share of it.
        elongation: long axis divided by short axis.
        lobed: deviation of the border from an ellipse, as a share of the radius.
        stain: hematoxylin of the nucleus.
        rim: extra hematoxylin at its membrane; vesicular nuclei have a dark rim around a pale center.
        clumps: contrast of the chromatin.
        nucleoli: probability of a nucleolus.
        cytoplasm: extra eosin around the nucleus.
        kept: share of grid positions that have a nucleus.
    """

    spacing: float
    radius: float
    spread: float
    elongation: float
    lobed: float
    stain: float
    rim: float
    clumps: float
    nucleoli: float
    cytoplasm: float
    kept: float


LYMPHOCYTE = Kind(26, 11.5, 0.09, 1.12, 0.04, 1.45, 0.1, 0.24, 0.0, 0.0, 0.95)
BLAST = Kind(36, 14.5, 0.14, 1.2, 0.07, 0.95, 0.22, 0.2, 0.3, 0.05, 0.9)
SPINDLE = Kind(58, 8.0, 0.2, 3.2, 0.05, 1.2, 0.0, 0.15, 0.0, 0.0, 0.6)
TUMOR_CELL = Kind(47, 20.5, 0.22, 1.35, 0.12, 0.62, 0.42, 0.3, 0.75, 0.14, 0.93)


def add_nuclei(
    rng: np.random.Generator, hematoxylin: np.ndarray, eosin: np.ndarray, where: np.ndarray, kind: Kind
) -> None:
    """Draw nuclei of one kind into both stain maps, float32 (height, width), where the mask ``where`` is
    set."""
    places = _places(rng, where, kind)
    if not len(places):
        return
    half = (
        int(np.ceil(kind.radius * (1 + 2.2 * kind.spread) * np.sqrt(kind.elongation) * (1 + 2 * kind.lobed)))
        + 3
    )
    for start in range(0, len(places), 256):  # batches bound memory
        batch = places[start : start + 256]
        inside, stain = _stamps(rng, len(batch), half, kind)
        for (y, x), cover, density in zip(batch, inside, stain, strict=True):
            _lay(hematoxylin, y - half, x - half, cover, density)
            if kind.cytoplasm:
                _lay(eosin, y - half, x - half, cover * 0.5, np.float32(0.25))
    if kind.cytoplasm:
        eosin += kind.cytoplasm * _halo(places, where.shape, kind)


def _places(rng: np.random.Generator, where: np.ndarray, kind: Kind) -> np.ndarray:
    """Centers (n, 2) as (y, x): a jittered hexagonal grid, so that nuclei are dense but rarely overlap."""
    height, width = where.shape
    rows = np.arange(0, height, kind.spacing * np.sqrt(3) / 2)
    columns = np.arange(0, width, kind.spacing)
    y, x = np.meshgrid(rows, columns, indexing="ij")
    x = x + (np.arange(len(rows)) % 2)[:, None] * kind.spacing / 2
    places = np.stack([y, x], axis=-1).reshape(-1, 2) + rng.normal(0, kind.spacing * 0.15, (y.size, 2))
    places = np.rint(places[rng.random(len(places)) < kind.kept]).astype(int)
    places = places[(places >= 0).all(axis=1) & (places[:, 0] < height) & (places[:, 1] < width)]
    return places[where[places[:, 0], places[:, 1]]]


def _stamps(rng: np.random.Generator, count: int, half: int, kind: Kind) -> tuple[np.ndarray, np.ndarray]:
    """(opacity 0 to 1, hematoxylin) of each nucleus, float32 (count, 2 half + 1, 2 half + 1) each."""

    def each(values: np.ndarray) -> np.ndarray:
        return values.astype(np.float32)[:, None, None]

    span = np.arange(-half, half + 1, dtype=np.float32)
    dy, dx = np.meshgrid(span, span, indexing="ij")
    turn = rng.uniform(0, np.pi, count)
    along = dx * each(np.cos(turn)) + dy * each(np.sin(turn))
    across = dy * each(np.cos(turn)) - dx * each(np.sin(turn))
    stretch = each(np.sqrt(kind.elongation * rng.uniform(0.85, 1.15, count)))
    radius = each(
        kind.radius * np.clip(rng.normal(1, kind.spread, count), 1 - 2.2 * kind.spread, 1 + 2.2 * kind.spread)
    )
    angle = np.arctan2(across, along)
    border = 1 + sum(
        each(rng.normal(0, kind.lobed / order * 1.5, count))
        * np.cos(order * angle + each(rng.uniform(0, 6.28, count)))
        for order in (2, 3, 4)
    )
    distance = np.hypot(along / stretch, across * stretch) / (radius * border)
    cover = np.clip((1 - distance) * radius / 2.2 + 0.5, 0, 1)
    coarse = rng.standard_normal((count, half // 2 + 2, half // 2 + 2), dtype=np.float32)
    side = 2 * half + 1
    chromatin = np.stack([cv2.resize(field, (side, side), interpolation=cv2.INTER_CUBIC) for field in coarse])
    stain = kind.stain * each(rng.normal(1, 0.1, count)) * (1 + kind.clumps * chromatin)
    stain = stain + kind.rim * np.exp(-(((distance - 0.88) / 0.13) ** 2))
    nucleolus = rng.random(count) < kind.nucleoli
    offset_y, offset_x = rng.normal(0, kind.radius * 0.25, (2, count))
    spot = np.hypot(dy - each(offset_y), dx - each(offset_x)) / (0.2 * kind.radius)
    stain = stain + each(nucleolus * 0.85) * np.exp(-(spot**2))
    return cover, np.clip(stain, 0.1, 2.2)


def _lay(target: np.ndarray, top: int, left: int, cover: np.ndarray, density: np.ndarray) -> None:
    """Blend one nucleus onto ``target``; parts outside are cut off."""
    height, width = target.shape
    y0, x0 = max(top, 0), max(left, 0)
    y1, x1 = min(top + cover.shape[0], height), min(left + cover.shape[1], width)
    here = (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))
    view, share = target[y0:y1, x0:x1], cover[here]
    density = density[here] if np.ndim(density) else density
    view += share * np.maximum(density - view, 0)


def _halo(places: np.ndarray, shape: tuple[int, int], kind: Kind) -> np.ndarray:
    """Amount of cytoplasm, float32 of ``shape``: 1 at a nucleus, falling off around it."""
    dots = np.zeros(shape, np.float32)
    dots[places[:, 0], places[:, 1]] = 1
    halo = cv2.GaussianBlur(dots, (0, 0), kind.radius)
    return np.clip(halo / halo.max(), 0, 1)
