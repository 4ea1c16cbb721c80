"""Facts of a file written behind its writer's back: all is there and in order, and no fault is hidden."""

from __future__ import annotations

import errno
import os
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi_assets.patches import write_behind
from wsi_assets.patches.write_behind import WriteBehind


@pytest.fixture
def file(tmp_path):
    return tmp_path / "file"


def opened(file, end=0):
    return WriteBehind(os.open(file, os.O_RDWR | os.O_CREAT), end)


@given(sizes=st.lists(st.integers(0, 40), max_size=30), block=st.integers(1, 33), begin=st.integers(0, 5))
def test_the_file_is_what_was_appended_whatever_the_blocks(tmp_path_factory, sizes, block, begin):
    parts = [bytes([number + 1]) * size for number, size in enumerate(sizes)]
    path = tmp_path_factory.mktemp("behind") / "file"
    path.write_bytes(bytes(begin))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write_behind, "_BLOCK", block)
        written = opened(path, begin)
        for part in parts:
            written.append(part)
        written.wait()
        assert written.end == begin + sum(sizes)
        written.close()
    assert path.read_bytes() == bytes(begin) + b"".join(parts)


def test_what_is_to_follow_finds_all_that_was_appended_before_and_nothing_after(file, monkeypatch):
    monkeypatch.setattr(write_behind, "_BLOCK", 16)
    written, seen = opened(file), []
    for number in range(20):
        written.append(bytes(10))
        written.then(lambda number=number: seen.append((number, file.stat().st_size)))
    written.close()
    assert seen == [(number, 10 * (number + 1)) for number in range(20)]


def test_a_slow_disk_holds_up_nobody_until_too_much_waits(file, monkeypatch):
    monkeypatch.setattr(write_behind, "_BLOCK", 10)
    monkeypatch.setattr(write_behind, "_MOST_WAITING", 100)
    written, go_on = opened(file), threading.Event()
    written.then(go_on.wait)
    written.append(bytes(100))
    more = threading.Thread(target=written.append, args=(bytes(10),))
    more.start()
    more.join(0.2)
    assert more.is_alive(), "waits for the disk"
    go_on.set()
    more.join()
    written.wait()
    written.close()
    assert file.stat().st_size == 110


def test_after_a_fault_nothing_more_is_done_and_it_is_told(file, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    written, seen = opened(file), []
    written.append(b"old")
    written.then(seen.append, "written")
    written.wait()
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        written.append(b"lost")
        with pytest.raises(OSError, match="No space"):
            written.wait()
    with pytest.raises(OSError, match="No space"):
        written.then(seen.append, "never")
        written.wait()
    written.close()
    assert seen == ["written"]
    assert file.read_bytes() == b"old"
