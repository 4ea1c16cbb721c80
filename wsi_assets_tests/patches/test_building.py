"""Facts of building: whose work it is, what survives a kill, and who may write."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest

from wsi_assets.errors import StoreError
from wsi_assets.patches import (
    STORE_NAMES,
    ExtractionOptions,
    build_store,
    open_store,
    plan_patches,
    staged_store,
    verify_store,
    write_patches,
)
from wsi_assets.patches import build as build_module
from wsi_assets.slides import fingerprint
from wsi_assets_tests.patches.compared import (
    contents,
    held,
    held_by_other_readers,
    is_the_same_store,
    only_the_store_is_left,
)
from wsi_assets_tests.patches.made import ONE, entry, grid, index_of, texture, write_slide


@pytest.fixture
def small_batches(monkeypatch):
    monkeypatch.setattr("wsi_assets.patches.plan.BATCH_PIXELS", 16 * 128 * 128)


@pytest.fixture
def always_a_pool(monkeypatch):
    monkeypatch.setattr(build_module, "_WORTH_A_POOL", 0)


def test_stores_have_the_same_bytes_with_any_executor(
    entries, backend, tmp_path, small_batches, always_a_pool
):
    plan = plan_patches(index_of(*entries), ExtractionOptions(codec="jpeg"))
    paths = [tmp_path / name / STORE_NAMES[backend] for name in ("here", "processes", "threads")]
    build_store(plan, paths[0], backend, workers=1)
    build_store(plan, paths[1], backend, workers=2)
    with ThreadPoolExecutor(8) as executor:
        build_store(plan, paths[2], backend, executor=executor, workers=8)
    assert contents(paths[0]) == contents(paths[1]) == contents(paths[2])


def test_a_store_is_the_same_whether_it_is_built_in_one_step_or_two(entries, backend, tmp_path):
    plan = plan_patches(index_of(*entries), ONE)
    one, two = (tmp_path / name / STORE_NAMES[backend] for name in ("one", "two"))
    first = build_store(plan, one, backend)
    with staged_store(plan, two, backend) as staged:
        assert (staged.patches, staged.decoded, staged.reused, staged.quarantined) == (208, 208, 0, [])
        assert not two.exists()
        second = staged.publish()
    assert contents(one) == contents(two)
    assert (first.decoded, first.patches) == (second.decoded, second.patches) == (208, 208)
    assert only_the_store_is_left(two)
    again = build_store(plan, two, backend)
    assert (again.decoded, again.reused) == (0, 208)


def test_a_large_store_outgrows_its_first_map(entries, tmp_path, monkeypatch):
    monkeypatch.setattr("wsi_assets.patches.backends.lmdb._FIRST_MAP_SIZE", 1 << 17)
    monkeypatch.setattr("wsi_assets.patches.backends.lmdb._COMMIT_BYTES", 1 << 19)
    build_store(plan_patches(index_of(*entries), ONE), tmp_path / "patches_lmdb", "lmdb")
    with open_store(tmp_path / "patches_lmdb") as store:
        assert store.problems() == []
        assert verify_store(store, index_of(*entries), 1.0).ok


def test_given_patches_are_written_without_a_plan(backend, tmp_path):
    patches = [texture(64, 64, seed=seed) for seed in range(5)]
    path = tmp_path / STORE_NAMES[backend]
    items = [(f"a_{number:06d}", patch, number % 2) for number, patch in enumerate(patches)]
    assert write_patches(path, backend, items, ONE).patches == 5
    with open_store(path) as store:
        assert store.keys == [key for key, _, _ in items]
        assert store.labels.tolist() == [0, 1, 0, 1, 0]
        assert all(np.array_equal(store.get(number), patch) for number, patch in enumerate(patches))
    for wrong in ([items[0], items[0]], [items[0], ("b", texture(32, 32), 0)], []):
        with pytest.raises(StoreError):
            write_patches(tmp_path / "other", backend, wrong, ONE)
        assert not (tmp_path / "other").exists()


def test_an_unreadable_slide_and_a_changed_one_are_quarantined_and_tried_again(cohort, backend, tmp_path):
    slides = [tmp_path / path.name for path in cohort]
    for source, target in zip(cohort, slides, strict=True):
        shutil.copy(source, target)
    rows = [entry(path, grid(512, 512, 128), 128) for path in slides]
    good = slides[0].read_bytes()
    slides[0].write_bytes(b"")
    write_slide(slides[1], texture(512, 512, seed=99))
    rows[0]["fingerprint"] = fingerprint(slides[0])
    store_path = tmp_path / "level_0" / STORE_NAMES[backend]
    report = build_store(plan_patches(index_of(*rows), ONE), store_path, backend)
    assert (report.patches, len(report.quarantined)) == (16, 32)
    reasons = {row["slide_id"]: row["reason"] for row in report.quarantined}
    assert "empty" in reasons["normal_001"]
    assert reasons["test_001"] == "changed since it was indexed"
    with open_store(store_path) as store:
        assert store.key_index("tumor_001_000032") == (32 if backend == "hdf5" else 0)
        if backend == "hdf5":
            assert len(store) == 48, "a row is a count"
            assert store.labels[:32].tolist() == [255] * 32
            assert set(store.labels[32:].tolist()) == {0, 1}
            assert not store.get(5).any()
        else:
            assert store.keys[0] == "tumor_001_000032", "a quarantined patch keeps its count"
        assert len(store.info["quarantined"]) == 32
        assert verify_store(store, index_of(*rows), 1.0).ok
    slides[0].write_bytes(good)
    rows[0]["fingerprint"] = fingerprint(slides[0])
    report = build_store(plan_patches(index_of(*rows), ONE), store_path, backend)
    assert (report.decoded, report.reused, len(report.quarantined)) == (16, 16, 16)


BUILDER = """
import json, os, signal, sys
from wsi_assets.patches import ExtractionOptions, build_store, plan, plan_patches
from wsi_assets.patches import build

