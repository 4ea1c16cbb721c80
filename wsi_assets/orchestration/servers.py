"""Runs the Dagster UI, its daemon and the MLflow pages on one home: started together, stopped together.

A server that stops by itself is started again, with a line: a lab's platform must outlive a process that the
system killed for want of memory. Runs have processes of their own and go on meanwhile.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import dagster as dg

from wsi_assets.errors import ConfigError, SlideError
from wsi_assets.files import disk_fault
from wsi_assets.orchestration.dead_runs import fail_dead_runs, free_slots
from wsi_assets.orchestration.home import prepare_home
from wsi_assets.orchestration.layout import StorageLayout
from wsi_assets.orchestration.reserve import Reserve
from wsi_assets.orchestration.settings import Settings
from wsi_assets.slides import find_slides

DEFINITIONS = ["-m", "wsi_assets.definitions"]
STOP_WITHIN_SECONDS = 10
LOOK_FOR_DEAD_RUNS_SECONDS = 60

# Loaded here because nothing may be loaded between fork and exec, where it is used.
_LIBC = ctypes.CDLL(None)
_SET_PARENT_DEATH_SIGNAL = 1

MOST_STOPS, WITHIN_SECONDS = 3, 300
"""A server that stops by itself more often than this has a fault that starting it again does not mend."""

WITHOUT_JOBS = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
"""MLflow's server would start eight more processes for jobs that nothing here gives it."""


SAY: Callable[[str], None] = partial(print, flush=True)
"""Prints at once, also into a file, where a server's lines would otherwise wait for its end."""


def serve(
    settings: Settings, host: str, port: int, mlflow_port: int, tell: Callable[[str], None] = SAY
) -> int:
    """Serve until interrupted; returns the exit status.

    Raises:
        ConfigError: the host cannot be served on, or a port is taken or given twice.
    """
    commands = server_commands(settings, host, port, mlflow_port)
    check_ports(host, {"--port": port, **({"--mlflow-port": mlflow_port} if "mlflow" in commands else {})})
    home = prepare_home(settings)
    # Not `logs`: Dagster empties a folder of that name.
    logs = home / "server_logs"
    logs.mkdir(exist_ok=True)
    # Started in the background, this process and its servers would inherit a SIGINT that is ignored.
    for interrupt in (signal.SIGINT, signal.SIGTERM):
        signal.signal(interrupt, signal.default_int_handler)
    servers = [Server(name, command, logs / f"{name}.log") for name, command in commands.items()]
    reserve = Reserve(home)
    # The records are opened first: servers that all make the databases of a new home break each other's.
    with dg.DagsterInstance.get() as instance:
        try:
            for server in servers:
                server.start()
            tell(f"Dagster UI:  http://{host}:{port}")
            if "mlflow" in commands:
                tell(f"MLflow:      http://{host}:{mlflow_port}")
            tell(f"Logs:        {logs}")
            for line in slides_watched(settings):
                tell(line)
            tell("Stop with Ctrl-C.")
            return _watch(servers, reserve, instance, tell)
        finally:
            _stop([server.process for server in servers if server.process is not None])
            reserve.give_up()


class Server:
    """One server's process; what it prints goes to ``log``."""

    def __init__(self, name: str, command: list[str], log: Path):
        self.name = name
        self.log = log
        self.process: subprocess.Popen | None = None
        self._command = command
        self._stops: list[float] = []

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command,
                stdout=log,
                stderr=log,
                env={**os.environ, **WITHOUT_JOBS},
                preexec_fn=_interrupt_with_parent,
            )

    def revive(self, tell: Callable[[str], None]) -> bool:
        """Start it again if it stopped; False if it stops too often for that."""
        if self.process is None or self.process.poll() is None:
            return True
        self._stops.append(time.monotonic())
        how = f"the {self.name} {_ended(self.process.returncode)}"
        if stops_too_often(self._stops, time.monotonic()):
            tell(f"error: {how}, once more within {WITHIN_SECONDS} s; see {self.log}")
            return False
        self.start()
        tell(f"{how[0].upper()}{how[1:]} and is started again; runs go on. See {self.log}")
        return True


