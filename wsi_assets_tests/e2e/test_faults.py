"""Killed, out of space, read-only, back in time, moved: the next run ends in an undisturbed one's bytes."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from wsi_assets.orchestration.artefact import level_chain, slide_artefacts
from wsi_assets_tests.e2e.conftest import settings
from wsi_assets_tests.e2e.killing import Ended, Runs
from wsi_assets_tests.slides.made import halved, picture, write_pyramid

TRAINING = (
    "model_name=resnet10t",
    "weights=none",
    "max_epochs=2",
    "batch_size=16",
    "num_workers=0",
    "save_interval=1",
)
PARAMETERS = settings("patch_size=32", "codec=png", "bootstrap_samples=20", "save_interval=1", *TRAINING)
NOT_COMPARED = "mlflow_run.json"
"""Which MLflow run a training was is another one each time."""
LEFT_BY_THE_KILLED = (".partial", ".new", ".old", "training_in_progress")
STORES = {"lmdb": "patches_lmdb", "hdf5": "patches.h5", "fs": "image_patches"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    with Runs(tmp_path_factory.mktemp("runs")) as runs:
        yield runs


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Options that name four small slides, three of them with tumor."""
    from shapely import box

    from wsi_assets.demo.writing import write_asap

    home = tmp_path_factory.mktemp("cohort")
    for name in ("images", "annotations"):
        (home / name).mkdir()
    names = ("normal_001", "tumor_001", "tumor_002", "test_001")
    for seed, name in enumerate(names):
        whole = picture(256, 224, seed)
        write_pyramid(home / "images" / f"{name}.tif", [whole, halved(whole, 1)], tile=64, mpp=0.25)
        if not name.startswith("normal"):
            write_asap(home / "annotations" / f"{name}.xml", [("_0", box(10, 20, 130, 150))])
    return ["--images", home / "images", "--annotations", home / "annotations"]


@pytest.fixture(scope="module")
def undisturbed(runs, folders, tmp_path_factory):
    """Storage of a run that nothing happened to, and its seconds to the patches and from there to the end."""
    storage = tmp_path_factory.mktemp("undisturbed") / "storage"
    seconds = []
    for upto in ("patch_store", "evaluation"):
        ended = command(runs, folders, storage, upto=upto)
        assert ended.status == 0, ended.output
        seconds.append(ended.seconds)
    return storage, *seconds


def command(runs: Runs, folders: list, storage: Path, backend="lmdb", upto="evaluation", **more: Any):
    storage.parent.mkdir(parents=True, exist_ok=True)
    arguments = (
        "run",
        "--level",
        0,
        "--storage",
        storage,
        "--set",
        f"patch_store.backend={backend}",
        "--upto",
        upto,
    )
    return runs.run(*arguments, *PARAMETERS, *folders, cwd=storage.parent, **more)


def contents(storage: Path) -> dict[str, str]:
    """Name -> digest of what a storage folder holds for its users; Dagster's and MLflow's own is left out."""
    found: dict[str, str] = {}
    for path in sorted([*(storage / "slides").rglob("*"), *(storage / "level_0").rglob("*")]):
        name = path.relative_to(storage).as_posix()
        if NOT_COMPARED in path.parts:
            continue
        if any(mark in name for mark in LEFT_BY_THE_KILLED):
            found[name] = "left behind"
        elif not path.is_file() or path.name.endswith(".lock") or path.suffix in (".html", ".png"):
            found.setdefault(name, "here") if path.parent.name != "level_0" else None
        elif path.suffix == ".pt":
            found[name] = _tensors(path)
        elif path.name.endswith(".provenance.json"):
            record = json.loads(path.read_text())
            found[name] = json.dumps({key: record[key] for key in ("recipe", "version", "inputs")})
        elif path.name.endswith(".checks.json"):
            found[name] = "here"
        elif path.name == "best.json":
            card = json.loads(path.read_text())
            del card["provenance"]["store"]
            found[name] = json.dumps(card, sort_keys=True)
        elif path.name == "metrics.json":
            metrics = json.loads(path.read_text())
            del metrics["context"], metrics["seconds"]
            found[name] = json.dumps(metrics, sort_keys=True)
        else:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    for path in (storage / "level_0" / STORES["fs"]).rglob("*.png"):
        found[path.relative_to(storage).as_posix()] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def _tensors(path: Path) -> str:
    import torch

    plain = torch.load(path, weights_only=True)
    total = hashlib.sha256()
    for name, tensor in plain.items():
        total.update(name.encode() + tensor.numpy().tobytes())
    return total.hexdigest()


