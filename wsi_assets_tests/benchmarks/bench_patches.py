"""Extraction and reading of patches against their limits: ratios of things measured in one run.

``python -m wsi_assets_tests.benchmarks.bench_patches [--json FILE] [--quick]`` makes its slides, prints one
table and writes it as JSON.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import lmdb
import numpy as np
import openslide

from wsi_assets.patches import STORE_NAMES, ExtractionOptions, build_store, open_store, plan_patches
from wsi_assets.patches.codecs import decoder, encoder
from wsi_assets.slides import open_tiles
from wsi_assets_tests.benchmarks.rows import Row, arguments, at_least, below, tell
from wsi_assets_tests.patches.made import TILE, entry, grid, write_mosaic_slide

SIZE = 256
UNIT = "patches/s"
_CONSTANT = 0.25
"""Seconds an update may take however little changed: opening, syncing and publishing files."""

_MEMORY = """
import json, sys
from wsi_assets.patches.extract import extract, Task
from wsi_assets.patches.plan import plan_patches, part_positions
from wsi_assets.patches.options import ExtractionOptions
from wsi_assets_tests.benchmarks.rows import peak_memory
entries = json.load(open(sys.argv[1]))
plan = plan_patches(entries, ExtractionOptions())
slide = plan.slides[0]
for positions in part_positions(slide, plan.patch_size):
    extract(Task(slide.path, slide.fingerprint, 0, plan.patch_size, slide.coords[positions], "jpeg", 95, 0.5))
