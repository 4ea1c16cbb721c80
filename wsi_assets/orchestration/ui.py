"""Start and stop `dagster dev` (UI, daemon, code server), the MLflow server and the slide viewer.

Servers are not restarted: `docs/dagster.md` has a systemd unit for that.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import dagster as dg
import psutil

from wsi_assets.errors import ConfigError
from wsi_assets.orchestration.instance import LOCATION, finish_databases, prepare_home
from wsi_assets.orchestration.mlflow import runs_page
from wsi_assets.orchestration.orphaned_runs import fail_orphaned_runs
from wsi_assets.orchestration.settings import Settings
from wsi_assets.orchestration.slide_layers import serve_viewer
from wsi_assets.orchestration.storage import StorageResource

STOP_WITHIN_SECONDS = 1.5
ORPHANS_EVERY_SECONDS = 60

MLFLOW_SETTINGS = {
    # Job execution would start eight processes that are not needed here.
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}

SAY: Callable[[str], None] = partial(print, flush=True)
"""``print`` without buffering, so that lines appear at once when the output is a file."""


def serve(
    settings: Settings,
    host: str,
    port: int,
    mlflow_port: int,
    viewer_port: int = 0,
    say: Callable[[str], None] = SAY,
) -> int:
    """Run the servers until interrupted.

    Args:
        mlflow_port: port of the MLflow server; 0 for none.
        viewer_port: port of the slide viewer; 0 for none.
        say: is called with each line for the user.

    Returns:
        exit status 1, when a server stops by itself.

    Raises:
        ConfigError: the host cannot be served on, or a port is in use or given twice.
    """
    own_mlflow = bool(mlflow_port) and settings.tracking_uri is None
    others = {"--mlflow-port": mlflow_port if own_mlflow else 0, "--viewer-port": viewer_port}
    check_ports(host, {"--port": port, **{option: used for option, used in others.items() if used}})
    logs = prepare_home(settings) / "server_logs"  # Dagster empties the folder `logs`
    logs.mkdir(exist_ok=True)
    mlflow_url = f"http://{host}:{mlflow_port}" if own_mlflow else settings.tracking_uri
    os.environ.update({"WSI_MLFLOW_URL": mlflow_url} if own_mlflow else {}, **MLFLOW_SETTINGS)
    viewer_url = f"http://{host}:{viewer_port}"
    if viewer_port:
        os.environ["WSI_VIEWER_URL"] = viewer_url
        serve_viewer(settings, host, viewer_port)
    servers: dict[str, subprocess.Popen] = {}
    # Opening the instance creates the databases of a new home; servers that do so at the same time fail.
    with dg.DagsterInstance.get() as instance:
        finish_databases(instance)
        try:
            for name, command in server_commands(settings, host, port, mlflow_port).items():
                with (logs / f"{name}.log").open("ab") as log:
                    servers[name] = subprocess.Popen(command, stdout=log, stderr=log)
            say(f"Dagster UI:  http://{host}:{port}/asset-groups")  # the graph
            if mlflow_url:
                say(f"MLflow:      {runs_page(mlflow_url, StorageResource.of(settings))}")
            if viewer_port:
                say(f"Slides:      {viewer_url}")
            absent = "" if settings.images_dir.is_dir() else " (does not exist)"
            say(f"Watched:     {settings.images_dir}{absent}")
            say(f"Logs:        {logs}")
            say("Stop with Ctrl-C.")
            return _watch(servers, instance, say)
        finally:
            _stop(list(servers.values()))


def server_commands(settings: Settings, host: str, port: int, mlflow_port: int) -> dict[str, list[str]]:
    """Name -> command line of each server; without MLflow if ``settings`` has the address of a server."""
    # Full paths, because the environment of this Python may not be activated.
    dagster, mlflow = (str(Path(sys.executable).with_name(name)) for name in ("dagster", "mlflow"))
    commands = {"dagster": [dagster, "dev", "-m", LOCATION, "-h", host, "-p", str(port)]}
    if mlflow_port and settings.tracking_uri is None:
        storage = StorageResource.of(settings)
        commands["mlflow"] = [
            *[mlflow, "server", "--host", host, "--port", str(mlflow_port), "--workers", "1"],
            *["--backend-store-uri", f"sqlite:///{storage.mlflow_database}"],
            *["--default-artifact-root", storage.mlflow_artifacts.as_uri()],
        ]
    return commands


def check_ports(host: str, ports: Mapping[str, int]) -> None:
    """Check that the ports can be served on.

    Args:
        ports: command-line option -> port.

    Raises:
        ConfigError: two ports are the same, one is in use, or the host is not an address of this machine.
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
            except (OSError, TypeError) as error:  # TypeError: a host name that cannot be encoded
                if getattr(error, "errno", None) == errno.EADDRINUSE:
                    raise ConfigError(
                        f"port {port} is in use", remedy=f"Choose another with {option}"
                    ) from error
                raise ConfigError(
                    f"cannot serve on host {host}, port {port} ({error})",
                    remedy="Give --host an address of this machine, and ports that you may use",
                ) from error


def _watch(
    servers: Mapping[str, subprocess.Popen], instance: dg.DagsterInstance, say: Callable[[str], None]
) -> int:
    next_search = 0.0
    while True:
        for name, process in servers.items():
            if process.poll() is not None:
                say(f"error: {name} stopped, see its log; all servers are stopped")
                return 1
        if time.monotonic() >= next_search:
            fail_orphaned_runs(instance, say)
            next_search = time.monotonic() + ORPHANS_EVERY_SECONDS
        time.sleep(0.5)


def _stop(servers: list[subprocess.Popen]) -> None:
    """Interrupt the servers and kill those of their processes that do not end soon; runs go on."""
    found = [process for server in servers for process in _family(server.pid)]
    for server in servers:
        with contextlib.suppress(ProcessLookupError):
            server.send_signal(signal.SIGINT)
    for process in psutil.wait_procs(found, STOP_WITHIN_SECONDS)[1]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def _family(pid: int) -> list[psutil.Process]:
    """A process and its descendants, except the runs, which the code server starts."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        children = [] if "grpc" in process.cmdline() else process.children()
        return [process, *(one for child in children for one in _family(child.pid))]
    return []
