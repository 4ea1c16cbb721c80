"""Facts of building on a Dask cluster: real worker processes, the same bytes, and what befalls workers.

``distributed`` is part of the development install, so its absence fails here and does not skip.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from distributed import LocalCluster

from wsi_assets.errors import SlideError
from wsi_assets.patches import (
    ExtractionOptions,
    build_store,
    dask_executor,
    plan_patches,
)
from wsi_assets.patches.dask_executor import ClusterError, open_executor
from wsi_assets_tests.patches.compared import contents
from wsi_assets_tests.patches.made import entry, index_of

TWO = ExtractionOptions(codec="jpeg", extraction_workers=2)


@pytest.fixture(scope="module")
def cluster():
    with LocalCluster(
        n_workers=2, threads_per_worker=1, memory_limit="600MB", dashboard_address=":0"
    ) as made:
        yield made


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    """Four patches a task: 52 tasks."""
    monkeypatch.setattr("wsi_assets.patches.plan.BATCH_PIXELS", 4 * 128 * 128)


@pytest.fixture(scope="module")
def by_the_pool(entries, tmp_path_factory) -> dict[str, str]:
    """What a process pool makes of the same plan."""
    path = tmp_path_factory.mktemp("pool") / "patches_lmdb"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("wsi_assets.patches.build._WORTH_A_POOL", 0)
        patched.setattr("wsi_assets.patches.plan.BATCH_PIXELS", 4 * 128 * 128)
        build_store(plan_patches(index_of(*entries), TWO), path, "lmdb")
    return contents(path)


def test_a_cluster_makes_the_bytes_of_the_process_pool_and_the_bound_holds(
    cluster, entries, by_the_pool, tmp_path
):
    plan = plan_patches(index_of(*entries), TWO)
    known, names = [], set()

    def slow_writer(done, total, what):
        if what == "extracting patches":
            time.sleep(0.01)  # the workers could run ahead, if they were let
            known.append(len(cluster.scheduler.tasks))
            names.update(cluster.scheduler.task_prefixes)

    path = tmp_path / "patches_lmdb"
    with open_executor(cluster.scheduler_address) as executor:
        report = build_store(plan, path, "lmdb", executor=executor, workers=2, progress=slow_writer)
    assert report.decoded == 208
    assert contents(path) == by_the_pool
    # Two tasks a worker, and what the scheduler has not yet heard is let go.
    assert len(known) == 52
    assert 2 <= max(known) <= 8
    assert names == {"extract"}


def test_the_work_of_a_killed_worker_is_repeated(cluster, entries, by_the_pool, tmp_path):
    killed = []

    def kill_one(done, total, what):
        if done > total // 3 and not killed:
            killed.append(next(iter(cluster.workers.values())).process.pid)
            os.kill(killed[0], signal.SIGKILL)

    path = tmp_path / "patches_lmdb"
    with open_executor(cluster.scheduler_address) as executor:
        report = build_store(
            plan_patches(index_of(*entries), TWO), path, "lmdb", executor=executor, progress=kill_one
        )
    assert killed
    assert (report.patches, report.quarantined) == (208, [])
    assert contents(path) == by_the_pool


def test_a_slide_that_workers_cannot_read_stops_the_build(cluster, cohort, tmp_path):
    # An open folder's number is a path in this process only: a mount that the workers lack.
    folder = os.open(cohort[0].parent, os.O_RDONLY)
    hidden = Path(f"/proc/self/fd/{os.dup2(folder, 900)}") / cohort[0].name
    try:
        plan = plan_patches(index_of(entry(hidden, [(0, 0, False), (0, 128, True)], 128)), TWO)
        with (
            open_executor(cluster.scheduler_address) as executor,
            pytest.raises(SlideError) as fault,
        ):
            build_store(plan, tmp_path / "patches_lmdb", "lmdb", executor=executor)
        assert str(hidden) in str(fault.value)
        assert "Mount the slide folder" in str(fault.value)
        assert "\n" not in str(fault.value)
    finally:
        os.close(folder)
        os.close(900)


@pytest.fixture
def doomed(tmp_path):
    """A scheduler to kill, in a process of its own with one worker, and the file that tells its address."""
    file = tmp_path / "scheduler.json"
    options = ["--no-dashboard", "--scheduler-file", str(file)]
    scheduler = subprocess.Popen(
        [sys.executable, "-m", "distributed.cli.dask_scheduler", "--port", "0", *options],
        stderr=subprocess.DEVNULL,
    )
    while not file.is_file():
        assert scheduler.poll() is None
        time.sleep(0.05)
    worker = subprocess.Popen(
        [sys.executable, "-m", "distributed.cli.dask_worker", "--nthreads", "1", "--no-nanny", *options],
        stderr=subprocess.DEVNULL,
    )
    yield scheduler, file
    for process in (worker, scheduler):
        process.kill()
        process.wait()


def test_a_scheduler_killed_in_the_middle_is_one_line_and_the_next_build_continues(doomed, entries, tmp_path):
    scheduler, file = doomed
    path = tmp_path / "patches_lmdb"

    def kill(done, total, what):
        if done > total // 3:
            scheduler.kill()
            scheduler.wait()

    with pytest.raises(ClusterError) as fault, open_executor(str(file)) as executor:
        build_store(plan_patches(index_of(*entries), TWO), path, "lmdb", executor=executor, progress=kill)
    assert "\n" not in str(fault.value)
    report = build_store(plan_patches(index_of(*entries), TWO), path, "lmdb")
    assert report.patches == 208
    assert report.decoded < 208


def test_a_task_that_kills_its_workers_is_one_line(cluster):
    with (
        pytest.raises(ClusterError),
        open_executor(cluster.scheduler_address) as executor,
    ):
        executor._client.run_on_scheduler(_allow_no_failure)
        executor.submit(os._exit, 1).result(60)


def _allow_no_failure(dask_scheduler):
    dask_scheduler.allowed_failures = 0


def test_a_worker_with_other_versions_is_refused(cluster, monkeypatch):
    monkeypatch.setattr(dask_executor, "SAME_PACKAGES", ("numpy", "a-package-of-nobody"))
    with open_executor(cluster.scheduler_address):
        pass  # absent on both sides is alike
    monkeypatch.setattr("distributed.client.version_module.get_versions", _another_numpy)
    with (
        pytest.warns(match="Mismatched versions"),
        pytest.raises(ClusterError, match=r"worker tcp://\S+ has numpy \d.*this process has 0\.0\.1"),
        open_executor(cluster.scheduler_address),
    ):
        pass


def _another_numpy(packages=None):
    return {"packages": {"python": "", "numpy": "0.0.1", "a-package-of-nobody": None}}


@pytest.mark.parametrize(
    ("scheduler", "line"),
    [
        ("tcp://127.0.0.1:1", "no Dask scheduler answers at tcp://127.0.0.1:1"),
        ("the cluster", "'the cluster', which is not an address"),
        ("/no/where/scheduler.json", "'/no/where/scheduler.json', .* does not exist"),
    ],
)
def test_a_scheduler_that_is_not_there_is_one_line_within_seconds(scheduler, line, monkeypatch):
    monkeypatch.setattr(dask_executor, "_CONNECT_SECONDS", 0.5)
    with pytest.raises(ClusterError, match=line) as fault, open_executor(scheduler):
        pass
    assert "\n" not in str(fault.value)


def test_a_missing_package_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with (
        pytest.raises(
            ClusterError, match=r"distributed is not installed.*pip install 'wsi-assets\[cluster\]'"
        ),
        open_executor("tcp://127.0.0.1:8786"),
    ):
        pass


@pytest.mark.parametrize("nothing", [None, ""])
def test_without_a_scheduler_nothing_of_dask_is_touched(nothing, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with open_executor(nothing) as executor:
        assert executor is None
