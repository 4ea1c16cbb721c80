"""Facts of building: whose work it is, what survives a kill, and who may write."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
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
    verify_store,
)
from wsi_assets.patches import build as build_module
from wsi_assets.patches import steps as steps_module
from wsi_assets.slides import fingerprint
from wsi_assets_tests.patches.compared import (
    contents,
    held,
    held_by_other_readers,
    is_the_same_store,
    only_the_store_is_left,
)
from wsi_assets_tests.patches.made import ONE, entry, grid, texture, write_slide


@pytest.fixture
def small_commits(monkeypatch):
    monkeypatch.setattr(build_module, "_COMMIT_BYTES", 1 << 18)
    monkeypatch.setattr("wsi_assets.patches.plan.PART_PIXELS", 16 * 128 * 128)


def test_stores_are_the_same_bytes_whoever_does_the_work(
    entries, backend, tmp_path, monkeypatch, small_commits
):
    monkeypatch.setattr(steps_module, "_WORTH_A_POOL", 0)
    made = []
    for workers in (1, 2):
        path = tmp_path / str(workers) / STORE_NAMES[backend]
        options = ExtractionOptions(codec="jpeg", extraction_workers=workers)
        build_store(plan_patches(entries, options), path, backend)
        made.append(contents(path))
    path = tmp_path / "threads" / STORE_NAMES[backend]
    with ThreadPoolExecutor(8) as executor:
        plan = plan_patches(entries, ExtractionOptions(codec="jpeg"))
        build_store(plan, path, backend, executor=executor)
    assert made[0] == made[1] == contents(path)


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
    report = build_store(plan_patches(rows, ONE), store_path, backend)
    assert (report.patches, len(report.quarantined)) == (16, 32)
    reasons = {slide_id: reason for _, slide_id, _, _, reason in report.quarantined}
    assert "empty" in reasons["normal_001"]
    assert reasons["test_001"] == "changed since it was indexed"
    with open_store(store_path) as store:
        assert store.keys[0] == "tumor_001_000032", "a quarantined patch keeps its count"
        assert len(store.info["quarantined"]) == 32
        assert verify_store(store, rows, 1.0).ok
    slides[0].write_bytes(good)
    rows[0]["fingerprint"] = fingerprint(slides[0])
    report = build_store(plan_patches(rows, ONE), store_path, backend)
    assert (report.decoded, report.reused, len(report.quarantined)) == (16, 16, 16)


BUILDER = """
import json, os, signal, sys
from wsi_assets.patches import ExtractionOptions, build_store, plan_patches
from wsi_assets.patches import appended, build, plan

class KeepsUp(appended.WriteBehind):
    # A disk as fast as the build: else how much of its work a kill leaves is the disk's chance.
    def then(self, *work):
        super().then(*work)
        self.wait()

appended.WriteBehind = KeepsUp
build._COMMIT_BYTES = 1 << 18
plan.PART_PIXELS = 16 * 128 * 128
entries, path, backend, stop = json.load(open(sys.argv[1])), sys.argv[2], sys.argv[3], int(sys.argv[4])

def progress(done, total, what):
    if done >= stop:
        os.kill(os.getpid(), signal.SIGKILL)

