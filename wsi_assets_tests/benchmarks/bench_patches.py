"""Extraction and reading of patches against their limits: ratios of things measured in one run.

``python -m wsi_assets_tests.benchmarks.bench_patches [--json FILE] [--quick]`` makes its slides, prints one
table and writes it as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
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
from wsi_assets_tests.patches.made import TILE, entry, grid, write_mosaic_slide

SIZE = 256
_CONSTANT = 0.25
"""Seconds an update may take however little changed: opening, syncing and publishing files."""

Row = dict[str, object]

_MEMORY = """
import json, resource, sys
from wsi_assets.patches.extract import extract, Task
from wsi_assets.patches.plan import plan_patches, part_positions
from wsi_assets.patches.options import ExtractionOptions
entries = json.load(open(sys.argv[1]))
plan = plan_patches(entries, ExtractionOptions())
slide = plan.slides[0]
for positions in part_positions(slide, plan.patch_size):
    extract(Task(slide.path, slide.fingerprint, 0, plan.patch_size, slide.coords[positions], "jpeg", 95, 0.5))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
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
        source = open_tiles(path)
        level = source.level(0)
        for _, _, tile in level.read_tiles((r, c) for r in range(tiles) for c in range(tiles)):
            for y in range(0, TILE, SIZE):
                for x in range(0, TILE, SIZE):
                    encode(tile[y : y + SIZE, x : x + SIZE])
        source.close()

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
    return [
        {"what": "decode each tile once, encode each patch once", "rate": best["limit"]},
        result(
            "extraction to LMDB, one core, against that", best["engine"], best["engine"] / best["limit"], 0.75
        ),
        result("the same against a plain loop", best["engine"], best["engine"] / best["plain"], 20),
    ]


def processes(folder: Path, tiles: int, slides: int) -> Row:
    """Two processes against one, starting them included: much work, little starting."""
    side = tiles * TILE
    rows = [
        entry(write_mosaic_slide(folder / f"p{i}.tif", tiles, tiles), grid(side, side, SIZE), SIZE)
        for i in range(slides)
    ]
    rates = {}
    for workers in (1, 2):
        plan = plan_patches(rows, ExtractionOptions(extraction_workers=workers))
        path = folder / f"workers{workers}" / "patches_lmdb"
        rates[workers] = len(plan) / timed(lambda plan=plan, path=path: build_store(plan, path, "lmdb"))
    return result("2 processes against 1", rates[2], rates[2] / rates[1], 1.8)


def memory(folder: Path) -> list[Row]:
    """Peak resident memory of a process that extracts a narrow, a wide and a huge sparse slide."""
    written = np.zeros((195, 195), bool)
    written[::13, ::17] = True
    shapes = {
        "2,000 x 24,576": (48, 4, None),
        "100,000 x 1,024": (2, 195, None),
        "100,000 x 100,000, sparse": (195, 195, written),
    }
    found = []
    for name, (rows, columns, tiles) in shapes.items():
        path = write_mosaic_slide(folder / f"m{len(found)}.tif", rows, columns, written=tiles)
        patches = grid(rows * TILE, columns * TILE, SIZE)
        if tiles is not None:
            patches = [(y, x, t) for y, x, t in patches if tiles[y // TILE, x // TILE]]
        listing = folder / "entries.json"
        listing.write_text(json.dumps([entry(path, patches, SIZE)]))
        command = [sys.executable, "-c", _MEMORY, str(listing)]
        megabytes = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        row = {
            "what": f"peak memory of a worker, {name} px",
            "megabytes": megabytes,
            "bar": "< 600",
        }
        found.append({**row, "met": megabytes < 600})
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
        what = f"one slide added to {slides}, {backend}: share of a full build"
        met = reports[0].decoded == 64 and step < 0.03 * full + _CONSTANT
        row = {"what": what, "seconds": step, "full_seconds": full, "ratio": step / full, "met": met}
        found.append({**row, "decoded": reports[0].decoded, "bar": f"< 0.03 and {_CONSTANT} s"})
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
        rate = len(order) / min(got)
        found.append(
            result(f"random reads, {backend} {codec}, against a bare decode", rate, min(bare) / min(got), 0.9)
        )
    return found


def codecs(folder: Path) -> list[Row]:
    """What each codec costs: the ground for the choice of defaults."""
    source = open_tiles(folder / "slide.tif")
    tiles = [source.level(0).read_tile(0, column) for column in range(8)]
    patches = [np.ascontiguousarray(tile[y : y + SIZE, :SIZE]) for tile in tiles for y in (0, SIZE)]
    source.close()
    found = []
    for codec in ("jpeg", "png", "qoi", "raw"):
        encode, decode = encoder(codec, 95), decoder(codec, SIZE)
        coded = [encode(patch) for patch in patches]
        writes = min(timed(lambda e=encode: [e(patch) for patch in patches]) for _ in range(4))
        reads = min(timed(lambda d=decode, c=coded: [d(value) for value in c]) for _ in range(4))
        found.append(
            {
                "what": f"codec {codec}",
                "rate": len(patches) / writes,
                "decode_rate": len(patches) / reads,
                "kilobytes": sum(map(len, coded)) / len(coded) / 1000,
            }
        )
    return found


def result(what: str, rate: float, ratio: float, bar: float) -> Row:
    return {"what": what, "rate": rate, "ratio": ratio, "bar": f">= {bar}", "met": ratio >= bar}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the table here")
    parser.add_argument("--quick", action="store_true", help="smaller slides, fewer repeats")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    tiles = 12 if arguments.quick else 24
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = extraction(folder, tiles, 2 if arguments.quick else 4)
        rows.append(processes(folder, tiles, 2 if arguments.quick else 16))
        rows += memory(folder)
        rows += incremental(folder, 30 if arguments.quick else 100)
        rows += reading(folder, tiles)
        rows += codecs(folder)
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    table = {"machine": machine, "load": os.getloadavg()[0], "rows": rows}
    print(f"{'what':62} {'patches/s':>10} {'ratio':>8}  bar")
    for row in rows:
        rate = (
            f"{row['rate']:,.0f}"
            if "rate" in row
            else f"{row['megabytes']:.0f} MB"
            if "megabytes" in row
            else ""
        )
        ratio = f"{row['ratio']:.3f}" if "ratio" in row else ""
        if "decode_rate" in row:
            ratio, rate = f"{row['kilobytes']:.0f} KB", f"{rate} / {row['decode_rate']:,.0f}"
        verdict = "" if "met" not in row else "met" if row["met"] else "MISSED"
        print(f"{row['what']:62} {rate:>10} {ratio:>8}  {row.get('bar', '')} {verdict}")
    if arguments.json:
        arguments.json.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
