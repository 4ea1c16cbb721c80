"""Fixtures that all tests share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# How long an example takes says how busy the machine is, not whether the code is right.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")

REAL_DATA = Path(os.environ.get("WSI_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))


STORIES = ("test_living.py", "test_ui.py")
"""Files whose tests share the running platform."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Tests of a file share a process, in order; so do the stories on the running platform."""
    from xdist.scheduler import LoadFileScheduling

    class ByFile(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "platform" if file.endswith(STORIES) else file

    return ByFile(config, log)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real slides and outlines; tests skip without it, except in CI, which must have it."""
    if not (REAL_DATA / "expected.json").is_file():
        if os.environ.get("CI"):
            pytest.fail("the real slides and outlines are missing, and CI must have them (set WSI_TEST_DATA)")
        pytest.skip("no real slides here (set WSI_TEST_DATA)")
    return REAL_DATA
