"""Speed of indexing one gigapixel slide, beside a point-in-polygon loop.

    python -m wsi_assets_tests.benchmarks.bench_index [--json FILE]

The slide is 97,792 x 221,184 pixels at level 0, two thirds of it tissue, with one of two sets of annotations:
100 plain lesions of 400 points, or one region of 100,000 points with 148 rings. Times start from tissue and
annotations in memory and end at the finished index entry, exact tumor shares included.

The loop is the common one: for every patch with tissue, ``cv2.pointPolygonTest`` of its centre against each
ring. A loop over shapely's prepared polygons, which look at their bounds first, is timed beside it. Both give
labels by the centre only, no shares. They are timed on a random sample of patches and scaled up.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import cv2
import numpy as np
import shapely

from wsi_assets.annotations import TumorRegions
from wsi_assets.index import IndexOptions, TissueRegions, index_slide
from wsi_assets.index.patch_grid import grid
from wsi_assets.slides import Level, Scale
from wsi_assets_tests.benchmarks import rows

WIDTH, HEIGHT = 97_792, 221_184
PATCH = 256


def blob(rng: np.random.Generator, x: float, y: float, radius: float, points: int) -> shapely.Polygon:
    """A wobbly ring around (x, y)."""
    angle = np.linspace(0, 2 * np.pi, points, endpoint=False)
    waves = sum(rng.uniform(0, 0.12) * np.cos(k * angle + rng.uniform(0, 6)) for k in (2, 3, 5, 7))
    reach = radius * (1 + waves + rng.normal(0, 0.002, points))
    return shapely.Polygon(np.stack([x + reach * np.cos(angle), y + reach * np.sin(angle)], axis=1))


def lesions(rng: np.random.Generator) -> shapely.MultiPolygon:
    """100 lesions of 400 points, apart from each other."""
    places = [(x, y) for x in range(10) for y in range(10)]
    shapes = [
        blob(rng, (x + 0.5) * WIDTH / 10, (y + 0.5) * HEIGHT / 10, rng.uniform(300, 3000), 400)
        for x, y in places
    ]
    return _areal(shapely.union_all(shapely.make_valid(np.array(shapes))))


def lace(rng: np.random.Generator) -> shapely.MultiPolygon:
    """One region of 100,000 points in 148 rings: a shell with 147 holes."""
    shell = blob(rng, WIDTH / 2, HEIGHT / 2, 36_000, 26_500)
    holes = [
        blob(rng, WIDTH / 2 + (i % 12 - 5.5) * 3400, HEIGHT / 2 + (i // 12 - 6) * 3400, 1000, 500)
        for i in range(147)
    ]
    return _areal(shapely.make_valid(shell).difference(shapely.union_all(holes)))


def slide() -> TissueRegions:
    """A slide whose middle two thirds are tissue."""
    mask = np.zeros((HEIGHT // 128, WIDTH // 128), bool)
    mask[mask.shape[0] // 6 : -(mask.shape[0] // 6)] = True
    return TissueRegions(
        slide_id="bench",
        slide_path="bench.tif",
        fingerprint="0" * 32,
        work_level=7,
        work_downsample=128.0,
        mask=mask,
        threshold=12.0,
        levels=(Level(0, WIDTH, HEIGHT, 1.0),),
        scale=Scale(40.0, "benchmark", 0.243, "benchmark"),
        tissue_share=float(mask.mean()),
    )


def loop_seconds(tissue: TissueRegions, inside: Callable[[float, float], bool], sample: int) -> float:
    """Seconds of a loop over all patches of the grid, scaled up from ``sample`` of them."""
    corners = grid(HEIGHT, WIDTH, PATCH, PATCH)
    chosen = corners[np.random.default_rng(1).choice(len(corners), sample, replace=False)]
    patches = []
    start = time.perf_counter()
    for y, x in chosen.tolist():
        row, column = y // 128, x // 128
        if tissue.mask[row : row + 2, column : column + 2].mean() >= 0.5:
            patches.append((y, x, int(inside(x + PATCH / 2, y + PATCH / 2))))
    return (time.perf_counter() - start) * len(corners) / sample


def point_polygon_test(geometry: shapely.MultiPolygon) -> Callable[[float, float], bool]:
    """Whether a point is in any shell and in none of that shell's holes, ring by ring with OpenCV."""

    def contour(ring: shapely.LinearRing) -> np.ndarray:
        return np.asarray(ring.coords, np.float32).reshape(-1, 1, 2)

    rings = [(contour(p.exterior), [contour(hole) for hole in p.interiors]) for p in geometry.geoms]

    def inside(x: float, y: float) -> bool:
        return any(
            cv2.pointPolygonTest(shell, (x, y), False) >= 0
            and not any(cv2.pointPolygonTest(hole, (x, y), False) > 0 for hole in holes)
            for shell, holes in rings
        )

    return inside


def prepared_polygons(geometry: shapely.MultiPolygon) -> Callable[[float, float], bool]:
    """Whether a point is in any polygon, with shapely at its best one point at a time."""
    polygons = list(geometry.geoms)
    for polygon in polygons:
        shapely.prepare(polygon)

    def inside(x: float, y: float) -> bool:
        point = shapely.Point(x, y)
        return any(polygon.contains(point) for polygon in polygons)

    return inside


def run(repeats: int = 3, sample: int = 3000) -> list[rows.Row]:
    """Measure both sets of annotations; best of ``repeats``."""
    rng = np.random.default_rng(0)
    tissue = slide()
    found = []
    for name, geometry in (("100 lesions", lesions(rng)), ("148 rings, 100,000 points", lace(rng))):
        tumor = TumorRegions(geometry=geometry, excluded=shapely.MultiPolygon(), audit=())
        seconds = []
        for _ in range(repeats):
            start = time.perf_counter()
            entry = index_slide(tissue, tumor, 0, IndexOptions(patch_size=PATCH))
            seconds.append(time.perf_counter() - start)
        ours, what = min(seconds), f"level-0 index, {WIDTH:,} x {HEIGHT:,} px, {name}"
        loop = loop_seconds(tissue, point_polygon_test(geometry), sample)
        prepared = loop_seconds(tissue, prepared_polygons(geometry), sample)
        patches = f"{len(entry['patches']):,} patches, {sum(patch[2] for patch in entry['patches']):,} tumor"
        found += [
            rows.below(what, ours, "s", 2, note=patches),
            rows.times_as_fast(f"{what}, against a point-in-polygon loop", ours, loop, 100),
            rows.times_as_fast(f"{what}, against a loop over prepared polygons", ours, prepared),
        ]
    return found


def _areal(geometry: shapely.Geometry) -> shapely.MultiPolygon:
    return shapely.multipolygons([p for p in shapely.get_parts(geometry) if p.geom_type == "Polygon"])


def main() -> None:
    """Print a table and write it as JSON where asked."""
    asked = rows.arguments(__doc__).parse_args()
    rows.tell(run(), asked.json)


if __name__ == "__main__":
    main()
