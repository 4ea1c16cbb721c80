"""Damaged input by the thousand: cases run many to a process, under limits of memory and time.

Parsers in C can take their process with them, so a case is first named on disk and then tried. A case is
made from its target and number alone: the one a failure names can be run again by itself with
``python -m wsi_assets_tests.e2e.fuzzing TARGET FOLDER NUMBER 1``.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

MEMORY = 1 << 30
"""Bytes a case may take beyond what the process holds before the first."""

SECONDS = 10
"""A case that takes more processor time counts as a hang: other work on the machine is no fault of it."""

WAITING = 3
"""A case that takes so many times as long by the clock waits for something that does not come."""

Case = Callable[[random.Random, Path], None]
"""Makes a case in a folder of its own and gives it to the parser; returns if it is read."""


@dataclass
class Outcome:
    """What became of the cases.

    Attributes:
        read, refused: how many were read, and refused with a typed error.
        faults: one text each on cases that did anything else.
        seconds: of processor time, of the slowest case.
        mebibytes: the most the process came to hold beyond its start.
    """

    read: int = 0
    refused: int = 0
    faults: list[str] = field(default_factory=list)
    seconds: float = 0.0
    mebibytes: float = 0.0


def survive(target: str, folder: Path, cases: int, first: int = 0, seconds: float = SECONDS) -> Outcome:
    """Try ``cases`` cases of ``target``, in as many processes as it takes."""
    outcome, stop, at = Outcome(), first + cases, first
    while at < stop:
        done = subprocess.run(
            [sys.executable, "-m", __name__, target, str(folder), str(at), str(stop - at), str(seconds)],
            cwd=Path(__file__).parents[2],
            # Caches of libraries may lie in the case's folder, nowhere else.
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "HOME": str(folder)},
            capture_output=True,
            text=True,
            check=False,
        )
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        for line in lines:
            outcome.read += line.get("read", 0)
            outcome.refused += line.get("refused", 0)
            outcome.seconds = max(outcome.seconds, line.get("seconds", 0))
            outcome.mebibytes = max(outcome.mebibytes, line.get("mebibytes", 0))
            outcome.faults += [line["fault"]] if "fault" in line else []
        if done.returncode == 0:
            break
        number = folder / "number"
        if done.returncode > 0 or not number.exists():
            raise AssertionError(done.stdout[-2000:] + done.stderr[-4000:])
        at = int(number.read_text()) + 1
        name = signal.Signals(-done.returncode).name
        outcome.faults.append(f"case {at - 1} of {target}: the process died of {name}\n{done.stderr[-1500:]}")
    return outcome


def _child(target: str, folder: Path, first: int, count: int, seconds: float = SECONDS) -> None:
    from wsi_assets_tests.e2e.fuzz_targets import TARGETS

    folder.mkdir(parents=True, exist_ok=True)
    case: Case = TARGETS[target](folder)
    written: list[str] = []
    _watch_writes(folder, written)
    base = _held()
    resource.setrlimit(resource.RLIMIT_AS, (_mapped() + 2 * MEMORY,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for number in range(first, first + count):
        (folder / "number").write_text(str(number))
        # Unhandled, they end the process, C code or not.
        signal.setitimer(signal.ITIMER_PROF, seconds)
        signal.setitimer(signal.ITIMER_REAL, WAITING * seconds)
        started = time.process_time()
        line = _attempt(case, random.Random(f"{target} {number}"), folder)
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        line["seconds"] = time.process_time() - started
        line["mebibytes"] = (_peak() - base) / (1 << 20)
        if line["mebibytes"] > MEMORY >> 20 and "fault" not in line:
            line["fault"] = f"it took {line['mebibytes']:.0f} MiB"
            # The peak stays; what follows is judged from it.
            base = _peak()
        if written:
            line["fault"] = f"it wrote outside its folder: {written}"
            written.clear()
        if "fault" in line:
            line.pop("read", None)
            line.pop("refused", None)
            line["fault"] = f"case {number} of {target}: {line['fault']}"
        print(json.dumps(line), flush=True)


def _attempt(case: Case, rng: random.Random, folder: Path) -> dict:
    from wsi_assets.errors import WsiAssetsError

    try:
        case(rng, folder)
    except WsiAssetsError as error:
        text = str(error)
        if "\n" in text or len(text) > 1000:
            return {"fault": f"its error is not one short line: {text[:1500]!r}"}
        return {"refused": 1}
    except BaseException:
        return {"fault": traceback.format_exc(limit=-8)[-3000:]}
    return {"read": 1}


def _watch_writes(folder: Path, written: list[str]) -> None:
    inside = str(folder.resolve()) + os.sep
    # Event -> which of its arguments is the folder that a relative name is meant from.
    names = {"os.mkdir": 2, "os.remove": 1, "os.rename": 2, "os.link": 2, "os.symlink": 2, "os.rmdir": 1}
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC

    def hook(event: str, args: tuple) -> None:
        if event == "open":
            path, _, flags = args
            if not isinstance(path, (str, bytes)) or not (flags or 0) & writing:
                return
        elif event in names:
            path, folder = args[0], args[names[event]]
            if folder >= 0:
                path = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), os.fsdecode(path))  # noqa: PTH115, PTH118
        elif event in {"subprocess.Popen", "os.system", "os.posix_spawn", "socket.connect"}:
            # Python's platform module and matplotlib ask these two about the machine when first used.
            if args[0] not in {"uname", "fc-list"}:
                written.append(f"{event} {args}")
            return
        else:
            return
        place = os.path.abspath(os.fsdecode(path))  # noqa: PTH100  (a hook must not raise on odd paths)
        if not place.startswith((inside, "/dev/")) and not place.endswith((".pyc", "__pycache__")):
            written.append(f"{event} {place}")

    sys.addaudithook(hook)


def _mapped() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _held() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _peak() -> int:
    # Not ru_maxrss: it begins at the peak of the process that started this one.
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) << 10


if __name__ == "__main__":
    _child(sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:5]), *map(float, sys.argv[5:]))
