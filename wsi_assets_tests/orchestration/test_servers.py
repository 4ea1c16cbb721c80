"""Servers come back when they are killed and give up when they cannot; a full disk leaves room to say so."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections import namedtuple

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi_assets.orchestration import reserve
from wsi_assets.orchestration.reserve import Reserve, give_up_if_full, is_low
from wsi_assets.orchestration.servers import MOST_STOPS, WITHIN_SECONDS, Server, stops_too_often

MIB = 1 << 20


def test_a_killed_server_is_started_again_with_a_line_until_it_stops_too_often(tmp_path):
    server = Server("daemon", [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"], tmp_path / "log")
    told = []
    server.start()
    for _ in range(MOST_STOPS):
        server.process.wait()
        assert server.revive(told.append)
    assert all("The daemon was killed (SIGKILL) and is started again" in line for line in told)
    server.process.wait()
    assert not server.revive(told.append)
    assert told[-1].startswith("error: the daemon was killed (SIGKILL)")
    assert str(tmp_path / "log") in told[-1]


def test_a_server_that_runs_is_left_alone(tmp_path):
    server = Server("daemon", [sys.executable, "-c", "input()"], tmp_path / "log")
    told = []
    server.start()
    try:
        assert server.process.poll() is not None or server.revive(told.append)
        assert told == []
    finally:
        server.process.kill()
        server.process.wait()


@given(st.lists(st.floats(0, 10 * WITHIN_SECONDS)))
def test_one_stop_now_and_then_is_never_too_often(times):
    assert not stops_too_often(times[:MOST_STOPS], max(times, default=0.0))
    far_apart = [WITHIN_SECONDS * number for number in range(len(times))]
    assert not stops_too_often(far_apart, far_apart[-1] if far_apart else 0.0)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of its parent's end")
def test_servers_end_with_a_parent_that_is_killed(tmp_path):
    script = (
        "import sys; from pathlib import Path; from wsi_assets.orchestration.servers import Server\n"
        "command = [sys.executable, '-c', 'import time; time.sleep(600)']\n"
        "server = Server('daemon', command, Path(sys.argv[1]))\n"
        "server.start(); print(server.process.pid, flush=True); sys.stdin.read()"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script, tmp_path / "log"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    server = psutil.Process(int(parent.stdout.readline()))
    os.kill(parent.pid, signal.SIGKILL)
    parent.communicate()
    gone, alive = psutil.wait_procs([server], timeout=60)
    assert gone
    assert not alive


@given(free=st.integers(0, 1 << 40), size=st.integers(1, 1 << 30))
def test_a_reserve_neither_comes_and_goes_nor_takes_the_last_room(free, size):
    if not is_low(free, size, held=False):
        assert not is_low(free - size, size, held=True), "what was taken is not given up at once"
    if is_low(free, size, held=True):
        assert is_low(free + size, size, held=False), "what was given up is not taken back at once"


@pytest.fixture
def disk(monkeypatch):
    """A disk of a thousand MiB whose free space a test sets; what the reserve takes comes off it."""
    usage = namedtuple("usage", "total used free")
    state = {"free": 500 * MIB}

    def disk_usage(home):
        held = home / reserve.NAME
        taken = held.stat().st_size if held.exists() else 0
        return usage(1000 * MIB, 0, state["free"] - taken)

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    return state


def test_a_full_disk_is_told_once_and_so_is_room(tmp_path, disk):
    kept = Reserve(tmp_path)
    assert kept.look() is None
    held = tmp_path / reserve.NAME
    assert held.stat().st_size == 50 * MIB
    disk["free"] = 51 * MIB
    assert "the disk is full" in kept.look()
    assert not held.exists()
    assert kept.look() is None
    disk["free"] = 200 * MIB
    assert "room again" in kept.look()
    assert held.exists()
    assert kept.look() is None


def test_a_run_that_fails_on_a_full_disk_gives_the_reserve_up(tmp_path, disk, monkeypatch):
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    Reserve(tmp_path).look()
    give_up_if_full()
    assert (tmp_path / reserve.NAME).exists()
    disk["free"] = 51 * MIB
    give_up_if_full()
    assert not (tmp_path / reserve.NAME).exists()
    monkeypatch.delenv("DAGSTER_HOME")
    give_up_if_full()
