"""A file that is written behind its writer's back, so that a slow disk holds up nobody for a while.

What the bytes mean belongs elsewhere.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

_BLOCK = 1 << 20
_MOST_WAITING = 64 << 20
"""Bytes that may wait for the disk: over half a second of what two cores encode. Syncs that others are in the
way of take as long at times, and then all workers stood still."""


class WriteBehind:
    """Appends to an open file, from ``end`` on, and does other things, all in order and in one thread.

    After a fault nothing further is done, and what is asked of it then raises the fault.

    Attributes:
        handle: the file's descriptor, which :meth:`close` closes.
        end: where the next byte goes.
    """

    def __init__(self, handle: int, end: int):
        self.handle, self.end = handle, end
        # Used again and again: new ones for all that is written cost 2 s of page faults a gigabyte.
        self._free: list[bytearray] = []
        self._block, self._used = bytearray(_BLOCK), 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="write-behind")
        self._waiting: deque[tuple[Future[None], int]] = deque()
        self._fault: BaseException | None = None

    def append(self, *parts: bytes | memoryview) -> None:
        """Put bytes at the end; they are copied.

        Raises:
            OSError: the disk did not take earlier ones.
        """
        for part in map(memoryview, parts):
            while part:
                size = min(len(part), _BLOCK - self._used)
                self._block[self._used : self._used + size] = part[:size]
                self._used += size
                self.end += size
                part = part[size:]
                if self._used == _BLOCK:
                    self._hand_over()

    def then(self, work: Callable[..., object], *args: Any) -> None:
        """Do something once all that was appended is written.

        Raises:
            OSError: as :meth:`append`.
        """
        self._hand_over()
        self._submit(0, work, *args)

    def wait(self) -> None:
        """Return when all is done.

        Raises:
            OSError: the disk did not take the bytes.
        """
        self._hand_over()
        while self._waiting:
            self._waiting.popleft()[0].result()

    def close(self) -> None:
        """Do what waits, and let go of the file; bytes after the last :meth:`then` may be dropped."""
        self._thread.shutdown()
        if self.handle >= 0:
            os.close(self.handle)
            self.handle = -1

    def _hand_over(self) -> None:
        if self._used:
            block, size = self._block, self._used
            self._block, self._used = self._free.pop() if self._free else bytearray(_BLOCK), 0
            self._submit(size, self._write, block, size, self.end - size)

    def _submit(self, size: int, work: Callable[..., object], *args: Any) -> None:
        self._waiting.append((self._thread.submit(self._run, work, *args), size))
        while self._waiting and (self._waiting[0][0].done() or self._behind() > _MOST_WAITING):
            self._waiting.popleft()[0].result()

    def _behind(self) -> int:
        return sum(size for _, size in self._waiting)

    def _run(self, work: Callable[..., object], *args: Any) -> None:
        if self._fault is not None:
            raise self._fault
        try:
            work(*args)
        except BaseException as error:
            self._fault = error
            raise

    def _write(self, block: bytearray, size: int, offset: int) -> None:
        rest = memoryview(block)[:size]
        while rest:
            written = os.pwrite(self.handle, rest, offset)
            rest, offset = rest[written:], offset + written
        self._free.append(block)