def stops_too_often(stops: Sequence[float], now: float) -> bool:
    """Whether a server that stopped by itself at these times (seconds) is not to be started again."""
    return sum(now - stop <= WITHIN_SECONDS for stop in stops) > MOST_STOPS


def server_commands(settings: Settings, host: str, port: int, mlflow_port: int) -> dict[str, list[str]]:
    """Name -> command line of each server. A foreign MLflow server is not started again here."""
    python = [sys.executable, "-m"]
    commands = {
        "webserver": [*python, "dagster_webserver", *DEFINITIONS, "-h", host, "-p", str(port)],
        "daemon": [*python, "dagster._daemon", "run", *DEFINITIONS],
    }
    if mlflow_port and settings.tracking_uri is None:
        layout = StorageLayout(settings.storage_dir)
        commands["mlflow"] = [
            *[*python, "mlflow", "server", "--host", host, "--port", str(mlflow_port), "--workers", "1"],
            *["--backend-store-uri", f"sqlite:///{layout.mlflow_database}"],
            *["--default-artifact-root", layout.mlflow_artifacts.as_uri()],
        ]
    return commands


def check_ports(host: str, ports: Mapping[str, int]) -> None:
    """Make sure that each port, by the option that gives it, can be served on.

    Raises:
        ConfigError: two are the same, one is in use, or the host is not this machine's.
    """
    if len(set(ports.values())) < len(ports):
        raise ConfigError(
            f"{' and '.join(ports)} are both {next(iter(ports.values()))}", remedy="Change one of them"
        )
    for option, port in ports.items():
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except TypeError as error:  # e.g. a name too long to be coded
                raise ConfigError(f"--host {host!r} is no name of a host") from error
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    raise ConfigError(
                        f"port {port} is in use", remedy=f"Choose another with {option}"
                    ) from error
                raise ConfigError(
                    f"cannot serve on host {host}, port {port} ({error.strerror})",
                    remedy="Give --host an address of this machine, and ports that you may use",
                ) from error


def slides_watched(settings: Settings) -> list[str]:
    """What is watched, in a line, and a warning if there is nothing to see: a disk may be mounted later."""
    told = f"Slides:      {settings.images_dir}"
    later = f"Looked at again every {settings.look_every_seconds} s"
    try:
        slides = find_slides(settings.images_dir, settings.annotations_dir).slides
    except (SlideError, OSError) as error:
        return [told, f"warning: {error}. {later}"]
    told += f" ({len(slides)} slides)"
    return [told] if slides else [told, f"warning: there is no slide in {settings.images_dir}. {later}"]


def _watch(
    servers: Sequence[Server], reserve: Reserve, instance: dg.DagsterInstance, tell: Callable[[str], None]
) -> int:
    next_sweep = 0.0
    try:
        while True:
            line = reserve.look()
            if line:
                tell(line)
            if not all(server.revive(tell) for server in servers):
                return 1
            if time.monotonic() >= next_sweep:
                _sweep(instance, tell)
                next_sweep = time.monotonic() + LOOK_FOR_DEAD_RUNS_SECONDS
            time.sleep(0.5)
    except KeyboardInterrupt:
        tell("Stopping …")
        return 0


def _sweep(instance: dg.DagsterInstance, tell: Callable[[str], None]) -> None:
    try:
        if fail_dead_runs(instance, tell):
            free_slots(instance)
    except Exception as error:
        # A full disk is told of by the reserve; the next look finds the same runs.
        if disk_fault(error) is None:
            raise


def _ended(status: int) -> str:
    if status >= 0:
        return f"stopped with status {status}"
    with contextlib.suppress(ValueError):
        return f"was killed ({signal.Signals(-status).name})"
    return f"was killed (signal {-status})"


def _interrupt_with_parent() -> None:
    # Whoever was started in the background ignores interrupts, and so would all that it starts.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # Else servers outlive a parent that is killed, and keep the port from the next. Linux only.
    if sys.platform == "linux":
        _LIBC.prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGINT)


def _stop(processes: list[subprocess.Popen]) -> None:
    for process in processes:
        process.send_signal(signal.SIGINT)
    deadline = time.monotonic() + STOP_WITHIN_SECONDS
    for process in processes:
        try:
            process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
