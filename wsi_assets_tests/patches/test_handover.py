"""Facts of handing results over: what goes into a room comes out, and no kill leaves anything behind."""

from __future__ import annotations

import multiprocessing
import signal
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi_assets.errors import SlideError
from wsi_assets.patches import handover
from wsi_assets.patches.extract import Task, close_reader, extract, extract_into, fetch
from wsi_assets.patches.handover import Filling, Room, Rooms
from wsi_assets.patches.pixels import PatchReader


@given(results=st.lists(st.dictionaries(st.integers(0, 7), st.binary(max_size=9000)), max_size=4))
def test_a_room_gives_each_result_it_is_filled_with(results):
    room = Room()
    for number, result in enumerate(results):
        with Filling(room.path, 8) as values:
            for index, value in result.items():
                values[index] = value
            place = values.finish(number)
        got, rest = room.read(place)
        assert rest == number
        assert {index: bytes(value) for index, value in enumerate(got) if value is not None} == result
    room.close()


@pytest.mark.parametrize("anonymous", [True, False])
def test_another_process_fills_a_room(cohort, monkeypatch, anonymous):
    if not anonymous:  # as where the system has no files without a name
        monkeypatch.delattr(handover.os, "memfd_create")
    task = Task(str(cohort[0]), None, 0, 128, np.array([(0, 0), (4000, 4000), (128, 64)]), "qoi", None, 0.5)
    expected = extract(task)
    close_reader()
    context = multiprocessing.get_context("spawn")
    with Rooms() as rooms, ProcessPoolExecutor(1, mp_context=context) as pool:
        room = rooms.take()
        got = fetch(room, pool.submit(extract_into, room.path, task).result())
        assert [None if value is None else bytes(value) for value in got.values] == expected.values
        assert (got.reasons, got.unseen_by) == (expected.reasons, None)
    assert list(got.reasons) == [1]


def test_rooms_are_used_again():
    with Rooms() as rooms:
        first, second = rooms.take(), rooms.take()
        assert first.path != second.path
        rooms.give_back(first)
        assert rooms.take() is first


def test_a_slide_that_fails_in_the_middle_keeps_what_was_read(cohort, monkeypatch):
    task = Task(str(cohort[0]), None, 0, 128, np.array([(0, 0), (128, 64)]), "qoi", None, 0.5)
    original = PatchReader.read

    def failing(self, *asked, **how):
        yield next(original(self, *asked, **how))
        raise SlideError("is gone", path=self.path)

    monkeypatch.setattr(PatchReader, "read", failing)
    got = extract(task)
    assert [value is None for value in got.values] == [False, True]
    assert got.reasons == {1: "is gone"}


FILLER = """
import os, signal, sys
from wsi_assets.patches.handover import Filling, Rooms
with Rooms() as rooms:
    room = rooms.take()
    with Filling(room.path, 1) as values:
        values[0] = bytes(1 << 20)
        values.finish(None)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere rooms are files of the temporary folder")
def test_a_killed_process_leaves_no_room_behind(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    before = set(Path("/dev/shm").iterdir())
    done = subprocess.run([sys.executable, "-c", FILLER], cwd=Path(__file__).parents[2])
    assert done.returncode == -signal.SIGKILL
    assert list(tmp_path.iterdir()) == []
    assert {name for name in set(Path("/dev/shm").iterdir()) - before if "wsi" in name.name} == set()