plan.BATCH_PIXELS = 16 * 128 * 128
index, path, backend, stop, what = json.load(open(sys.argv[1])), *sys.argv[2:]

def progress(done, total, doing):
    if doing.startswith(what) and done >= int(stop):
        os.kill(os.getpid(), signal.SIGKILL)

publish = build.publish

def killed_before(*names):
    os.kill(os.getpid(), signal.SIGKILL)

if what == "publish":
    build.publish = killed_before
options = ExtractionOptions(codec="png", extraction_workers=1)
build_store(plan_patches(index, options), path, backend, progress=progress)
"""


def build_and_die(entries, path, backend, stop, what="extracting"):
    """Kill a build once it has done so many patches of the named step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    listing = path.parent.with_name("entries.json")
    listing.write_text(json.dumps(index_of(*entries)))
    command = [sys.executable, "-c", BUILDER, str(listing), str(path), backend, str(stop), what]
    return subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)


def test_a_killed_build_is_refused_continued_and_ends_in_the_same_bytes(
    entries, backend, tmp_path, small_batches
):
    undisturbed = tmp_path / "undisturbed" / STORE_NAMES[backend]
    build_store(plan_patches(index_of(*entries), ONE), undisturbed, backend)
    path = tmp_path / "killed" / STORE_NAMES[backend]
    for stop, what in ((60, "extracting"), (150, "extracting"), (0, "storing"), (0, "publish")):
        assert build_and_die(entries, path, backend, stop, what).returncode == -signal.SIGKILL
        with pytest.raises(StoreError):
            open_store(path)
    report = build_store(plan_patches(index_of(*entries), ONE), path, backend)
    assert (report.decoded, report.reused) == (0, 208), "what was extracted is not read again"
    assert contents(path) == contents(undisturbed)
    assert only_the_store_is_left(path)


@pytest.mark.trial
@pytest.mark.parametrize("seed", range(20))
def test_builds_killed_at_any_moment_end_in_the_same_bytes(entries, backend, seed, tmp_path, small_batches):
    random = np.random.default_rng(seed)
    path, undisturbed = (tmp_path / name / STORE_NAMES[backend] for name in ("killed", "undisturbed"))
    build_store(plan_patches(index_of(*entries), ONE), undisturbed, backend)
    if seed % 2:
        build_store(plan_patches(index_of(*entries[1:]), ONE), path, backend)
    path.parent.mkdir(parents=True, exist_ok=True)
    listing = tmp_path / "entries.json"
    listing.write_text(json.dumps(index_of(*entries)))
    for _ in range(3):
        command = [sys.executable, "-c", BUILDER, str(listing), str(path), backend, "999999", "nothing"]
        with subprocess.Popen(command, cwd=Path(__file__).parents[2]) as builder:
            with contextlib.suppress(subprocess.TimeoutExpired):
                builder.wait(random.uniform(0.4, 2.5))
            builder.kill()
        with contextlib.suppress(StoreError), open_store(path) as store:
            assert len(store) in (112, 208)
            assert verify_store(store, index_of(*entries), 1.0).ok
    build_store(plan_patches(index_of(*entries), ONE), path, backend)
    assert contents(path) == contents(undisturbed)


