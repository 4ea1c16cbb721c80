"""A run that Ctrl-C or SIGTERM stops makes nothing more and drops no slide."""

from __future__ import annotations

import pickle
import signal
import sys
import time

import pytest

from wsi_assets_tests.test_running import begin, stopped


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_stopped_while_slides_are_read_leaves_none_out_and_continues(
    number, cohort, command_line, tmp_path
):
    arguments = ["run", "--level", "0", "--upto", "slide_index", *cohort]
    process = begin([sys.executable, "-m", "wsi_assets.cli", *arguments], tmp_path)
    storage = tmp_path / "storage"
    while process.poll() is None and not any(storage.rglob("tissue_regions.pkl")):
        time.sleep(0.02)
    said = stopped(process, number)
    assert "Traceback" not in said
    assert said.splitlines()[-1].startswith("stopped")
    assert not (storage / "level_0").exists()
    done = command_line(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(pickle.loads((storage / "level_0/index_level_0.pkl").read_bytes())) > 2
