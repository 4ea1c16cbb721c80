"""Whatever a file holds: a value or one typed line; no hang, flood or crash, nothing run, nothing strayed."""

from __future__ import annotations

import contextlib
import os
import pickle
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from wsi_assets.errors import ModelError
from wsi_assets.orchestration.settings import Settings
from wsi_assets.orchestration.ui import server_commands
from wsi_assets_tests.e2e.conftest import settings
from wsi_assets_tests.e2e.fuzzing import MEMORY, SECONDS, survive
from wsi_assets_tests.ports import free_port
from wsi_assets_tests.slides.made import picture, write_pyramid

CASES = 60
TRIALS = 10_000
PARSERS = (
    *("slides", "xml", "geojson", "pickles", "checkpoints", "lmdb", "hdf5", "fs"),
    *("configuration", "tables"),
)


@pytest.mark.parametrize("parser", PARSERS)
def test_damaged_input_is_read_or_refused_in_one_line(parser, real_data, tmp_path):
    outcome = survive(parser, tmp_path / "cases", CASES)
    assert outcome.faults == []
    assert outcome.read + outcome.refused == CASES
    # Both happen often, or the damage tests nothing; a manifest or a table with a slip is seldom read.
    assert min(outcome.read, outcome.refused) >= {"fs": 0}.get(parser, 2)
    assert outcome.seconds < SECONDS
    assert outcome.mebibytes < MEMORY >> 20


@pytest.mark.trial
@pytest.mark.parametrize("parser", PARSERS)
def test_ten_thousand_damaged_inputs_are_read_or_refused_in_one_line(parser, real_data, tmp_path):
    cases = int(os.environ.get("WSI_TRIAL_CASES", TRIALS))
    began = time.monotonic()
    outcome = survive(parser, tmp_path / "cases", cases, first=CASES)
    print(
        f"\n{parser}: {cases} cases in {time.monotonic() - began:.0f} s, {outcome.read} read, "
        f"{outcome.refused} refused; slowest {outcome.seconds:.1f} s, most memory {outcome.mebibytes:.0f} MiB"
    )
    assert outcome.faults == []
    assert outcome.read + outcome.refused == cases
    assert outcome.seconds < SECONDS
    assert outcome.mebibytes < MEMORY >> 20


def test_the_harness_sees_a_crash_a_hang_a_flood_a_stray_write_and_an_untyped_error(tmp_path):
    outcome = survive("bad_parser", tmp_path / "cases", 7, seconds=4)
    assert outcome.read == 1
    told = "\n".join(outcome.faults)
    for sign in ("SIGSEGV", "SIGALRM", "MiB", "stray", "ZeroDivisionError", "not one short line"):
        assert sign in told, told