def test_a_build_killed_over_an_old_store_leaves_that_readable(entries, backend, tmp_path, small_batches):
    path = tmp_path / "level_0" / STORE_NAMES[backend]
    build_store(plan_patches(index_of(*entries[:1]), ONE), path, backend)
    before = held(path), held_by_other_readers(path)
    undisturbed = tmp_path / "undisturbed" / path.name
    shutil.copytree(path.parent, undisturbed.parent)
    assert build_and_die(entries, path, backend, 150).returncode == -signal.SIGKILL
    assert (held(path), held_by_other_readers(path)) == before
    continued = tmp_path / "continued" / path.name
    shutil.copytree(path.parent, continued.parent)
    for copy in (undisturbed, continued):
        build_store(plan_patches(index_of(*entries), ONE), copy, backend)
        assert only_the_store_is_left(copy)
    assert contents(continued) == contents(undisturbed)
    # The plan changed meanwhile: what the killed build read is still not read again.
    report = build_store(plan_patches(index_of(entries[0], entries[1]), ONE), path, backend)
    assert report.decoded < 40
    with open_store(path) as store:
        assert verify_store(store, index_of(*entries), 1.0).ok
    assert only_the_store_is_left(path)


def test_going_back_to_the_store_as_it_was_leaves_nothing_of_a_killed_update(
    entries, backend, tmp_path, small_batches
):
    path = tmp_path / "level_0" / STORE_NAMES[backend]
    build_store(plan_patches(index_of(*entries[:1]), ONE), path, backend)
    before = contents(path)
    assert build_and_die(entries, path, backend, 150).returncode == -signal.SIGKILL
    assert build_store(plan_patches(index_of(*entries[:1]), ONE), path, backend).decoded == 0
    assert contents(path) == before
    assert only_the_store_is_left(path)


OWNER = """
import json, sys
from wsi_assets.patches import ExtractionOptions, build, plan_patches, staged_store

moments = set()

def at(moment):
    if moment not in moments:
        moments.add(moment)
        print(moment, flush=True)
        sys.stdin.readline()

publish = build.publish

def watched(*names):
    at("publishing")
    publish(*names)
    at("published")

build.publish = watched
index, path, backend = json.load(open(sys.argv[1])), *sys.argv[2:]
plan = plan_patches(index, ExtractionOptions(codec="png", extraction_workers=1))
with staged_store(plan, path, backend, progress=lambda done, total, what: at(what)) as staged:
    at("staged")
    staged.publish()
"""


def test_while_one_process_builds_a_store_another_is_refused_at_every_moment(entries, backend, tmp_path):
    path, listing = tmp_path / STORE_NAMES[backend], tmp_path / "entries.json"
    listing.write_text(json.dumps(index_of(*entries)))
    command = [sys.executable, "-c", OWNER, str(listing), str(path), backend]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    moments = []
    with subprocess.Popen(command, cwd=Path(__file__).parents[2], **pipes) as owner:
        for line in owner.stdout:
            moments.append(line.strip())
            with pytest.raises(StoreError) as error:
                build_store(plan_patches(index_of(*entries), ONE), path, backend)
            assert "\n" not in str(error.value)
            owner.stdin.write("\n")
            owner.stdin.flush()
    assert moments == ["extracting patches", "storing patches", "staged", "publishing", "published"]
    assert build_store(plan_patches(index_of(*entries), ONE), path, backend).decoded == 0


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 6 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(disk)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting a small file system is not allowed here")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=False)


