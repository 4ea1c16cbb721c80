"""Extraction and reading of patches against their limits: ratios of things measured in one run.

``python -m wsi_assets_tests.benchmarks.bench_patches [--json FILE] [--quick]`` makes its slides, prints one
table and writes it as JSON. What one process does is counted in its processor time, so that other work on the
machine shows less; a note gives the ratio of wall times.
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
from typing import Any

import cv2
import h5py
import numpy as np

from wsi_assets.index import sample_index
from wsi_assets.index.options import SamplingOptions
from wsi_assets.patches import (
    STORE_NAMES,
    ExtractionOptions,
    PatchPlan,
    build_store,
    open_store,
    plan_patches,
)
from wsi_assets.patches.codecs import decode, encoder
from wsi_assets.patches.patch_reader import PatchReader
from wsi_assets.slides import open_tiles
from wsi_assets_tests.benchmarks.rows import Row, arguments, at_least, below, tell
from wsi_assets_tests.patches.made import TILE, entry, grid, index_of, write_mosaic_slide

SIZE = 256
UNIT = "patches/s"
ONE = ExtractionOptions(extraction_workers=1)

_MEMORY = """
import json, sys
from pathlib import Path
from wsi_assets.patches import ExtractionOptions, plan_patches
from wsi_assets.patches.extraction import ExtractTask, extract
from wsi_assets.patches.plan import read_batches
from wsi_assets_tests.benchmarks.rows import peak_memory
plan = plan_patches(json.load(open(sys.argv[1])), ExtractionOptions())
(slide,) = plan.slides
for rows in read_batches(slide.coords, plan.patch_size):
    source = (slide.path, True, slide.fingerprint, slide.level, slide.step)
    task = ExtractTask(rows, *source, slide.coords[rows], plan.content("lmdb"))
    assert not extract(task, Path(sys.argv[2]))[0]
print(peak_memory() / 2**20)
"""


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds of processor time of this process, and of the clock."""
    began, started = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - began, time.perf_counter() - started


def best(times: list[tuple[float, float]]) -> tuple[float, float]:
    """The least of each."""
    return min(processor for processor, _ in times), min(clock for _, clock in times)


def slides(
    folder: Path, count: int, rows: int, columns: int, *, step: float = 1.0, **options: Any
) -> list[dict[str, Any]]:
    """Entries of slides of distinct content whose every patch is stored, ``step`` of its pixels to one."""
    made, (height, width) = [], (int(rows * TILE / step), int(columns * TILE / step))
    for number in range(count):
        path = write_mosaic_slide(folder / f"s{number:03d}.tif", rows, columns, **options)
        path.write_bytes(path.read_bytes() + b"%d" % number)  # slides of one size have one content otherwise
        made.append(entry(path, grid(height, width, SIZE), SIZE, step=step))
    return made


