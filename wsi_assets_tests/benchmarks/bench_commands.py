"""Whole commands as a user waits for them: from slide files to stored patches and to the index.

    python -m wsi_assets_tests.benchmarks.bench_commands [--slides 4 20] [--side 16384] [--json FILE]

Slides are JPEG pyramids, a textured disk of tissue on glass; of many, most are copies of the first four.
``wsi-assets run`` starts in an empty folder each time, in turns with other programs on the same slides and
cores:

* hs2p (coordinates and tiles), where ``WSI_BENCH_HS2P`` names its command, e.g. ``/opt/hs2p/bin/hs2p``;
* CLAM's segmentation and patching, where ``WSI_BENCH_CLAM`` is the command of its script, e.g.
  ``/opt/clam/bin/python /opt/clam/create_patches_fp.py``;
* always our own ``scripts.build_index`` and ``scripts.save_patches``: the same work without Dagster.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from wsi_assets_tests.benchmarks import rows
from wsi_assets_tests.benchmarks.bench_control import stained
from wsi_assets_tests.slides.made import halved, write_pyramid

PATCH, LEVEL, MPP, TURNS = 256, 1, 0.25, 3
DRAWN = 4
"""Slides that are drawn, which takes longer than all that is measured; more are copies of these."""

LEAST_TISSUE = 0.01
"""As hs2p asks for by default, so that both store about the same tiles."""

HS2P = """
csv: {folder}/slides.csv
output_dir: {out}
save_tiles: true
tiling:
  backend: openslide
  params: {{requested_spacing_um: {spacing}, requested_tile_size_px: {patch}, tolerance: 0.05, overlap: 0.0}}
  masks: {{min_coverage: {{background: null, tissue: {least}}}}}
speed: {{num_workers: {cores}}}
"""


def make_slides(folder: Path, count: int, side: int) -> None:
    """``images/*.tif``, every second one annotated, and the table that hs2p reads."""
    from shapely import box

    from wsi_assets.demo.writing import write_asap

    images, annotations = folder / "images", folder / "annotations"
    images.mkdir()
    annotations.mkdir()
    table = ["sample_id,image_path"]
    for number in range(count):
        name = f"slide_{number:03d}"
        if number < DRAWN:
            levels = [np.asarray(stained(side, number))]
            while len(levels) < 6:
                levels.append(halved(levels[-1], 1))
            write_pyramid(images / f"{name}.tif", levels, tile=256, mpp=MPP)
        else:
            shutil.copyfile(images / f"slide_{number % DRAWN:03d}.tif", images / f"{name}.tif")
            with (images / f"{name}.tif").open("ab") as copy:
                copy.write(name.encode())  # a file of other contents: no reader of TIFF looks there
        table.append(f"{name},{images / name}.tif")
        if number % 2 == 0:
            write_asap(annotations / f"{name}.xml", [("_0", box(*(np.array([0.4, 0.4, 0.5, 0.5]) * side)))])
    (folder / "slides.csv").write_text("\n".join(table) + "\n")


def executed(*words: str | Path) -> None:
    """Run a command of another process quietly; its whole output is shown if it fails."""
    # Compiled modules are kept, as they are for a user.
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("WSI_", "DAGSTER", "PYTHONDONTWRITEBYTECODE"))
    }
    done = subprocess.run(
        [str(word) for word in words],
        env=environment | {"WANDB_MODE": "disabled"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{words[0]} ended with status {done.returncode}:\n{done.stdout}")


class Programs:
    """The commands that are timed; each starts in an empty folder ``out``."""

    def __init__(self, folder: Path):
        self.folder, self.out = folder, folder / "out"
        self.sides = {"images": folder / "images", "annotations": folder / "annotations"}

    def run(self, upto: str) -> None:
        parameters = {"patch_size": PATCH, "min_tissue": LEAST_TISSUE, "normal_per_tumor": "none"}
        given = [word for name, value in parameters.items() for word in ("--set", f"{name}={value}")]
        folders = [word for name, path in self.sides.items() for word in (f"--{name}", path)]
        storage = ("--storage", self.out / "storage")
        command = ("-m", "wsi_assets.cli", "run", "--level", LEVEL, "--upto", upto)
        executed(sys.executable, *command, *folders, *storage, *given)

    def scripts(self, upto: str) -> None:
        executed(
            *(sys.executable, "-m", "wsi_assets.scripts.build_index", "--target_level", LEVEL),
            *("--images_dir", self.sides["images"], "--annotations_dir", self.sides["annotations"]),
            *("--patch_size", PATCH, "--min_tissue", LEAST_TISSUE, "--out_dir", self.out),
        )
        if upto == "patch_store":
            index = self.out / f"index_level_{LEVEL}.pkl"
            stored = ("--backend", "lmdb", "--lmdb_path", self.out / "patches_lmdb")
            executed(sys.executable, "-m", "wsi_assets.scripts.save_patches", "--index_file", index, *stored)

    def hs2p(self) -> None:
        values = {"spacing": MPP * 2**LEVEL, "patch": PATCH, "least": LEAST_TISSUE}
        cores = len(os.sched_getaffinity(0))
        config = self.out / "hs2p.yaml"
        config.write_text(HS2P.format(folder=self.folder, out=self.out, cores=cores, **values))
        executed(*shlex.split(os.environ["WSI_BENCH_HS2P"]), "--skip-datetime", config)

    def clam(self) -> None:
        executed(
            *shlex.split(os.environ["WSI_BENCH_CLAM"]),
            *("--source", self.sides["images"], "--save_dir", self.out, "--patch_level", LEVEL),
            *("--patch_size", PATCH, "--step_size", PATCH, "--seg", "--patch"),
        )


def in_turns(commands: Mapping[str, Callable[[], None]], out: Path) -> dict[str, float]:
    """Name -> the best of some wall times, in seconds."""
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(TURNS):
        for name, command in commands.items():
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir()
            started = time.perf_counter()
            command()
            seconds[name].append(time.perf_counter() - started)
    return {name: min(times) for name, times in seconds.items()}


def measure(folder: Path, slides: int, side: int) -> list[rows.Row]:
    """Rows of both commands on one cohort."""
    make_slides(folder, slides, side)
    programs, found = Programs(folder), []
    many = f"{slides} slides of {side:,} px"
    for upto, what in (("patch_store", "to stored patches"), ("slide_index", "to the index")):
        commands: dict[str, Callable[[], None]] = {
            "ours": lambda upto=upto: programs.run(upto),
            "our scripts": lambda upto=upto: programs.scripts(upto),
        }
        if upto == "patch_store" and "WSI_BENCH_HS2P" in os.environ:
            commands["hs2p"] = programs.hs2p
        if upto == "slide_index" and "WSI_BENCH_CLAM" in os.environ:
            commands["CLAM"] = programs.clam
        seconds = in_turns(commands, programs.out)
        ours = seconds.pop("ours")
        for name, theirs in seconds.items():
            bar = {"hs2p": 2.0, "CLAM": 1.0 if slides >= 20 else None}.get(name)
            found.append(rows.times_as_fast(f"{many}, {what}, against {name}", ours, theirs, bar))
    return found


def main() -> None:
    """Print a table and write it as JSON where asked."""
    parser = rows.arguments(__doc__)
    parser.add_argument("--slides", type=int, nargs="+", default=[4, 20])
    parser.add_argument("--side", type=int, default=16_384)
    asked = parser.parse_args()
    found = []
    for slides in asked.slides:
        with tempfile.TemporaryDirectory() as folder:
            found += measure(Path(folder), slides, asked.side)
    rows.tell(found, asked.json)


if __name__ == "__main__":
    main()
