"""A long life: slides come in one after another, and no process that takes them in grows.

Once as one process that runs the whole graph itself, and once as the servers with their daemon, which start a
process a run. Memory is that of the process alone, without pages of files, which the system takes back.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import psutil
import pytest
from shapely import box

from wsi_assets.demo.writing import write_asap
from wsi_assets_tests.e2e.platform import Platform
from wsi_assets_tests.slides.made import halved, picture, write_pyramid

SLIDES = int(os.environ.get("WSI_TRIAL_SLIDES", 200))
BEFORE = 20
"""Slides there are before the first look; then one comes before each."""

TO_THE_END = 25
"""Slides between two times that the whole graph is made, training, prediction and evaluation included."""

ALLOWED = 10
"""MiB a process may hold more for every hundred slides: their names and versions, and what time fragments."""

SECONDS = 2
"""Between two slides that are dropped before the servers."""

TRAINING = {
    "model_name": "test_resnet",
    "weights": "none",
    # PyTorch keeps the code that it generates for each size of batch it meets (oneDNN, up to 1,024
    # pieces), and the last batch is of another size after every slide. Of so few sizes all are met before
    # memory counts.
    "batch_size": 4,
    "prediction_batch_size": 4,
    "max_epochs": 1,
    "num_workers": 0,
    "save_interval": 1,
    "bootstrap_samples": 20,
}


class Held:
    """What a process holds at one look after another.

    Attributes:
        memory: MiB of its own.
        files: open files; threads: of its own, too.
    """

    def __init__(self):
        self.memory: list[float] = []
        self.files: list[int] = []
        self.threads: list[int] = []

    def look(self, process: psutil.Process) -> None:
        if process.pid == os.getpid():
            ctypes.CDLL("libc.so.6").malloc_trim(0)  # what is freed but kept by the allocator does not count
        counted = process.memory_info()
        self.memory.append((counted.rss - counted.shared) / (1 << 20))
        self.files.append(process.num_fds())
        self.threads.append(process.num_threads())

    @property
    def settled(self) -> int:
        """Looks at the start that do not count: everything is imported and every cache filled by then."""
        return len(self.memory) // 3

    def slope(self) -> float:
        """MiB more for every hundred looks, by the median of the slopes between looks, once settled."""
        later = np.array(self.memory[self.settled :])
        first, second = np.triu_indices(len(later), 1)
        return 100 * float(np.median((later[second] - later[first]) / (second - first)))

    def summary(self) -> str:
        def some(values: Sequence[float]) -> str:
            return ", ".join(f"{values[at]:.0f}" for at in np.linspace(0, len(values) - 1, 9).astype(int))

        return (
            f"MiB {some(self.memory)} ({self.slope():+.1f} a hundred slides); "
            f"files {some(self.files)}; threads {some(self.threads)}"
        )

    def assert_flat(self, name: str) -> None:
        """Fail for a leak: in memory by its slope, in what is counted from the second third to the last."""
        assert self.slope() < ALLOWED, f"{name} grows: {self.summary()}"
        for counts in (self.files, self.threads):
            later = counts[self.settled :]
            before, after = np.median(later[: len(later) // 2]), np.median(later[len(later) // 2 :])
            assert after <= before + 5, f"{name} gathers: {self.summary()}"


def add_slide(images: Path, annotations: Path, number: int) -> str:
    """Every tenth is a test slide; three in five have tumour."""
    slide_id = f"{'test' if number % 10 == 3 else 'slide'}_{number:03d}"
    # A new picture for each: equal slides would be found out as one.
    whole = picture(192, 192, number)
    if number % 5 < 3:
        write_asap(annotations / f"{slide_id}.xml", [("_0", box(10, 10, 130, 130))])
    write_pyramid(images / f"{slide_id}.tif", [whole, halved(whole, 1)], tile=64, mpp=0.25)
    return slide_id


@pytest.mark.trial
def test_two_hundred_slides_one_by_one_through_the_whole_graph_leave_the_process_flat(tmp_path, monkeypatch):
    from wsi_assets.orchestration.cli_run import CommandLineRun
    from wsi_assets.orchestration.config import ParameterSet
    from wsi_assets.orchestration.instance import open_instance
    from wsi_assets.orchestration.settings import Settings
    from wsi_assets.patches import open_store

    for name in [key for key in os.environ if key.startswith(("WSI_", "DAGSTER_", "MLFLOW"))]:
        monkeypatch.delenv(name)
    folders = [tmp_path / "images", tmp_path / "annotations"]
    for folder in folders:
        folder.mkdir()
    for number in range(BEFORE):
        add_slide(*folders, number)
    settings = Settings.from_environment({}, home=tmp_path)
    for name, value in settings.to_environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "storage/dagster_home"))
    given = ParameterSet({"patch_size": 64, "extraction_workers": 1, **TRAINING})
    held, me, decoded, evaluated = Held(), psutil.Process(), [], 0
    with open_instance(settings) as instance:
        runner = CommandLineRun(instance, settings, given)
        for number in range(BEFORE, SLIDES):
            add_slide(*folders, number)
            slides = runner.run_slides()
            assert len(slides.up_to_date) == (0 if number == BEFORE else number)
            assert slides.left_out == {}
            level = runner.run_level("0", "patch_store")
            assert level.failure is None
            decoded.append(level.records["patch_store"].facts["decoded"])
            if (number - BEFORE) % TO_THE_END == 0:
                level = runner.run_level("0")
                assert level.failure is None
                assert level.made == ["trained_model", "test_predictions", "evaluation"]
                runner.compare_levels()
                evaluated += 1
            gc.collect()
            held.look(me)
    print(f"\n{evaluated} times to the end: {held.summary()}")
    assert evaluated == -(-(SLIDES - BEFORE) // TO_THE_END)
    with open_store(settings.storage_dir / "level_0/patches_lmdb") as store:
        assert len(store) > 3 * SLIDES
    # A look costs what is new, whatever there is already: the slide, and what sampling drew anew.
    assert max(decoded[1:]) <= 18, decoded
    held.assert_flat("the process")


@pytest.fixture
def platform(tmp_path) -> Iterator[Platform]:
    living = Platform(tmp_path, poll_seconds=1)
    living.start()
    yield living
    living.stop()


SERVERS = {"dagster._daemon": "daemon", "dagster_webserver": "webserver", "api grpc --lazy": "code server"}


def look_at_servers(platform: Platform, held: dict[str, Held]) -> None:
    """One look at each server; the processes of runs, which come and go, are left out."""
    ui = psutil.Process(platform.process.pid)
    held["wsi-assets ui"].look(ui)
    for server in ui.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # a run that just ended
            for sign, name in SERVERS.items():
                if sign in " ".join(server.cmdline()):
                    held[name].look(server)


@pytest.mark.trial
def test_servers_stay_flat_while_a_slide_comes_every_few_seconds(platform):
    held: dict[str, Held] = defaultdict(Held)
    names, began = set(), time.monotonic()
    for number in range(SLIDES):
        names.add(add_slide(platform.images, platform.annotations, number))
        platform.slides()
        look_at_servers(platform, held)
        time.sleep(max(0, began + (number + 1) * SECONDS - time.monotonic()))
    platform.wait(lambda: platform.slides() == names, "the last slide's partition", 600)
    platform.wait(platform.is_idle, "the end of the last run", 600)
    print(f"\n{SLIDES} slides in {time.monotonic() - began:.0f} s")
    for name, seen in held.items():
        print(f"{name}: {seen.summary()}")
    assert {"wsi-assets ui", *SERVERS.values()} == held.keys()
    assert not [run for run in platform.runs() if run["status"] != "SUCCESS"]
    for name, seen in held.items():
        seen.assert_flat(name)
