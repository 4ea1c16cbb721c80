"""How commands begin and end: text for any terminal, and Ctrl-C or SIGTERM end them within seconds.

What is written survives a kill at any moment, so ending needs haste and no care: one line, status 130.
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

STATUS = 130
PATIENCE_SECONDS = 2

PRELOADED = [
    *("cv2", "imagecodecs", "shapely", "tifffile"),
    *("click", "wsi_assets.annotations.reading", "wsi_assets.index.slide_regions"),
    *("wsi_assets.index.tissue", "wsi_assets.index.pictures", "wsi_assets.patches.extraction"),
]
"""What is loaded once for all worker processes, which are forked with it."""

_asked = threading.Event()
_ending = threading.Lock()


@contextlib.contextmanager
def as_command() -> Iterator[None]:
    """Run a command that either signal ends, and that prints names its terminal cannot show as escapes.

    Both signals raise KeyboardInterrupt, in a step of Dagster its own interruption. Processes of pools are
    killed at once, and this one too if it has not ended after some seconds: compiled code and threads do not
    notice a signal.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")
    gc.set_threshold(10_000)
    atexit.register(gc.freeze)  # Python's own end would search all of that again: most of a second
    os.environ["MPLBACKEND"] = "agg"  # Jupyter leaves a name here that matplotlib refuses elsewhere
    # A pool that is killed leaves semaphores; Python's own helper process frees them, and need not say so.
    others = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = ",".join(filter(None, (others, "ignore:resource_tracker")))
    signals = (signal.SIGINT, signal.SIGTERM)
    before = {one: signal.signal(one, _interrupt) for one in signals}
    received, wakeup = socket.socketpair()
    wakeup.setblocking(False)
    # Dagster replaces handlers while it works; this is written to all the same.
    signal.set_wakeup_fd(wakeup.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(received,), daemon=True).start()
    try:
        yield
    except BaseException as error:
        if not (isinstance(error, KeyboardInterrupt) or was_asked()):
            raise
        _say_once()
        atexit._run_exitfuncs()  # the rest of the interpreter's own end takes seconds with torch
        os._exit(STATUS)
    finally:
        signal.set_wakeup_fd(-1)
        wakeup.close()
        for one, handler in before.items():
            signal.signal(one, handler)


def was_asked() -> bool:
    """Whether this process was asked to stop; whatever fails from then on is no fault."""
    return _asked.is_set()


@contextlib.contextmanager
def loading() -> Iterator[None]:
    """Import modules while worker processes load theirs.

    Nothing is garbage meanwhile: looking for it in all that Dagster defines takes a tenth of a second.
    """
    prepare_workers()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def prepare_workers() -> None:
    """Load in the background what worker processes need, so that the first pool starts without a wait."""
    multiprocessing.set_forkserver_preload(PRELOADED)
    forkserver.ensure_running()


def worker_pool(processes: int) -> ProcessPoolExecutor:
    """Processes that hold nothing of this one's files, locks and threads, and start within milliseconds."""
    prepare_workers()
    context = multiprocessing.get_context("forkserver")
    return ProcessPoolExecutor(processes, context, initializer=start_worker)


def start_worker() -> None:
    """Initializer of a pool's process: its parent alone decides about Ctrl-C, and it ends with its parent."""
    import cv2

    cv2.setNumThreads(1)  # a process a core is enough; OpenCV would start a thread a core in each
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    # It would wait for tasks for ever: each worker holds the other end of the pipe too.
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def _interrupt(*_: object) -> None:
    _asked.set()
    raise KeyboardInterrupt


def _watch(received: socket.socket) -> None:
    while number := received.recv(1):
        if number[0] in (signal.SIGINT, signal.SIGTERM):
            _asked.set()
            threading.excepthook = lambda _: None
            for worker in multiprocessing.active_children():
                worker.kill()
            time.sleep(PATIENCE_SECONDS)
            _say_once()
            os._exit(STATUS)


def _say_once() -> None:
    if _ending.acquire(blocking=False):
        # Not sys.stderr, which a progress bar may have taken, as it has hidden the cursor.
        show_cursor = "\x1b[?25h" if sys.__stderr__.isatty() else ""
        print(f"{show_cursor}stopped; the same command continues", file=sys.__stderr__, flush=True)
