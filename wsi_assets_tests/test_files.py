"""Files are whole or absent, and a pickle cannot run code."""

from __future__ import annotations

import errno
import fcntl
import os
import pickle
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi_assets import files
from wsi_assets.errors import SlideError, WsiAssetsError
from wsi_assets.files import (
    digest,
    disk_fault,
    file_lock,
    publish_file,
    publish_folder,
    read_plain_pickle,
    recover,
    write_plain_pickle,
)

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(value=plain)
def test_plain_values_survive_the_pickle(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("pickles") / "value.pkl"
    write_plain_pickle(path, value)
    assert read_plain_pickle(path) == value
    assert pickle.loads(path.read_bytes()) == value


def test_numbers_and_arrays_of_numpy_and_paths_load_as_plain_values(tmp_path):
    value = {
        "patches": [(np.int64(3), np.int32(4), np.bool_(True))],
        "probs": np.arange(6, dtype=">f4").reshape(2, 3),
        "columns": np.asfortranarray(np.arange(4).reshape(2, 2)),
        "path": Path("/slides/a.tif"),
        "text": np.str_("x"),
    }
    plain = {
        "patches": [(3, 4, True)],
        "probs": [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]],
        "columns": [[0, 1], [2, 3]],
        "path": "/slides/a.tif",
        "text": "x",
    }
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        (tmp_path / "foreign.pkl").write_bytes(pickle.dumps(value, protocol=protocol))
        found = read_plain_pickle(tmp_path / "foreign.pkl")
        assert found == plain
        assert [type(item) for item in found["patches"][0]] == [int, int, bool]


class Trap:
    def __reduce__(self):
        return (os.mkdir, (self.path,))


def test_a_pickle_that_would_run_code_is_refused_and_runs_nothing(tmp_path):
    trap = Trap()
    trap.path = str(tmp_path / "ran")
    evil = tmp_path / "evil.pkl"
    evil.write_bytes(pickle.dumps(trap))
    with pytest.raises(WsiAssetsError, match="mkdir") as caught:
        read_plain_pickle(evil)
    assert not (tmp_path / "ran").exists()
    assert "\n" not in str(caught.value)
    assert str(evil) in str(caught.value)


def test_an_array_of_objects_is_refused(tmp_path):
    trap = Trap()
    trap.path = str(tmp_path / "ran")
    for value in (np.array([trap], object), np.array([{}], object), np.zeros(2, [("a", "i4")])):
        (tmp_path / "evil.pkl").write_bytes(pickle.dumps(value))
        with pytest.raises(WsiAssetsError):
            read_plain_pickle(tmp_path / "evil.pkl")
    assert not (tmp_path / "ran").exists()


def test_a_damaged_pickle_is_one_clear_line(tmp_path):
    path = tmp_path / "half.pkl"
    path.write_bytes(pickle.dumps(list(range(1000)))[:100])
    with pytest.raises(WsiAssetsError):
        read_plain_pickle(path)


def test_a_value_with_a_class_in_it_is_not_written(tmp_path):
    with pytest.raises(TypeError, match="plain"):
        write_plain_pickle(tmp_path / "value.pkl", {"entry": Trap})
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), publish_file(path) as staged:
        staged.write_text("half of the n")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_replaced_whole(tmp_path):
    target = tmp_path / "report"
    for content in ("first", "second"):
        with publish_folder(target) as staged:
            (staged / content).write_text(content)
    assert [file.name for file in target.iterdir()] == ["second"]
    with pytest.raises(RuntimeError), publish_folder(target) as staged:
        (staged / "third").write_text("third")
        raise RuntimeError
    assert [file.name for file in target.iterdir()] == ["second"]
    assert list(tmp_path.iterdir()) == [target]


def test_the_digest_ignores_the_order_of_a_mapping_and_nothing_else():
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest([1, 2]) != digest([2, 1])
    assert digest(1) != digest("1")


def test_an_error_names_file_fault_and_remedy_in_one_line_and_survives_a_process_pool():
    error = SlideError("does not\n open.", path="slide.svs", remedy="Copy it again")
    assert str(error) == "slide.svs: does not open. Copy it again"
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy)) == (SlideError, str(error))


@pytest.mark.parametrize("publish", [publish_file, publish_folder])
def test_leftovers_of_a_killed_process_are_removed_and_files_of_a_living_one_are_not(tmp_path, publish):
    script = (
        "import os, sys, time\n"
        f"from wsi_assets.files import {publish.__name__} as publish\n"
        "with publish(sys.argv[1]) as staged:\n"
        "    print(staged, flush=True)\n"
        "    sys.stdin.read()\n"
    )
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path / name)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in ("killed", "living")
    ]
    left, kept = (Path(writer.stdout.readline().strip()) for writer in writers)
    writers[0].kill()
    writers[0].wait()
    assert left.exists()
    with publish(tmp_path / "mine") as staged:
        (staged.write_text if publish is publish_file else (staged / "page").write_text)("mine")
    assert not left.exists()
    assert kept.exists()
    writers[1].communicate("")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["living", "mine"]


