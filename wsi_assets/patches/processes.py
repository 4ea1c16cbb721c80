"""Worker processes that end with the process that started them, however that ends."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import connection, get_context, parent_process


def process_pool(workers: int) -> ProcessPoolExecutor:
    """A pool of fresh processes: what this one has open, or its threads hold, is not theirs."""
    return ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_end_with_starter)


def _end_with_starter() -> None:
    # Workers of a killed process would wait for tasks for ever: each holds the other end of their pipe too.
    starter = parent_process()
    if starter is not None:
        threading.Thread(target=_watch, args=(starter.sentinel,), name="watch", daemon=True).start()


def _watch(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(1)