def upto_store(storage: Path) -> dict[str, str]:
    """What of a storage folder is there once the patches are."""
    later = ("checkpoints", "epoch_losses.csv", "slide_index_test.pkl", "report", "training_in_progress")
    return {
        name: value
        for name, value in contents(storage).items()
        if not name.removeprefix("level_0/").startswith(later)
    }


def kill_and_mend(runs, folders, storage, reference, backend, upto, longest, kills, rng):
    """Kill so many runs at random moments, then let one end and compare."""
    moments = []
    for _ in range(kills):
        moments.append(rng.uniform(0.05, longest))
        ended = command(runs, folders, storage, backend, upto, kill_after=moments[-1])
        assert ended.status in (-9, 0), (moments, ended.output)
    ended = command(runs, folders, storage, backend, upto)
    assert ended.status == 0, (moments, ended.output)
    made, wanted = (
        (contents if upto == "evaluation" else upto_store)(folder) for folder in (storage, reference)
    )
    assert made == wanted, moments


def test_killed_at_random_moments_it_ends_in_the_same_bytes(runs, folders, undisturbed, tmp_path):
    reference, to_patches, to_the_end = undisturbed
    rng, storage = random.Random(3), tmp_path / "storage"
    kill_and_mend(runs, folders, storage, reference, "lmdb", "patch_store", to_patches, 3, rng)
    kill_and_mend(runs, folders, storage, reference, "lmdb", "evaluation", to_the_end, 3, rng)


STAGES = {
    "slides": tuple(artefact.name for artefact in slide_artefacts()),
    **{artefact.name: (artefact.name,) for artefact in level_chain()},
}
"""Stage -> the steps it consists of."""

each_stage = pytest.mark.parametrize(
    ("stage", "backend"),
    [
        ("slides", "lmdb"),
        ("slide_index", "lmdb"),
        ("sampled_index", "lmdb"),
        ("patch_store", "lmdb"),
        ("patch_store", "hdf5"),
        ("patch_store", "fs"),
        ("trained_model", "lmdb"),
        ("test_predictions", "lmdb"),
        ("evaluation", "lmdb"),
    ],
)


def make_what_comes_before(stage, runs, folders, storage, backend, **environment) -> str:
    """Storage as it is when the stage's turn comes; returns the asset up to which to run for the stage."""
    storage.mkdir()
    if stage == "slides":
        # Slides have no level of their own: the index is made with them.
        return "slide_index"
    before = list(STAGES)[list(STAGES).index(stage) - 1]
    upto = "slide_index" if before == "slides" else before
    made = command(runs, folders, storage, backend, upto, **environment)
    assert made.status == 0, made.output
    if before == "slides":
        shutil.rmtree(storage / "level_0")
    return stage