def test_a_full_disk_is_one_line_and_the_old_store_is_intact(entries, backend, small_disk, tmp_path):
    path = small_disk / STORE_NAMES[backend]
    few = [{**entries[2], "patches": entries[2]["patches"][:12]}]
    build_store(plan_patches(index_of(*few), ONE), path, backend)
    before = held(path)
    with pytest.raises(StoreError, match="the disk is full") as error:
        build_store(plan_patches(index_of(*entries), ONE), path, backend)
    assert "\n" not in str(error.value)
    assert held(path) == before
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    assert build_store(plan_patches(index_of(*entries), ONE), path, backend).patches == 208
    fresh = tmp_path / "fresh" / path.name
    build_store(plan_patches(index_of(*entries), ONE), fresh, backend)
    assert is_the_same_store(path, fresh)


def test_a_disk_that_fills_while_the_library_writes_is_one_line(backend, small_disk):
    random = np.random.default_rng(0)
    items = ((f"a_{n:06d}", random.integers(0, 255, (128, 128, 3), np.uint8), 0) for n in range(400))
    with pytest.raises(StoreError, match="the disk is full") as error:
        write_patches(small_disk / "store", backend, items, ONE)
    assert "\n" not in str(error.value)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(StoreError, match="Read-only"):
        write_patches(small_disk / "store", backend, [], ONE)


def test_a_worker_that_dies_is_one_line_and_the_next_build_continues(
    entries, tmp_path, small_batches, always_a_pool
):
    path = tmp_path / "patches_lmdb"

    def kill_a_worker(done, total, what):
        for child in multiprocessing.active_children():
            child.kill()

    with pytest.raises(StoreError) as error:
        build_store(plan_patches(index_of(*entries), ONE), path, "lmdb", workers=2, progress=kill_a_worker)
    assert "\n" not in str(error.value)
    report = build_store(plan_patches(index_of(*entries), ONE), path, "lmdb")
    assert report.patches == 208
    assert report.reused > 0


def test_after_a_fault_queued_tasks_are_not_run_out(entries, tmp_path, monkeypatch, small_batches):
    ran = []

    def slow(task, folder):
        time.sleep(0.05)
        ran.append(task)
        raise RuntimeError("a fault")

    monkeypatch.setattr("wsi_assets.patches.extraction.extract", slow)
    with ThreadPoolExecutor(2) as executor, pytest.raises(RuntimeError, match="a fault"):
        build_store(
            plan_patches(index_of(*entries), ONE), tmp_path / "s", "lmdb", executor=executor, workers=20
        )
    assert len(ran) <= 6


STARTER = """
import json, os, sys
from wsi_assets.patches import ExtractionOptions, build, build_store, plan_patches, plan
build._WORTH_A_POOL = 0
plan.BATCH_PIXELS = 4 * 128 * 128

def progress(done, total, what):
    print(*open(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read().split(), flush=True)
    sys.stdin.read()

if __name__ == "__main__":
    options = ExtractionOptions(codec="png", extraction_workers=3)
    build_store(plan_patches(json.load(open(sys.argv[1])), options), sys.argv[2], "lmdb", progress=progress)
"""


def test_workers_end_with_a_builder_that_is_killed(entries, tmp_path):
    listing, script = tmp_path / "entries.json", tmp_path / "starter.py"
    listing.write_text(json.dumps(index_of(*entries)))
    script.write_text(STARTER)
    command = [sys.executable, str(script), str(listing), str(tmp_path / "patches_lmdb")]
    root = str(Path(__file__).parents[2])
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, cwd=root, env={**os.environ, "PYTHONPATH": root}, stdin=pipe, stdout=pipe, text=True
    ) as builder:
        workers = [psutil.Process(int(child)) for child in builder.stdout.readline().split()]
        assert len(workers) >= 2
        builder.kill()
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert alive == []


def test_something_else_at_the_stores_path_is_not_overwritten(entries, tmp_path):
    path = tmp_path / "patches_lmdb"
    path.mkdir()
    (path / "thesis.txt").write_text("mine")
    with pytest.raises(StoreError):
        build_store(plan_patches(index_of(*entries), ONE), path, "lmdb")
    assert (path / "thesis.txt").read_text() == "mine"
    build_store(plan_patches(index_of(*entries[2:]), ONE), tmp_path / "patches.h5", "hdf5")
    with pytest.raises(StoreError):
        build_store(plan_patches(index_of(*entries), ONE), tmp_path / "patches.h5", "lmdb")
