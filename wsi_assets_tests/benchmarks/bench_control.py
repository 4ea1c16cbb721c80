"""What looking after many slides costs when nothing happens, and what starting costs.

    python -m wsi_assets_tests.benchmarks.bench_control [--slides 10000] [--json FILE]

So many slides, every third outlined, are registered in a Dagster home on disk (sqlite) and their regions
recorded as made: some minutes of preparation. Then the sensor looks and the automation conditions are
evaluated as the daemon does it. Looks stand beside a bare listing of the folders with size and time of every
file, loading the definitions beside importing Dagster.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg

from wsi_assets.orchestration import catalog
from wsi_assets.orchestration.build import build_definitions
from wsi_assets.orchestration.home import open_instance
from wsi_assets.orchestration.lineage import DATA_VERSION_TAG, MADE_FROM_TAG, version_of
from wsi_assets.orchestration.partitions import SLIDES
from wsi_assets.orchestration.registry import known_sightings, register
from wsi_assets.orchestration.resources.library import SlideLibrary
from wsi_assets.orchestration.sensors import build_slide_folder
from wsi_assets.orchestration.settings import Settings
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
    """Slide files, their partitions and observations, and regions recorded as made from them."""
    for number in range(slides):
        add_slide(settings, number)
    register(instance, find_slides(settings.images_dir, settings.annotations_dir).slides, print)
    for slide_id, seen in known_sightings(instance, instance.get_dynamic_partitions(SLIDES.name)).items():
        tissue = version_of("tissue_regions", {}, seen.slide_version)
        outlines = version_of("annotation_regions", {}, [seen.annotation_version, tissue])
        made = (("tissue_regions", tissue, seen.slide_version),)
        made += (("annotation_regions", outlines, seen.annotation_version),)
        for asset, version, made_from in made:
            instance.report_runless_asset_event(
                dg.AssetMaterialization(
                    asset,
                    partition=slide_id,
                    tags={DATA_VERSION_TAG: version, MADE_FROM_TAG: made_from},
                    metadata={"parameters": {}},
                )
            )


class Looks:
    """The slide sensor as the daemon runs it: its memory is kept, what it finds is stored."""

    def __init__(self, settings: Settings, instance: dg.DagsterInstance):
        self.instance = instance
        self.sensor = build_slide_folder(settings.look_every_seconds)
        self.library = SlideLibrary.of(settings)
        self.memory: str | None = None

    def seconds(self) -> float:
        """One look; what it found is stored after the clock stopped."""
        context = dg.build_sensor_context(
            instance=self.instance, cursor=self.memory, resources={"library": self.library}
        )
        started = time.perf_counter()
        result = self.sensor(context)
        seconds = time.perf_counter() - started
        if isinstance(result, dg.SensorResult):
            for event in result.asset_events:
                self.instance.report_runless_asset_event(event)
            for request in result.dynamic_partitions_requests:
                self.instance.add_dynamic_partitions(SLIDES.name, list(request.partition_keys))
            self.memory = result.cursor
        return seconds


def looks(settings: Settings, instance: dg.DagsterInstance, slides: int) -> list[rows.Row]:
    """The sensor: a usual look, one that remembers nothing, and the two that take in a slide."""

    def listing() -> None:
        for folder in (settings.images_dir, settings.annotations_dir):
            with os.scandir(folder) as entries:
                for entry in entries:
                    entry.stat()

    sensor = Looks(settings, instance)
    forgetful = sensor.seconds()
    pairs = [(sensor.seconds(), timed(listing)) for _ in range(REPEATS)]
    usual, bare = (min(pair[side] for pair in pairs) for side in (0, 1))
    add_slide(settings, slides)
    waits, taken = sensor.seconds(), sensor.seconds()
    known = instance.get_dynamic_partitions(SLIDES.name)
    assert len(known) == slides + 1, "the new slide was not taken in"
    many = f"{slides:,} slides registered"
    return [
        rows.below(f"{many}, one look with nothing new, against a bare listing", usual, "s", 5, against=bare),
        rows.Row(f"{many}, a look that remembers none before it", forgetful, "s"),
        rows.Row(f"{many}, a look that sees one new slide", waits, "s"),
        rows.Row(f"{many}, the look that takes it in", taken, "s"),
    ]


def ticks(settings: Settings, instance: dg.DagsterInstance, slides: int) -> list[rows.Row]:
    """The automation conditions of the slide assets."""
    definitions = build_definitions(settings)
    selection = dg.AssetSelection.assets(*catalog.SLIDE_ASSETS)
    cursor, seconds = None, []
    for _ in range(3):
        started = time.perf_counter()
        result = dg.evaluate_automation_conditions(
            definitions, instance, asset_selection=selection, cursor=cursor
        )
        seconds.append(time.perf_counter() - started)
        cursor = result.cursor
        assert result.total_requested == 0, "everything was made, yet something was asked for"
    many = f"{slides:,} slides registered"
    return [
        rows.Row(f"{many}, an automation tick with nothing new", min(seconds[1:]), "s"),
        rows.Row(f"{many}, the first automation tick of all", seconds[0], "s"),
    ]


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
    asked = parser.parse_args()
    for name in [key for key in os.environ if key.startswith(("WSI_", "DAGSTER_", "MLFLOW"))]:
        del os.environ[name]
    # Thirty thousand records are written in memory, in half the time; what is measured is on disk.
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory(dir=memory) as aside:
        for name in ("images", "annotations"):
            Path(folder, name).mkdir()
        settings = Settings.from_environment({}, home=Path(folder))
        os.environ["DAGSTER_HOME"] = aside
        with open_instance(settings) as instance:
            make_cohort(settings, instance, asked.slides)
        os.environ["DAGSTER_HOME"] = shutil.copytree(aside, Path(folder) / "dagster_home").as_posix()
        with open_instance(settings) as instance:
            found = ticks(settings, instance, asked.slides)
            found = looks(settings, instance, asked.slides) + found
    rows.tell(found + starting(), asked.json)


if __name__ == "__main__":
    main()