class Trap:
    """A pickle of it makes a folder when it is loaded."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self):
        return (os.mkdir, (str(self.folder),))


def test_weights_that_want_to_run_code_do_not_and_are_one_line(tmp_path):
    import torch

    from wsi_assets.learning import load_model
    from wsi_assets.learning.models import build_model

    ran = tmp_path / "ran"
    for name, write in {
        "zipped.pt": lambda path: torch.save({"state_dict": {"weight": Trap(ran)}}, path),
        "old.pt": lambda path: torch.save(Trap(ran), path, _use_new_zipfile_serialization=False),
        "pickle.pt": lambda path: path.write_bytes(pickle.dumps(Trap(ran))),
    }.items():
        write(tmp_path / name)
        for load in (
            load_model,
            lambda path: build_model("resnet18", patch_size=64, weights=str(path)),
        ):
            with pytest.raises(ModelError) as caught:
                load(tmp_path / name)
            assert "\n" not in str(caught.value)
    assert not ran.exists()


@pytest.fixture(scope="module")
def storage(command_line, tmp_path_factory):
    """Two small slides taken to patches, and every pickle of the graph that this leaves."""
    home = tmp_path_factory.mktemp("traps")
    for seed, name in enumerate(("a_1", "a_2")):
        write_slide(home / "images" / f"{name}.tif", seed)
    done = command_line("run", "--level", 0, "--upto", "patch_store", *settings("patch_size=64"), cwd=home)
    assert done.returncode == 0, done.stdout + done.stderr
    return home


def write_slide(path: Path, seed: int = 0, side: int = 192) -> Path:
    path.parent.mkdir(exist_ok=True)
    return write_pyramid(path, [picture(side, side, seed)], mpp=0.25)


@pytest.mark.parametrize(
    ("trapped", "asset"),
    [
        ("slides/a_1/tissue_regions.pkl", "slide_index"),
        ("slides/a_2/annotation_regions.pkl", "slide_index"),
        ("level_0/index_level_0.pkl", "sampled_index"),
        ("level_0/index_level_0_sampled.pkl", "patch_store"),
    ],
)
def test_a_pickle_of_the_graph_that_wants_to_run_code_fails_its_reader_in_one_line(
    storage, tmp_path, trapped, asset
):
    import dagster as dg

    from wsi_assets.orchestration.build import build_definitions

    home = tmp_path / "home"
    shutil.copytree(storage, home)
    (home / "storage" / trapped).write_bytes(pickle.dumps([Trap(tmp_path / "ran")]))
    there = Settings.from_environment({}, home=home)
    with dg.DagsterInstance.from_config(str(home / "storage/dagster_home")) as instance:
        result = (
            build_definitions(there)
            .resolve_job_def("level_pipeline")
            .execute_in_process(
                instance=instance,
                partition_key="0",
                asset_selection=[dg.AssetKey(asset)],
                raise_on_error=False,
            )
        )
    assert not result.success
    (failure,) = [event.step_failure_data for event in result.all_events if event.is_step_failure]
    assert "mkdir" in failure.user_failure_data.description
    assert "\n" not in failure.user_failure_data.description
    assert not (tmp_path / "ran").exists()


NAMES = {
    "with two  spaces": True,
    "Grüße 日本 ñ": True,
    "percent%20%s%d{0} semi;colon&amp$HOME`id`": True,
    'quote\'single "double"': True,
    "[red]markup[bold]": True,
    "a" * 200: True,
    "comma,tab\tle": False,
    "three...stops": False,
    "new\nline": False,
    "__underscores": False,
    "b" * 245: False,
    "-dash trailing. ": True,
}
"""Slide id -> whether it can be one; what cannot is named and left out."""


def test_odd_slide_ids_work_or_are_named_and_left_out(command_line, tmp_path):
    for seed, name in enumerate(NAMES):
        write_slide(tmp_path / "images" / f"{name}.tif", seed)
    write_slide(tmp_path / "images" / ".hidden.tif")
    broken = os.fsencode(tmp_path / "images") + b"/bad\xff\xfebytes.tif"
    Path(os.fsdecode(broken)).write_bytes((tmp_path / "images" / "-dash trailing. .tif").read_bytes())
    done = command_line(
        *("run", "--level", 0, "--upto", "patch_store", "--set", "patch_store.backend=fs"),
        *settings("patch_size=64"),
        cwd=tmp_path,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 2, said
    assert "Traceback" not in said
    index = pickle.loads((tmp_path / "storage/level_0/index_level_0_sampled.pkl").read_bytes())
    made = set(index)
    assert made == {name for name, works in NAMES.items() if works}
    for name in [" ".join(name.split()) for name, works in NAMES.items() if not works] + ["bad"]:
        assert [line for line in done.stdout.splitlines() if line.strip().startswith(name)], (name, said)
    assert {path.name for path in tmp_path.iterdir()} == {"images", "storage"}
    assert {path.name for path in (tmp_path / "storage/slides").iterdir()} == made
    patches = list((tmp_path / "storage/level_0/image_patches").rglob("*.png"))
    assert len(patches) == sum(len(entry["patches"]) for entry in index.values()) > 0


def test_servers_listen_on_this_machine_only_unless_told_otherwise(tmp_path):
    shown = subprocess.run(
        [sys.executable, "-m", "wsi_assets.cli", "ui", "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert "127.0.0.1" in shown
    there = Settings.from_environment({}, home=tmp_path)
    commands = server_commands(there, "127.0.0.1", 3000, 5000)
    assert commands["dagster"][-4:] == ["-h", "127.0.0.1", "-p", "3000"]
    at = commands["mlflow"].index("--host")
    assert commands["mlflow"][at + 1] == "127.0.0.1"
    assert not any("0.0.0.0" in word for command in commands.values() for word in command)
    open_to_all = server_commands(there, "0.0.0.0", 3000, 5000)
    assert open_to_all["mlflow"][at + 1] == "0.0.0.0"


def test_no_running_server_listens_beyond_this_machine(tmp_path):
    """Whatever a server and its children open, not only what they were told: their own sockets are asked."""
    for folder in ("images", "storage"):
        (tmp_path / folder).mkdir()
    port, other = ports = free_port(), free_port()
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("WSI_", "DAGSTER_", "MLFLOW"))}
    with (tmp_path / "ui.log").open("wb") as log:
        ui = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "wsi_assets.cli",
                *("ui", "--port", str(port), "--mlflow-port", str(other)),
            ],
            cwd=tmp_path,
            env=kept,
            stdout=log,
            stderr=log,
        )
    try:
        deadline, listening = time.monotonic() + 300, set()
        while not set(ports) <= {place.port for place in listening}:
            assert ui.poll() is None, (tmp_path / "ui.log").read_text()
            assert time.monotonic() < deadline, f"{listening} listen, not {ports}"
            time.sleep(0.2)
            listening = listeners(ui.pid)
        # A socket for both protocols shows its loopback address as a mapped one.
        assert {place.ip.removeprefix("::ffff:") for place in listening} <= {"127.0.0.1", "::1"}
    finally:
        ui.terminate()
        ui.wait(60)


def listeners(pid: int) -> set:
    """Addresses at which a process and all it started listen."""
    found = set()
    for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            found |= {
                place.laddr for place in process.net_connections("inet") if place.status == psutil.CONN_LISTEN
            }
    return found