KILLED_BETWEEN_RENAMES = """
import os, signal, sys
from pathlib import Path
from wsi_assets import files

files.exchange = lambda one, other: False  # as on NFS and macOS
rename, renames = Path.rename, []

def rename_and_die(self, target):
    if len(renames) == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    renames.append(target)
    return rename(self, target)

Path.rename = rename_and_die
with files.publish_folder(sys.argv[1]) as staged:
    (staged / "new").write_text("new")
"""


@pytest.mark.parametrize("step", range(3))
def test_a_kill_between_the_renames_of_a_folder_loses_neither_the_old_nor_the_new_one(tmp_path, step):
    target = tmp_path / "checkpoints"
    target.mkdir()
    (target / "old").write_text("old")
    command = [sys.executable, "-c", KILLED_BETWEEN_RENAMES, str(target), str(step)]
    assert subprocess.run(command).returncode == -signal.SIGKILL
    write_plain_pickle(tmp_path / "other.pkl", 1)  # sweeps up what killed processes left
    here = {file.name for file in tmp_path.rglob("*") if file.is_file()}
    # Before the first rename the new one had not begun to be published.
    assert here == {"old", "other.pkl"} | ({"new"} if step else set())
    recover(target)
    assert [file.name for file in target.iterdir()] == (["new"] if step else ["old"])
    with publish_folder(target) as staged:
        (staged / "third").write_text("third")
    assert sorted(file.name for file in tmp_path.rglob("*")) == ["checkpoints", "other.pkl", "third"]


def test_a_folder_is_replaced_where_names_cannot_be_exchanged(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "exchange", lambda one, other: False)
    for content in ("first", "second"):
        with publish_folder(tmp_path / "report") as staged:
            (staged / content).write_text(content)
    assert [file.name for file in tmp_path.rglob("*") if file.is_file()] == ["second"]
    assert list(tmp_path.iterdir()) == [tmp_path / "report"]


def test_writers_of_one_folder_do_not_remove_each_others_files(tmp_path):
    def write(number):
        for _ in range(30):
            with publish_file(tmp_path / f"{number}.txt") as staged:
                staged.write_text("whole")

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(write, range(8)))
    assert {file.read_text() for file in tmp_path.iterdir()} == {"whole"}


def test_where_there_are_no_locks_files_are_published_and_leftovers_stay(tmp_path, monkeypatch):
    left = tmp_path / f"{files.STAGING_PREFIX}of-another"
    left.write_text("half")

    def no_locks(handle, kind):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with publish_file(tmp_path / "file.txt") as staged:
        staged.write_text("whole")
    with publish_folder(tmp_path / "folder") as staged:
        (staged / "file").write_text("whole")
    with file_lock(tmp_path / "lock"):
        pass
    assert left.exists()


def test_files_have_the_rights_of_the_umask_which_is_never_changed(tmp_path):
    old = os.umask(0o027)
    try:
        seen = set()
        done = threading.Event()

        def watch():
            while not done.is_set():
                file = tmp_path / "other.txt"
                file.touch()
                seen.add(stat.S_IMODE(file.stat().st_mode))
                file.unlink()

        watcher = threading.Thread(target=watch)
        watcher.start()
        for number in range(50):
            with publish_file(tmp_path / f"{number % 3}.json") as staged:
                staged.write_text("{}")
            with publish_folder(tmp_path / f"folder{number % 3}"):
                pass
        done.set()
        watcher.join()
    finally:
        os.umask(old)
    assert seen == {0o640}
    assert stat.S_IMODE((tmp_path / "0.json").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "folder0").stat().st_mode) == 0o750


def test_a_lock_is_held_by_one(tmp_path):
    with file_lock(tmp_path / "lock"), pytest.raises(BlockingIOError), file_lock(tmp_path / "lock"):
        pass
    with file_lock(tmp_path / "lock"):
        pass


def test_a_disk_error_is_known_by_its_number(tmp_path):
    for code in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO):
        wrapped = RuntimeError("outer")
        wrapped.__cause__ = OSError(code, "whatever the library says")
        fault = disk_fault(wrapped, tmp_path)
        assert str(tmp_path) in str(fault)
        assert ("full" in fault.fault) == (code in (errno.ENOSPC, errno.EDQUOT))
    full = sqlite3.OperationalError("in another language")
    full.sqlite_errorcode = sqlite3.SQLITE_FULL
    assert "full" in disk_fault(full).fault
    assert disk_fault(ValueError("No space left on device")) is None
    assert disk_fault(OSError(errno.ENOENT, "gone")) is None