def in_turns(
    plan: PatchPlan, limit: Callable[[], None], folder: Path, repeats: int
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Best times of the build to LMDB and of the limit, in turns so that both see the same machine."""
    builds, limits = [], []
    for turn in range(repeats):
        limits.append(timed(limit))
        target = folder / f"{turn}" / "patches_lmdb"
        builds.append(timed(lambda target=target: build_store(plan, target, "lmdb")))
        shutil.rmtree(target.parent)
    return best(builds), best(limits)


def extraction(folder: Path, levels: int, patches: int, count: int, repeats: int) -> Row:
    """One process against decoding each tile and encoding each patch."""
    rows, columns = {256: (8, 8), 800: (10, 20)}[patches]
    entries = slides(folder / "slides", count, rows, columns, levels=levels)
    plan = plan_patches(index_of(*entries), ONE)
    encode = encoder("jpeg", 95)

    def limit() -> None:
        for one in entries:
            with open_tiles(one["slide_path"], 0, verified=True) as level:
                for place in np.ndindex(rows, columns):
                    tile = level.read_tile(*place)
                    for y, x in np.ndindex(TILE // SIZE, TILE // SIZE):
                        encode(tile[y * SIZE : (y + 1) * SIZE, x * SIZE : (x + 1) * SIZE])

    build, least = in_turns(plan, limit, folder, repeats)
    return at_least(
        f"extraction to LMDB, {levels} level(s), {count} slides of {patches} patches, against decoding and "
        "encoding once",
        len(plan) / build[0],
        len(plan) / least[0],
        UNIT,
        0.75,
        f"wall {least[1] / build[1]:.2f}",
    )


def averaged(folder: Path, step: float, what: str, repeats: int) -> list[Row]:
    """The same at a magnification that no level has; per pixel of the slide, without and with averaging."""
    rows, columns = 10, 20
    entries = slides(folder / "slides", 4, rows, columns, step=step)
    plan = plan_patches(index_of(*entries), ONE)
    encode = encoder("jpeg", 95)
    with PatchReader(entries[0]["slide_path"], 0) as reader:
        patches = [patch.pixels for _, patch in reader.read(plan.slides[0].coords[:64], SIZE, step)]

    def limit() -> None:
        for one in plan.slides:
            with open_tiles(one.path, 0, verified=True) as level:
                for place in np.ndindex(rows, columns):
                    level.read_tile(*place)
            for number in range(len(one)):
                encode(patches[number % len(patches)])

    def by_opencv() -> None:
        source = cv2.resize(patches[0], (round(SIZE * step),) * 2)
        for _ in range(len(plan)):
            cv2.resize(source, (SIZE, SIZE), interpolation=cv2.INTER_AREA)

    build, least = in_turns(plan, limit, folder, repeats)
    also = best([timed(by_opencv) for _ in range(repeats)])
    pixels = len(plan) * (SIZE * step) ** 2 / 1e6
    what, unit = f"extraction at {what} ({step:.3f} pixels to one), against decoding", "MPixel/s"
    wall = f"wall {least[1] / build[1]:.2f}"
    return [
        at_least(f"{what} and encoding once", pixels / build[0], pixels / least[0], unit, 0.75, wall),
        at_least(
            f"{what}, averaging by OpenCV's INTER_AREA and encoding once",
            pixels / build[0],
            pixels / (least[0] + also[0]),
            unit,
            0.75,
            f"wall {(least[1] + also[1]) / build[1]:.2f}",
        ),
    ]


def processes(folder: Path, count: int, repeats: int) -> Row:
    """Two processes against one, starting them included, in turns: much work, little starting."""
    plan = plan_patches(index_of(*slides(folder / "slides", count, 24, 24)), ONE)
    seconds: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(repeats):
        for workers, found in seconds.items():
            path = folder / f"{workers}" / "patches_lmdb"
            started = time.perf_counter()
            build_store(plan, path, "lmdb", workers=workers)
            found.append(time.perf_counter() - started)
            shutil.rmtree(path.parent)
    rates = len(plan) / min(seconds[2]), len(plan) / min(seconds[1])
    return at_least("extraction, 2 processes against 1, wall", *rates, UNIT, 1.7)


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
    folder.mkdir()
    for name, (rows, columns, tiles) in shapes.items():
        path = write_mosaic_slide(folder / f"m{len(found)}.tif", rows, columns, written=tiles)
        patches = grid(rows * TILE, columns * TILE, SIZE)
        if tiles is not None:
            patches = [(y, x, t) for y, x, t in patches if tiles[y // TILE, x // TILE]]
        listing = folder / "index.json"
        listing.write_text(json.dumps(index_of(entry(path, patches, SIZE))))
        (folder / "parts").mkdir(exist_ok=True)
        command = [sys.executable, "-c", _MEMORY, str(listing), str(folder / "parts")]
        megabytes = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        first = found[0].ours if found else None
        found.append(below(f"peak memory of a worker, slide of {name} px", megabytes, "MB", 600, first))
    return found


def updates(folder: Path, count: int) -> list[Row]:
    """One tumor slide added to a sampled cohort: most slides get a few more normal patches."""
    entries = slides(folder / "slides", count + 1, 16, 16)
    for number, one in enumerate(entries):
        one["patches"] = [(y, x, number % 2 == 1 and i < 25) for i, (y, x, _) in enumerate(one["patches"])]
        one["visualisation_coords"] = list(one["patches"])
        one["tissue_fraction"] = [1.0] * len(one["patches"])
        one["tumor_fraction"] = [float(tumor) for *_, tumor in one["patches"]]
    sampling = SamplingOptions(normal_per_tumor=20)
    added = count // 4 * 2 + 1
    before = sample_index(index_of(*entries[:added], *entries[added + 1 :]), sampling)
    after = sample_index(index_of(*entries), sampling)
    unchanged = sum(before.get(name, {}).get("patches") == one["patches"] for name, one in after.items())
    found = []
    for backend, name in STORE_NAMES.items():
        path = folder / name
        full = timed(lambda b=backend, p=path: build_store(plan_patches(before, ONE), p, b))
        reports: list[Any] = []
        steps = []
        for _ in range(2):  # writing back what the full build wrote would count in the first
            steps.append(
                timed(
                    lambda b=backend, p=path, r=reports: r.append(build_store(plan_patches(after, ONE), p, b))
                )
            )
            build_store(plan_patches(before, ONE), path, backend)
        step = best(steps)
        bar, share = {"hdf5": 0.5}.get(backend, 0.12), step[0] / full[0]
        note = f"{reports[0].decoded} of {reports[0].patches} patches read, {unchanged} slides not opened, "
        note += f"wall {step[1] / full[1]:.2f}"
        what = f"one slide added to {count}, through the sampler, {backend}, against a full build"
        found.append(Row(what, step[0], "s", full[0], share, f"< {bar:.0%}", share < bar, note))
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return found


RGB = (SIZE, SIZE, 3)


def reading(folder: Path) -> list[Row]:
    """Random patches from each store, in turns with what the codec or library takes by itself."""
    (row,) = slides(folder / "slides", 1, 12, 12)
    found = []
    for backend, codec in (("lmdb", "jpeg"), ("lmdb", "png"), ("fs", "png"), ("hdf5", "pixels")):
        options = ExtractionOptions(codec="png" if codec == "png" else "jpeg", extraction_workers=1)
        target = folder / f"{codec}" / STORE_NAMES[backend]
        build_store(plan_patches(index_of(row), options), target, backend)
        with open_store(target) as store:
            order = np.random.default_rng(0).permutation(len(store)).tolist()
            if codec == "pixels":
                file = h5py.File(target)
                bare = lambda images=file["images"], order=order: [images[i] for i in order] and None  # noqa: E731
                what = f"random reads, {backend}, against plain h5py"
            else:
                data = [store.encoded(index) for index in order]
                bare = lambda data=data: [decode(value, np.empty(RGB, np.uint8)) for value in data] and None  # noqa: E731
                what = f"random reads, {backend} {codec}, against a bare decode"
            read = lambda store=store, order=order: [store.get(i) for i in order] and None  # noqa: E731
            times: dict[str, list] = {"bare": [], "ours": []}
            for _ in range(5):
                times["bare"].append(timed(bare))
                times["ours"].append(timed(read))
        ours, alone = best(times["ours"])[0], best(times["bare"])[0]
        found.append(at_least(what, len(order) / ours, len(order) / alone, UNIT, 0.9))
    return found


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer slides, fewer repeats")
    asked = parser.parse_args()
    cv2.setNumThreads(1)
    repeats = 2 if asked.quick else 3
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        for levels in (1, 8):
            for patches, count in ((256, 8), (800, 4)):
                folder = Path(name) / f"{levels}_{patches}"
                rows.append(extraction(folder, levels, patches, count, repeats))
        for step, what in ((1 / 0.2328 / 4, "10x, levels of 0.23 um"), (0.5 / 0.243, "20x, 0.243 um")):
            rows += averaged(Path(name) / f"{step}", step, what, repeats)
        rows.append(processes(Path(name) / "processes", 2 if asked.quick else 16, repeats))
        rows += memory(Path(name) / "memory")
        for count in (10,) if asked.quick else (40, 100):
            rows += updates(Path(name) / f"update{count}", count)
            shutil.rmtree(Path(name) / f"update{count}")
        rows += reading(Path(name) / "reading")
    tell(rows, asked.json)


if __name__ == "__main__":
    main()