@pytest.mark.trial
@each_stage
def test_each_stage_killed_twenty_times_ends_in_the_same_bytes(runs, folders, tmp_path, stage, backend):
    """Each time from the state before the stage. A kill counts if the stage had begun and was not over."""
    kills = int(os.environ.get("WSI_TRIAL_KILLS", 20))
    storage, start, rng = tmp_path / "storage", tmp_path / "start", random.Random(f"{stage} {backend}")
    upto = make_what_comes_before(stage, runs, folders, storage, backend)
    storage.rename(start)

    def afresh():
        shutil.rmtree(storage, ignore_errors=True)
        shutil.copytree(start, storage)

    afresh()
    whole = command(runs, folders, storage, backend, upto, steps=STAGES[stage])
    assert whole.status == 0, whole.output
    assert whole.began == whole.done > 0
    wanted = contents(storage)
    counted, missed, longest, ran = 0, 0, whole.within, time.monotonic()
    while counted < kills:
        assert missed <= kills, f"{missed} kills fell outside the stage, {counted} into it"
        afresh()
        moment = rng.uniform(0, longest)
        killed = command(runs, folders, storage, backend, upto, kill_after=moment, steps=STAGES[stage])
        hit = killed.status == -9 and killed.began > 0 and killed.done < whole.done
        counted, missed = counted + hit, missed + (not hit)
        # Too late: the first run had been a slower one.
        longest = longest if hit else min(longest, killed.within)
        ended = command(runs, folders, storage, backend, upto)
        assert ended.status == 0, (moment, killed.output, ended.output)
        assert contents(storage) == wanted, (stage, moment)
    print(
        f"{stage} {backend}: {counted} kills within its {longest:.2f} s, {missed} after it; "
        f"{time.monotonic() - ran:.0f} s"
    )


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of its own, and a function that mounts it anew with other options."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "none", folder], capture_output=True, check=False
        )

    try:
        if mount("size=200k").returncode:
            pytest.skip("mounting is not permitted here")
    except FileNotFoundError:
        pytest.skip("there is no mount here")

    def remount(options: str) -> None:
        done = mount(f"remount,{options}")
        assert done.returncode == 0, done.stderr

    yield folder, remount
    # Lazily: a helper of the last run may be about to end.
    subprocess.run(["umount", "--lazy", folder], check=False)


def _errors(output: str) -> list[str]:
    return [line for line in output.splitlines() if line.startswith("error:")]


def test_a_full_and_a_read_only_disk_are_one_line_and_mend_by_themselves(
    runs, folders, undisturbed, small_disk, tmp_path
):
    disk, remount = small_disk
    storage, home = disk / "storage", {"DAGSTER_HOME": str(tmp_path / "home")}
    full = command(runs, folders, storage, upto="patch_store", **home)
    assert_one_line_of(full, "the disk is full", disk)
    # It had begun, and what there is is whole: no level of the slides that did fit, and no unfinished store.
    there = {name: value for name, value in upto_store(storage).items() if value != "left behind"}
    assert there.items() <= upto_store(undisturbed[0]).items()
    assert any(name.startswith("slides/") for name in there)
    remount("size=64m")
    assert command(runs, folders, storage, upto="patch_store", **home).status == 0
    assert upto_store(storage) == upto_store(undisturbed[0])
    remount("ro")
    # What is there can be used; what is to be made cannot be stored.
    assert "nothing to do" in command(runs, folders, storage, upto="patch_store", **home).output
    assert_one_line_of(
        command(runs, folders, storage, "hdf5", "patch_store", **home), "Read-only file system", disk
    )
    remount("rw")
    assert upto_store(storage) == upto_store(undisturbed[0])
    assert command(runs, folders, storage, "hdf5", "patch_store", **home).status == 0


PAGE = 4096
"""Bytes in which a disk in memory grows."""


def assert_one_line_of(ended: Ended, fault: str, disk: Path) -> None:
    """It failed, with one line that names the fault and a place on the disk, and left out no slide for it."""
    assert ended.status == 1, ended.output
    (line,) = _errors(ended.output)
    assert fault in line, ended.output
    assert str(disk) in line, ended.output
    assert " left out:" not in ended.output
    assert "Traceback" not in ended.output


