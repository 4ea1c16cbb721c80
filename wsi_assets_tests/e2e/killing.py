"""The command line run again and again and killed at will, without the seconds that starting it takes.

A process that has everything imported forks a child for each run; the child is a run of its own in all else.
Talked to in lines of JSON. What is killed, and what must come of it, is for the tests.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LONGEST = 120
"""Seconds after which a run counts as one that hangs, and is killed."""

SMALL_BATCHES = 16 * 32 * 32
"""Bytes between commits of a store here: a small cohort then has several, as a large one does."""

_BEGAN, _DONE = b"+", b"-"


@dataclass(frozen=True)
class Ended:
    """How a run ended.

    Attributes:
        status: exit status, or minus the signal.
        output: all it printed.
        seconds: it took.
        began, done: how many of the steps that were watched began, and were over.
        within: seconds from the beginning of the first of these steps to the end of the last.
    """

    status: int
    output: str
    seconds: float
    began: int
    done: int
    within: float


class Runs:
    """Starts runs of ``wsi-assets``; a context manager."""

    def __init__(self, folder: Path):
        self._output = folder / "output.txt"
        environment = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("WSI_", "DAGSTER_", "MLFLOW"))
        }
        self._nursery = subprocess.Popen(
            [sys.executable, "-m", __name__],
            env={**environment, "OMP_NUM_THREADS": "1", "COLUMNS": "250"},
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(
        self,
        *arguments: object,
        cwd: Path,
        kill_after: float | None = None,
        steps: Sequence[str] = (),
        clock: float = 0,
        **environment: str,
    ) -> Ended:
        """Run to the end, or to SIGKILL so many seconds after the start, or after one of the steps began.

        The run's clock is ``clock`` seconds ahead.
        """
        ask = {
            "arguments": list(map(str, arguments)),
            "cwd": str(cwd),
            "kill_after": kill_after,
            "steps": list(steps),
            "clock": clock,
            "environment": environment,
            "output": str(self._output),
        }
        self._nursery.stdin.write(json.dumps(ask) + "\n")
        self._nursery.stdin.flush()
        line = self._nursery.stdout.readline()
        assert line, self._output.read_text(errors="replace")
        answer = json.loads(line)
        return Ended(output=self._output.read_text(errors="replace"), **answer)

    def __enter__(self) -> Runs:
        return self

    def __exit__(self, *_: object) -> None:
        self._nursery.stdin.close()
        self._nursery.wait(30)


def _nurse() -> None:
    import cv2
    import torch

    import wsi_assets.console
    import wsi_assets.evaluation.report
    import wsi_assets.orchestration.cli_run
    import wsi_assets.orchestration.instance
    import wsi_assets.patches.build
    import wsi_assets.patches.plan
    from wsi_assets.learning import prediction, training  # noqa: F401

    with contextlib.suppress(ImportError):
        import mlflow  # noqa: F401
        import torchvision  # noqa: F401
    wsi_assets.patches.plan.BATCH_PIXELS = SMALL_BATCHES
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    for line in sys.stdin:
        print(json.dumps(_run(json.loads(line))), flush=True)


def _run(ask: dict[str, Any]) -> dict[str, Any]:
    told, tell = os.pipe()
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        os._exit(_be(ask, tell))
    os.set_blocking(told, False)
    seen: list[float] = []
    signs = b""
    stop = started + (LONGEST if ask["kill_after"] is None or ask["steps"] else ask["kill_after"])
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        with contextlib.suppress(BlockingIOError):
            new = os.read(told, 1000)
            if new and not signs and ask["kill_after"] is not None:
                stop = time.monotonic() + ask["kill_after"]
            signs += new
            seen += [time.monotonic()] * len(new)
        if ended:
            break
        if time.monotonic() >= stop:
            os.kill(child, signal.SIGKILL)
            stop = float("inf")
        time.sleep(0.002)
    os.close(told)
    os.close(tell)
    # What it had started goes with it, as when a machine is switched off.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    return {
        "status": os.waitstatus_to_exitcode(status),
        "seconds": time.monotonic() - started,
        "began": signs.count(_BEGAN),
        "done": signs.count(_DONE),
        "within": seen[-1] - seen[0] if seen else 0.0,
    }


def _tell_of(steps: list[str], tell: int) -> None:
    """Write a sign whenever one of the steps begins or is over, once Dagster has it in its records."""
    import dagster as dg

    handle = dg.DagsterInstance.handle_new_event
    signs = {dg.DagsterEventType.STEP_START: _BEGAN, dg.DagsterEventType.STEP_SUCCESS: _DONE}

    def handle_and_tell(self: dg.DagsterInstance, event: dg.EventLogEntry, **more: Any) -> None:
        handle(self, event, **more)
        if event.step_key in steps and event.is_dagster_event:
            os.write(tell, signs.get(event.get_dagster_event().event_type, b""))

    dg.DagsterInstance.handle_new_event = handle_and_tell


def _put_clock(ahead: float) -> None:
    """What Dagster, MLflow and the package ask for the time; files still get that of the machine."""
    import datetime

    import dagster._time

    now = time.time

    class Datetime(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:
            return datetime.datetime.now(tz) + datetime.timedelta(seconds=ahead)

    time.time = lambda: now() + ahead
    dagster._time.datetime = Datetime


def _be(ask: dict[str, Any], tell: int) -> int:
    """What the child does: the command line, its output into a file."""
    os.setsid()
    os.chdir(ask["cwd"])
    os.environ.update(ask["environment"])
    output = os.open(ask["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(0)
    _tell_of(ask["steps"], tell)
    if ask["clock"]:
        _put_clock(ask["clock"])
    status = 70
    try:
        from wsi_assets.cli import main

        main(ask["arguments"])
    except SystemExit as ending:
        status = ending.code if isinstance(ending.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    return status


if __name__ == "__main__":
    _nurse()
