"""What watching many slides costs when nothing happens, what starting costs, and what a small slide costs.

    python -m wsi_assets_tests.benchmarks.bench_control [--slides 10000] [--small 100] [--json FILE]

So many slides, every third annotated, are registered in a Dagster home on disk (sqlite) and their regions
recorded as made: some minutes of preparation. Then the sensor polls and the automation conditions are
evaluated as the daemon does it. Polls stand beside a bare listing of the folders with size and time of every
file, loading the definitions beside importing Dagster. Small slides go through the command line's run, from
registering to the index.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import dagster as dg

from wsi_assets.orchestration.artefact import slide_artefacts
from wsi_assets.orchestration.build import build_definitions
from wsi_assets.orchestration.instance import open_instance
from wsi_assets.orchestration.partitions import SLIDES
from wsi_assets.orchestration.resources import SlideFolderResource
from wsi_assets.orchestration.sensors import build_slide_folder_sensor
from wsi_assets.orchestration.settings import Settings
from wsi_assets.orchestration.slide_folder import observe_all, register
from wsi_assets.orchestration.storage import StorageResource
from wsi_assets.slides import find_slides
from wsi_assets_tests.benchmarks import rows

REPEATS = 5


def timed(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def add_slide(settings: Settings, number: int) -> None:
    name = f"slide_{number:05d}"
    (settings.images_dir / f"{name}.tif").write_text(name)
    if number % 3 == 0:
        (settings.annotations_dir / f"{name}.xml").write_text(name)


def make_cohort(settings: Settings, instance: dg.DagsterInstance, slides: int) -> None:
    """Slide files, their partitions and observations, and regions recorded as made."""
    for number in range(slides):
        add_slide(settings, number)
    slides = find_slides(settings.images_dir, settings.annotations_dir).slides
    known = {slide.slide_id: {} for slide in slides}
    seen, _ = observe_all(slides, known)
    register(instance, StorageResource.of(settings), known, seen, known)
    for slide_id in instance.get_dynamic_partitions(SLIDES.name):
        for artefact in slide_artefacts():
            instance.report_runless_asset_event(dg.AssetMaterialization(artefact.key, partition=slide_id))


class Polls:
    """The slide sensor as the daemon runs it: its cursor is kept, what it finds is stored."""

    def __init__(self, settings: Settings, instance: dg.DagsterInstance):
        self.instance = instance
        self.sensor = build_slide_folder_sensor(settings.poll_seconds)
        self.resources = {
            "folder": SlideFolderResource.of(settings),
            "storage": StorageResource(storage_dir=str(settings.storage_dir)),
        }
        self.cursor: str | None = None

    def seconds(self) -> float:
        """One poll; what it found is stored after the clock stopped."""
        context = dg.build_sensor_context(
            instance=self.instance, cursor=self.cursor, resources=self.resources
        )
        started = time.perf_counter()
        result = self.sensor(context)
        seconds = time.perf_counter() - started
        if isinstance(result, dg.SensorResult):
            for event in result.asset_events:
                self.instance.report_runless_asset_event(event)
            for request in result.dynamic_partitions_requests:
                self.instance.add_dynamic_partitions(SLIDES.name, list(request.partition_keys))
            self.cursor = result.cursor
        return seconds


def polls(settings: Settings, instance: dg.DagsterInstance, slides: int) -> list[rows.Row]:
    """The sensor: a usual poll, one without a cursor, and the two that take in a slide."""

    def listing() -> None:
        for folder in (settings.images_dir, settings.annotations_dir):
            with os.scandir(folder) as entries:
                for entry in entries:
                    entry.stat()

    sensor = Polls(settings, instance)
    forgetful = sensor.seconds()
    pairs = [(sensor.seconds(), timed(listing)) for _ in range(REPEATS)]
    usual, bare = (min(pair[side] for pair in pairs) for side in (0, 1))
    add_slide(settings, slides)
    waits, taken = sensor.seconds(), sensor.seconds()
    known = instance.get_dynamic_partitions(SLIDES.name)
    assert len(known) == slides + 1, "the new slide was not taken in"
    many = f"{slides:,} slides registered"
    return [
        rows.below(f"{many}, one poll with nothing new, against a bare listing", usual, "s", 5, against=bare),
        rows.Row(f"{many}, a poll without a cursor", forgetful, "s"),
        rows.Row(f"{many}, a poll that sees one new slide", waits, "s"),
        rows.Row(f"{many}, the poll that takes it in", taken, "s"),
    ]


def ticks(settings: Settings, instance: dg.DagsterInstance, slides: int) -> list[rows.Row]:
    """The automation conditions."""
    definitions = build_definitions(settings)
    cursor, seconds = None, []
    for _ in range(3):
        # As the daemon does it, a tick reads the keys once; Dagster's function for tests would 350 times.
        once = functools.cache(instance.get_dynamic_partitions)
        with mock.patch.object(instance, "get_dynamic_partitions", once):
            started = time.perf_counter()
            result = dg.evaluate_automation_conditions(definitions, instance, cursor=cursor)
            seconds.append(time.perf_counter() - started)
        cursor = result.cursor
        assert result.total_requested == 0, "everything was made, yet something was asked for"
    many = f"{slides:,} slides registered"
    return [
        rows.below(f"{many}, an automation tick with nothing new", min(seconds[1:]), "s", 5),
        rows.Row(f"{many}, the first automation tick of all", seconds[0], "s"),
    ]


SMALL_COHORT = """
import sys, time
from pathlib import Path
from wsi_assets.orchestration.cli_run import CommandLineRun
from wsi_assets.orchestration.config import parse_settings
from wsi_assets.orchestration.instance import isolated_home, open_instance
settings = isolated_home(Path(sys.argv[1]))
with open_instance(settings) as instance:
    run = CommandLineRun(instance, settings, parse_settings([]))
    assert len(run.run_slides().made) == int(sys.argv[2])
    assert run.run_level("0", "slide_index").failure is None