options = ExtractionOptions(codec="qoi", extraction_workers=1)
build_store(plan_patches(entries, options), path, backend, progress=progress)
"""


def build_and_die(entries, path, backend, stop):
    path.parent.mkdir(parents=True, exist_ok=True)
    listing = path.parent.with_name("entries.json")
    listing.write_text(json.dumps(entries))
    command = [sys.executable, "-c", BUILDER, str(listing), str(path), backend, str(stop)]
    return subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)


def test_a_killed_build_is_refused_continued_and_ends_in_the_same_bytes(
    entries, backend, tmp_path, small_commits
):
    undisturbed = tmp_path / "undisturbed" / STORE_NAMES[backend]
    build_store(plan_patches(entries, ONE), undisturbed, backend)
    path = tmp_path / "killed" / STORE_NAMES[backend]
    for stop in (60, 150):
        assert build_and_die(entries, path, backend, stop).returncode == -signal.SIGKILL
        with pytest.raises(StoreError, match="half-built"):
            open_store(path)
    report = build_store(plan_patches(entries, ONE), path, backend)
    assert 0 < report.decoded <= 208 - 100, "what was committed is not read again"
    assert report.decoded + report.reused == 208
    assert contents(path) == contents(undisturbed)
    assert only_the_store_is_left(path)


def test_a_build_killed_over_an_old_store_leaves_that_readable(entries, backend, tmp_path, small_commits):
    path = tmp_path / "level_0" / STORE_NAMES[backend]
    build_store(plan_patches(entries[:1], ONE), path, backend)
    before = held(path), held_by_other_readers(path)
    undisturbed = tmp_path / "undisturbed" / path.name
    shutil.copytree(path.parent, undisturbed.parent)
    assert build_and_die(entries, path, backend, 150).returncode == -signal.SIGKILL
    assert (held(path), held_by_other_readers(path)) == before
    continued = tmp_path / "continued" / path.name
    shutil.copytree(path.parent, continued.parent)
    for copy in (undisturbed, continued):
        build_store(plan_patches(entries, ONE), copy, backend)
        assert only_the_store_is_left(copy)
    assert contents(continued) == contents(undisturbed)
    # The plan changed meanwhile: what the killed build read is still not read again.
    report = build_store(plan_patches([entries[0], entries[1]], ONE), path, backend)
    assert report.decoded < 40
    with open_store(path) as store:
        assert verify_store(store, entries, 1.0).ok
    assert only_the_store_is_left(path)


def test_a_killed_build_of_a_slide_and_its_copy_ends_in_the_same_bytes(
    entries, backend, tmp_path, small_commits
):
    copy = tmp_path / "slides" / "zzz_001.tif"
    copy.parent.mkdir()
    shutil.copy(entries[1]["slide_path"], copy)
    rows = [entries[2], entries[1], {**entries[1], "slide_path": str(copy)}]
    for known in ([], rows[:2]):
        path = tmp_path / f"killed_{len(known)}" / STORE_NAMES[backend]
        undisturbed = tmp_path / f"undisturbed_{len(known)}" / path.name
        for store in (path, undisturbed):
            if known:
                build_store(plan_patches(known, ONE), store, backend)
        build_store(plan_patches(rows, ONE), undisturbed, backend)
        assert build_and_die(rows, path, backend, 150).returncode == -signal.SIGKILL
        assert build_store(plan_patches(rows, ONE), path, backend).decoded < 64
        assert contents(path) == contents(undisturbed)


def test_going_back_to_the_store_as_it_was_leaves_nothing_of_a_killed_update(
    entries, backend, tmp_path, small_commits
):
    path = tmp_path / "level_0" / STORE_NAMES[backend]
    build_store(plan_patches(entries[:1], ONE), path, backend)
    before = contents(path)
    assert build_and_die(entries, path, backend, 150).returncode == -signal.SIGKILL
    assert build_store(plan_patches(entries[:1], ONE), path, backend).decoded == 0
    assert contents(path) == before
    assert only_the_store_is_left(path)


def test_a_second_build_of_the_same_store_gets_one_line(entries, backend, tmp_path):
    path = tmp_path / STORE_NAMES[backend]
    said = []

    def second(done, total, what):
        if not said:
            with pytest.raises(StoreError) as error:
                build_store(plan_patches(entries, ONE), path, backend)
            said.append(str(error.value))

    build_store(plan_patches(entries[2:], ONE), path, backend, progress=second)
    assert "is being built by another process" in said[0]
    assert "\n" not in said[0]


def test_a_full_disk_is_one_line_and_the_old_store_is_intact(entries, backend, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(disk)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting a small file system is not allowed here")
    try:
        path = disk / STORE_NAMES[backend]
        few = [{**entries[2], "patches": entries[2]["patches"][:12]}]
        build_store(plan_patches(few, ONE), path, backend)
        before = held(path)
        with pytest.raises(StoreError, match="the disk is full") as error:
            build_store(plan_patches(entries, ONE), path, backend)
        assert "\n" not in str(error.value)
        assert held(path) == before
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        assert build_store(plan_patches(entries, ONE), path, backend).patches == 208
        fresh = tmp_path / "fresh" / path.name
        build_store(plan_patches(entries, ONE), fresh, backend)
        assert is_the_same_store(path, fresh)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)


def test_a_worker_that_dies_is_one_line_and_the_next_build_continues(
    entries, tmp_path, monkeypatch, small_commits
):
    monkeypatch.setattr(steps_module, "_WORTH_A_POOL", 0)
    path = tmp_path / "patches_lmdb"
    parent = os.getpid()

    def kill_a_worker(done, total, what):
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        for child in children:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                    os.kill(int(child), signal.SIGKILL)

    options = ExtractionOptions(codec="qoi", extraction_workers=2)
    with pytest.raises(StoreError, match="a worker process died"):
        build_store(plan_patches(entries, options), path, "lmdb", progress=kill_a_worker)
    assert build_store(plan_patches(entries, ONE), path, "lmdb").patches == 208


STARTER = """
import json, os, sys
from wsi_assets.patches import ExtractionOptions, build_store, plan_patches, plan, steps
steps._WORTH_A_POOL = 0
plan.PART_PIXELS = 4 * 128 * 128

