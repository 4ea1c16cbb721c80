"""What `wsi-assets ui` starts, and ports that cannot be served on."""

from __future__ import annotations

import socket

import pytest

from wsi_assets.errors import ConfigError
from wsi_assets.orchestration.settings import Settings
from wsi_assets.orchestration.ui import check_ports, server_commands


@pytest.fixture
def settings(tmp_path) -> Settings:
    return Settings.from_environment({}, tmp_path)


def test_the_servers_are_dagster_dev_and_mlflow_on_the_storage_folder(settings):
    commands = server_commands(settings, "127.0.0.1", 3000, 5000)
    assert set(commands) == {"dagster", "mlflow"}
    assert f"sqlite:///{settings.storage_dir / 'mlflow.db'}" in commands["mlflow"]


def test_no_mlflow_server_is_started_if_one_is_configured(tmp_path):
    settings = Settings.from_environment({"MLFLOW_TRACKING_URI": "http://lab:5000"}, tmp_path)
    assert "mlflow" not in server_commands(settings, "127.0.0.1", 3000, 5000)


@pytest.mark.parametrize("host", ["203.0.113.1", "no such host", "x" * 300])
def test_a_host_that_is_not_this_machine_is_reported_in_one_line(host):
    with pytest.raises(ConfigError):
        check_ports(host, {"--port": 3000})


def test_a_port_in_use_names_its_option():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ConfigError) as caught:
            check_ports("127.0.0.1", {"--mlflow-port": taken.getsockname()[1]})
    assert "--mlflow-port" in str(caught.value)


def test_the_same_port_cannot_be_given_twice():
    with pytest.raises(ConfigError):
        check_ports("127.0.0.1", {"--port": 3000, "--mlflow-port": 3000})


@pytest.mark.parametrize(
    "environment",
    [
        {"WSI_POLL_SECONDS": "0"},
        {"WSI_POLL_SECONDS": "soon"},
        {"WSI_TIMEZONE": "Mars/Olympus"},
        {"WSI_STORAGE_DIR": "Müller #1 (50%20 done)"},
        {"WSI_STORAGE_DIR": "what?is=this"},
        {"DAGSTER_HOME": "/home/50%20"},
    ],
)
def test_an_impossible_variable_is_reported_in_one_line(environment, tmp_path):
    with pytest.raises(ConfigError) as caught:
        Settings.from_environment(environment, tmp_path)
    assert next(iter(environment)) in str(caught.value)
