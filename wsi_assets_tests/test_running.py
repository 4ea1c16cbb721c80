"""Commands end within seconds of Ctrl-C or SIGTERM, in one line, with status 130, whatever they do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

WITHIN_SECONDS = 5
PROGRAM = """
import multiprocessing, sys, time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from wsi_assets.running import as_command, start_worker

def waiting(pool):
    with pool:
        next(iter(pool.map(time.sleep, [60] * 8)))

def work(kind):
    print("working", flush=True)
    if kind == "loop":
        while True:
            sum(range(1000))
    if kind == "fails":
        try:
            time.sleep(60)
        finally:
            raise ValueError("because it was stopped")
    if kind == "threads":
        waiting(ThreadPoolExecutor(2))
    waiting(ProcessPoolExecutor(2, multiprocessing.get_context(kind), initializer=start_worker))

if __name__ == "__main__":
    with as_command():
        work(sys.argv[1])
"""


def begin(command: list[str], cwd: Path) -> subprocess.Popen:
    return subprocess.Popen(
        command,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def stopped(process: subprocess.Popen, number: signal.Signals) -> str:
    """What it says on the way out; Ctrl-C reaches every process of a terminal, SIGTERM the one it names."""
    sent = time.monotonic()
    if number is signal.SIGINT:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    said = process.communicate(timeout=60)[1]
    assert time.monotonic() - sent < WITHIN_SECONDS
    assert process.returncode == 130
    with pytest.raises(ProcessLookupError):  # what it started ends too
        while time.monotonic() - sent < 2 * WITHIN_SECONDS:
            os.killpg(process.pid, 0)
            time.sleep(0.1)
    return said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("kind", ["loop", "fails", "threads", "spawn", "forkserver"])
def test_whatever_a_command_does_a_signal_ends_it_in_one_line(kind, number, tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    process = begin([sys.executable, "program.py", kind], tmp_path)
    assert process.stdout.readline() == "working\n"
    time.sleep(1.0 if kind in ("spawn", "forkserver") else 0.2)
    (line,) = stopped(process, number).splitlines()
    assert "continues" in line


def test_a_name_that_the_terminal_cannot_show_is_printed_as_an_escape(tmp_path):
    program = "from wsi_assets.running import as_command\nwith as_command(): print('M\\xfcller')"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONIOENCODING": "ascii"}
    shown = subprocess.check_output([sys.executable, "-c", program], env=environment, text=True)
    assert shown == "M\\xfcller\n"


def test_the_matplotlib_backend_of_jupyter_does_not_stop_drawing():
    program = "from wsi_assets.running import as_command\nwith as_command(): import matplotlib"
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "MPLBACKEND": "module://a_notebook.backend",
    }
    subprocess.check_call([sys.executable, "-c", program], env=environment)