def progress(done, total, what):
    print(*open(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read().split(), flush=True)
    sys.stdin.read()

if __name__ == "__main__":
    options = ExtractionOptions(codec="qoi", extraction_workers=3)
    build_store(plan_patches(json.load(open(sys.argv[1])), options), sys.argv[2], "lmdb", progress=progress)
"""


def test_workers_end_with_a_builder_that_is_killed(entries, tmp_path):
    listing, script = tmp_path / "entries.json", tmp_path / "starter.py"
    listing.write_text(json.dumps(entries))
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


def test_something_else_in_the_stores_place_is_not_overwritten(entries, tmp_path):
    path = tmp_path / "patches_lmdb"
    path.mkdir()
    (path / "thesis.txt").write_text("mine")
    with pytest.raises(StoreError, match="not a patch store"):
        build_store(plan_patches(entries, ONE), path, "lmdb")
    assert (path / "thesis.txt").read_text() == "mine"
    build_store(plan_patches(entries[2:], ONE), tmp_path / "patches.h5", "hdf5")
    with pytest.raises(StoreError, match="another kind"):
        build_store(plan_patches(entries, ONE), tmp_path / "patches.h5", "lmdb")


def test_progress_ends_at_the_number_of_patches(entries, tmp_path):
    calls = []
    build_store(
        plan_patches(entries, ONE),
        tmp_path / "patches_lmdb",
        "lmdb",
        progress=lambda *call: calls.append(call),
    )
    assert calls[-1] == (208, 208, "extracting patches")
    assert np.all(np.diff([done for done, _, _ in calls]) > 0)


def test_a_real_slide_of_which_no_patch_reads_leaves_the_others_whole(real_data, tmp_path):
    slides = real_data / "slides"
    rows = [
        entry(slides / "CMU-1-Small-Region.svs", grid(480, 480, 64), 64),
        entry(slides / "unreadable.svs", [(0, 0, 0), (0, 64, 1)], 64),
    ]
    report = build_store(plan_patches(rows, ONE), tmp_path / "patches_lmdb", "lmdb")
    assert (report.patches, [row[1] for row in report.quarantined]) == (49, ["unreadable"] * 2)
    with open_store(tmp_path / "patches_lmdb") as store:
        assert verify_store(store, rows, 1.0).ok