"""
"""What `wsi-assets run --level 0 --upto slide_index` does."""


def stained(side: int, seed: int) -> Any:
    """A pink, softly textured disk on glass: what compresses like tissue, (side, side, 3) uint8."""
    import cv2
    import numpy as np

    noise = np.random.default_rng(seed).normal(0, 60, (side, side)).astype(np.float32)
    texture = cv2.GaussianBlur(noise, (0, 0), 3)[..., None]
    y, x = np.ogrid[:side, :side]
    tissue = ((y - side / 2) ** 2 + (x - side / 2) ** 2 < (side / 2.6) ** 2)[..., None]
    return np.where(tissue, np.array([205, 130, 180]) + 4 * texture, 243).clip(0, 255).astype(np.uint8)


def small_slides(slides: int) -> list[rows.Row]:
    """Wall time a small slide, every third annotated, of a whole command in a new home."""
    from shapely import box

    from wsi_assets.demo.writing import write_asap
    from wsi_assets_tests.slides.made import halved, write_pyramid

    with tempfile.TemporaryDirectory() as folder:
        for name in ("images", "annotations"):
            Path(folder, name).mkdir()
        for number in range(slides):
            whole = stained(1024, number)
            file = Path(folder, "images", f"slide_{number:03d}.tif")
            write_pyramid(file, [whole, halved(whole, 1), halved(whole, 2)], tile=256, mpp=0.25)
            if number % 3 == 0:
                write_asap(
                    Path(folder, "annotations", f"slide_{number:03d}.xml"), [("_0", box(9, 9, 500, 600))]
                )
        command = [sys.executable, "-W", "ignore", "-c", SMALL_COHORT, folder, str(slides)]
        seconds = timed(lambda: subprocess.run(command, check=True))
    what = f"{slides} slides of 1,024 px, from registering to the index, a slide"
    return [rows.below(what, seconds / slides, "s", 0.3)]


def starting() -> list[rows.Row]:
    """Processes of their own, from a warm disk."""

    def run(*words: str) -> float:
        return timed(lambda: subprocess.run([sys.executable, *words], capture_output=True, check=True))

    sides = {
        "definitions": ("-c", "import wsi_assets.definitions"),
        "dagster": ("-c", "import dagster"),
        "help": ("-m", "wsi_assets.cli", "--help"),
        "python": ("-c", ""),
    }
    turns = [{name: run(*words) for name, words in sides.items()} for _ in range(1 + REPEATS)][1:]
    best = {name: min(turn[name] for turn in turns) for name in sides}
    return [
        rows.below(
            "loading the definitions, against importing Dagster",
            *(best["definitions"], "s", 3),
            against=best["dagster"],
        ),
        rows.below(
            "wsi-assets --help, against an empty Python", *(best["help"], "s", 0.5), against=best["python"]
        ),
    ]


def main() -> None:
    parser = rows.arguments(__doc__)
    parser.add_argument("--slides", type=int, default=10_000)
    parser.add_argument("--small", type=int, default=100)
    asked = parser.parse_args()
    for name in [key for key in os.environ if key.startswith(("WSI_", "DAGSTER_", "MLFLOW"))]:
        del os.environ[name]
    # Thirty thousand records are written in memory, in half the time; what is measured is on disk.
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory(dir=memory) as scratch:
        for name in ("images", "annotations"):
            Path(folder, name).mkdir()
        settings = Settings.from_environment({}, home=Path(folder))
        os.environ["DAGSTER_HOME"] = scratch
        with open_instance(settings) as instance:
            make_cohort(settings, instance, asked.slides)
        os.environ["DAGSTER_HOME"] = shutil.copytree(scratch, Path(folder) / "dagster_home").as_posix()
        with open_instance(settings) as instance:
            found = ticks(settings, instance, asked.slides)
            found = polls(settings, instance, asked.slides) + found
    rows.tell(found + starting() + small_slides(asked.small), asked.json)


if __name__ == "__main__":
    main()
