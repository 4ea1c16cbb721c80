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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LONGEST = 120
"""Seconds after which a run counts as one that hangs, and is killed."""

SMALL_COMMITS = 1 << 16
"""Bytes between commits of a store here: a small cohort then has several, as a large one does."""


@dataclass(frozen=True)
class Ended:
    """How a run ended: exit status, or minus the signal; all it printed; seconds it took."""

    status: int
    output: str
    seconds: float


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
        self, *arguments: object, cwd: Path, kill_after: float | None = None, **environment: str
    ) -> Ended:
        """Run to the end, or to SIGKILL after so many seconds."""
        ask = {
            "arguments": list(map(str, arguments)),
            "cwd": str(cwd),
            "kill_after": kill_after,
            "environment": environment,
            "output": str(self._output),
        }
        self._nursery.stdin.write(json.dumps(ask) + "\n")
        self._nursery.stdin.flush()
        line = self._nursery.stdout.readline()
        assert line, self._output.read_text(errors="replace")
        answer = json.loads(line)
        return Ended(answer["status"], self._output.read_text(errors="replace"), answer["seconds"])

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
    import wsi_assets.orchestration.home
    import wsi_assets.orchestration.runner
    import wsi_assets.patches.build
    from wsi_assets.learning import checkpoints, prediction, training  # noqa: F401

    with contextlib.suppress(ImportError):
        import mlflow  # noqa: F401
        import torchvision  # noqa: F401
    wsi_assets.patches.build._COMMIT_BYTES = SMALL_COMMITS
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    for line in sys.stdin:
        print(json.dumps(_run(json.loads(line))), flush=True)


def _run(ask: dict[str, Any]) -> dict[str, Any]:
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        os._exit(_be(ask))
    stop = started + (LONGEST if ask["kill_after"] is None else ask["kill_after"])
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        if time.monotonic() >= stop:
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            break
        time.sleep(0.002)
    # What it had started goes with it, as when a machine is switched off.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    return {"status": os.waitstatus_to_exitcode(status), "seconds": time.monotonic() - started}


def _be(ask: dict[str, Any]) -> int:
    """What the child does: the command line, its output into a file."""
    os.setsid()
    os.chdir(ask["cwd"])
    os.environ.update(ask["environment"])
    output = os.open(ask["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(0)
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
