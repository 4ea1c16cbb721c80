"""Servers come back when they are killed and give up when they cannot; what is wrong at the start is told."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections import namedtuple

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi_assets.errors import ConfigError
from wsi_assets.orchestration import reserve, servers
from wsi_assets.orchestration.reserve import Reserve, give_up_if_full, is_low
from wsi_assets.orchestration.servers import (
    MOST_STOPS,
    WITHIN_SECONDS,
    Server,
    check_ports,
    slides_watched,
    stops_too_often,
)
from wsi_assets.orchestration.settings import Settings
from wsi_assets_tests.ports import free_port

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


def test_only_a_port_that_is_taken_is_called_so():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port} is in use. Choose another with --mlflow-port"):
            check_ports("127.0.0.1", {"--port": free_port(), "--mlflow-port": port})
    check_ports("127.0.0.1", {"--port": free_port()})


@pytest.mark.parametrize(
    ("host", "says"),
    [("192.0.2.1", "cannot serve on host 192.0.2.1, port"), ("ü" * 70, "is no name of a host")],
)
def test_a_host_that_is_not_this_machine_is_one_clear_line(host, says):
    with pytest.raises(ConfigError, match=says) as caught:
        check_ports(host, {"--port": free_port()})
    assert "in use" not in str(caught.value)


def test_two_servers_do_not_share_a_port():
    with pytest.raises(ConfigError, match="--port and --mlflow-port are both 3000"):
        check_ports("127.0.0.1", {"--port": 3000, "--mlflow-port": 3000})


def test_what_is_wrong_with_the_ports_is_told_before_anything_is_made(tmp_path):
    with pytest.raises(ConfigError, match="are both"):
        servers.serve(Settings.from_environment({}, home=tmp_path), "127.0.0.1", 3000, 3000)
    assert list(tmp_path.iterdir()) == []


def test_the_folder_that_is_watched_is_told_and_how_many_slides_it_holds(tmp_path):
    settings = Settings.from_environment({}, home=tmp_path)
    missing = slides_watched(settings)
    assert missing[0] == f"Slides:      {tmp_path / 'images'}"
    assert missing[1].startswith(f"warning: {tmp_path / 'images'}: does not exist")
    (tmp_path / "images").mkdir()
    empty = slides_watched(settings)
    assert empty[0].endswith("(0 slides)")
    assert empty[1].startswith(f"warning: there is no slide in {tmp_path / 'images'}")
    (tmp_path / "images/a.tif").write_bytes(b"x")
    assert slides_watched(settings) == [f"Slides:      {tmp_path / 'images'} (1 slides)"]


def test_that_an_interrupt_was_heard_is_told_before_servers_take_their_time(tmp_path):
    class Interrupted:
        def look(self):
            raise KeyboardInterrupt

    told = []
    assert servers._watch([], Interrupted(), None, told.append) == 0
    assert told == ["Stopping …"]


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
