"""Starts the Dagster UI, its daemon and the MLflow pages on one home, and stops them together.

One code server holds the graph for both. Restarting what stops by itself is the system's business: the README
has a systemd unit.
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
import yaml

from wsi_assets.errors import ConfigError, SlideError
from wsi_assets.orchestration.instance import prepare_home
from wsi_assets.orchestration.orphaned_runs import fail_orphaned_runs
from wsi_assets.orchestration.settings import Settings
from wsi_assets.orchestration.storage import StorageResource
from wsi_assets.slides import find_slides

LOCATION = "wsi_assets.definitions"
STOP_WITHIN_SECONDS = 1.5
ORPHANS_EVERY_SECONDS = 60
START_WITHIN_SECONDS = 120

WITHOUT_JOBS = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
"""MLflow's server would start eight more processes for jobs that nothing here gives it."""

SAY: Callable[[str], None] = partial(print, flush=True)
"""Prints at once, also into a file, where a server's lines would otherwise wait for its end."""


def serve(
    settings: Settings, host: str, port: int, mlflow_port: int, say: Callable[[str], None] = SAY
) -> int:
    """Serve until interrupted, or a server stops by itself: status 1.

    Raises:
        ConfigError: the host cannot be served on, or a port is taken or given twice.
    """
    own_mlflow = bool(mlflow_port) and settings.tracking_uri is None
    check_ports(host, {"--port": port, **({"--mlflow-port": mlflow_port} if own_mlflow else {})})
    home = prepare_home(settings)
    if own_mlflow:
        os.environ["WSI_MLFLOW_URL"] = f"http://{host}:{mlflow_port}"
    # Not `logs`: Dagster empties a folder of that name.
    logs = home / "server_logs"
    logs.mkdir(exist_ok=True)
    servers: dict[str, subprocess.Popen] = {}
    # The records are opened first: servers that all make the databases of a new home break each other's.
    with dg.DagsterInstance.get() as instance:
        try:
            code_port = _free_port()
            servers["code server"] = _start("code_server", _code_server(code_port), logs)
            _wait_for(code_port, servers["code server"], logs / "code_server.log")
            workspace = _workspace(home, code_port)
            for name, command in server_commands(settings, host, port, mlflow_port, workspace).items():
                servers[name] = _start(name, command, logs)
            say(f"Dagster UI:  http://{host}:{port}")
            if own_mlflow:
                say(f"MLflow:      http://{host}:{mlflow_port}")
            say(f"Logs:        {logs}")
            for line in slides_watched(settings):
                say(line)
            say("Stop with Ctrl-C.")
            return _watch(servers, instance, say)
        finally:
            _stop(list(reversed(servers.values())))


def server_commands(
    settings: Settings, host: str, port: int, mlflow_port: int, workspace: Path
) -> dict[str, list[str]]:
    """Name -> command line of each server. A foreign MLflow server is not started again here."""
    graph = ["-w", str(workspace)]
    commands = {
        "webserver": [_program("dagster-webserver"), *graph, "-h", host, "-p", str(port)],
        "daemon": [_program("dagster-daemon"), "run", *graph],
    }
    if mlflow_port and settings.tracking_uri is None:
        storage = StorageResource.of(settings)
        commands["mlflow"] = [
            *[_program("mlflow"), "server", "--host", host, "--port", str(mlflow_port), "--workers", "1"],
            *["--backend-store-uri", f"sqlite:///{storage.mlflow_database}"],
            *["--default-artifact-root", storage.mlflow_artifacts.as_uri()],
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
    watched = f"Slides:      {settings.images_dir}"
    later = f"It is listed again every {settings.poll_seconds} s"
    try:
        slides = find_slides(settings.images_dir, settings.annotations_dir).slides
    except (SlideError, OSError) as error:
        return [watched, f"warning: {error}. {later}"]
    watched += f" ({len(slides)} slides)"
    return [watched] if slides else [watched, f"warning: there is no slide in {settings.images_dir}. {later}"]


def _watch(
    servers: Mapping[str, subprocess.Popen], instance: dg.DagsterInstance, say: Callable[[str], None]
) -> int:
    next_search = 0.0
    while True:
        for name, process in servers.items():
            if process.poll() is not None:
                say(f"error: the {name} stopped with status {process.returncode}; all servers are stopped")
                return 1
        if time.monotonic() >= next_search:
            fail_orphaned_runs(instance, say)
            next_search = time.monotonic() + ORPHANS_EVERY_SECONDS
        time.sleep(0.5)


def _code_server(port: int) -> list[str]:
    return [
        *[_program("dagster"), "code-server", "start", "-m", LOCATION],
        *["-h", "127.0.0.1", "-p", str(port)],
    ]


def _workspace(home: Path, code_port: int) -> Path:
    """Where the servers find the code server. The name of the location is what switches are kept by."""
    path = home / "workspace.yaml"
    server = {"host": "127.0.0.1", "port": code_port, "location_name": LOCATION}
    path.write_text(yaml.safe_dump({"load_from": [{"grpc_server": server}]}), encoding="utf-8")
    return path


def _program(name: str) -> str:
    """A command of this environment, which may not be activated."""
    return str(Path(sys.executable).with_name(name))


def _start(name: str, command: list[str], logs: Path) -> subprocess.Popen:
    with (logs / f"{name}.log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **WITHOUT_JOBS})


def _wait_for(port: int, process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + START_WITHIN_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.2)
    raise ConfigError("the code server does not start", path=log, remedy="Its log says why")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _stop(processes: list[subprocess.Popen]) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGINT)
    deadline = time.monotonic() + STOP_WITHIN_SECONDS
    for process in processes:
        try:
            process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