@pytest.mark.trial
@each_stage
def test_each_stage_on_a_full_and_on_a_read_only_disk_is_one_line_and_ends_in_the_same_bytes(
    runs, folders, small_disk, tmp_path, stage, backend
):
    """The disk is full from the start, when half of what the stage writes is there, and read-only."""
    disk, remount = small_disk
    remount("size=200m")
    storage, home = disk / "storage", tmp_path / "home"
    records = {"DAGSTER_HOME": str(home)}
    home.mkdir()
    upto = make_what_comes_before(stage, runs, folders, storage, backend, **records)
    for folder in (storage, home):
        shutil.copytree(folder, tmp_path / "start" / folder.name)

    def run() -> Ended:
        return command(runs, folders, storage, backend, upto, **records)

    def used() -> int:
        at = os.statvfs(disk)
        return (at.f_blocks - at.f_bfree) * at.f_frsize

    def afresh() -> None:
        for folder in (storage, home):
            shutil.rmtree(folder)
            shutil.copytree(tmp_path / "start" / folder.name, folder)

    before = used()
    assert run().status == 0
    wanted, written = contents(storage), used() - before
    for room in sorted({0, written // 2 // PAGE * PAGE}):
        afresh()
        # A tmpfs of size 0 has no limit.
        remount(f"size={max(PAGE, used() + room)}")
        assert_one_line_of(run(), "the disk is full", disk)
        remount("size=200m")
        mended = run()
        assert mended.status == 0, mended.output
        assert contents(storage) == wanted, room
    afresh()
    remount("ro")
    assert_one_line_of(run(), "Read-only file system", disk)
    remount("rw")
    mended = run()
    assert mended.status == 0, mended.output
    assert contents(storage) == wanted


@pytest.mark.parametrize("size", ["300k", "1500k"])
def test_no_room_for_dagsters_own_records_is_one_line(runs, folders, small_disk, size):
    disk, remount = small_disk
    remount(f"size={size}")
    full = command(runs, folders, disk / "storage", upto="patch_store")
    assert full.status == 1
    assert len(_errors(full.output)) == 1, full.output
    assert "Traceback" not in full.output


def test_clocks_do_not_matter_contents_do(runs, folders, undisturbed, tmp_path):
    home = tmp_path / "cohort"
    images, annotations = home / "images", home / "annotations"
    shutil.copytree(folders[1], images)
    shutil.copytree(folders[3], annotations)
    mine = ["--images", images, "--annotations", annotations]
    storage, year = tmp_path / "storage", 365 * 86400
    assert command(runs, mine, storage, upto="sampled_index", clock=year).status == 0
    # As if all was written before the clock was put back by a year.
    later = time.time() + year
    for path in [*home.rglob("*"), *(storage / "slides").rglob("*"), *(storage / "level_0").rglob("*")]:
        os.utime(path, (later, later))
    again = command(runs, mine, storage, upto="sampled_index")
    assert "nothing to do" in again.output, again.output
    assert "0 made, 4 up to date" in again.output
    # A file of the future gives way to one that seems ten years older.
    shutil.copy(images / "tumor_001.tif", images / "normal_001.tif")
    earlier = time.time() - 10 * year
    os.utime(images / "normal_001.tif", (earlier, earlier))
    changed = command(runs, mine, storage, upto="sampled_index")
    assert "1 made, 3 up to date" in changed.output, changed.output
    assert "slide_index is made again" in changed.output
    # What was made last counts, though records of the future are among what was made before it.
    last = command(runs, mine, storage, upto="sampled_index")
    assert "nothing to do" in last.output, last.output
    assert "0 made, 4 up to date" in last.output
    with dg.DagsterInstance.from_config(str(storage / "dagster_home")) as instance:
        newest, before = instance.fetch_materializations(dg.AssetKey("slide_index"), limit=9).records
    assert newest.timestamp < before.timestamp - year / 2, "the clock was not put back"


def test_a_moved_storage_folder_is_up_to_date_and_works_on(runs, folders, undisturbed, tmp_path):
    old, new = undisturbed[0], tmp_path / "new place" / "data"
    before = contents(old)
    new.parent.mkdir()
    shutil.copytree(old, tmp_path / "kept")
    old.rename(new)
    try:
        again = command(runs, folders, new)
        assert "nothing to do" in again.output, again.output
        assert contents(new) == before
        verified = runs.run("verify", "--level", 0, "--storage", new, *folders, cwd=tmp_path)
        assert verified.status == 0, verified.output
        # Something new below all that was moved, with files of MLflow's.
        more = command(runs, [*folders, *settings("lr=0.002", "max_epochs=1")], new, upto="trained_model")
        assert more.status == 0, more.output
        assert "nothing to do" not in more.output
        assert not old.exists(), "written where it had been"
    finally:
        (tmp_path / "kept").rename(old)
