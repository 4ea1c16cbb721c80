"""How commands and worker processes start and stop: Ctrl-C or SIGTERM end a command within seconds.

Files survive a kill at any moment, so a command that is stopped cleans nothing up: it prints one line and
ends with status 130.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import forkserver

INTERRUPTED = 130
GRACE_SECONDS = 2

PRELOADED = [
    *("cv2", "imagecodecs", "shapely", "tifffile"),
    *("click", "wsi_assets.annotations.reading", "wsi_assets.index.slide_regions"),
    *("wsi_assets.index.tissue", "wsi_assets.index.pictures", "wsi_assets.patches.extraction"),
]
"""Modules imported once in the fork server, so that worker processes need not import them."""

_stop = threading.Event()
_ending = threading.Lock()


@contextlib.contextmanager
def as_command() -> Iterator[None]:
    """Context of a command: Ctrl-C and SIGTERM end it, and text that its terminal cannot show is escaped.

    Both signals raise KeyboardInterrupt, or Dagster's own interruption within one of its steps. Pool workers
    are killed at once. The command itself is killed if it has not ended after ``GRACE_SECONDS``, because
    compiled code and threads do not notice a signal.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")
    gc.set_threshold(10_000)  # Dagster makes many objects and little garbage
    atexit.register(gc.freeze)  # else the garbage collection at exit takes most of a second
    os.environ["MPLBACKEND"] = "agg"  # Jupyter sets a backend that does not exist outside of it
    # Python's resource tracker frees the semaphores of a killed pool, and would warn of each.
    others = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = ",".join(filter(None, (others, "ignore:resource_tracker")))
    signals = (signal.SIGINT, signal.SIGTERM)
    before = {one: signal.signal(one, _interrupt) for one in signals}
    received, wakeup = socket.socketpair()
    wakeup.setblocking(False)
    # Dagster replaces signal handlers while it works, but not the wakeup file descriptor.
    signal.set_wakeup_fd(wakeup.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(received,), daemon=True).start()
    try:
        yield
    except BaseException as error:
        if not (isinstance(error, KeyboardInterrupt) or stop_requested()):
            raise
        _print_once()
        atexit._run_exitfuncs()  # the rest of the interpreter's shutdown takes seconds with torch
        os._exit(INTERRUPTED)
    finally:
        signal.set_wakeup_fd(-1)
        wakeup.close()
        for one, handler in before.items():
            signal.signal(one, handler)


def stop_requested() -> bool:
    """Whether this process was asked to stop; errors after that are a consequence of stopping."""
    return _stop.is_set()


@contextlib.contextmanager
def loading(*, workers: bool = True) -> Iterator[None]:
    """Import modules while worker processes load theirs, if the command needs ``workers``.

    Nothing is garbage meanwhile: looking for it in all that Dagster defines takes a tenth of a second.
    """
    if workers:
        prepare_workers()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def prepare_workers() -> None:
    """Start loading what worker processes need, in the background, so that the first pool starts at once."""
    multiprocessing.set_forkserver_preload(PRELOADED)
    forkserver.ensure_running()


def worker_pool(processes: int) -> ProcessPoolExecutor:
    """A pool of processes that inherit no files, locks or threads of this one and start in milliseconds."""
    prepare_workers()
    context = multiprocessing.get_context("forkserver")
    return ProcessPoolExecutor(processes, context, initializer=start_worker)


def start_worker() -> None:
    """Initializer of a pool's process: it leaves Ctrl-C to its parent, and ends when its parent ends."""
    import cv2

    cv2.setNumThreads(1)  # there is a process for each core; OpenCV would add a thread for each core
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    # An orphaned worker would wait for tasks forever, because every worker holds the pipe's other end open.
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def _interrupt(*_: object) -> None:
    _stop.set()
    raise KeyboardInterrupt


def _watch(received: socket.socket) -> None:
    while number := received.recv(1):
        if number[0] in (signal.SIGINT, signal.SIGTERM):
            _stop.set()
            threading.excepthook = lambda _: None
            for worker in multiprocessing.active_children():
                worker.kill()
            time.sleep(GRACE_SECONDS)
            _print_once()
            os._exit(INTERRUPTED)


def _print_once() -> None:
    if _ending.acquire(blocking=False):
        # A progress bar may have replaced sys.stderr and hidden the cursor.
        show_cursor = "\x1b[?25h" if sys.__stderr__.isatty() else ""
        print(f"{show_cursor}stopped; the same command continues", file=sys.__stderr__, flush=True)