print(peak_memory() / 2**20)
"""


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def extraction(folder: Path, tiles: int, repeats: int) -> list[Row]:
    """One core: the engine, the limit and the plain loop, taken in turns so that all see the same machine."""
    path = write_mosaic_slide(folder / "slide.tif", tiles, tiles)
    side = tiles * TILE
    row = entry(path, grid(side, side, SIZE), SIZE)
    plan = plan_patches([row], ExtractionOptions(extraction_workers=1))
    encode = encoder("jpeg", 95)

    def limit() -> None:
        level = open_tiles(path, 0)
        for _, _, tile in level.read_tiles((r, c) for r in range(tiles) for c in range(tiles)):
            for y in range(0, TILE, SIZE):
                for x in range(0, TILE, SIZE):
                    encode(tile[y : y + SIZE, x : x + SIZE])
        level.close()

    few = row["patches"][:: max(1, len(row["patches"]) // 60)]

    def plain_loop() -> None:
        import io

        with (
            openslide.OpenSlide(path) as slide,
            lmdb.open(str(folder / f"plain{time.time_ns()}"), map_size=1 << 30) as store,
        ):
            for number, (y, x, _) in enumerate(few):
                stream = io.BytesIO()
                slide.read_region((x, y), 0, (SIZE, SIZE)).convert("RGB").save(stream, "PNG")
                with store.begin(write=True) as transaction:
                    transaction.put(b"%d" % number, stream.getvalue())

    count = [0]

    def engine() -> None:
        count[0] += 1
        build_store(plan, folder / f"engine{count[0]}" / "patches_lmdb", "lmdb")

    engine()  # imports
    rates: dict[str, list[float]] = {"limit": [], "engine": [], "plain": []}
    for _ in range(repeats):
        rates["limit"].append(len(plan) / timed(limit))
        rates["engine"].append(len(plan) / timed(engine))
        rates["plain"].append(len(few) / timed(plain_loop))
    best = {name: max(values) for name, values in rates.items()}
    what = "extraction to LMDB, one core, against"
    return [
        at_least(
            f"{what} decoding each tile and encoding each patch once",
            best["engine"],
            best["limit"],
            UNIT,
            0.75,
        ),
        at_least(
            f"{what} a plain loop (read_region, Pillow PNG, one put each)",
            best["engine"],
            best["plain"],
            UNIT,
            20,
        ),
    ]


def whole_tiles(folder: Path, tiles: int, repeats: int) -> Row:
    """A slide whose tiles are the patches, as of many scanners, against one with larger tiles."""
    rates: dict[int, list[float]] = {SIZE: [], TILE: []}
    plans = {}
    for tile in rates:
        side = tiles * TILE
        path = write_mosaic_slide(folder / f"tile{tile}.tif", side // tile, side // tile, tile=tile)
        row = entry(path, grid(side, side, SIZE), SIZE)
        plans[tile] = plan_patches([row], ExtractionOptions(extraction_workers=1))
    for turn in range(repeats):
        for tile, plan in plans.items():
            target = folder / f"whole{tile}_{turn}" / "patches_lmdb"
            rates[tile].append(len(plan) / timed(lambda p=plan, t=target: build_store(p, t, "lmdb")))
    what = f"patches that are whole tiles of {SIZE} px, against those cut from tiles of {TILE} px"
    ours, against = max(rates[SIZE]), max(rates[TILE])
    return Row(what, ours, UNIT, against, ours / against)


def processes(folder: Path, tiles: int, slides: int, repeats: int) -> Row:
    """Two processes against one, starting them included, in turns: much work, little starting."""
    side = tiles * TILE
    rows = [
        entry(write_mosaic_slide(folder / f"p{i}.tif", tiles, tiles), grid(side, side, SIZE), SIZE)
        for i in range(slides)
    ]
    rates: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(repeats):
        for workers, found in rates.items():
            plan = plan_patches(rows, ExtractionOptions(extraction_workers=workers))
            path = folder / f"workers{workers}" / "patches_lmdb"
            found.append(len(plan) / timed(lambda plan=plan, path=path: build_store(plan, path, "lmdb")))
            shutil.rmtree(path)
    return at_least("extraction, 2 processes against 1", max(rates[2]), max(rates[1]), UNIT, 1.8)


def memory(folder: Path) -> list[Row]:
    """Peak resident memory of a process that extracts a narrow, a wide and a huge sparse slide."""
    written = np.zeros((195, 195), bool)
    written[::13, ::17] = True
    shapes = {
        "2,000 x 24,576": (48, 4, None),
        "100,000 x 1,024": (2, 195, None),
        "100,000 x 100,000, sparse": (195, 195, written),
    }
    found: list[Row] = []
    for name, (rows, columns, tiles) in shapes.items():
        path = write_mosaic_slide(folder / f"m{len(found)}.tif", rows, columns, written=tiles)
        patches = grid(rows * TILE, columns * TILE, SIZE)
        if tiles is not None:
            patches = [(y, x, t) for y, x, t in patches if tiles[y // TILE, x // TILE]]
        listing = folder / "entries.json"
        listing.write_text(json.dumps([entry(path, patches, SIZE)]))
        command = [sys.executable, "-c", _MEMORY, str(listing)]
        megabytes = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        first = found[0].ours if found else None
        found.append(below(f"peak memory of a worker, slide of {name} px", megabytes, "MB", 600, first))
    return found


def incremental(folder: Path, slides: int) -> list[Row]:
    """One slide added to a store of many, in the middle of the order, so that half of the keys shift."""
    side = 4 * TILE
    rows = []
    for i in range(slides + 1):
        path = write_mosaic_slide(folder / f"s{i:03d}.tif", 4, 4)
        path.write_bytes(path.read_bytes() + b"%d" % i)  # slides of one size have one content otherwise
        rows.append(entry(path, grid(side, side, SIZE), SIZE))
    options = ExtractionOptions(extraction_workers=1)
    added = slides // 2
    before = rows[:added] + rows[added + 1 :]
    found = []
    for backend, name in STORE_NAMES.items():
        path = folder / "incremental" / name
        full = timed(lambda b=backend, p=path: build_store(plan_patches(before, options), p, b))
        reports = []
        plan = plan_patches(rows, options)
        step = timed(lambda b=backend, p=path, n=plan, r=reports: r.append(build_store(n, p, b)))
        met = reports[0].decoded == 64 and step < 0.03 * full + _CONSTANT
        found.append(
            Row(
                f"one slide added to {slides}, {backend}, against a full build",
                step,
                "s",
                full,
                step / full,
                f"< 3 % and {_CONSTANT} s",
                met,
                f"{reports[0].decoded} patches decoded",
            )
        )
    return found


def reading(folder: Path, tiles: int) -> list[Row]:
    """Random patches from each store against decoding the same bytes from memory, in turns."""
    path = folder / "slide.tif"
    side = tiles * TILE
    row = entry(path, grid(side, side, SIZE)[:512], SIZE)
    found = []
    kinds = [("lmdb", codec) for codec in ("jpeg", "png", "qoi", "raw")] + [("hdf5", "pixels"), ("fs", "png")]
    for backend, codec in kinds:
        options = ExtractionOptions(codec=codec if backend == "lmdb" else "jpeg", extraction_workers=1)
        target = folder / f"read_{codec}" / STORE_NAMES[backend]
        build_store(plan_patches([row], options), target, backend)
        with open_store(target) as store:
            order = np.random.default_rng(0).permutation(len(store)).tolist()
            data = [store.encoded(index) for index in order]
            decode = decoder(store.info["codec"], SIZE)
            bare, got = [], []
            for _ in range(5):
                bare.append(timed(lambda d=decode, data=data: [d(value) for value in data] and None))
                got.append(timed(lambda s=store, o=order: [s.get(index) for index in o] and None))
        what = f"random reads, {backend} {codec}, against a bare decode"
        found.append(at_least(what, len(order) / min(got), len(order) / min(bare), UNIT, 0.9))
    return found


def codecs(folder: Path) -> list[Row]:
    """What each codec costs: the ground for the choice of defaults."""
    level = open_tiles(folder / "slide.tif", 0)
    tiles = [level.read_tile(0, column) for column in range(8)]
    patches = [np.ascontiguousarray(tile[y : y + SIZE, :SIZE]) for tile in tiles for y in (0, SIZE)]
    level.close()
    found = []
    for codec in ("jpeg", "png", "qoi", "raw"):
        encode, decode = encoder(codec, 95), decoder(codec, SIZE)
        coded = [encode(patch) for patch in patches]
        writes = min(timed(lambda e=encode: [e(patch) for patch in patches]) for _ in range(4))
        reads = min(timed(lambda d=decode, c=coded: [d(value) for value in c]) for _ in range(4))
        kilobytes = sum(map(len, coded)) / len(coded) / 1000
        note = f"{kilobytes:.0f} KB a patch"
        found.append(Row(f"codec {codec}, encoding", len(patches) / writes, UNIT, note=note))
        found.append(Row(f"codec {codec}, decoding", len(patches) / reads, UNIT))
    return found


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--quick", action="store_true", help="smaller slides, fewer repeats")
    asked = parser.parse_args()
    cv2.setNumThreads(1)
    tiles, repeats = (12, 2) if asked.quick else (24, 4)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = extraction(folder, tiles, repeats)
        rows.append(processes(folder, tiles, 2 if asked.quick else 16, repeats))
        rows += memory(folder)
        rows += incremental(folder, 30 if asked.quick else 100)
        rows += reading(folder, tiles)
        rows.append(whole_tiles(folder, tiles, repeats))
        rows += codecs(folder)
    tell(rows, asked.json)


if __name__ == "__main__":
    main()
