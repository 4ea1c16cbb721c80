"""Starts the Dagster UI, its daemon and the MLflow pages on one home, and stops them together."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial

import dagster as dg

from wsi_assets.errors import ConfigError
from wsi_assets.orchestration.dead_runs import fail_dead_runs
from wsi_assets.orchestration.home import prepare_home
from wsi_assets.orchestration.layout import StorageLayout
from wsi_assets.orchestration.settings import Settings

DEFINITIONS = ["-m", "wsi_assets.definitions"]
STOP_WITHIN_SECONDS = 10
LOOK_FOR_DEAD_RUNS_SECONDS = 60

WITHOUT_JOBS = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
"""MLflow's server would start eight more processes for jobs that nothing here gives it."""


def serve(
    settings: Settings, host: str, port: int, mlflow_port: int, tell: Callable[[str], None] = print
) -> int:
    """Serve until interrupted; returns the exit status.

    Raises:
        ConfigError: a port is taken.
    """
    home = prepare_home(settings)
    commands = server_commands(settings, host, port, mlflow_port)
    for name, taken in (("--port", port), ("--mlflow-port", mlflow_port)):
        if taken and not _is_free(host, taken):
            raise ConfigError(f"port {taken} is in use", remedy=f"Choose another with {name}")
    # Not `logs`: Dagster empties a folder of that name.
    logs = home / "server_logs"
    logs.mkdir(exist_ok=True)
    # Started in the background, this process and its servers would inherit a SIGINT that is ignored.
    for interrupt in (signal.SIGINT, signal.SIGTERM):
        signal.signal(interrupt, signal.default_int_handler)
    environment = {**os.environ, **WITHOUT_JOBS}
    processes = {}
    try:
        for name, command in commands.items():
            with (logs / f"{name}.log").open("ab") as log:
                processes[name] = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        tell(f"Dagster UI:  http://{host}:{port}")
        if "mlflow" in processes:
            tell(f"MLflow:      http://{host}:{mlflow_port}")
        tell(f"Logs:        {logs}\nStop with Ctrl-C.")
        with dg.DagsterInstance.get() as instance:
            return _wait(processes, logs, tell, partial(fail_dead_runs, instance, tell))
    finally:
        _stop(list(processes.values()))


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


def _is_free(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def _wait(
    processes: dict[str, subprocess.Popen],
    logs: object,
    tell: Callable[[str], None],
    sweep: Callable[[], object],
) -> int:
    next_sweep = 0.0
    try:
        while True:
            for name, process in processes.items():
                if process.poll() is not None:
                    tell(f"error: the {name} stopped with status {process.returncode}; see {logs}/{name}.log")
                    return 1
            if time.monotonic() >= next_sweep:
                sweep()
                next_sweep = time.monotonic() + LOOK_FOR_DEAD_RUNS_SECONDS
            time.sleep(0.5)
    except KeyboardInterrupt:
        return 0


def _stop(processes: list[subprocess.Popen]) -> None:
    for process in processes:
        process.send_signal(signal.SIGINT)
    deadline = time.monotonic() + STOP_WITHIN_SECONDS
    for process in processes:
        try:
            process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
